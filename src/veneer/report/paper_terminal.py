"""An exhibit on the terminal: its tables, a line for each claim, what was scaled down and what is missing."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from veneer.paper.exhibit import Outcome, Sheet, Table
from veneer.report.paper_cells import MARKS, WAITING, cell_note, cell_text, following_line, is_numeric, is_waiting

_STYLES: dict[Outcome, str] = {
    "held": "green",
    "not held": "red",
    "undecided": "yellow",
    "not run yet": "cyan",
    "not tested at this scale": "cyan",
}
_MOST_NAMED = 5
"""So many missing runs are named on the terminal; the page names all."""


def sheet_on_terminal(sheet: Sheet) -> Iterator[RenderableType]:
    """Yield what `rich` prints; nothing in the sheet is read as rich's markup."""
    yield Text(f"{sheet.exhibit}: {sheet.title}", style="bold")
    yield Text(sheet.shows)
    for table in sheet.tables:
        yield Text(f"\n{table.title}", style="bold")
        if is_waiting(table):
            yield Text(WAITING, style="dim")
            continue
        yield _table(table)
        yield from (Text(note, style="dim") for note in table.notes)
    if sheet.verdicts:
        yield Text("\nClaims", style="bold")
    for verdict in sheet.verdicts:
        yield Text.assemble(
            (f"  {MARKS[verdict.outcome]} {verdict.outcome}: ", _STYLES[verdict.outcome]),
            f"{verdict.claim} ({verdict.source}). ", (verdict.because, "dim"),
        )  # fmt: skip
    if sheet.scaled_down:
        yield Text("\nScaled down", style="bold")
    yield from (Text(f"  {line}", style="dim") for line in sheet.scaled_down)
    if sheet.missing:
        yield Text(f"\n{missing_line(sheet, named=_MOST_NAMED)}", style="yellow")
    if line := following_line(sheet):
        yield Text(line, style="yellow")


def missing_line(sheet: Sheet, *, named: int) -> str:
    """Return what is missing, the first `named` by name."""
    more = f" and {len(sheet.missing) - named} more" * (len(sheet.missing) > named)
    return f"Missing, {len(sheet.missing)}: {'; '.join(sheet.missing[:named])}{more}"


def _table(table: Table) -> RichTable:
    shown = RichTable(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for place, heading in enumerate(table.columns):
        numeric = is_numeric([row[place] for row in table.rows])
        shown.add_column(Text(heading), justify="right" if numeric else "left", overflow="fold")
    for row in table.rows:
        cells = []
        for cell in row:
            note = cell_note(cell)
            cells.append(Text(cell_text(cell)) + Text(f"\n{note}" if note else "", style="dim"))
        shown.add_row(*cells)
    return shown
