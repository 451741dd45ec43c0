"""The folder a run writes to: never overwritten unasked, and never more of it than Veneer itself wrote."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from veneer.errors import ConfigError, OutputExistsError
from veneer.results import RESULTS_FILE, RunRecord, read_results

REPORT_FILE = "report.html"
OWN_FOLDERS = ("adapter", "model")


def require_free(
    folder: Path, *, overwrite: bool, advice: str = "", written: Sequence[str] = (RESULTS_FILE, *OWN_FOLDERS)
) -> None:
    """Raise an `OutputExistsError` if `folder` holds anything, unless it may be overwritten and that is Veneer's.

    Args:
        folder: where results are to go.
        overwrite: whether earlier ones of Veneer's may be replaced.
        advice: what else the user may do, besides.
        written: what will be put there, so that none of it may be anybody else's.
    """
    require_folder(folder)
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        what = "already holds a run" if _own_records(folder) else "is not empty"
        raise OutputExistsError(f"{folder} {what}; choose another --out, or pass --overwrite to replace it{advice}")
    own = {RESULTS_FILE, *own_checkpoints(folder)} if _own_records(folder) else set()
    foreign = [name for name in written if name not in own and (folder / name).exists()]
    if foreign:
        listed = ", ".join(foreign)
        raise OutputExistsError(f"{folder} holds {listed}, which no finished run wrote; choose another --out")


def require_folder(path: Path) -> None:
    """Raise an `OutputExistsError` if `path`, or one above it, is a file, so that no folder can be there."""
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise OutputExistsError(f"{part} is a file; a folder is needed there, so choose another path")


def require_writable(folder: Path, option: str) -> None:
    """Raise a `ConfigError` if no file can be made in `folder`, which need not be there; `option` names another."""
    try:
        with made_folder(folder), tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{folder} cannot be written to: {reason}; name another folder by {option}") from None


def _own_records(folder: Path) -> list[RunRecord]:
    """Return the records of a run folder, or none where its results file is absent or not Veneer's."""
    try:
        return read_results(folder).records
    except ConfigError:
        return []


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make `folder` and the folders above it; those of them that are still empty after the block go again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # the first that is not empty: those above it are not either
            for path in missing:
                path.rmdir()


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder beside `folder` to build it in; whatever is left in there after the block goes."""
    with made_folder(folder.parent):
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_partial_prefix(folder)))
        try:
            partial.chmod(0o755)
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder that becomes `folder` when the block ends well; otherwise nothing is left of it.

    Raises:
        OutputExistsError: something is at `folder` already, other than an empty folder, or it is the working folder,
            which nothing can take the place of.
    """
    if folder.resolve() == Path.cwd():
        raise OutputExistsError(f"{folder} is the folder that you are in; name a new one inside it, or elsewhere")
    require_folder(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputExistsError(f"{folder} is not empty, and nothing is overwritten; choose another path")
    with partial_folder(folder) as partial:
        yield partial
        partial.replace(folder)


def clear_partials(folder: Path) -> None:
    """Delete what a process that was killed left of building `folder`."""
    for child in folder.parent.iterdir():
        if child.name.startswith(_partial_prefix(folder)):
            shutil.rmtree(child)


def _partial_prefix(folder: Path) -> str:
    return f".{folder.name}.partial-"


def own_runs(folder: Path) -> list[str]:
    """Return the names of the folders in `folder` that hold a comparison's run: those that are called as it is."""
    return sorted(
        child.parent.name
        for child in folder.glob(f"*/{RESULTS_FILE}")
        if [run_name(record.method, record.seed) for record in _own_records(child.parent)] == [child.parent.name]
    )


def own_checkpoints(folder: Path) -> list[str]:
    """Return what holds the weights of the run whose folder this is; nothing where it is no run, or a comparison."""
    return [record.checkpoint for record in _own_records(folder) if record.checkpoint in OWN_FOLDERS]


def clear_checkpoints(folder: Path) -> None:
    """Delete the weights of the run whose folder this is."""
    for name in own_checkpoints(folder):
        shutil.rmtree(folder / name, ignore_errors=True)


def clear_results(folder: Path) -> None:
    """Delete what Veneer wrote to `folder`, by its own results file, and nothing else."""
    clear_checkpoints(folder)
    for record in _own_records(folder):
        if record.checkpoint not in OWN_FOLDERS:
            clear_run(folder / run_name(record.method, record.seed))
    if _own_records(folder):
        clear_report(folder)
        (folder / RESULTS_FILE).unlink()


def clear_run(folder: Path) -> None:
    """Delete a run of a comparison, and its folder unless something of the user's is in it."""
    clear_results(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def clear_report(folder: Path) -> None:
    """Delete the page that Veneer wrote to `folder`, if it did."""
    if _own_records(folder):
        (folder / REPORT_FILE).unlink(missing_ok=True)


def run_name(method: str, seed: int) -> str:
    """Return the name of one run's folder within a comparison."""
    return f"{method}-seed{seed}"


def move_results(source: Path, folder: Path, *, overwrite: bool) -> None:
    """Move a finished run into `folder`, in place of what Veneer wrote there before; the results file comes last.

    Raises:
        OutputExistsError: something is there meanwhile that may not be replaced. The run is beside it, which is told.
    """
    try:
        require_free(folder, overwrite=overwrite)
    except OutputExistsError:
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}-"))
        source.replace(beside)
        raise OutputExistsError(f"{folder} was filled while this run was under way; this run is in {beside}") from None
    clear_results(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for child in sorted(source.iterdir(), key=lambda path: path.name == RESULTS_FILE):
        child.replace(folder / child.name)
