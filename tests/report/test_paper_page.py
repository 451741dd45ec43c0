"""The page is one self-contained, valid and light file, and its heat maps are the numbers they were made of."""

import base64
import io
import itertools
import math
import re
from collections import defaultdict
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from markupsafe import escape
from matplotlib import image

from tests.report.test_paper_tables import SHEET, TABLE
from veneer.paper.exhibit import BY_SEEDS, Curves, HeatMaps, Panel, Scatter, Series, Verdict
from veneer.paper.table_of_contents import ARITHMETIC, EXHIBITS, NOT_ATTEMPTED
from veneer.report.paper_cells import MARKS, WAITING
from veneer.report.paper_figures import caption_of, drawings_of, figure_svg
from veneer.report.paper_files import write_paper
from veneer.report.paper_looks import looks_of
from veneer.report.paper_markdown import sheet_as_markdown
from veneer.report.paper_page import outcome_in_words, render_paper
from veneer.report.paper_terminal import sheet_on_terminal
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


def drawn(figure):
    return figure_svg(figure, looks_of([figure]))


def page_of(sheets):
    return render_paper(sheets, drawings_of(sheets))


def numbers_of(svg):
    """Return the texts of a drawing that are numbers, as they stand."""
    return [
        text for text in re.findall(r"<text[^>]*>([^<]+)</text>", svg) if re.match(r"[\d.]+(e-\d+)?( k| M)?$", text)
    ]


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
    page = page_of([replace(SHEET, figures=(HEAT, CURVES, SCATTER)), replace(SHEET, exhibit="second")])
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(tags.ids) == len(set(tags.ids))
    beside = {link for link in tags.links if not link.startswith(("#", "data:image/png;base64,"))}
    assert beside == {"made-up.md", "second.md", "tables/made-up.csv"}
    assert {"#made-up", "#second"} <= set(tags.links)
    assert "<script" not in page
    assert "[bold]x[/] *a_b*" in page
    assert "series &amp; 2" in page


def test_the_contents_tell_what_became_of_each_claim():
    page = page_of([SHEET])
    contents = page[: page.index("<main>")]
    for verdict in SHEET.verdicts:
        assert verdict.claim in contents
    assert "1 held and 1 not held" in contents
    assert "9 missing" in contents
    assert outcome_in_words(replace(SHEET, verdicts=())) == "no claim"


@pytest.mark.parametrize("figure", [HEAT, CURVES, SCATTER], ids=["heat", "curves", "scatter"])
def test_a_figure_is_one_drawing_that_is_the_same_each_time(figure):
    svg = drawn(figure)
    assert svg == drawn(figure)
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.attrib["aria-label"].startswith(figure.title)


def test_a_heat_map_has_one_pixel_for_each_number():
    images = re.findall(r'href="data:image/png;base64,([^"]+)"', drawn(HEAT))
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
    tags = Tags()
    tags.feed(page.read_text())
    assert files > {link for link in tags.links if not link.startswith(("#", "data:"))}
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


def test_a_name_looks_the_same_in_every_figure_and_unlike_those_beside_it():
    names = [("a", "b", "c"), ("c", "d"), tuple("efghijkl"), ("l", "a")]
    figures = [replace(CURVES, series=tuple(replace(SERIES[0], name=name) for name in of)) for of in names]
    looks = looks_of(figures)
    assert set(looks) == {name for of in names for name in of}
    for of in names:
        assert len({looks[name].colour for name in of}) == len(of)
    many = [replace(CURVES, series=tuple(replace(SERIES[0], name=f"{n}") for n in range(40)))]
    assert len({(look.colour, look.marker) for look in looks_of(many).values()}) == 40


def test_the_page_draws_a_name_in_one_colour():
    other = replace(CURVES, name="other", series=(replace(SERIES[0], name="first"), SERIES[2]))
    page = page_of([replace(SHEET, figures=(CURVES, other))])
    colours = defaultdict(list)
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        for hue, count in ((hue, svg.count(f"var({hue},")) for hue in set(re.findall(r"--colour-\d", svg))):
            colours[hue].append(count)
    assert sorted(len(counts) for counts in colours.values()) == [1, 1, 1, 2]  # three, then one of them with a new one


