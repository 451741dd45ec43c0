"""An exhibit's figures as SVG, in the report's style: heat maps, curves and clouds of points.

A heat map is an image of one pixel a cell inside the SVG, which a browser enlarges without smoothing: exact, and a
hundredth of the size of as many rectangles. Its shades are one colour at rising opacity, so they work on light and dark
pages. Lines and points are named right of the axes, in the order of their heights, so there is no legend.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from veneer.paper.exhibit import Curves, Figure, HeatMaps, Panel, Scatter
from veneer.report.drawing import INK, drawing_style, new_figure, to_svg
from veneer.report.formatting import compact_count, plain, shorten
from veneer.report.plots import spread_out

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8A8A8A", "#5B4BA0")
_MARKERS = ("o", "D", "s", "v", "^", "P", "X", "h")
_NAME_LIMIT = 30
_NAME_GAP = 15.0
_MOST_A_ROW = 7
_PANEL, _GAP_X, _GAP_Y = 112.0, 18.0, 34.0
"""Side of a heat map and the room between two, in units of the SVG."""


def figure_svg(figure: Figure) -> str:
    """Return the figure as an SVG that can stand inside an HTML page."""
    return _heat_maps(figure) if isinstance(figure, HeatMaps) else _plot(figure)


def _heat_maps(figure: HeatMaps) -> str:
    panels, (left, bottom, top, right) = figure.panels, (46.0, 42.0, 20.0, 64.0)
    rows = -(-len(panels) // _MOST_A_ROW)
    columns = -(-len(panels) // rows)
    width = left + columns * _PANEL + (columns - 1) * _GAP_X + right
    height = top + rows * _PANEL + (rows - 1) * _GAP_Y + bottom
    shades = ListedColormap([(*to_rgb(_COLOURS[0]), step / 255) for step in range(256)])
    with drawing_style():
        canvas, _ = new_figure(width, height, (0, 0, 0, 0))
        canvas.clear()
        for place, panel in enumerate(panels):
            row, column = divmod(place, columns)
            x, y = left + column * (_PANEL + _GAP_X), bottom + (rows - 1 - row) * (_PANEL + _GAP_Y)
            axes = canvas.add_axes((x / width, y / height, _PANEL / width, _PANEL / height))
            _draw_panel(axes, panel, figure, shades)
            if column == 0:
                axes.set_ylabel(figure.y_label, fontsize=10)
            else:
                axes.tick_params(labelleft=False)
            if place >= len(panels) - columns:
                axes.set_xlabel(figure.x_label, fontsize=10)
        x = left + columns * _PANEL + (columns - 1) * _GAP_X + 14
        _draw_scale(canvas.add_axes((x / width, bottom / height, 10 / width, _PANEL / height)), figure, shades)
        described = f"{figure.title}. Heat maps: {', '.join(panel.title for panel in panels)}."
        return to_svg(canvas, name=figure.name, description=plain(described))


def _draw_panel(axes: Axes, panel: Panel, figure: HeatMaps, shades: ListedColormap) -> None:
    num_rows, num_columns = len(panel.values), len(panel.values[0])
    axes.imshow(
        panel.values, cmap=shades, vmin=figure.low, vmax=figure.high, interpolation="none", aspect="auto",
        extent=(0.5, num_columns + 0.5, num_rows + 0.5, 0.5),
    )  # fmt: skip
    axes.grid(visible=False)
    axes.set_title(plain(panel.title), fontsize=10, color=INK, pad=4, parse_math=False)
    for axis, number in ((axes.xaxis, num_columns), (axes.yaxis, num_rows)):
        axis.set_major_locator(FixedLocator(sorted({1, (number + 1) // 2, number})))
    axes.tick_params(length=0, labelsize=9, pad=2)


def _draw_scale(axes: Axes, figure: HeatMaps, shades: ListedColormap) -> None:
    """Draw what each shade means."""
    steps = [[step / 63] for step in range(64)]
    axes.imshow(steps, cmap=shades, interpolation="none", aspect="auto", extent=(0, 1, figure.high, figure.low))
    axes.set_ylim(figure.low, figure.high)
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(NullLocator())
    axes.yaxis.tick_right()
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.tick_params(length=0, labelsize=9, pad=2)


def _plot(figure: Curves | Scatter) -> str:
    is_line = isinstance(figure, Curves)
    with drawing_style():
        canvas, axes = new_figure(600, 300, (56, 190, 44, 8))
        if figure.log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(base=10 if not is_line else 2, numticks=10))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.grid(visible=False, axis="x")
        axes.margins(0.06, 0.1)
        anchors = []
        for turn, series in enumerate(figure.series):
            colour, marker = _COLOURS[turn % len(_COLOURS)], _MARKERS[turn % len(_MARKERS)]
            xs, ys = [x for x, _ in series.points], [y for _, y in series.points]
            if is_line:
                shown = marker if len(xs) <= 16 else ""
                axes.plot(xs, ys, color=colour, linewidth=2.0, marker=shown, markersize=5)
                anchors.append((series.name, xs[-1], ys[-1], colour))
            else:
                axes.plot(xs, ys, marker, color=colour, markersize=6, alpha=0.75)
                anchors.append((series.name, max(xs), sum(ys) / len(ys), colour))
        axes.set_xlabel(plain(figure.x_label))
        axes.set_ylabel(plain(figure.y_label))
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # names are placed by these limits, so they must not move
        _name(axes, anchors)
        names = ", ".join(series.name for series in figure.series)
        return to_svg(canvas, name=figure.name, description=plain(f"{figure.title}: {names}."))


def _short(value: float) -> str:
    """Return a tick of a logarithmic axis: 0.5, 64, 10 k."""
    return f"{value:g}" if value < 1000 else compact_count(value).replace(".00 ", " ").replace(".0 ", " ")


def _name(axes: Axes, anchors: Sequence[tuple[str, float, float, str]]) -> None:
    """Write the names right of the axes by height, each joined to where its series stands."""
    frame = axes.get_window_extent()
    places = [axes.transData.transform((x, y)) for _, x, y, _ in anchors]
    order = sorted(range(len(anchors)), key=lambda index: float(places[index][1]))
    heights = spread_out([float(places[index][1]) for index in order], _NAME_GAP, frame.y0 + 4, frame.y1 - 4)
    for index, height in zip(order, heights, strict=True):
        name, x, y, colour = anchors[index]
        point = places[index]
        axes.annotate(
            shorten(plain(name), _NAME_LIMIT), (x, y), (frame.x1 + 14 - point[0], height - point[1]),
            textcoords="offset points", va="center", color=INK, parse_math=False, annotation_clip=False,
        )  # fmt: skip
        axes.plot(
            [point[0] + 5, frame.x1 + 4, frame.x1 + 11], [point[1], height, height], transform=None, color=colour,
            linewidth=0.9, alpha=0.7, clip_on=False,
        )  # fmt: skip
