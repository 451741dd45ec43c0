"""The page is one self-contained, valid and light file, and its heat maps are the numbers they were made of."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from matplotlib import image

from tests.report.test_paper_tables import SHEET
from veneer.paper.exhibit import Curves, HeatMaps, Panel, Scatter, Series
from veneer.paper.table_of_contents import EXHIBITS
from veneer.report.paper_figures import figure_svg
from veneer.report.paper_files import write_paper
from veneer.report.paper_page import outcome_in_words, render_paper
from veneer.training.grid import Grid

VALUES = ((0.0, 0.5, 1.0), (0.25, 0.75, 0.1))
HEAT = HeatMaps(
    name="heat",
    title="Heat",
    x_label="j",
    y_label="i",
    panels=tuple(Panel(title=f"<{n}>", values=VALUES) for n in range(8)),
)
SERIES = tuple(Series(name=f"series & {n}", points=((1, 0.5 + n / 10), (8, 0.6), (64, 0.7 - n / 10))) for n in range(3))
CURVES = Curves(name="curves", title="Curves", x_label="r", y_label="y", series=SERIES, log_x=True)
SCATTER = Scatter(name="scatter", title="Scatter", x_label="x", y_label="y", series=SERIES)


class Tags(HTMLParser):
    """Checks that tags close in order, and gathers ids and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta", "br", "link", "img"}:
            self.open.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]
        self.links += [value for key, value in attrs if key in {"href", "src"}]

    def handle_startendtag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in {"href", "src"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_else():
    page = render_paper([replace(SHEET, figures=(HEAT, CURVES, SCATTER)), replace(SHEET, exhibit="second")])
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(tags.ids) == len(set(tags.ids))
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in tags.links)
    assert {"#made-up", "#second"} <= set(tags.links)
    assert "<script" not in page
    assert "[bold]x[/] *a_b*" in page
    assert "series &amp; 2" in page


def test_the_contents_tell_what_became_of_each_claim():
    page = render_paper([SHEET])
    contents = page[: page.index("<main>")]
    for verdict in SHEET.verdicts:
        assert verdict.claim in contents
    assert "1 held and 1 not held" in contents
    assert "9 missing" in contents
    assert outcome_in_words(replace(SHEET, verdicts=())) == "no claim"


@pytest.mark.parametrize("figure", [HEAT, CURVES, SCATTER], ids=["heat", "curves", "scatter"])
def test_a_figure_is_one_drawing_that_is_the_same_each_time(figure):
    svg = figure_svg(figure)
    assert svg == figure_svg(figure)
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.attrib["aria-label"].startswith(figure.title)


def test_a_heat_map_has_one_pixel_for_each_number():
    images = re.findall(r'href="data:image/png;base64,([^"]+)"', figure_svg(HEAT))
    assert len(images) == len(HEAT.panels) + 1  # and the scale
    alphas = [image.imread(io.BytesIO(base64.b64decode(text)))[..., 3] for text in images]
    panels = [alpha for alpha in alphas if alpha.shape == (2, 3)]
    assert len(panels) == len(HEAT.panels)
    for panel in panels:
        rows = [sorted(row) for row in (panel if panel[0].sum() > panel[1].sum() else panel[::-1]).tolist()]
        assert rows == [pytest.approx(sorted(row), abs=0.01) for row in VALUES]


def test_a_results_folder_holds_all_exhibits_and_is_light(tmp_path):
    grid = Grid(folder=tmp_path / "runs")
    sheets = [exhibit.sheet(grid) for exhibit in EXHIBITS.values()]
    page = write_paper(sheets, tmp_path / "paper")
    files = {file.relative_to(tmp_path / "paper").as_posix() for file in (tmp_path / "paper").rglob("*.*")}
    assert {"index.html", *(f"{name}.md" for name in EXHIBITS), "tables/table2-trec.csv"} <= files
    assert page.stat().st_size < 2_000_000
    assert page.read_bytes() == write_paper(sheets, tmp_path / "again").read_bytes()


@pytest.mark.parametrize("figure", [HEAT, CURVES, SCATTER], ids=lambda figure: figure.name)
def test_a_figure_is_a_file_of_its_own_that_the_markdown_shows(tmp_path, figure):
    sheet = replace(SHEET, figures=(figure,))
    write_paper([sheet], tmp_path)
    text = (tmp_path / f"{sheet.exhibit}.md").read_text()
    (shown,) = re.findall(r"!\[.*\]\((\S+)\)", text)
    root = ElementTree.fromstring((tmp_path / shown).read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"  # what a browser draws as a picture
    assert {element.tag.partition("}")[0] for element in root.iter()} == {"{http://www.w3.org/2000/svg"}
    words = "".join(root.itertext())
    assert figure.x_label in words