@pytest.mark.parametrize("places", [(1, 2, 4, 8, 64), (100, 1000, 4907), (4907,)])
def test_a_few_places_on_a_logarithmic_axis_are_its_ticks(places):
    figure = replace(CURVES, series=(Series(name="s", points=tuple((x, 0.123) for x in places)),))
    assert {f"{x}" for x in places} <= {text.replace(",", "") for text in re.findall(r">([\d,]+)<", drawn(figure))}


@pytest.mark.parametrize("places", [[3e-6 * 1.3**n for n in range(30)], [1234 * 1.1**n for n in range(20)]])
def test_many_places_on_a_logarithmic_axis_have_few_and_round_ticks(places):
    line = Series(name="s", points=tuple((x, 0.5) for x in places))
    axis = drawn(replace(CURVES, x_label="Along", series=(line,))).partition(">Along<")[0]
    ticks = numbers_of(axis)
    assert 2 <= len(ticks) <= 9
    assert all(re.sub(r"e-\d+| [kM]|[0.]", "", tick) in {"1", "2", "5"} for tick in ticks)


def test_points_far_below_the_others_are_told_and_do_not_press_them_together():
    good = tuple(Series(name=f"good {n}", points=((10.0**n, 0.95), (10.0**n, 0.96 + n / 1000))) for n in range(1, 6))
    far = Series(name="far", points=((2.0, 0.5), (2.0, 0.25)))
    figure = replace(SCATTER, series=(*good, far), log_x=True)
    assert "far at 0.250 to 0.500" in caption_of(figure)
    svg = drawn(figure)
    assert "0.250 to 0.500 \N{DOWNWARDS ARROW}" in svg
    ticks = [float(text) for text in numbers_of(svg) if text.startswith("0.9")]
    assert len(ticks) >= 4
    even = replace(figure, series=(*good, replace(far, points=((2.0, 0.949), (2.0, 0.948)))))
    assert "Below the axis" not in caption_of(even)


def test_marks_that_would_hide_each_other_stand_side_by_side():
    """Five series at one place and one apart: each mark is seen, and the one apart stays where it is."""
    alike = tuple(Series(name=f"alike {n}", points=((70_000.0 + 1000 * n, 0.5), (70_000.0, 0.6))) for n in range(5))
    near = Series(name="near", points=((90_000.0, 0.5),))
    apart = Series(name="apart", points=((1e7, 0.55),))
    figure = replace(SCATTER, series=(*alike, near, apart), log_x=True)
    svg = drawn(figure)
    marks = [(float(x), float(y)) for x, y in re.findall(r'<use[^>]* x="([\d.]+)" y="([\d.]+)"', svg)]
    inside = [(x, y) for x, y in marks if x < 400 and y < 250]  # neither the names nor the ticks
    assert len(inside) == 12
    distances = [math.dist(one, other) for one, other in itertools.combinations(inside, 2)]
    assert min(distances) > 6.5
    assert "side by side" in caption_of(figure)


def test_a_mean_of_several_runs_is_told_from_a_single_run():
    (first, *_) = SERIES
    spread = replace(CURVES, series=(replace(first, spans=((0.4, 0.6), None, (0.5, 0.7))),))
    plain = replace(CURVES, series=(first,))
    assert drawn(spread).count("fill: none") > drawn(plain).count("fill: none")
    assert "single run" in caption_of(spread)
    assert caption_of(plain) == plain.caption
    with pytest.raises(AssertionError, match="a span for each"):
        replace(first, spans=((0.4, 0.6),))


def test_a_heat_map_may_have_a_scale_of_its_own_and_its_bar_tells_it():
    own = replace(HEAT, low=0.1, high=0.6)
    images = re.findall(r'href="data:image/png;base64,([^"]+)"', drawn(own))
    panel = image.imread(io.BytesIO(base64.b64decode(images[0])))[..., 3]
    expected = [min(1, max(0, (value - 0.1) / 0.5)) for row in VALUES for value in row]
    assert sorted(panel.ravel().tolist()) == pytest.approx(sorted(expected), abs=0.01)
    for end in ("\N{LESS-THAN OR EQUAL TO} 0.1<", ">0.35<", "\N{GREATER-THAN OR EQUAL TO} 0.6<"):
        assert end in drawn(own)
    assert "0.1 to 0.6" in caption_of(own)


