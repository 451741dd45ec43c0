"""Five tasks of GLUE: single sentences and pairs, of two classes or, in STS-B, with a number from 0 to 5.

    <folder>/RTE/train.tsv, dev.tsv                       the files of GLUE's own archive
    <folder>/rte/train-00000-of-00001.parquet, ...        those of nyu-mll/glue on the hub; both give equal rows

The labels of GLUE's test files are hidden, so its dev rows are the test rows here, and they choose nothing: a tenth of
train is held out for validation, the same rows for every run. Runs of white space in texts are folded.

In the archive a tab always parts two fields and a quotation mark is a character like any other; CoLA has no header.
MRPC is also read from Microsoft's own two files, `msr_paraphrase_train.txt` and `msr_paraphrase_test.txt`, in the form
that GLUE's download script keeps them.

Source: Wang et al., "GLUE" (ICLR 2019), https://gluebenchmark.com/tasks; which metric, Hu et al. 2021, Table 2.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from veneer.data.splits import Examples, Splits, Task, make_splits
from veneer.data.tables import Columns, checked_examples, read_examples
from veneer.errors import DataError, DownloadError, first_line, gathered

VARIABLE = "VENEER_GLUE"
"""Environment variable with the folder, where the command is not given one."""
HUB_ID = "nyu-mll/glue"
NUM_DECIMALS = 3
"""Of STS-B's scores in the archive; the hub keeps them in single precision, which rounds back to the same."""
SIDES: Mapping[str, str] = {"train": "train", "dev": "validation"}
"""A split's name in the archive and on the hub."""


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """One task: how its files are laid out and what it is judged by."""

    name: str
    """As the user types it, and as its folder on the hub is called after the slash."""
    folder: str
    """In the archive."""
    columns: Mapping[str, str]
    """Role -> its column on the hub."""
    archive_columns: Mapping[str, str]
    """Role -> its column in the archive."""
    header: tuple[str, ...] | None = None
    """The archive's columns where its files do not name them."""
    makers_files: Mapping[str, str] | None = None
    """The files of its makers, for train and in place of dev, where they may be had without GLUE's."""
    labels: tuple[str, ...] = ()
    """Class names in the order of their numbers; none where a number is to be predicted."""
    metric: str = "accuracy"
    """What the paper reports, a key of `veneer.data.metrics.METRICS`."""
    num_rows: tuple[int, int]
    """Of train and dev, as published."""

    @property
    def task(self) -> Task:
        """Whether its rows are of classes or of numbers."""
        return "classification" if self.labels else "regression"

    @property
    def hub_folder(self) -> str:
        """In the hub's repository."""
        return self.name.removeprefix("glue/")


_ONE_TEXT = {"text": "sentence", "label": "label"}
_TWO_TEXTS = {"text": "sentence1", "text pair": "sentence2", "label": "label"}

TASKS: Mapping[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            name="glue/sst2",
            folder="SST-2",
            columns=_ONE_TEXT,
            archive_columns=_ONE_TEXT,
            labels=("negative", "positive"),
            num_rows=(67_349, 872),
        ),
        GlueTask(
            name="glue/mrpc",
            folder="MRPC",
            columns=_TWO_TEXTS,
            archive_columns={"text": "#1 String", "text pair": "#2 String", "label": "Quality"},
            makers_files={"train": "msr_paraphrase_train.txt", "dev": "msr_paraphrase_test.txt"},
            labels=("not_equivalent", "equivalent"),
            num_rows=(3_668, 408),
        ),
        GlueTask(
            name="glue/cola",
            folder="CoLA",
            columns=_ONE_TEXT,
            archive_columns=_ONE_TEXT,
            header=("source", "label", "authors_mark", "sentence"),
            labels=("unacceptable", "acceptable"),
            metric="matthews",
            num_rows=(8_551, 1_043),
        ),
        GlueTask(
            name="glue/rte",
            folder="RTE",
            columns=_TWO_TEXTS,
            archive_columns=_TWO_TEXTS,
            labels=("entailment", "not_entailment"),
            num_rows=(2_490, 277),
        ),
        GlueTask(
            name="glue/stsb",
            folder="STS-B",
            columns=_TWO_TEXTS,
            archive_columns={**_TWO_TEXTS, "label": "score"},
            metric="pearson",
            num_rows=(5_749, 1_500),
        ),
    )
}


def has_pairs(name: str) -> bool:
    """Return whether this names a task of two texts a row."""
    return name in TASKS and "text pair" in TASKS[name].columns


def read_splits(task: GlueTask, folder: str | None, notify: Callable[[str], None] | None = None) -> Splits:
    """Return a task's train and validation rows, held out of train, and its dev rows as the test.

    Args:
        task: which.
        folder: holds the tasks' folders; None takes the environment variable's, or else the hub's files.
        notify: takes one line for the user when the hub is asked.

    Raises:
        DataError: the folder does not hold the task, or a file cannot be used; every problem is named.
        DownloadError: there is no folder, and the hub cannot be reached.
    """
    files = task_files(task, folder, notify)
    parts = {side: _read(task, file) for side, file in files.items()}
    splits = make_splits(parts["train"], validation=None, test=parts["dev"], seed=0, name=task.name)
    return replace(splits, notes=(*splits.notes, *_notes(task, files, parts)))


