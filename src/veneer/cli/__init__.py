"""The `veneer` command: parses, calls, prints.

Each command imports what it needs when it is called, so that `veneer --help` and a wrong option answer at once.
"""

try:
    from veneer.cli.main import main
except ModuleNotFoundError as error:  # with the library alone
    if error.name != "typer":
        raise
    raise SystemExit("error: the veneer command needs typer; `pip install 'veneer[tool]'` brings it") from None

__all__ = ["main"]