def test_what_an_outcome_means_is_said_and_each_has_a_mark_of_its_own():
    page = page_of([SHEET])
    meanings = page[: page.index('<ul class="contents">')]
    assert set(MARKS) == set(SHEET.counts)
    assert len(set(MARKS.values())) == len(MARKS)
    styles = re.findall(r'<b class="(\w+)">(\S) ([^<]+)</b>', meanings)
    assert {(mark, outcome) for _, mark, outcome in styles} == {(mark, outcome) for outcome, mark in MARKS.items()}
    assert len({style for style, _, _ in styles}) == len(MARKS)


def test_the_page_tells_how_verdicts_are_made_that_chance_makes_some_and_what_nobody_tried():
    told = [Verdict(claim="c", source="s", outcome=outcome, because="b") for outcome in (*["held"] * 30, *MARKS)]
    by_seeds = replace(SHEET, verdicts=tuple(told), decided_by=BY_SEEDS)
    otherwise = replace(SHEET, exhibit=ARITHMETIC, verdicts=tuple(told), decided_by="By trials.")
    page = page_of([by_seeds, otherwise])
    assert "33 claims, besides the counts, have been measured and 32 decided" in page
    assert page.count(str(escape(BY_SEEDS))) == page.count("By trials.") == 1
    for sheet, told_there in ((by_seeds, {BY_SEEDS}), (otherwise, {"By trials."}), (SHEET, set())):
        markdown = sheet_as_markdown(sheet, "figures")
        assert {line for line in (BY_SEEDS, "By trials.") if line in markdown} == told_there
    assert all(str(escape(line)) in page for line in NOT_ATTEMPTED)


def test_what_will_be_missing_after_the_sweeps_is_told_everywhere():
    sheet = replace(SHEET, following=("trec, houlsby: 3",))
    line = "Then runs at rates that are not chosen yet: trec, houlsby: 3"
    page = page_of([sheet])
    assert page.index("Then runs at rates that are not chosen yet") < page.index("<li>trec, houlsby: 3</li>")
    assert line in sheet_as_markdown(sheet, "figures")
    assert line in "".join(map(str, sheet_on_terminal(sheet)))
    assert "not chosen yet" not in page_of([SHEET]) + sheet_as_markdown(SHEET, "figures")


def test_a_note_of_several_tables_stands_under_the_first_that_is_shown_and_the_others_point_to_it():
    first, second, third = (
        replace(TABLE, name=name, title=name, notes=("shared", f"of {name}")) for name in ("ONE", "TWO", "THREE")
    )
    waiting = replace(first, name="zero", title="ZERO", rows=(("a", 3, None, None), ("b", 4, None, None)))
    sheet = replace(SHEET, tables=(waiting, first, second, third))
    for shown in (page_of([sheet]), sheet_as_markdown(sheet, "figures"), "".join(map(str, sheet_on_terminal(sheet)))):
        after = shown[shown.index("ONE", shown.index("ZERO") + len("ZERO of ONE")) :]
        assert after.count("shared") == 1
        assert after.count("Further notes stand under a table above.") == 2
        assert [after.count(f"of {name}") for name in ("ONE", "TWO", "THREE")] == [1, 1, 1]


def test_a_table_that_waits_for_our_numbers_is_folded():
    waiting = replace(TABLE, rows=(("a", 3, None, None), ("b", 4, None, None)))
    page = page_of([replace(SHEET, tables=(waiting,))])
    assert page.index("<details>") < page.index(WAITING) < page.index('<td class="start short">a</td>')
    assert WAITING not in page_of([SHEET])


@pytest.mark.parametrize("figure", [CURVES, SCATTER], ids=lambda figure: figure.name)
@pytest.mark.parametrize("places", [(4907,), tuple(4100 + 20 * n for n in range(40))], ids=["one", "close"])
def test_a_logarithmic_axis_is_never_without_a_number(figure, places):
    line = Series(name="s", points=tuple((x, 0.5) for x in places))
    axis = drawn(replace(figure, x_label="Along", series=(line,), log_x=True)).partition(">Along<")[0]
    assert re.search(r">[\d,.]+( k)?<", axis)