def task_files(task: GlueTask, folder: str | None, notify: Callable[[str], None] | None = None) -> dict[str, Path]:
    """Return the files of train and dev, fetched from the hub where there is no folder.

    Raises:
        DataError, DownloadError: see `read_splits`.
    """
    place = folder or os.environ.get(VARIABLE)
    return _find(task, Path(place).expanduser()) if place else _download(task, notify)


def _find(task: GlueTask, place: Path) -> dict[str, Path]:
    """Return the files of train and dev in a local folder, in the first layout that is whole."""
    layouts = [
        {side: place / task.folder / f"{side}.tsv" for side in SIDES},
        {side: place / _hub_file(task, side) for side in SIDES},
    ]
    if task.makers_files is not None:
        layouts.append({side: place / task.folder / name for side, name in task.makers_files.items()})
    for files in layouts:
        if all(file.is_file() for file in files.values()):
            return files
    wanted = [" and ".join(str(file) for file in files.values()) for files in layouts]
    advice = "name the folder that holds the tasks' folders, by --glue or the environment variable " + VARIABLE
    raise DataError(gathered(f"{task.name} is not in {place}; {advice}. Looked for one of:", wanted))


def _hub_file(task: GlueTask, side: str) -> str:
    return f"{task.hub_folder}/{SIDES[side]}-00000-of-00001.parquet"


def _download(task: GlueTask, notify: Callable[[str], None] | None) -> dict[str, Path]:
    """Return the files of train and dev in the hub client's own cache, fetched the first time."""
    import huggingface_hub  # noqa: PLC0415  (needed without a folder only)

    huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # else a line for each try
    if notify:
        notify(f"{task.name}: taking its files from {HUB_ID} on the hub (--glue FOLDER takes yours)")
    try:
        return {
            side: Path(huggingface_hub.hf_hub_download(HUB_ID, _hub_file(task, side), repo_type="dataset"))
            for side in SIDES
        }
    except Exception as error:  # the hub client raises many kinds, none of them ours
        ways = [
            f"--glue FOLDER, where FOLDER/{task.folder} holds the train.tsv and dev.tsv of GLUE's archive",
            f"the environment variable {VARIABLE}, set to such a folder",
            f"a connection to the hub, for {HUB_ID}: {first_line(error)}",
        ]
        raise DownloadError(gathered(f"{task.name} needs its files; give one of:", ways)) from None


def _read(task: GlueTask, file: Path) -> Examples:
    """Return the rows of a file, class numbers replaced by names."""
    if file.suffix == ".parquet":
        columns = task.columns
        rows = read_examples(
            file, text=columns["text"], label=columns["label"], text_pair=columns.get("text pair"), task=task.task
        )
    else:
        rows = checked_examples(file, _read_archive(task, file), task.archive_columns, task=task.task)
    texts, pairs = _folded(rows.texts), None if rows.pairs is None else _folded(rows.pairs)
    if rows.targets is not None:
        targets = tuple(round(target, NUM_DECIMALS) for target in rows.targets)
        return replace(rows, texts=texts, pairs=pairs, targets=targets)
    assert rows.labels is not None
    names = {str(number): name for number, name in enumerate(task.labels)} | {name: name for name in task.labels}
    if unknown := sorted(set(rows.labels) - set(names)):
        known = ", ".join(names)
        raise DataError(f"{file}: unknown labels {', '.join(map(repr, unknown[:5]))}; {task.name} has {known}")
    return replace(rows, texts=texts, pairs=pairs, labels=tuple(names[label] for label in rows.labels))


def _folded(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(" ".join(text.split()) for text in texts)


def _read_archive(task: GlueTask, file: Path) -> Columns:
    """Return the columns of a file of the archive: a row a line, a tab between fields, no quoting."""
    try:
        lines = file.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}") from None
    rows = {number: line.rstrip("\r").split("\t") for number, line in enumerate(lines, start=1) if line.strip()}
    header = task.header or tuple(rows.pop(min(rows)) if rows else ())
    if missing := [repr(column) for column in task.archive_columns.values() if column not in header]:
        raise DataError(f"{file} lacks the columns {', '.join(missing)} of {task.name}; it has {', '.join(header)}")
    problems = [
        f"line {number}: {len(fields)} fields, not {len(header)}"
        for number, fields in rows.items()
        if len(fields) != len(header)
    ]
    if problems:
        raise DataError(gathered(f"{file} is not as GLUE's archive has it: a tab between fields, no quoting", problems))
    places = {role: header.index(column) for role, column in task.archive_columns.items()}
    return {role: [fields[place] for fields in rows.values()] for role, place in places.items()}


def _notes(task: GlueTask, files: Mapping[str, Path], parts: Mapping[str, Examples]) -> list[str]:
    """Return what the user should know of where the rows come from."""
    notes = ["test: GLUE's dev rows, whose labels are known; those of its test rows are not"]
    if task.makers_files is not None and files["dev"].name == task.makers_files["dev"]:
        notes = ["test: its makers' own test rows, not GLUE's dev rows: scores are of another test than the paper's"]
    elif (found := tuple(len(part) for part in parts.values())) != task.num_rows:
        notes += ["rows: {:,} and {:,} of train and dev, but GLUE has {:,} and {:,}".format(*found, *task.num_rows)]
    return notes
