"""An exhibit on the terminal: its tables, a line for each claim, what was scaled down and what is missing."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from veneer.paper.exhibit import Outcome, Sheet, Table
from veneer.report.paper_cells import (
    MARKS,
    WAITING,
    cell_note,
    cell_text,
    following_line,
    is_numeric,
    is_waiting,
    notes_once,
)

_STYLES: dict[Outcome, str] = {
    "held": "green",
    "not held": "red",
    "undecided": "yellow",
    "not run yet": "cyan",
    "not tested at this scale": "cyan",
}
_GAP, _EDGES = 3, 2
"""Characters between two columns, and at both edges together, in the kind of table that is printed."""
_MOST_NAMED = 5
"""So many missing runs are named on the terminal; the page names all."""


def sheet_on_terminal(sheet: Sheet, width: int | None = None) -> Iterator[RenderableType]:
    """Yield what `rich` prints; nothing in the sheet is read as rich's markup.

    Args:
        sheet: the exhibit.
        width: of the terminal, in characters; columns that find no room are left out and named. None has room for all.
    """
    yield Text(f"{sheet.exhibit}: {sheet.title}", style="bold")
    yield Text(sheet.shows)
    for table, notes in zip(sheet.tables, notes_once(sheet.tables), strict=True):
        yield Text(f"\n{table.title}", style="bold")
        if is_waiting(table):
            yield Text(WAITING, style="dim")
            continue
        widths = _widths(table, width)
        yield _table(table, widths)
        if left_out := ", ".join(table.columns[len(widths) :]):
            yield Text(f"No room for: {left_out}. The page and tables/{table.name}.csv have them.", style="dim")
        yield from (Text(note, style="dim") for note in notes)
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


def _widths(table: Table, room: int | None) -> list[int]:
    """Return the widths of the columns that fit from the left, the first one always; what room is left over goes to
    texts.
    """
    least, most = zip(*(_extent(table, place) for place in range(len(table.columns))), strict=True)
    if room is None:
        return list(most)
    room += _GAP - _EDGES
    fitting = max(1, sum(end <= room for end in accumulate(width + _GAP for width in least)))
    widths = list(least[:fitting])
    left = room - sum(width + _GAP for width in widths)
    for place in range(fitting):
        more = max(0, min(left, most[place] - widths[place]))
        widths[place] += more
        left -= more
    return widths


def _extent(table: Table, place: int) -> tuple[int, int]:
    """Return the width at which no number and no word of a column is broken, and that at which nothing is."""
    cells, heading = [row[place] for row in table.rows], table.columns[place]
    lines = [line for cell in cells for line in (cell_text(cell), cell_note(cell))]
    parts = lines if is_numeric(cells) else [word for line in lines for word in line.split()]
    return max(map(len, [*parts, *heading.split()])), max(map(len, [*lines, heading]))


def _table(table: Table, widths: Sequence[int]) -> RichTable:
    shown = RichTable(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for place, (heading, width) in enumerate(zip(table.columns, widths, strict=False)):
        numeric = is_numeric([row[place] for row in table.rows])
        shown.add_column(Text(heading), justify="right" if numeric else "left", width=width, overflow="fold")
    for row in table.rows:
        cells = []
        for cell in row[: len(widths)]:
            note = cell_note(cell)
            cells.append(Text(cell_text(cell)) + Text(f"\n{note}" if note else "", style="dim"))
        shown.add_row(*cells)
    return shown
