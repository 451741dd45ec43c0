"""An exhibit as Markdown, for a README or an issue."""

from collections.abc import Sequence

from veneer.paper.exhibit import Cell, Sheet, Table
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
from veneer.report.paper_figures import caption_of


def sheet_as_markdown(sheet: Sheet, figures: str) -> str:
    """Return the whole sheet; its figures are pictures in the folder `figures` beside it."""
    parts = [f"# {sheet.title}", sheet.shows]
    if sheet.verdicts:
        rows = [(v.claim, v.source, f"**{MARKS[v.outcome]} {v.outcome}**", v.because) for v in sheet.verdicts]
        parts.append("## Claims\n\n" + _lines(("Claim", "Where", "Here", "Because"), rows, numeric=set()))
        if sheet.decided_by:
            parts.append(sheet.decided_by)
    notes = notes_once(sheet.tables)
    parts += [
        f"## {table.title}\n\n{table_as_markdown(table, own)}" for table, own in zip(sheet.tables, notes, strict=True)
    ]
    parts += [
        f"## {figure.title}\n\n![{_escaped(figure.title)}]({figures}/{figure.name}.svg)\n\n{caption}".rstrip()
        for figure, caption in zip(sheet.figures, map(caption_of, sheet.figures), strict=True)
    ]
    if sheet.scaled_down:
        parts.append("## What was scaled down\n\n" + "\n".join(f"- {line}" for line in sheet.scaled_down))
    if sheet.missing:
        parts.append("## Missing\n\n" + "\n".join(f"- {name}" for name in sheet.missing))
    if line := following_line(sheet):
        parts.append(f"{line}.")
    return "\n\n".join(parts) + "\n"


def table_as_markdown(table: Table, notes: Sequence[str]) -> str:
    """Return one table and how to read it, or a line where nothing of ours is in it yet."""
    if is_waiting(table):
        return WAITING
    numeric = {place for place in range(len(table.columns)) if is_numeric([row[place] for row in table.rows])}
    text = _lines(table.columns, [tuple(_cell(cell) for cell in row) for row in table.rows], numeric=numeric)
    return text + "".join(f"\n\n{note}" for note in notes)


def _cell(cell: Cell) -> str:
    note = cell_note(cell)
    return cell_text(cell) + (f" ({note})" if note else "")


def _lines(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, numeric: set[int]) -> str:
    rule = "|".join("---:" if place in numeric else "---" for place in range(len(headings)))
    lines = [" | ".join(_escaped(cell) for cell in row) for row in (headings, *rows)]
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def _escaped(text: str) -> str:
    """Return the text without a character that Markdown would take for markup; emphasis of whole cells stays."""
    inner = text.strip("*") if text.startswith("**") and text.endswith("**") else text
    for character in ("\\", "|", "*", "_", "<", "^", "["):
        inner = inner.replace(character, f"\\{character}")
    return f"**{inner}**" if inner is not text and text.startswith("**") else inner
