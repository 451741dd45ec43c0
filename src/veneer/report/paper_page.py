"""All exhibits on one HTML page that needs nothing else; the same sheets give the same bytes.

The page opens with the claims and what became of each; every exhibit follows with its tables, figures, what was scaled
down and what is missing. `paper_page.html.j2` beside it says where things stand, and escapes all of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from veneer.paper.exhibit import BY_SEEDS, Sheet, Table
from veneer.paper.protocol import SCALE
from veneer.paper.table_of_contents import ARITHMETIC, NOT_ATTEMPTED
from veneer.report.formatting import listed
from veneer.report.paper_cells import (
    MARKS,
    WAITING,
    cell_note,
    cell_text,
    is_numeric,
    is_waiting,
    notes_once,
)
from veneer.report.paper_figures import caption_of

_DARK_PALETTE = ("#4aa8e8", "#ff8a3d", "#2fc99a", "#e79ac4", "#8fd0f5", "#ffc04d", "#b0b0b0", "#a294ee")
"""The figures' colours on a dark page, in the order of `drawing.PALETTE`: the same hues, lighter."""
_UNBROKEN = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"


@dataclass(frozen=True, kw_only=True)
class ShownCell:
    """One cell as text."""

    text: str
    note: str
    numeric: bool


@dataclass(frozen=True, kw_only=True)
class ShownTable:
    """One table as text."""

    table: Table
    headings: list[ShownCell]
    rows: list[list[ShownCell]]
    notes: tuple[str, ...]
    waiting: str
    """What stands for the table until it is opened, where nothing of ours is in it yet."""


@dataclass(frozen=True, kw_only=True)
class ShownFigure:
    """One figure as SVG."""

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True, kw_only=True)
class Section:
    """One exhibit as the template takes it."""

    sheet: Sheet
    tables: list[ShownTable]
    figures: list[ShownFigure]
    outcome: str
    """How many claims held and so on, in words."""


def render_paper(sheets: Sequence[Sheet], drawings: Mapping[str, str]) -> str:
    """Return the sheets as one self-contained HTML page.

    Args:
        sheets: what stands on it, in order.
        drawings: name of each figure -> its SVG, see `drawings_of`.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("veneer.report").joinpath("paper_page.html.j2").read_text("utf-8"))
    outcomes = Counter(verdict.outcome for sheet in sheets if sheet.exhibit != ARITHMETIC for verdict in sheet.verdicts)
    num_decided = outcomes["held"] + outcomes["not held"]
    return template.render(
        sections=[_section(sheet, drawings) for sheet in sheets],
        marks=MARKS,
        palette=_DARK_PALETTE,
        num_decided=num_decided,
        num_measured=num_decided + outcomes["undecided"],
        decided_by=BY_SEEDS,
        not_attempted=NOT_ATTEMPTED,
        scale=SCALE,
    )


def _section(sheet: Sheet, drawings: Mapping[str, str]) -> Section:
    return Section(
        sheet=sheet,
        tables=[_shown(table, notes) for table, notes in zip(sheet.tables, notes_once(sheet.tables), strict=True)],
        # Markup: each SVG is serialised from a tree, which escapes the names inside it.
        figures=[
            ShownFigure(title=figure.title, caption=caption_of(figure), svg=Markup(drawings[figure.name]))
            for figure in sheet.figures
        ],
        outcome=outcome_in_words(sheet),
    )


def outcome_in_words(*sheets: Sheet) -> str:
    """Return how many claims held, did not hold and so on: "2 held and 1 not held"."""
    counts = {outcome: sum(sheet.counts[outcome] for sheet in sheets) for outcome in MARKS}
    parts = [f"{number} {outcome}" for outcome, number in counts.items() if number]
    return listed(parts) if parts else "no claim"


def _shown(table: Table, notes: tuple[str, ...]) -> ShownTable:
    numeric = [is_numeric([row[place] for row in table.rows]) for place in range(len(table.columns))]
    headings = [ShownCell(text=text, note="", numeric=kind) for text, kind in zip(table.columns, numeric, strict=True)]
    rows = [
        [
            ShownCell(text=cell_text(cell).replace(" ± ", _UNBROKEN), note=cell_note(cell), numeric=kind)
            for cell, kind in zip(row, numeric, strict=True)
        ]
        for row in table.rows
    ]
    waiting = WAITING if is_waiting(table) else ""
    return ShownTable(table=table, headings=headings, rows=rows, notes=notes, waiting=waiting)
