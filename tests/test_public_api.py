"""The public names: a table of contents that is true, documented, and light to import."""

import inspect
import subprocess
import sys

import veneer

HEAVY = {"transformers", "accelerate", "datasets", "pandas", "sklearn", "matplotlib", "typer", "rich", "peft", "scipy"}


def test_all_lists_exactly_the_public_names():
    own = {name for name in dir(veneer) if not name.startswith("_") and not inspect.ismodule(getattr(veneer, name))}
    modules = {name for name in veneer.__all__ if inspect.ismodule(getattr(veneer, name))}
    assert modules == {"algebra", "analysis"}
    assert own | modules == set(veneer.__all__)
    assert list(veneer.__all__) == sorted(veneer.__all__)


def test_every_public_name_says_what_it_does():
    assert all(inspect.getdoc(getattr(veneer, name)) for name in veneer.__all__)


def test_importing_the_library_loads_nothing_heavier_than_torch():
    """Compared with torch alone, in fresh processes; numpy comes with torch."""

    def loaded(statement):
        code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
        return set(
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
        )

    assert loaded("from veneer import *") & HEAVY <= loaded("import torch") & HEAVY
