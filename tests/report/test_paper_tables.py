"""A sheet on the terminal, in Markdown and as CSV: the same numbers everywhere, nothing read as markup."""

import csv
import io
from dataclasses import replace
from typing import get_args

import pytest
from rich.console import Console

from veneer.paper.exhibit import Number, Outcome, Sheet, Table, Verdict
from veneer.report.paper_cells import MARKS, WAITING, cell_note, cell_text, is_waiting
from veneer.report.paper_csv import table_as_csv
from veneer.report.paper_markdown import sheet_as_markdown, table_as_markdown
from veneer.report.paper_terminal import sheet_on_terminal

TABLE = Table(
    name="made-up",
    title="A made-up table",
    columns=("Method | kind", "Trained", "Accuracy", "Minus FT"),
    rows=(
        ("[bold]x[/] *a_b*", 294_912, Number(value=0.8, sd=0.01, num_runs=3, note="1 of 4 collapsed"), None),
        ("plain", None, Number(value=0.9), Number(value=-0.1, low=-0.2, high=0.05, num_runs=2, signed=True, digits=2)),
    ),
    notes=("How to read it.",),
)
SHEET = Sheet(
    exhibit="made-up",
    title="Made up",
    shows="Nothing.",
    tables=(TABLE,),
    verdicts=(
        Verdict(claim="It works", source="Table 0", outcome="held", because="It did."),
        Verdict(claim="It flies", source="Table 0", outcome="not held", because="It fell."),
    ),
    scaled_down=("Everything.",),
    missing=tuple(f"run-{number}" for number in range(9)),
)


@pytest.mark.parametrize(
    ("cell", "text", "note"),
    [
        (None, "\N{EN DASH}", ""),
        (294_912, "294,912", ""),
        ("a\nb", "a b", ""),
        (Number(value=0.95449), "0.954", ""),
        (Number(value=0.8, sd=0.01, num_runs=3), "0.800 ± 0.010", "n = 3"),
        (Number(value=0.01, low=-0.002, high=0.02, signed=True), "+0.010 [-0.002, +0.020]", ""),
        (Number(value=12.34, digits=1, note="warm"), "12.3", "warm"),
    ],
)
def test_a_cell_is_written_in_one_way(cell, text, note):
    assert (cell_text(cell), cell_note(cell)) == (text, note)


def shown_on_terminal(sheet: Sheet) -> str:
    console = Console(width=200, file=io.StringIO(), color_system=None)
    for part in sheet_on_terminal(sheet):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_shows_every_number_and_reads_no_markup():
    shown = shown_on_terminal(SHEET)
    for text in (
        "[bold]x[/] *a_b*",
        "294,912",
        "0.800 ± 0.010",
        "1 of 4 collapsed",
        "-0.10 [-0.20, +0.05]",
        "held: It",
    ):
        assert text in shown
    assert "Missing, 9: run-0" in shown
    assert "and 4 more" in shown


@pytest.mark.parametrize("width", [12, 30, 50, 80, 120])
def test_a_narrow_terminal_breaks_no_number_and_names_the_columns_that_find_no_room(width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    wide = replace(
        TABLE, columns=("Model", *TABLE.columns[1:]), rows=(("a long name", *TABLE.rows[0][1:]), TABLE.rows[1])
    )
    for part in sheet_on_terminal(replace(SHEET, tables=(wide,)), width):
        console.print(part)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    table = shown.partition("How to read it.")[0]
    head, _, left_out = " ".join(table.split()).partition("No room for: ")
    for heading, number in (
        ("Trained", "294,912"),
        ("Accuracy", "0.800 ± 0.010"),
        ("Minus FT", "-0.10 [-0.20, +0.05]"),
    ):
        assert (number in table) != (heading in left_out), heading
    assert bool(left_out) == ("Minus FT" not in head)
    assert not left_out or "tables/made-up.csv" in left_out.replace(" ", "")


def test_markdown_has_a_cell_for_each_and_escapes_its_own_signs():
    lines = table_as_markdown(TABLE, TABLE.notes).splitlines()
    cells = [line.replace("\\|", "").count("|") for line in lines[:4]]
    assert cells == [5, 5, 5, 5]
    assert "\\[bold]x\\[/] \\*a\\_b\\*" in lines[2]
    assert lines[1] == "|---|---:|---:|---:|"
    text = sheet_as_markdown(SHEET, "figures")
    assert "not held**" in text
    assert all(name in text for name in SHEET.missing)


def test_csv_keeps_numbers_whole_and_a_column_for_each_part():
    rows = list(csv.DictReader(io.StringIO(table_as_csv(TABLE))))
    assert rows[0]["Method | kind"] == "[bold]x[/] *a_b*"
    assert (rows[0]["Trained"], rows[1]["Trained"]) == ("294912", "")
    assert float(rows[0]["Accuracy"]) == 0.8
    assert (rows[0]["Accuracy sd"], rows[0]["Accuracy n"], rows[0]["Accuracy note"]) == (
        "0.01",
        "3",
        "1 of 4 collapsed",
    )
    assert rows[1]["Accuracy sd"] == ""
    assert (float(rows[1]["Minus FT low"]), float(rows[1]["Minus FT high"])) == (-0.2, 0.05)
    assert "Trained sd" not in rows[0]


def test_a_row_that_does_not_fit_its_table_is_a_mistake():
    with pytest.raises(AssertionError, match="too short"):
        Table(name="t", title="t", columns=("a", "b"), rows=(("only one",),))
    with pytest.raises(AssertionError, match="a heading twice"):
        Table(name="t", title="t", columns=("a", "a"), rows=())


def test_a_table_waits_until_a_number_of_ours_is_in_it():
    empty = replace(TABLE, rows=(("a", 3, None, None),))
    assert is_waiting(empty)
    assert not is_waiting(TABLE)
    assert not is_waiting(replace(TABLE, rows=(("the paper's", 3, "87.2", "0.1"),)))
    assert table_as_markdown(empty, empty.notes) == WAITING
    shown = shown_on_terminal(replace(SHEET, tables=(empty,)))
    assert empty.title in shown
    assert WAITING in shown
    assert empty.columns[0] not in shown


@pytest.mark.parametrize("outcome", get_args(Outcome))
def test_an_outcome_has_its_mark_everywhere(outcome):
    sheet = replace(SHEET, verdicts=(replace(SHEET.verdicts[0], outcome=outcome),))
    assert sheet.counts == {one: int(one == outcome) for one in get_args(Outcome)}
    assert f"{MARKS[outcome]} {outcome}: It works" in shown_on_terminal(sheet)
    assert f"**{MARKS[outcome]} {outcome}**" in sheet_as_markdown(sheet, "figures")
