"""The folder a run writes to: never overwritten unasked, and never more of it than Veneer itself wrote."""

import shutil
from pathlib import Path

from veneer.errors import OutputExistsError
from veneer.results import RESULTS_FILE

REPORT_FILE = "report.html"
OWN_FOLDERS = ("adapter", "model")


def require_free(folder: Path, *, overwrite: bool, advice: str = "") -> None:
    """Raise an `OutputExistsError` if `folder` holds anything, unless it may be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; choose another path for the run folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        what = "already holds a run" if (folder / RESULTS_FILE).exists() else "is not empty"
        raise OutputExistsError(f"{folder} {what}; choose another --out, or pass --overwrite to replace it{advice}")


def clear_results(folder: Path) -> None:
    """Delete what Veneer wrote to `folder`, and nothing else: results, report, weights and the runs below it."""
    if not folder.is_dir():
        return
    for child in folder.iterdir():
        is_run = child.is_dir() and (child / RESULTS_FILE).is_file()
        if is_run or (child.is_dir() and child.name in OWN_FOLDERS and (folder / RESULTS_FILE).is_file()):
            shutil.rmtree(child)
    for name in (RESULTS_FILE, REPORT_FILE):
        (folder / name).unlink(missing_ok=True)


def move_results(source: Path, folder: Path) -> None:
    """Move a finished run into `folder`, in place of what Veneer wrote there before; the results file comes last."""
    clear_results(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for child in sorted(source.iterdir(), key=lambda path: path.name == RESULTS_FILE):
        child.replace(folder / child.name)
