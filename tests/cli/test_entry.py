"""What happens before any command runs: imports, public names, signals."""

import signal
import subprocess
import sys

import pytest

import veneer
from veneer.cli.main import main


@pytest.mark.parametrize("call", ["import veneer", "from veneer.cli import main"])
def test_neither_the_package_nor_its_command_imports_torch_before_it_is_needed(call):
    heavy = "[name for name in ('torch', 'transformers', 'pandas') if name in sys.modules]"
    code = f"import sys; {call}; print({heavy})"
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout.strip() == "[]"


def test_the_command_without_its_extra_says_what_to_install_and_the_library_works():
    code = "import sys; sys.modules['typer'] = None; import veneer; print('library'); import veneer.cli"
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "library\n")
    assert ended.stderr == "error: the veneer command needs typer; `pip install 'veneer[tool]'` brings it\n"


def test_every_public_name_is_there():
    assert all(getattr(veneer, name) is not None for name in veneer.__all__)
    assert set(veneer.__all__) <= set(dir(veneer))
    with pytest.raises(AttributeError, match="has no attribute 'adpat'"):
        _ = veneer.adpat


def test_a_request_to_end_is_an_interrupt(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["veneer", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
