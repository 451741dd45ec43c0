"""The report's plots, each as an SVG string: the score against size, and how training went.

Lines are named where they end and points where they stand, so no plot has a legend. A method has the same colour
(Okabe and Ito's palette, told apart by colour-blind readers) and the same marker in every plot. Single runs are thin
and faint, the mean over runs is strong; a collapsed run is a cross or a dashed line and enters no mean.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from veneer.data.metrics import Metric
from veneer.report.drawing import INK, MUTED, drawing_style, new_figure, to_svg
from veneer.report.formatting import compact_count, shorten
from veneer.report.summary import MethodSummary, split_figure
from veneer.results import RunRecord


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a method is drawn."""

    colour: str
    marker: str


METHOD_LOOKS: Mapping[str, Look] = {
    "head": Look(colour="#009E73", marker="s"),
    "lora-qv": Look(colour="#56B4E9", marker="^"),
    "lora-all": Look(colour="#0072B2", marker="o"),
    "full": Look(colour="#D55E00", marker="D"),
}
_OTHER_LOOKS = (
    Look(colour="#CC79A7", marker="v"),
    Look(colour="#E69F00", marker="P"),
    Look(colour="#8A8A8A", marker="X"),
)

_LABEL_LIMIT = 24
_LABEL_GAP = 15.0
_MARKED_POINTS = 12


def looks(summaries: Sequence[MethodSummary]) -> dict[str, Look]:
    """Return how each method is drawn; those without a look of their own take the remaining ones in turn."""
    others = [summary.method for summary in summaries if summary.method not in METHOD_LOOKS]
    turns = {method: _OTHER_LOOKS[turn % len(_OTHER_LOOKS)] for turn, method in enumerate(others)}
    return {s.method: METHOD_LOOKS.get(s.method) or turns[s.method] for s in summaries}


def score_plot(summaries: Sequence[MethodSummary]) -> str:
    """Return the score against trainable parameters: a faint mark per run, the mean with its standard deviation."""
    styles = looks(summaries)
    with drawing_style():
        figure, axes = new_figure(470, 310, (48, 10, 44, 8))
        for summary in summaries:
            _draw_scores(axes, summary, styles[summary.method])
        _set_score_limits(axes, summaries)
        for summary in summaries:
            _draw_collapsed(axes, summary, styles[summary.method])
        axes.set_xlabel("Trainable parameters (logarithmic)")
        axes.set_ylabel(f"{summaries[0].split.capitalize()} {summaries[0].metric.name}")
        _name_points(axes, summaries)
        described = "; ".join(f"{s.label}: {s.score.mean:.3f} with {s.trainable_parameters:,}" for s in summaries)
        title = f"{summaries[0].metric.heading} against trainable parameters"
        return to_svg(figure, name="score", description=f"{title}. {described}.")


def _draw_scores(axes: Axes, summary: MethodSummary, look: Look) -> None:
    size = max(summary.trainable_parameters, 1)
    if len(summary.scored) > 1:
        runs = [split_figure(record, summary.split, summary.metric) for record in summary.scored]
        axes.plot([size] * len(runs), runs, look.marker, markersize=5, color=look.colour, alpha=0.4)
    mean, sd = summary.score.mean, summary.score.sd
    if sd is not None:
        axes.plot([size, size], [mean - sd, mean + sd], color=look.colour, linewidth=1.8)
    axes.plot([size], [mean], "x" if summary.all_collapsed else look.marker, markersize=8.5, color=look.colour)


def _draw_collapsed(axes: Axes, summary: MethodSummary, look: Look) -> None:
    """Draw the runs that enter no mean as crosses; those below the frame stand on its edge with their value."""
    size, bottom = max(summary.trainable_parameters, 1), axes.get_ylim()[0]
    below = []
    for record in summary.records:
        score = split_figure(record, summary.split, summary.metric)
        if record not in summary.scored:
            axes.plot([size], [max(score, bottom)], "x", markersize=6, color=look.colour, clip_on=False)
            below += [f"{score:.3f}"] if score < bottom else []
    if below:
        text = ", ".join(below) + " \N{DOWNWARDS ARROW}"
        axes.annotate(text, (size, bottom), (7, 4), textcoords="offset points", va="bottom", color=MUTED, fontsize=10)


