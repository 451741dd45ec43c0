"""The `veneer` command: parses, calls, prints.

Each command imports what it needs when it is called, so that `veneer --help` and a wrong option answer at once.
"""

from veneer.cli.main import main

__all__ = ["main"]
