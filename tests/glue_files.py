"""Small files in the layouts in which GLUE is given away: its archive's, Microsoft's own of MRPC, and the hub's.

The rows are made up; every text is different. Some hold quotation marks, which in these files are plain characters.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

Row = tuple[str, str, int | float]
"""Two texts, of which tasks of one text use the first, and a class number or, for STS-B, a number."""

PAIRED = ("mrpc", "rte", "stsb")
TASKS = ("sst2", "mrpc", "cola", "rte", "stsb")
WORDS = ("soup", "bread", "rain", "snow", "ball", "goal", "the", "we", "saw", "very", "today", "again")
ARCHIVE_FOLDERS = {"sst2": "SST-2", "mrpc": "MRPC", "cola": "CoLA", "rte": "RTE", "stsb": "STS-B"}
HUB_SPLITS = {"train": "train", "dev": "validation"}


def made_rows(task: str, num_rows: int, *, seed: int) -> list[Row]:
    """Rows whose answers follow from their words; a lone quotation mark opens every fifth text."""
    generator = random.Random(f"{task} {seed}")
    rows: list[Row] = []
    for number in range(num_rows):
        answer = number % 2 if task != "stsb" else round(5 * generator.random(), 3)
        share = answer if task != "stsb" else answer / 5
        first, second = (
            " ".join(
                generator.choice(WORDS[:3] if generator.random() < share else WORDS[3:6]) if turn % 2 else word
                for turn, word in enumerate(generator.choices(WORDS[6:], k=8))
            )
            for _ in range(2)
        )
        quote = '" ' if number % 5 == 0 else ""
        rows.append((f"{quote}{seed} {number} {first}", f"{second} {seed} {number}", answer))
    return rows


ARCHIVE_LINES: dict[str, tuple[list[str], Callable[[int, str, str, float], str]]] = {
    "sst2": (["sentence\tlabel"], lambda n, a, b, y: f"{a} \t{y}"),
    "mrpc": (["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"], lambda n, a, b, y: f"{y}\t{n}1\t{n}2\t{a}\t{b}"),
    "cola": ([], lambda n, a, b, y: f"gj04\t{y}\t{'' if y else '*'}\t{a}"),
    "rte": (
        ["index\tsentence1\tsentence2\tlabel"],
        lambda n, a, b, y: f"{n}\t{a}\t{b}\t{'not_entailment' if y else 'entailment'}",
    ),
    "stsb": (
        ["index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"],
        lambda n, a, b, y: f"{n}\tmain-news\theadlines\t2013\t{n:04}\tnone\tnone\t{a}\t{b}\t{y:.3f}",
    ),
}
"""The header of a file, where it has one, and a line of a row's number, texts and answer."""


def _lines(task: str, rows: Sequence[Row]) -> list[str]:
    header, line = ARCHIVE_LINES[task]
    return [*header, *(line(number, *row) for number, row in enumerate(rows))]


def write_archive(folder: Path, task: str, parts: Mapping[str, Sequence[Row]]) -> Path:
    """Write `<folder>/RTE/train.tsv` and `dev.tsv`, or those of another task; return the folder."""
    for side, rows in parts.items():
        _write(folder / ARCHIVE_FOLDERS[task] / f"{side}.tsv", _lines(task, rows), ending="\n")
    return folder


def write_msr(folder: Path, parts: Mapping[str, Sequence[Row]]) -> Path:
    """Write MRPC's two files as Microsoft gives them: a byte order mark, and lines that end as on Windows."""
    for side, name in {"train": "msr_paraphrase_train.txt", "dev": "msr_paraphrase_test.txt"}.items():
        _write(folder / "MRPC" / name, _lines("mrpc", parts[side]), ending="\r\n", encoding="utf-8-sig")
    return folder


def write_hub(folder: Path, task: str, parts: Mapping[str, Sequence[Row]]) -> Path:
    """Write `<folder>/rte/train-00000-of-00001.parquet` and that of validation; return the folder."""
    names = ("sentence1", "sentence2") if task in PAIRED else ("sentence",)
    for side, rows in parts.items():
        columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
        labels = pd.Series([row[2] for row in rows], dtype="float32" if task == "stsb" else "int64")
        table = pd.DataFrame({**columns, "label": labels, "idx": range(len(rows))})
        path = folder / task / f"{HUB_SPLITS[side]}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path, index=False)
    return folder


def _write(path: Path, lines: Sequence[str], *, ending: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((ending.join(lines) + ending).encode(encoding))
