"""An exhibit's table as CSV, for whoever computes on: numbers unrounded, each part of a cell in a column of its own."""

import csv
import io
from collections.abc import Callable

from veneer.paper.exhibit import Cell, Number, Table

_PARTS: dict[str, Callable[[Number], object]] = {
    "": lambda number: number.value,
    "sd": lambda number: number.sd,
    "low": lambda number: number.low,
    "high": lambda number: number.high,
    "n": lambda number: number.num_runs,
    "note": lambda number: number.note or None,
}
"""What follows a column's heading to that part of its numbers."""


def table_as_csv(table: Table) -> str:
    """Return the table; columns for the spread follow that of the numbers, and an empty field is not known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [_columns(heading, [row[place] for row in table.rows]) for place, heading in enumerate(table.columns)]
    flat = [column for group in columns for column in group]
    writer.writerow([heading for heading, _ in flat])
    writer.writerows(zip(*(cells for _, cells in flat), strict=True))
    return text.getvalue()


def _columns(heading: str, cells: list[Cell]) -> list[tuple[str, list[object]]]:
    """Return the columns that one of the table becomes, as (heading, fields); parts that no cell has are left out."""
    made = []
    for part, read in _PARTS.items():
        own: list[object] = [None if isinstance(cell, Number) or part else cell for cell in cells]
        fields = [read(cell) if isinstance(cell, Number) else mine for cell, mine in zip(cells, own, strict=True)]
        if not part or any(field is not None for field in fields):
            made.append((f"{heading} {part}".rstrip(), fields))
    return made
