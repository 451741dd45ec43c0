"""Labelled text out of a file: CSV, TSV, JSON lines or Parquet.

CSV and TSV give plain strings ("NA", "007" and "1.0" stay what they are), JSON lines and Parquet typed values. Every
row is checked and all problems of a file are gathered into one error. Texts are left untouched; class and column names
lose the white space around them. This module does not split, drops no row and guesses no column or separator.
"""

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from veneer.data.splits import Examples, Task
from veneer.errors import DataError, UnknownNameError, gathered, unknown_name

Columns = dict[str, list[object]]  # role ("text", "text pair", "label") -> each row's value, None where it has none
Reader = Callable[[Path, bytes, Mapping[str, str]], Columns]  # from path, content and role -> column name

_MOST_CLASSES = 1_000
_FEWEST_ROWS_OF_IDS = 10  # a shorter file may well hold one row of each class
_LONGEST_FIELD = 2**31 - 1  # characters: the largest limit the csv module takes on every platform
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_BEGINNINGS = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer in place of the file",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}


def read_examples(
    path: Path,
    *,
    text: str,
    label: str | None,
    text_pair: str | None = None,
    task: Task = "classification",
    repeating: bool = False,
) -> Examples:
    """Read the named columns of a .csv, .tsv, .jsonl or .parquet file.

    Args:
        path: The file; its ending says what it is.
        text: Column of the text, or of the first of two texts.
        label: Column of the class name, or of the number to predict; None for text without labels.
        text_pair: Column of the second text where the task is about two.
        task: Whether labels are classes or numbers.
        repeating: Whether classes have to occur more than once, as in rows to train on.

    Raises:
        UnknownNameError: The file has no such column; the message names each.
        DataError: The file or its rows cannot be used; the message lists every problem.
    """
    named = {"text": text, "text pair": text_pair, "label": label}
    wanted = {role: column.strip() for role, column in named.items() if column is not None}
    if len(set(wanted.values())) < len(wanted):
        listed = ", ".join(f"{role} = {column!r}" for role, column in wanted.items())
        raise DataError(f"{path}: one column was given twice ({listed}): each needs a column of its own")
    read, content = _opened(path)
    return checked_examples(path, read(path, content, wanted), wanted, task=task, repeating=repeating)


def checked_examples(
    path: Path, columns: Columns, wanted: Mapping[str, str], *, task: Task, repeating: bool = False
) -> Examples:
    """Return the rows of a file whose columns were read, or raise a `DataError` that lists every problem.

    Args:
        path: The file, for messages.
        columns: Each role's values; "text" at the least.
        wanted: Role -> the column's name, for messages.
        task: Whether labels are classes or numbers.
        repeating: See `read_examples`.
    """
    if not columns["text"]:
        raise DataError(f"{path} is empty: it names its columns, but has no rows. Give at least one row")
    problems = [
        problem
        for role in columns
        if role != "label"
        for problem in _row_problems(wanted[role], columns[role], _text_fault)
    ]
    labels: tuple[str, ...] | None = None
    targets: tuple[float, ...] | None = None
    if "label" in columns and task == "regression":
        numbers = [_as_number(value) for value in columns["label"]]
        problems += _row_problems(wanted["label"], numbers, _number_fault)
        targets = tuple(number for number in numbers if isinstance(number, float))
    elif "label" in columns:
        names = [_as_name(value) for value in columns["label"]]
        problems += _label_problems(wanted["label"], names, repeating=repeating)
        labels = tuple(map(str, names))
    if problems:
        raise DataError(gathered(f"{path}: unusable rows (counted from 1, the header not counted)", problems))
    pairs = tuple(map(str, columns["text pair"])) if "text pair" in columns else None
    return Examples(texts=tuple(map(str, columns["text"])), pairs=pairs, labels=labels, targets=targets)


