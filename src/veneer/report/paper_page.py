"""All exhibits on one HTML page that needs nothing else; the same sheets give the same bytes.

The page opens with the claims and what became of each; every exhibit follows with its tables, figures, what was scaled
down and what is missing. `paper_page.html.j2` beside it says where things stand, and escapes all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from veneer.paper.exhibit import Sheet, Table
from veneer.report.formatting import listed
from veneer.report.paper_cells import cell_note, cell_text, is_numeric
from veneer.report.paper_figures import figure_svg

_UNBROKEN = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"


@dataclass(frozen=True, kw_only=True)
class ShownCell:
    """One cell as text."""

    text: str
    note: str
    numeric: bool


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
    tables: list[tuple[Table, list[ShownCell], list[list[ShownCell]]]]
    """The table, its headings and its rows."""
    figures: list[ShownFigure]
    outcome: str
    """How many claims held and so on, in words."""


def render_paper(sheets: Sequence[Sheet]) -> str:
    """Return the sheets as one self-contained HTML page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("veneer.report").joinpath("paper_page.html.j2").read_text("utf-8"))
    return template.render(sections=[_section(sheet) for sheet in sheets])


def _section(sheet: Sheet) -> Section:
    return Section(
        sheet=sheet,
        tables=[_shown(table) for table in sheet.tables],
        # Markup: each SVG is serialised from a tree, which escapes the names inside it.
        figures=[
            ShownFigure(title=figure.title, caption=figure.caption, svg=Markup(figure_svg(figure)))
            for figure in sheet.figures
        ],
        outcome=outcome_in_words(sheet),
    )


def outcome_in_words(sheet: Sheet) -> str:
    """Return how many claims held, did not hold and were not tested: "2 held, 1 not held"."""
    parts = [f"{number} {outcome}" for outcome, number in sheet.counts.items() if number]
    return listed(parts) if parts else "no claim"


def _shown(table: Table) -> tuple[Table, list[ShownCell], list[list[ShownCell]]]:
    numeric = [is_numeric([row[place] for row in table.rows]) for place in range(len(table.columns))]
    headings = [ShownCell(text=text, note="", numeric=kind) for text, kind in zip(table.columns, numeric, strict=True)]
    rows = [
        [
            ShownCell(text=cell_text(cell).replace(" ± ", _UNBROKEN), note=cell_note(cell), numeric=kind)
            for cell, kind in zip(row, numeric, strict=True)
        ]
        for row in table.rows
    ]
    return table, headings, rows
