"""From the records of a grid to a table's numbers; `verdicts.py` makes verdicts of them.

A collapsed run gives one answer only, or diverged at once: training failed, so it enters no mean and no difference; how
many there were, and the mean with them, is told beside. Methods are compared by pairs of runs with the same seed, which
share the order of rows and the head's start; the interval is Student's on those differences. It tells how much seeds
matter, not how much other test rows would. Several tasks count alike, and their intervals are put together as those of
independent means with variances of their own (Welch 1947).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, median, stdev

from scipy.stats import t as student  # type: ignore[import-untyped]  # scipy ships no types

from veneer.data.metrics import judged_by
from veneer.paper.exhibit import Curves, Number, Series
from veneer.results import AnyScores, RunRecord, Scores
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

CONFIDENCE = 0.95
Read = Callable[[RunRecord], float]
"""Which figure of a record is tabulated."""


def found(grid: Grid, configs: Sequence[RunConfig]) -> list[RunRecord]:
    """Return the records of those of `configs` that were done, in order."""
    return [record for config in configs if (record := grid.find(config)) is not None]


def beyond_head(record: RunRecord) -> int:
    """Return how many parameters were trained besides the head's, which the paper does not count."""
    return record.trainable_parameters - record.head_parameters


def scores_on_test(record: RunRecord) -> AnyScores:
    """Return the scores on rows that chose nothing: test, or validation where there is no test."""
    return record.test or record.validation


def accuracy_on_test(record: RunRecord) -> float:
    """Return the accuracy on those rows."""
    return scores_on_test(record).figures["accuracy"]


def own_score_on_test(record: RunRecord) -> float:
    """Return what the record's task is judged by, on those rows: on GLUE what the paper's Table 2 reports."""
    return _own_score(record, scores_on_test(record))


def own_score_on_validation(record: RunRecord) -> float:
    """Return the same on the rows that chose the epoch."""
    return _own_score(record, record.validation)


def _own_score(record: RunRecord, scores: AnyScores) -> float:
    metric, _ = judged_by(record.data, scores)
    return scores.figures[metric.key]


def guess(record: RunRecord, scores: AnyScores) -> float:
    """Return what one answer for all rows of one of its scores would reach: in accuracy a share, as a correlation 0."""
    metric, _ = judged_by(record.data, scores)
    return scores.majority_share if isinstance(scores, Scores) and metric.key == "accuracy" else 0.0


def noise(record: RunRecord, scores: AnyScores, reached: float) -> float:
    """Return by how much other rows, as many as those of one of its scores, would move it: two standard errors.

    Args:
        record: of a run.
        scores: on validation or on test rows.
        reached: what the task is judged by, of these rows: the run's own score or a mean of several.
    """
    metric, _ = judged_by(record.data, scores)
    return 2 * metric.standard_error(reached, scores.num_examples)


def of_other_rows(rows: Iterable[Sequence[RunRecord]], read: Read = accuracy_on_test) -> tuple[str, ...]:
    """Return what a table's intervals over seeds leave out, as its note; none where there is no run.

    Args:
        rows: the runs behind each mean, all of one task.
        read: the figure that is tabulated, of the rows that chose nothing.
    """
    done = [(records[0], reached.value) for records in rows if (reached := mean(records, read)) is not None]
    if not done:
        return ()
    moves = [noise(record, scores_on_test(record), reached) for record, reached in done]
    least, most = (f"{end(moves):.3f}" for end in (min, max))
    by = f"about ±{least}" if least == most else f"±{least} to ±{most}"
    num_rows = scores_on_test(done[0][0]).num_examples
    return (
        f"Other rows of the same kind, as many as these {num_rows:,}, would move each score by {by} (two standard "
        "errors), and a difference by less, as far as methods err on the same rows. The intervals leave this out.",
    )


def best_on_dev(record: RunRecord) -> float:
    """Return the best score of any epoch on the rows that it is chosen by, which is a little too good.

    It is what the paper reports (section 5.1). On GLUE these are dev rows, our test rows, where the run watched them;
    else validation rows.
    """
    curve, at_end = record.validation_curve, record.validation
    if record.config.get("watch_test"):
        curve, at_end = record.test_curve, scores_on_test(record)
    metric, _ = judged_by(record.data, at_end)
    return max((epoch[metric.key] for epoch in curve), default=at_end.figures[metric.key])


def mean(records: Sequence[RunRecord], read: Read = accuracy_on_test) -> Number | None:
    """Return the mean over the runs that did not collapse, or over all where every run did; None without a run."""
    if not records:
        return None
    good = [record for record in records if not record.collapsed] or list(records)
    num_collapsed = sum(record.collapsed for record in records)
    note = ""
    if num_collapsed == len(records):
        note = "all collapsed"
    elif num_collapsed:
        them = "it" if num_collapsed == 1 else "them"
        note = f"{num_collapsed} of {len(records)} collapsed; {fmean(map(read, records)):.3f} with {them}"
    values = [read(record) for record in good]
    sd = stdev(values) if len(values) > 1 else None
    return Number(value=fmean(values), sd=sd, num_runs=len(values), note=note)