def _opened(path: Path) -> tuple[Reader, bytes]:
    """Return the reader for the path's ending and the file's bytes, or say why this is no file to read."""
    reader = FILE_ENDINGS.get(path.suffix.lower())
    known = ", ".join(FILE_ENDINGS)
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder: name the file in it to read ({known})")
        if reader is None:
            path.stat()  # that a file is not there is said before its ending
            raise DataError(f"{path} has the ending {path.suffix!r}; known: {known}. Convert, unpack or rename it")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path} (looked for {path.absolute()}): check the path") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the path and its permissions") from error
    if not content.removeprefix(b"\xef\xbb\xbf").strip():
        raise DataError(f"{path} is empty: it holds nothing at all. Give a file with at least one row of data")
    return reader, content


def _text(path: Path, content: bytes) -> str:
    """Return the file's text, which must be UTF-8 without NUL; a byte order mark is left out."""
    for beginning, what in _BEGINNINGS.items():
        if content.startswith(beginning):
            raise DataError(f"{path} is {what}, not {path.suffix} text: save it as {path.suffix} in UTF-8")
    try:
        text = content.decode("utf-8")
        offset = content.find(b"\x00")
    except UnicodeDecodeError as error:
        offset = error.start
    if offset >= 0:
        line = content.count(b"\n", 0, offset) + 1
        found = f"0x{content[offset]:02x} is not UTF-8" if content[offset] else "NUL: binary data, or UTF-16"
        raise DataError(f"{path}, line {line}, byte offset {offset}: the byte {found}. Save the file again as UTF-8")
    return text.removeprefix("\ufeff")


def _locate(path: Path, names: Sequence[str], wanted: Mapping[str, str], *, advice: str = "") -> dict[str, int]:
    """Return role -> position among the file's column names, or name every column that is not there."""
    known = [name.strip() for name in names]
    repeated = [repr(name) for name, count in Counter(known).items() if name and count > 1]
    if repeated:
        raise DataError(f"{path}: several columns are named {', '.join(repeated)}: give each a name of its own")
    problems = [
        str(unknown_name("column", column, filter(None, known), advice=f"It was given as the {role} column."))
        for role, column in wanted.items()
        if column not in known
    ]
    if problems:
        raise UnknownNameError(gathered(f"{path} lacks a column that was asked for{advice}", problems))
    return {role: known.index(column) for role, column in wanted.items()}


def _read_separated(path: Path, content: bytes, wanted: Mapping[str, str], *, separator: str) -> Columns:
    """Read rows of fields; a field in double quotes may hold separators, newlines and doubled quotes."""
    rows = _rows(path, _text(path, content), separator)
    _, header = next(rows)
    found = [f"; it has {what}" for mark, what in _SEPARATORS.items() if len(header) == 1 and mark in header[0]]
    named = "The first line must name the columns, with commas between them in a .csv, tabs in a .tsv"
    positions = _locate(path, header, wanted, advice=f". {named}{''.join(found)}")
    columns: Columns = {role: [] for role in wanted}
    problems: list[str] = []
    for line, row in rows:
        if len(row) > len(header):
            problems.append(f"line {line}: {len(row)} fields under {len(header)} names")
        for role, position in positions.items():
            columns[role].append(row[position] if position < len(row) else None)
    if problems:
        raise DataError(gathered(f"{path}: more fields than the header; put text with a separator in quotes", problems))
    return columns


