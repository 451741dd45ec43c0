"""Writing predicted classes with their probabilities, or predicted numbers, to a table."""

import csv
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from veneer.data.splits import Examples
from veneer.errors import OutputExistsError, unknown_name

Writer = Callable[[pd.DataFrame, Path], object]

# Texts are quoted, since the csv module would leave one with a lone carriage return bare.
WRITERS: Mapping[str, Writer] = {
    ".csv": lambda table, path: table.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC),
    ".tsv": lambda table, path: table.to_csv(path, index=False, sep="\t", quoting=csv.QUOTE_NONNUMERIC),
    ".jsonl": lambda table, path: table.to_json(
        path, orient="records", lines=True, force_ascii=False, double_precision=15
    ),
    ".parquet": lambda table, path: table.to_parquet(path, index=False),
}


def prediction_table(
    examples: Examples, labels: Sequence[str], probabilities: Float[Tensor, "rows classes"]
) -> pd.DataFrame:
    """Return one row a text: the text, the likeliest label, its probability, then each class's probability."""
    columns = _text_columns(examples)
    best = probabilities.max(dim=1)
    columns["label"] = [labels[number] for number in best.indices.tolist()]
    columns["probability"] = best.values.tolist()
    for number, label in enumerate(labels):
        columns[f"p({label})"] = probabilities[:, number].tolist()
    return pd.DataFrame(columns)


def number_table(examples: Examples, numbers: Float[Tensor, " rows"]) -> pd.DataFrame:
    """Return one row a text: the text, and the number predicted for it."""
    return pd.DataFrame({**_text_columns(examples), "prediction": numbers.tolist()})


def _text_columns(examples: Examples) -> dict[str, object]:
    pairs = {} if examples.pairs is None else {"text_pair": examples.pairs}
    return {"text": examples.texts, **pairs}


def check_output(path: Path, *, overwrite: bool) -> Writer:
    """Return the writer for a file's ending.

    Raises:
        UnknownNameError: the ending is not known.
        OutputExistsError: the file exists and may not be overwritten, or its folder does not exist or is read-only.
    """
    ending = path.suffix.lower()
    if ending not in WRITERS:
        raise unknown_name("file ending", path.suffix, WRITERS, advice=f"Given: {path}.")
    if not path.parent.is_dir():
        raise OutputExistsError(f"{path.parent} is no folder; make it or choose another --out")
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder; choose another --out")
    if not os.access(path.parent, os.W_OK):
        raise OutputExistsError(f"{path.parent} cannot be written to; choose another --out")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists already; choose another --out or pass --overwrite to replace it")
    return WRITERS[ending]


def write_predictions(table: pd.DataFrame, path: Path, *, overwrite: bool) -> None:
    """Write a prediction table in the format of the file's ending, whole or not at all."""
    writer = check_output(path, overwrite=overwrite)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        temporary = Path(scratch) / path.name
        writer(table, temporary)
        temporary.replace(path)
