"""Lines and clouds of points as SVG: axes whose numbers people read, names right of the axes.

A line with spans has a bar at each mean of several runs, and a hollow mark at a single run. Where a few points lie so
far below that all others would be pressed into a blob, a cloud's axis begins below the others, and those few stand on
its lower edge with their values; the caption says so too.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import offset_copy

from veneer.paper.exhibit import Curves, Scatter, Series
from veneer.report.drawing import INK, MUTED, drawing_style, new_figure, to_svg
from veneer.report.formatting import compact_count, listed, number, plain, shorten
from veneer.report.paper_looks import Look, Looks
from veneer.report.plots import spread_out

_NAME_LIMIT = 30
_NAME_GAP = 15.0
_MARKED_POINTS = 16
_MARK_WIDTH = 7.0
"""In pixels: marks nearer than that along the axis hide each other."""
_STEP_ASIDE = 2.5
"""So far a line with bars stands beside the next, that none hides another's bars."""
_FEWEST_GAPS = 10
"""A tick is at least this part of the axis away from the next, so that their numbers do not touch."""
_FAR = 2.0
"""Points are far below the others where the gap is so many times the others' range."""
_FEW = 4
"""At most one point in so many may be left below the axis."""
_EXACT = 100_000


def plot_svg(figure: Curves | Scatter, looks: Looks) -> str:
    """Return the figure as an SVG that can stand inside an HTML page."""
    with drawing_style():
        canvas, axes = new_figure(600, 300, (56, 190, 44, 8))
        if figure.log_x:
            axes.set_xscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.grid(visible=False, axis="x")
        axes.margins(0.06, 0.1)
        if isinstance(figure, Curves):
            for series, aside in zip(figure.series, _asides(figure), strict=True):
                _draw_line(axes, series, looks[series.name], aside)
        else:
            floor = _floor(figure)
            asides = _side_by_side(axes, figure, floor)
            for series in figure.series:
                _draw_cloud(axes, series, looks[series.name], floor, asides)
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # names are placed by these limits, so they must not move
        if figure.log_x:
            _set_log_ticks(axes, figure)
        axes.set_xlabel(plain(figure.x_label))
        axes.set_ylabel(plain(figure.y_label))
        _name(axes, figure, looks)
        names = ", ".join(series.name for series in figure.series)
        return to_svg(canvas, name=figure.name, description=plain(f"{figure.title}: {names}."))


def reading_note(figure: Curves | Scatter) -> str:
    """Return what has to be known to read the drawing, beyond its own caption; often nothing."""
    if isinstance(figure, Curves):
        if not any(series.spans for series in figure.series):
            return ""
        single = any(None in series.spans for series in figure.series)
        return f"Bars show {figure.spans_are}{'; a hollow mark is a single run' * single}."
    below = [
        f"{series.name} at {_range(low)}" for series in figure.series if (low := _points_below(series, _floor(figure)))
    ]
    told = [f"Below the axis, on its lower edge: {listed(below)}."] if below else []
    aside = "Marks of several names that would hide each other stand side by side."
    return " ".join([*told, aside])


def _asides(figure: Curves | Scatter) -> list[float]:
    """Return by how many pixels each series stands right of its place: nothing, but for lines whose bars would meet."""
    last = len(figure.series) - 1
    step = _STEP_ASIDE * any(series.spans for series in figure.series)
    return [step * (place - last / 2) for place in range(last + 1)]


def _draw_line(axes: Axes, series: Series, look: Look, aside: float) -> None:
    xs, ys = zip(*series.points, strict=True)
    place = offset_copy(axes.transData, axes.get_figure(root=True), x=aside, units="dots")
    axes.plot(xs, ys, color=look.colour, linewidth=2.0, transform=place)
    heights = [*ys, *(end for span in series.spans if span for end in span)]
    axes.update_datalim([(min(xs), min(heights)), (max(xs), max(heights))])  # which lines set aside do not tell it
    axes.autoscale_view()
    spans = series.spans or (None,) * len(xs)
    for x, y, span in zip(xs, ys, spans, strict=True):
        is_single = span is None and bool(series.spans)
        if span is not None:
            axes.plot([x, x], span, color=look.colour, linewidth=1.6, alpha=0.6, transform=place)
        if len(xs) <= _MARKED_POINTS:
            style = "none" if is_single else "full"
            axes.plot(
                [x], [y], look.marker, color=look.colour, markersize=7 if is_single else 5, fillstyle=style,
                transform=place,
            )  # fmt: skip


def _side_by_side(axes: Axes, figure: Scatter, floor: float) -> Mapping[tuple[str, float], float]:
    """Return by how many pixels the marks of a series at a place stand aside, that they hide no other's.

    The axes get their limits here: where marks meet depends on them.
    """
    axes.update_datalim([(x, y) for series in figure.series for x, y in series.points if y >= floor])
    axes.autoscale_view()
    places = {
        (series.name, x): float(axes.transData.transform((x, 1.0))[0])
        for series in figure.series
        for x, _ in series.points
    }
    groups: list[list[tuple[str, float]]] = []
    for place in sorted(places, key=places.__getitem__):
        group = [place]
        while groups and _first(group, places) - _first(groups[-1], places) < _MARK_WIDTH * len(groups[-1]):
            group = groups.pop() + group
        groups.append(group)
    return {
        place: _first(group, places) + _MARK_WIDTH * rank - places[place]
        for group in groups
        for rank, place in enumerate(group)
    }


