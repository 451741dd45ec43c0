"""The files of a results folder: one page for all exhibits, Markdown for each, CSV for each table.

<folder>/index.html              every exhibit, the claims first
<folder>/<exhibit>.md            one exhibit
<folder>/tables/<table>.csv      one table, numbers unrounded
<folder>/figures/<figure>.svg    one figure
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from veneer.errors import OutputExistsError
from veneer.files import write_text
from veneer.paper.exhibit import MACHINES, Sheet
from veneer.report.drawing import as_file
from veneer.report.paper_csv import table_as_csv
from veneer.report.paper_figures import drawings_of
from veneer.report.paper_markdown import sheet_as_markdown
from veneer.report.paper_page import render_paper

PAGE_FILE = "index.html"
TABLES_FOLDER = "tables"
FIGURES_FOLDER = "figures"
_GENERATOR = '<meta name="generator" content="Veneer">'


def require_own(folder: Path, titles: Mapping[str, str]) -> None:
    """Raise an `OutputExistsError` if the page, or an exhibit's Markdown, in `folder` is somebody else's.

    Args:
        folder: where they will be written.
        titles: exhibit -> its title, with which its Markdown begins.
    """
    marks = {PAGE_FILE: _GENERATOR, **{f"{name}.md": f"# {title}\n" for name, title in titles.items()}}
    foreign = [
        name
        for name, mark in marks.items()
        if (folder / name).is_dir()
        or ((folder / name).is_file() and mark not in (folder / name).read_text("utf-8", errors="replace"))
    ]
    if foreign:
        raise OutputExistsError(
            f"{folder} holds {', '.join(foreign)}, which Veneer did not write; choose another --out"
        )


def rests_on_runs(folder: Path) -> bool:
    """Return whether the page in `folder` has results of runs: it says then on which machines they were done."""
    page = folder / PAGE_FILE
    return page.is_file() and MACHINES in page.read_text("utf-8", errors="replace")


def write_paper(sheets: Sequence[Sheet], folder: Path) -> Path:
    """Write all sheets below `folder`, each file whole, and return the page's path; other files there stay."""
    for name in (TABLES_FOLDER, FIGURES_FOLDER):
        (folder / name).mkdir(parents=True, exist_ok=True)
    drawings = drawings_of(sheets)
    for sheet in sheets:
        write_text(folder / f"{sheet.exhibit}.md", sheet_as_markdown(sheet, FIGURES_FOLDER))
        for table in sheet.tables:
            write_text(folder / TABLES_FOLDER / f"{table.name}.csv", table_as_csv(table))
        for figure in sheet.figures:
            write_text(folder / FIGURES_FOLDER / f"{figure.name}.svg", as_file(drawings[figure.name]))
    page = folder / PAGE_FILE
    write_text(page, render_paper(sheets, drawings))
    return page