def _rows(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line at which it begins, fields) for each row that is not blank."""
    limit_before = csv.field_size_limit(_LONGEST_FIELD)  # the module's own limit would refuse a long document
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        advice = "quote the whole field, and write each quote inside it twice"
        raise DataError(f"{path}, line {line}: a double quote is misplaced or never closed: {advice}") from error
    finally:
        csv.field_size_limit(limit_before)


def _read_json_lines(path: Path, content: bytes, wanted: Mapping[str, str]) -> Columns:
    rows: list[dict[str, object]] = []
    problems: list[str] = []
    for number, line in enumerate(_text(path, content).split("\n"), start=1):
        if not line or line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            problems.append(f"line {number}: {line[:60]!r}")
    if problems:
        wish = 'each line must be one JSON object, such as {"text": "...", "label": "..."}'
        raise DataError(gathered(f"{path} has lines that are not a JSON object: {wish}", problems))
    names = list(dict.fromkeys(name for row in rows for name in row))
    positions = _locate(path, names, wanted)
    return {role: [row.get(names[position]) for row in rows] for role, position in positions.items()}


def _read_parquet(path: Path, content: bytes, wanted: Mapping[str, str]) -> Columns:
    advice = "write it again as Parquet, or name it for what it is"
    if not (content.startswith(b"PAR1") and content.endswith(b"PAR1")):
        raise DataError(f"{path} is not Parquet, or only a part of a Parquet file: {advice}")
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        names = list(file.schema_arrow.names)
        positions = _locate(path, names, wanted)
        table = file.read(columns=[names[position] for position in positions.values()])
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is a damaged Parquet file: {advice}") from error
    return {role: table.column(names[position]).to_pylist() for role, position in positions.items()}


FILE_ENDINGS: Mapping[str, Reader] = {
    ".csv": partial(_read_separated, separator=","),
    ".tsv": partial(_read_separated, separator="\t"),
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}


def _row_problems(column: str, values: Sequence[object], fault_of: Callable[[object], str]) -> list[str]:
    """Return a line for each kind of fault: how many rows have it and which are the first five; {} is the first one."""
    faults: dict[str, list[int]] = {}
    for row, value in enumerate(values, start=1):
        if fault := fault_of(value):
            faults.setdefault(fault, []).append(row)
    shown = {fault: ", ".join(map(str, rows[:5])) + ", ..." * (len(rows) > 5) for fault, rows in faults.items()}
    told = {fault: fault.format(repr(str(values[rows[0] - 1])[:20])) for fault, rows in faults.items()}
    return [f"column {column!r}: {told[fault]}: {len(faults[fault]):,} in all, row {shown[fault]}" for fault in faults]


def _text_fault(value: object) -> str:
    """Return what keeps a value from being a text, or "" where it is one."""
    if isinstance(value, str) and value and not value.isspace():
        return "" if value.isascii() or not _HALF_CHARACTER.search(value) else "half a character (a lone surrogate)"
    is_missing = value is None or isinstance(value, str) or str(value) == "nan"
    return "missing or empty" if is_missing else f"must be a string, not {type(value).__name__}"


def _label_problems(column: str, names: Sequence[object], *, repeating: bool) -> list[str]:
    """Return a line for each kind of faulty label, or one where the labels cannot be classes."""
    problems = _row_problems(column, names, _label_fault)
    num_classes = 0 if problems else len(set(names))
    if num_classes > _MOST_CLASSES or (repeating and num_classes == len(names) >= _FEWEST_ROWS_OF_IDS):
        found = f"{num_classes:,} different labels in {len(names):,} rows look like ids, free text or measurements"
        problems.append(f"column {column!r}: {found}; classes repeat, and there may be {_MOST_CLASSES:,} at most")
    return problems


def _label_fault(name: object) -> str:
    regression = "a fraction looks like a regression target; give class names, or --task regression"
    return regression if isinstance(name, float) else _text_fault(name)


def _as_name(value: object) -> object:
    """Return a label as a class name, None where it is missing, or the value itself where it cannot be one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    stripped = value.strip() if isinstance(value, str) else value
    return None if str(stripped).lower() == "nan" else stripped


def _as_number(value: object) -> object:
    """Return a label as a number, None where it is missing, or the value itself where it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return value
    try:
        return float(value) if str(value).strip() else None
    except (ValueError, OverflowError):
        return value


def _number_fault(value: object) -> str:
    """Return what keeps a value from being a number to predict, or "" where it is one."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else "missing, or not finite"
    return "missing or empty" if value is None else "not a number, such as {}"
