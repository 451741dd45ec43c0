"""The command's entry: one typer app, and what an error looks like to a person."""

import signal
import sys

import typer

from veneer.cli.compare import compare
from veneer.cli.console import stderr
from veneer.cli.convert import convert
from veneer.cli.inspect import inspect
from veneer.cli.merge import merge
from veneer.cli.reproduce import reproduce
from veneer.cli.train import train
from veneer.cli.use import evaluate, predict
from veneer.errors import DownloadError, VeneerError

INTERRUPTED = 130

app = typer.Typer(
    name="veneer",
    help="LoRA for PyTorch: fine-tune a pretrained model on labelled text, and see what was gained and paid.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (compare, train, evaluate, predict, inspect, convert, merge, reproduce):
    app.command()(command)


def main() -> None:
    """Run the command; a user's mistake ends with one message and exit code 2, the world's with 1."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is half built is cleared
    try:
        app()
    except DownloadError as error:
        _fail(str(error), 1)
    except VeneerError as error:
        _fail(str(error), 2)
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}", 1)
    except SystemExit as end:  # typer turns an interrupt into this exit code and says nothing
        if end.code == INTERRUPTED:
            for number in (signal.SIGINT, signal.SIGTERM):  # this one is answered
                signal.signal(number, signal.SIG_IGN)
            _fail("stopped; the run that was interrupted left nothing behind, finished runs are kept", INTERRUPTED)
        raise


def _fail(message: str, code: int) -> None:
    stderr.print("error:", style="bold red", end=" ")
    stderr.print(message, markup=False, soft_wrap=True)
    sys.exit(code)