def _set_score_limits(axes: Axes, summaries: Sequence[MethodSummary]) -> None:
    """Fit the axes to the runs that enter a mean, with room for names; a collapsed run would press them together."""
    sizes = [max(summary.trainable_parameters, 1) for summary in summaries]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 4, max(sizes) * 4)
    axes.xaxis.set_major_locator(LogLocator(base=10, numticks=8))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: compact_count(value).replace(".00 ", " ").replace(".0 ", " "))
    )
    axes.grid(visible=False, axis="x")
    values = [split_figure(record, s.split, s.metric) for s in summaries for record in s.scored]
    for summary in summaries:
        sd = summary.score.sd or 0.0
        values += [summary.score.mean - sd, summary.score.mean + sd]
    _range_limits(summaries[0].metric)(axes, values)


def _range_limits(metric: Metric) -> Callable[[Axes, list[float]], None]:
    """Return what fits the y axis to a metric, with a little room and no tick outside its range."""

    def fit(axes: Axes, values: list[float]) -> None:
        low, high = min(values), max(values)
        room = max(0.18 * (high - low), 0.01)
        axes.set_ylim(low - room, high + room)
        ticks = MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(low - room, high + room)
        inside = [tick for tick in ticks if metric.lowest - 1e-9 <= tick <= 1 + 1e-9]
        axes.yaxis.set_major_locator(FixedLocator(inside))
        decimals = 3 if high - low + 2 * room < 0.05 else 2
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.{decimals}f}"))

    return fit


def _name_points(axes: Axes, summaries: Sequence[MethodSummary]) -> None:
    """Write each method's name beside its mean, on the first side where it covers nothing."""
    taken = [box for summary in summaries for box in _boxes(axes, summary)]
    frame = axes.get_window_extent()
    sides = [
        (0, 11, "center", "bottom"), (0, -11, "center", "top"), (11, 0, "left", "center"), (-11, 0, "right", "center"),
        (9, 9, "left", "bottom"), (-9, 9, "right", "bottom"), (9, -9, "left", "top"), (-9, -9, "right", "top"),
        (0, 26, "center", "bottom"), (0, -26, "center", "top"),
    ]  # fmt: skip
    for summary in summaries:
        anchor = (max(summary.trainable_parameters, 1), summary.score.mean)
        for x, y, horizontal, vertical in sides:
            name = axes.annotate(
                shorten(summary.label, _LABEL_LIMIT), anchor, (x, y), textcoords="offset points",
                ha=horizontal, va=vertical, parse_math=False,
            )  # fmt: skip
            box = name.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            if (x, y, horizontal, vertical) != sides[-1]:
                name.remove()
        taken.append(box)


def _boxes(axes: Axes, summary: MethodSummary) -> list[Bbox]:
    """Return what the method's marks and error bar cover, in pixels."""
    mean, sd = summary.score.mean, summary.score.sd or 0.0
    spans = [(mean - sd, mean + sd)]
    spans += [(value, value) for r in summary.records for value in [split_figure(r, summary.split, summary.metric)]]
    size = max(summary.trainable_parameters, 1)
    corners = [axes.transData.transform([(size, low), (size, high)]) for low, high in spans]
    return [Bbox.from_extents(x - 5, low - 5, x + 5, high + 5) for (x, low), (_, high) in corners]


def validation_plot(summaries: Sequence[MethodSummary]) -> str:
    """Return what the task is judged by, on validation, against the epoch; at least one run needs a curve."""
    metric = summaries[0].metric
    curves = _curves(summaries, lambda record: [(p["epoch"], p[metric.key]) for p in record.validation_curve])
    with drawing_style():
        axes = _draw_all_curves(summaries, curves, _range_limits(metric), f"Validation {metric.name}")
        described = f"Validation {metric.name} after each epoch."
        return to_svg(axes.figure.figure, name="validation", description=described)


def loss_plot(summaries: Sequence[MethodSummary]) -> str:
    """Return the training loss against the epoch; at least one run needs a curve."""
    unit = "nats per row" if summaries[0].records[0].labels else "mean squared error"
    curves = _curves(summaries, lambda record: [(p["epoch"], p["loss"]) for p in record.train_curve])
    with drawing_style():
        axes = _draw_all_curves(summaries, curves, _set_loss_limits, f"Training loss ({unit})")
        return to_svg(axes.figure.figure, name="loss", description="Training loss along training.")


Points = list[tuple[float, float]]
"""The (epoch, value) pairs of one run."""
Curves = dict[str, list[tuple[RunRecord, Points]]]
"""The runs of each method that has any points, with them."""


