"""Which classes a method takes for which: a matrix for few classes, a list of the worst pairs for many.

Both add up the runs that the method's means are over. A row is a true class, a column a predicted one; the shade is
the cell's share of its row, so a rare class is judged like a frequent one.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.ticker import FixedFormatter, FixedLocator

from veneer.report.drawing import INK, MUTED, drawing_style, new_figure, to_svg
from veneer.report.formatting import plain, short_names
from veneer.report.summary import MethodSummary, split_scores
from veneer.results import Scores

MOST_CLASSES = 20
"""More classes than this do not fit a readable matrix."""
_NAME_LIMIT = 18
_SHADE = "#0072B2"
_DARKEST = 0.72  # at this opacity both dark ink on white and light ink on black stay readable


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """A true class and what it was taken for."""

    true: str
    predicted: str
    count: int
    share: float
    """Of the true class's rows."""


def summed_confusion(summary: MethodSummary) -> list[list[int]]:
    """Return the confusion matrices of the scored runs, added up; of regression there are none."""
    scores = [split_scores(record, summary.split) for record in summary.scored]
    matrices = [part.confusion for part in scores if isinstance(part, Scores)]
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def confused_pairs(summary: MethodSummary, *, most: int = 10) -> list[ConfusedPair]:
    """Return the pairs mixed up most often, by count, then in the order of the classes."""
    names = [plain(label) for label in summary.records[0].labels]
    pairs = [
        ConfusedPair(true=names[row], predicted=names[column], count=cell, share=cell / sum(cells))
        for row, cells in enumerate(summed_confusion(summary))
        for column, cell in enumerate(cells)
        if cell and row != column
    ]
    return sorted(pairs, key=lambda pair: -pair.count)[:most]


def confusion_plot(summary: MethodSummary, *, name: str) -> str:
    """Return the method's confusion matrix; `name` has to be different for each figure of a page."""
    counts = np.array(summed_confusion(summary))
    names = short_names(summary.records[0].labels, _NAME_LIMIT)
    classes, longest = len(names), max(len(short) for short in names)
    cell = 58 if classes <= 3 else 44 if classes <= 8 else 30
    text = 11 if classes <= 8 else 9
    slanted = longest * text * 0.62 > cell
    margin = 30 + longest * text * 0.62
    below = 36 + (longest * text * 0.62 * 0.72 if slanted else text)
    side = classes * cell
    right = 8 + (12 if slanted else 0)
    with drawing_style():
        figure, axes = new_figure(margin + side + right, below + side + 6, (margin, right, below, 6))
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        shades = ListedColormap([(*to_rgb(_SHADE), _DARKEST * step / 255) for step in range(256)])
        axes.pcolormesh(shares, cmap=shades, vmin=0, vmax=1)
        axes.invert_yaxis()
        for (row, column), number in np.ndenumerate(counts):
            axes.text(
                column + 0.5, row + 0.5, str(number), ha="center", va="center", fontsize=text,
                color=INK if number else MUTED, alpha=1 if number else 0.6,
            )  # fmt: skip
        _name_axes(axes, names, text, slanted)
        hits = int(np.trace(counts))
        described = f"Confusion matrix of {summary.label}: {hits:,} of {int(counts.sum()):,} predictions are right."
        return to_svg(figure, name=name, description=described)


def _name_axes(axes: Axes, names: list[str], text: int, slanted: bool) -> None:
    places = [index + 0.5 for index in range(len(names))]
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(places))
        axis.set_major_formatter(FixedFormatter(names))
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        label.set_parse_math(False)
    axes.tick_params(length=0, labelsize=text, labelcolor=INK)
    if slanted:
        for label in axes.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xlabel("Predicted")
    axes.set_ylabel("True")
