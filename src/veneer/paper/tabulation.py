"""From the records of a grid to a table's numbers and a verdict.

A collapsed run gives one answer only: it says that training failed, so it enters no mean and no difference; how many
there were, and the mean with them, is told beside. Methods are compared by pairs of runs with the same seed, which
share the order of rows and the head's start; the interval is Student's on those differences. It tells how much seeds
matter, not how much other test rows would. Several tasks count alike, and their intervals are put together as those of
independent means with variances of their own (Welch 1947).
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
"""With fewer nothing is decided: two differences can happen to be alike."""
Read = Callable[[RunRecord], float]
"""Which figure of a record is tabulated."""


def found(grid: Grid, configs: Sequence[RunConfig]) -> list[RunRecord]:
    """Return the records of those of `configs` that were done, in order."""
    return [record for config in configs if (record := grid.find(config)) is not None]


def beyond_head(record: RunRecord) -> int:
    """Return how many parameters were trained besides the head's, which the paper does not count."""
    return record.trainable_parameters - record.head_parameters


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
    """Return the best score of any epoch on the rows that it is chosen by, which is a little too good.

    It is what the paper reports (section 5.1). On GLUE these are dev rows, our test rows, where the run watched them;
    else validation rows.
    """
    metric, _ = judged_by(record.data, record.validation)
    scores = [epoch[metric.key] for epoch in record.test_curve or record.validation_curve]
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
    num_rows = min((record.test or record.validation).num_examples for pair in good for record in pair)
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
    num_runs = min(number.num_runs or 0 for number in numbers)
    return Number(value=center, low=center - half, high=center + half, num_runs=num_runs, signed=True)


def _standard_error(number: Number) -> tuple[float, int]:
    """Return the standard error that an interval was made of, and its degrees of freedom."""
    assert number.low is not None, "it has an interval"
    assert number.high is not None, "it has an interval"
    assert number.num_runs is not None, "it is of runs"
    freedom = number.num_runs - 1
    return (number.high - number.low) / (2 * _quantile(freedom)), freedom


def judge(*, claim: str, source: str, differences: Mapping[str, Number | None], margin: float | None = None) -> Verdict:
    """Return the verdict on "the first is better", or with a margin on "the first is no worse".

    The mean over the tasks that have `FEWEST_PAIRS` pairs decides, by its confidence interval: the claim holds where
    all of it lies above 0, or with a margin above -margin, and does not where all of it lies below. Anything else
    leaves it undecided; tasks with fewer pairs are told, and decide nothing.

    Args:
        claim: what the paper says.
        source: where.
        differences: task -> first - second; None where there is no pair of runs.
        margin: how much worse still counts as no worse, in the score's own unit.
    """
    if not any(differences.values()):
        return not_run(claim, source)
    bar = 0.0 if margin is None else -margin
    because = "; ".join(f"{task}: {_told(number, bar)}" for task, number in differences.items()) + "."
    deciding = {task: number for task, number in differences.items() if number is not None and _can_decide(number)}
    overall = average(list(deciding.values())) if deciding else None
    if len(deciding) > 1:
        because += f" Over {', '.join(deciding)} together: {_told(overall, bar)}."
    elif deciding and len(differences) > 1:
        because += f" Judged by {next(iter(deciding))} alone."
    if margin is not None:
        because += f" No worse means by less than {100 * margin:.1f} points."
    return Verdict(claim=claim, source=source, outcome=_decide(overall, bar), because=because)


def _decide(overall: Number | None, bar: float) -> Outcome:
    if overall is None or overall.low is None or overall.high is None:
        return "undecided"
    return "held" if overall.low > bar else "not held" if overall.high < bar else "undecided"


def _can_decide(number: Number) -> bool:
    return number.low is not None and (number.num_runs or 0) >= FEWEST_PAIRS


def _told(number: Number | None, bar: float) -> str:
    """Return a difference in points and how it lies to the bar, as a sentence's part."""
    if number is None:
        return "not run yet"
    text = in_points(number, bar)
    if number.low is None or number.high is None:
        return text
    if not _can_decide(number):
        return f"{text}, too few to decide"
    if number.low <= bar <= number.high:
        text += f", which includes {f'{100 * bar:+.1f}' if bar else '0'}"
    return f"{text}; that is a loss" if bar < 0 and number.high < 0 else text


def in_points(number: Number, bar: float = 0.0) -> str:
    """Return a difference in points with its interval, as a sentence's part.

    Args:
        number: the difference, in the score's own unit.
        bar: what the interval is held against; where one decimal would put an end on it, there are more.
    """
    points = f"{100 * number.value:+.1f} points"
    noted = f" ({number.note})" if number.note else ""
    over = f"over {number.num_runs} common seed{'s' * (number.num_runs != 1)}{noted}"
    if number.low is None or number.high is None:
        return f"{points} without a spread {over}"
    ends = [100 * end for end in (number.low, number.high)]
    digits = next((digits for digits in (1, 2) if all(round(end - 100 * bar, digits) for end in ends)), 3)
    low, high = (f"{end:+.{digits}f}" for end in ends)
    return f"{points}, 95 % interval {low} to {high} {over}"


def untested(claim: str, source: str, because: str) -> Verdict:
    """Return the verdict on a claim that is out of reach here."""
    return Verdict(claim=claim, source=source, outcome="not tested at this scale", because=because)


def not_run(claim: str, source: str, because: str = "Not run yet.") -> Verdict:
    """Return the verdict on a claim whose runs or measurement are missing."""
    return Verdict(claim=claim, source=source, outcome="not run yet", because=because)