def _first(group: Sequence[tuple[str, float]], places: Mapping[tuple[str, float], float]) -> float:
    """Return where the first of these marks stands if they stand side by side around their middle."""
    return fmean(places[place] for place in group) - _MARK_WIDTH * (len(group) - 1) / 2


def _draw_cloud(
    axes: Axes, series: Series, look: Look, floor: float, asides: Mapping[tuple[str, float], float]
) -> None:
    for x, y in series.points:
        if y >= floor:
            place = offset_copy(axes.transData, axes.get_figure(root=True), x=asides[series.name, x], units="dots")
            axes.plot([x], [y], look.marker, color=look.colour, markersize=6, alpha=0.75, transform=place)
    below = _points_below(series, floor)
    if below:
        x = max(x for x, _ in below)
        axes.plot([x for x, _ in below], [floor] * len(below), look.marker, color=look.colour, clip_on=False)
        text = f"{_range(below)} \N{DOWNWARDS ARROW}"
        axes.annotate(text, (x, floor), (8, 5), textcoords="offset points", va="bottom", color=MUTED, fontsize=10)
        axes.set_ylim(bottom=floor)


def _floor(figure: Curves | Scatter) -> float:
    """Return the height below which a few points lie far below all others, or minus infinity."""
    heights = sorted(y for series in figure.series for _, y in series.points)
    places = range(1, len(heights) // _FEW + 1)
    if isinstance(figure, Curves) or not places:
        return -math.inf
    place = max(places, key=lambda place: heights[place] - heights[place - 1])
    extent = heights[-1] - heights[place]
    is_far = 0 < _FAR * extent < heights[place] - heights[place - 1]
    return heights[place] - 0.15 * extent if is_far else -math.inf


def _points_below(series: Series, floor: float) -> list[tuple[float, float]]:
    return [(x, y) for x, y in series.points if y < floor]


def _range(points: Sequence[tuple[float, float]]) -> str:
    low, high = (f"{end(y for _, y in points):.3f}" for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _set_log_ticks(axes: Axes, figure: Curves | Scatter) -> None:
    """Write a line's places where they are few and apart, else decades, or 1, 2 and 5 of each, or both ends."""
    low, high = axes.get_xlim()
    ticks = sorted({x for series in figure.series for x, _ in series.points})
    ends = [ticks[0], ticks[-1]]
    nearest = min((math.log(b / a) for a, b in pairwise(ticks)), default=math.inf)
    if isinstance(figure, Curves) and nearest >= math.log(high / low) / _FEWEST_GAPS:
        names = [f"{tick:,.0f}" if tick % 1 == 0 and tick < _EXACT else _short(tick) for tick in ticks]
    else:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1,), (1, 2, 5)):
            ticks = [tick for e in exponents for step in steps if low <= (tick := step * 10.0**e) <= high]
            if len(ticks) > 2:  # two decades leave most of the axis without a number
                break
        ticks = ticks or ends
        names = [_short(tick) for tick in ticks]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter(names))
    axes.xaxis.set_minor_locator(NullLocator())


def _short(value: float) -> str:
    """Return a tick of a logarithmic axis: 1e-5, 0.5, 64, 10 k."""
    return number(value) if value < 1000 else compact_count(value).replace(".00 ", " ").replace(".0 ", " ")


def _name(axes: Axes, figure: Curves | Scatter, looks: Looks) -> None:
    """Write the names right of the axes by height: a line is joined to its name, a cloud's mark stands before it."""
    frame = axes.get_window_extent()
    ends = [_end(series) for series in figure.series]
    places = [(x + aside, y) for (x, y), aside in zip(axes.transData.transform(ends), _asides(figure), strict=True)]
    wanted = [max(float(y), frame.y0) for _, y in places]
    order = sorted(range(len(ends)), key=wanted.__getitem__)
    heights = spread_out([wanted[index] for index in order], _NAME_GAP, frame.y0 + 4, frame.y1 - 4)
    for index, height in zip(order, heights, strict=True):
        look, (x, y) = looks[figure.series[index].name], places[index]
        if isinstance(figure, Curves):
            axes.plot(
                [x + 5, frame.x1 + 4, frame.x1 + 11], [y, height, height], transform=None, color=look.colour,
                linewidth=0.9, alpha=0.7, clip_on=False,
            )  # fmt: skip
        else:
            axes.plot([frame.x1 + 14], [height], look.marker, transform=None, color=look.colour, clip_on=False)
        axes.annotate(
            shorten(plain(figure.series[index].name), _NAME_LIMIT),
            (frame.x1 + (14 if isinstance(figure, Curves) else 24), height), xycoords="figure pixels", va="center",
            color=INK, parse_math=False, annotation_clip=False,
        )  # fmt: skip


def _end(series: Series) -> tuple[float, float]:
    """Return the series' point furthest right, of several there the middle one."""
    last = max(x for x, _ in series.points)
    at_last = sorted(point for point in series.points if point[0] == last)
    return at_last[len(at_last) // 2]
