"""How a cell of an exhibit's table and a verdict are written: one home, so that terminal, Markdown and page agree."""

from collections.abc import Mapping, Sequence

from veneer.paper.exhibit import Cell, Number, Outcome, Sheet, Table
from veneer.report.formatting import UNKNOWN, count, plain

MARKS: Mapping[Outcome, str] = {
    "held": "+",
    "not held": "\N{MULTIPLICATION SIGN}",
    "undecided": "?",
    "not run yet": "\N{MIDDLE DOT}",
    "not tested at this scale": "-",
}
"""What stands before an outcome; in Latin-1, as a terminal may know no more."""
WAITING = "Nothing of ours is there yet."


def is_waiting(table: Table) -> bool:
    """Return whether nothing measured is in the table yet: it has no row, or no number and a column of blanks."""
    has_number = any(isinstance(cell, Number) for row in table.rows for cell in row)
    has_blanks = any(all(cell is None for cell in column) for column in zip(*table.rows, strict=True))
    return not table.rows or (has_blanks and not has_number)


def notes_once(tables: Sequence[Table]) -> list[tuple[str, ...]]:
    """Return each table's notes but for those that stand under one above it, which it points to."""
    told: set[str] = set()
    shown = []
    for table in tables:
        own = tuple(note for note in table.notes if note not in told)
        if not is_waiting(table):
            told.update(own)
        shown.append(own if len(own) == len(table.notes) else (*own, "Further notes stand under a table above."))
    return shown


def cell_text(cell: Cell) -> str:
    """Return a cell on one line: 0.954 ± 0.011, +0.010 [-0.002, +0.021], 294,912, and a dash for what is not there."""
    if cell is None:
        return UNKNOWN
    if isinstance(cell, Number):
        return _number(cell)
    return count(cell) if isinstance(cell, int) else plain(cell)


def cell_note(cell: Cell) -> str:
    """Return what stands beside the cell, or nothing: over how many runs it is, and what happened in them."""
    if not isinstance(cell, Number):
        return ""
    runs = f"n = {cell.num_runs}" if cell.num_runs is not None else ""
    return ", ".join(part for part in (runs, plain(cell.note)) if part)


def following_line(sheet: Sheet) -> str:
    """Return what will be missing once the sweeps have ended, without a full stop; nothing where no sweep is open."""
    return f"Then runs at rates that are not chosen yet: {'; '.join(sheet.following)}" if sheet.following else ""


def is_numeric(cells: list[Cell]) -> bool:
    """Return whether a column of these cells is one of numbers."""
    return all(cell is None or isinstance(cell, int | Number) for cell in cells)


def _number(number: Number) -> str:
    sign = "+" if number.signed else ""
    shown = f"{number.value:{sign}.{number.digits}f}"
    if number.sd is not None:
        shown += f" ± {number.sd:.{number.digits}f}"
    if number.low is not None and number.high is not None:
        shown += f" [{number.low:{sign}.{number.digits}f}, {number.high:{sign}.{number.digits}f}]"
    return shown