def _curves(summaries: Sequence[MethodSummary], read: Callable[[RunRecord], Points]) -> Curves:
    runs = {s.method: [(record, points) for record in s.records if (points := read(record))] for s in summaries}
    return {method: found for method, found in runs.items() if found}


def _set_loss_limits(axes: Axes, values: list[float]) -> None:
    """Fit the y axis to a loss: from 0, so that heights compare."""
    axes.set_ylim(0, max(values) * 1.06 or 1)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))


def _draw_all_curves(
    summaries: Sequence[MethodSummary], curves: Curves, fit: Callable[[Axes, list[float]], None], label: str
) -> Axes:
    """Return axes with every method's curves, fitted by `fit` and named at their ends."""
    styles = looks(summaries)
    shown = [summary for summary in summaries if summary.method in curves]
    points = [point for runs in curves.values() for _, run in runs for point in run]
    epochs = [epoch for epoch, _ in points]
    _, axes = new_figure(480, 280, (48, 166, 44, 8))
    fit(axes, [value for s in shown for record, run in curves[s.method] if record in s.scored for _, value in run])
    # A little room keeps the first marks off the axis's numbers; a single epoch needs a width to stand in.
    room = 0.025 * (max(epochs) - min(epochs)) or 0.5
    axes.set_xlim(min(epochs) - room, max(epochs) + room)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("Epoch")
    axes.set_ylabel(label)
    ends = {s.method: _draw_curves(axes, curves[s.method], s, styles[s.method]) for s in shown}
    _name_lines(axes, shown, ends, styles)
    return axes


def _draw_curves(
    axes: Axes, runs: list[tuple[RunRecord, Points]], summary: MethodSummary, look: Look
) -> tuple[float, float]:
    """Draw a method's runs and their mean; return where the line that bears its name ends."""
    scored = [points for record, points in runs if record in summary.scored] or [points for _, points in runs]
    if len(runs) > 1:
        for record, points in runs:
            dashes = "--" if record.collapsed else "-"
            axes.plot(*zip(*points, strict=True), color=look.colour, linewidth=0.9, alpha=0.45, linestyle=dashes)
    mean = mean_curve(scored) or scored[0]
    marker = look.marker if len(mean) <= _MARKED_POINTS else ""
    dashes = "--" if summary.all_collapsed else "-"
    axes.plot(
        *zip(*mean, strict=True), color=look.colour, linewidth=2.2, marker=marker, markersize=5, linestyle=dashes,
        clip_on=False,
    )  # fmt: skip
    return mean[-1]


def mean_curve(curves: Sequence[Points]) -> Points:
    """Return the mean over the epochs that every curve has, so that no step comes from a run dropping out."""
    by_epoch = [{round(epoch, 6): value for epoch, value in points} for points in curves]
    shared = set(by_epoch[0]).intersection(*by_epoch[1:])
    return [(epoch, fmean(curve[epoch] for curve in by_epoch)) for epoch in sorted(shared)]


def _name_lines(
    axes: Axes, summaries: Sequence[MethodSummary], ends: dict[str, tuple[float, float]], styles: dict[str, Look]
) -> None:
    """Write the names right of the axes in the order of the lines' ends, each joined to its line by a stroke."""
    frame = axes.get_window_extent()
    heights = {method: float(axes.transData.transform(end)[1]) for method, end in ends.items()}
    order = sorted(heights, key=lambda method: heights[method])
    placed = spread_out([heights[method] for method in order], _LABEL_GAP, frame.y0 + 4, frame.y1 - 4)
    labels = {summary.method: summary.label for summary in summaries}
    for method, height in zip(order, placed, strict=True):
        last = axes.transData.transform(ends[method])
        offset = ((frame.x1 + 14 - last[0]), height - last[1])
        axes.annotate(
            shorten(labels[method], _LABEL_LIMIT), ends[method], offset, textcoords="offset points", va="center",
            color=INK, parse_math=False, annotation_clip=False,
        )  # fmt: skip
        strokes = axes.plot(
            [last[0], last[0] + 4, frame.x1 + 6, frame.x1 + 11], [last[1], last[1], height, height],
            transform=None, color=styles[method].colour if last[0] >= frame.x1 - 1 else MUTED, linewidth=1.0,
            clip_on=False,
        )  # fmt: skip
        strokes[0].set_solid_joinstyle("round")


def spread_out(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return the ascending heights moved as little as needed to lie `gap` apart, between `low` and `high`.

    Names that do not fit between the two keep the gap and pass `low`.
    """
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else max(height, low))
    limit = high
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed
