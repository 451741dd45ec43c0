"""An exhibit's figures as SVG, in the report's style: heat maps, curves and clouds of points.

A heat map is an image of one pixel a cell inside the SVG, which a browser enlarges without smoothing: exact, and a
hundredth of the size of as many rectangles. Its shades are one colour at rising opacity, so they work on light and dark
pages. Lines and points are named right of the axes, in the order of their heights, so there is no legend: a line is
joined to its name, a cloud of points has its mark before it.
"""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.ticker import FixedLocator, NullLocator

from veneer.paper.exhibit import Figure, HeatMaps, Panel, Sheet
from veneer.report.drawing import INK, PALETTE, drawing_style, new_figure, to_svg
from veneer.report.formatting import plain
from veneer.report.paper_looks import Looks, looks_of
from veneer.report.paper_plots import plot_svg, reading_note

_MOST_A_ROW = 7
_PANEL, _GAP_X, _GAP_Y = 112.0, 18.0, 34.0
"""Side of a heat map and the room between two, in units of the SVG."""


def drawings_of(sheets: Sequence[Sheet]) -> Mapping[str, str]:
    """Return the SVG of each figure by its name; a name that several share looks the same in all."""
    figures = [figure for sheet in sheets for figure in sheet.figures]
    looks = looks_of(figures)
    return {figure.name: figure_svg(figure, looks) for figure in figures}


def figure_svg(figure: Figure, looks: Looks) -> str:
    """Return the figure as an SVG that can stand inside an HTML page; `looks` has every name in it."""
    return _heat_maps(figure) if isinstance(figure, HeatMaps) else plot_svg(figure, looks)


def caption_of(figure: Figure) -> str:
    """Return the figure's own caption and what has to be known to read the drawing."""
    if isinstance(figure, HeatMaps):
        note = "" if (figure.low, figure.high) == (0, 1) else f"Shades run from {figure.low:g} to {figure.high:g}."
    else:
        note = reading_note(figure)
    return f"{figure.caption} {note}".strip()


def _heat_maps(figure: HeatMaps) -> str:
    panels, (left, bottom, top, right) = figure.panels, (46.0, 42.0, 20.0, 64.0)
    rows = -(-len(panels) // _MOST_A_ROW)
    columns = -(-len(panels) // rows)
    width = left + columns * _PANEL + (columns - 1) * _GAP_X + right
    height = top + rows * _PANEL + (rows - 1) * _GAP_Y + bottom
    shades = ListedColormap([(*to_rgb(PALETTE[0]), step / 255) for step in range(256)])
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
    """Draw what each shade means: the ends are told, and whether a value lies beyond."""
    low, high = figure.low, figure.high
    values = [value for panel in figure.panels for row in panel.values for value in row]
    steps = [[step / 63] for step in range(64)]
    axes.imshow(steps, cmap=shades, interpolation="none", aspect="auto", extent=(0, 1, high, low))
    axes.set_ylim(low, high)
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(NullLocator())
    axes.yaxis.tick_right()
    ends = (
        "\N{LESS-THAN OR EQUAL TO} " * (min(values) < low - 1e-6),
        "\N{GREATER-THAN OR EQUAL TO} " * (max(values) > high + 1e-6),
    )
    names = [f"{ends[0]}{low:.3g}", f"{(low + high) / 2:.3g}", f"{ends[1]}{high:.3g}"]
    axes.set_yticks([low, (low + high) / 2, high], names)
    axes.tick_params(length=0, labelsize=9, pad=2)
