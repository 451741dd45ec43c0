"""From the records of a grid to a table's numbers and a verdict.

A collapsed run gives one answer only: it says that training failed, so it enters no mean and no difference; how many
there were, and the mean with them, is told beside. Methods are compared by pairs of runs with the same seed, which
share the order of rows and the head's start; the interval is Student's on those differences. It tells how much seeds
matter, not how much other test rows would.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median, stdev

from scipy.stats import t as student  # type: ignore[import-untyped]  # scipy ships no types

from veneer.data.metrics import judged_by
from veneer.paper.exhibit import Curves, Number, Outcome, Series, Verdict
from veneer.results import AnyScores, RunRecord
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

CONFIDENCE = 0.95
FEWEST_PAIRS = 3
"""With fewer nothing is decided: two differences that happen to be equal would leave no interval at all."""
Read = Callable[[RunRecord], float]
"""Which figure of a record is tabulated."""


def found(grid: Grid, configs: Sequence[RunConfig]) -> list[RunRecord]:
    """Return the records of those of `configs` that were done, in order."""
    return [record for config in configs if (record := grid.find(config)) is not None]


def accuracy_on_test(record: RunRecord) -> float:
    """Return the accuracy on rows that chose nothing: test, or validation where there is no test."""
    return (record.test or record.validation).figures["accuracy"]


def own_score_on_test(record: RunRecord) -> float:
    """Return what the record's task is judged by, on the same rows: on GLUE what the paper's Table 2 reports."""
    return _own_score(record, record.test or record.validation)


def own_score_on_validation(record: RunRecord) -> float:
    """Return the same on the rows that chose the epoch."""
    return _own_score(record, record.validation)


def _own_score(record: RunRecord, scores: AnyScores) -> float:
    metric, _ = judged_by(record.data, scores)
    return scores.figures[metric.key]


def best_on_dev(record: RunRecord) -> float:
    """Return the best validation score of any epoch, by what the task is judged by: accuracy, but on some of GLUE.

    It is what the paper reports (section 5.1), and a little too good.
    """
    metric, _ = judged_by(record.data, record.validation)
    scores = [epoch[metric.key] for epoch in record.validation_curve]
    return max(scores, default=record.validation.figures[metric.key])


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
        note = f"{num_collapsed} of {len(records)} collapsed; {fmean(map(read, records)):.3f} with them"
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

    The interval needs two pairs at least; pairs with a collapsed run are left out. None without a pair.
    """
    others = {record.seed: record for record in second}
    pairs = [(record, others[record.seed]) for record in first if record.seed in others]
    good = [(one, other) for one, other in pairs if not one.collapsed and not other.collapsed]
    if not good:
        return None
    left_out = len(pairs) - len(good)
    note = f"{left_out} pair{'s' * (left_out > 1)} with a collapsed run left out" if left_out else ""
    return mean_difference([read(one) - read(other) for one, other in good], note=note)


def mean_difference(values: Sequence[float], note: str = "") -> Number:
    """Return the mean of one or more differences, a pair of runs each, with its confidence interval."""
    center, half = fmean(values), _half_width(values)
    low, high = (None, None) if half is None else (center - half, center + half)
    return Number(value=center, low=low, high=high, num_runs=len(values), signed=True, note=note)


def _half_width(values: Sequence[float]) -> float | None:
    """Return half the width of Student's confidence interval for the mean; None below two values."""
    if len(values) < 2:
        return None
    quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * stdev(values) / math.sqrt(len(values))


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

    Args:
        name: see `Curves`.
        title: the same.
        x_label: the same, without "(logarithmic)".
        series: name of a line -> place on the axis -> the runs there.
        y_label: what `read` gives.
        read: which figure of a record is averaged.
    """
    lines = {
        line: tuple((x, number.value) for x, records in runs.items() if (number := mean(records, read)) is not None)
        for line, runs in series.items()
    }
    shown = tuple(Series(name=line, points=points) for line, points in lines.items() if points)
    x_label = f"{x_label} (logarithmic)"
    return (
        (Curves(name=name, title=title, x_label=x_label, y_label=y_label, series=shown, log_x=True),) if shown else ()
    )


def judge(*, claim: str, source: str, differences: Mapping[str, Number | None], margin: float | None = None) -> Verdict:
    """Return the verdict on "the first is better", or with a margin on "the first is no worse".

    Each difference is decided by its confidence interval: "better" holds where all of it lies above 0, "no worse"
    where all of it lies above -margin. Neither holds where all of it lies below 0. Anything else, and fewer than
    `FEWEST_PAIRS` pairs, these runs cannot tell. A claim over several tasks holds where it holds on each, and does
    not where it fails on one.

    Args:
        claim: what the paper says.
        source: where.
        differences: task -> first - second; None where there is no pair of runs.
        margin: how much worse still counts as no worse, in accuracy.
    """
    each = {task: _decide(number, margin) for task, number in differences.items()}
    outcome: Outcome = "not tested at this scale"
    if "not held" in each.values():
        outcome = "not held"
    elif each and all(one == "held" for one in each.values()):
        outcome = "held"
    because = "; ".join(f"{task}: {_told(number)}" for task, number in differences.items()) + "."
    if not any(differences.values()):
        because = "Not run yet."
    elif margin is not None:
        because += f" No worse means by less than {100 * margin:.1f} points."
    return Verdict(claim=claim, source=source, outcome=outcome, because=because)


def _decide(number: Number | None, margin: float | None) -> Outcome:
    if number is None or number.low is None or number.high is None or (number.num_runs or 0) < FEWEST_PAIRS:
        return "not tested at this scale"
    if number.low > (0 if margin is None else -margin):
        return "held"
    return "not held" if number.high < 0 else "not tested at this scale"


def _told(number: Number | None) -> str:
    """Return a difference in points, as a sentence's part."""
    if number is None:
        return "not run yet"
    points = f"{100 * number.value:+.1f} points"
    if number.low is None or number.high is None:
        return f"{points} with one pair of runs, which has no spread"
    text = f"{points}, 95 % interval {100 * number.low:+.1f} to {100 * number.high:+.1f} over {number.num_runs} seeds"
    if (number.num_runs or 0) < FEWEST_PAIRS:
        return f"{text}, too few to decide"
    return text if number.low > 0 or number.high < 0 else f"{text}, which includes 0"


def untested(claim: str, source: str, because: str) -> Verdict:
    """Return the verdict on a claim that nothing here could decide."""
    return Verdict(claim=claim, source=source, outcome="not tested at this scale", because=because)