def median_on_dev(records: Sequence[RunRecord]) -> Number | None:
    """Return the paper's own statistic: the median over seeds of the best epoch on dev, all runs counted."""
    if not records:
        return None
    return Number(value=median(map(best_on_dev, records)), num_runs=len(records))


def difference(first: Sequence[RunRecord], second: Sequence[RunRecord], read: Read = accuracy_on_test) -> Number | None:
    """Return the mean of first - second over the seeds that both have, with its confidence interval.

    The interval needs two pairs at least; pairs with a collapsed run are left out where there are others. None without
    a pair.
    """
    others = {record.seed: record for record in second}
    pairs = [(record, others[record.seed]) for record in first if record.seed in others]
    if not pairs:
        return None
    good = [(one, other) for one, other in pairs if not one.collapsed and not other.collapsed]
    if not good:
        value = fmean(read(one) - read(other) for one, other in pairs)
        return Number(value=value, num_runs=0, signed=True, note="every pair has a collapsed run")
    left_out = len(pairs) - len(good)
    note = f"{left_out} pair{'s' * (left_out > 1)} with a collapsed run left out" if left_out else ""
    num_rows = min(scores_on_test(record).num_examples for pair in good for record in pair)
    return mean_difference([read(one) - read(other) for one, other in good], note=note, step=1 / num_rows)


def mean_difference(values: Sequence[float], note: str = "", step: float = 0.0) -> Number:
    """Return the mean of one or more differences, a pair of runs each, with its confidence interval.

    Args:
        values: the differences.
        note: what must be known of them.
        step: by which each of the two scores goes up or down: that they happen to be equal is no certainty, so the
            spread counts as no less than that of rounding, step / sqrt(6) for a difference of two.
    """
    center, half = fmean(values), _half_width(values, step / math.sqrt(6))
    low, high = (None, None) if half is None else (center - half, center + half)
    return Number(value=center, low=low, high=high, num_runs=len(values), signed=True, note=note)


def _half_width(values: Sequence[float], least: float) -> float | None:
    """Return half the width of Student's confidence interval for the mean, of a spread no less; None below two."""
    if len(values) < 2:
        return None
    return _quantile(len(values) - 1) * max(stdev(values), least) / math.sqrt(len(values))


def _quantile(freedom: float) -> float:
    """Return how many standard errors Student's interval reaches to either side."""
    return float(student.ppf((1 + CONFIDENCE) / 2, freedom))


def mean_curves(
    *,
    name: str,
    title: str,
    x_label: str,
    series: Mapping[str, Mapping[float, Sequence[RunRecord]]],
    y_label: str = "Test accuracy, mean",
    read: Read = accuracy_on_test,
) -> tuple[Curves, ...]:
    """Return one figure of the means along a logarithmic axis, or none where there is no run.

    A span is one standard deviation to either side.

    Args:
        name: see `Curves`.
        title: the same.
        x_label: the same, without "(logarithmic)".
        series: name of a line -> place on the axis -> the runs there.
        y_label: what `read` gives.
        read: which figure of a record is averaged.
    """
    lines = {
        line: {x: number for x, records in runs.items() if (number := mean(records, read)) is not None}
        for line, runs in series.items()
    }
    shown = tuple(line_of(line, numbers) for line, numbers in lines.items() if numbers)
    collapsed = [
        f"{line} at {x:g}: {number.note}"
        for line, numbers in lines.items()
        for x, number in numbers.items()
        if number.note
    ]
    caption = f"Collapsed runs enter no mean unless all did. {'; '.join(collapsed)}." if collapsed else ""
    x_label = f"{x_label} (logarithmic)"
    curves = Curves(
        name=name, title=title, x_label=x_label, y_label=y_label, series=shown, log_x=True, caption=caption
    )  # fmt: skip
    return (curves,) if shown else ()


def line_of(name: str, numbers: Mapping[float, Number]) -> Series:
    """Return a line through numbers by their place on the axis; a span is a standard deviation, or else an interval."""
    return Series(
        name=name,
        points=tuple((x, number.value) for x, number in numbers.items()),
        spans=tuple(_span(number) for number in numbers.values()),
    )


def _span(number: Number) -> tuple[float, float] | None:
    if number.sd is not None:
        return number.value - number.sd, number.value + number.sd
    return None if number.low is None or number.high is None else (number.low, number.high)


def average(numbers: Sequence[Number]) -> Number:
    """Return the mean of several tasks' differences, each counted alike, with its confidence interval.

    Args:
        numbers: one or more, each with its interval.
    """
    if len(numbers) == 1:
        return numbers[0]
    parts = [_standard_error(number) for number in numbers]
    variance = sum(error**2 for error, _ in parts)
    freedom = variance**2 / sum(error**4 / freedom for error, freedom in parts) if variance else 1.0
    center, half = fmean(number.value for number in numbers), _quantile(freedom) * math.sqrt(variance) / len(numbers)
    return Number(value=center, low=center - half, high=center + half, signed=True)


def _standard_error(number: Number) -> tuple[float, int]:
    """Return the standard error that an interval was made of, and its degrees of freedom."""
    assert number.low is not None, "it has an interval"
    assert number.high is not None, "it has an interval"
    assert number.num_runs is not None, "it is of runs"
    freedom = number.num_runs - 1
    return (number.high - number.low) / (2 * _quantile(freedom)), freedom
