"""From numbers to a verdict: whether differences between two methods, over seeds and tasks, decide a claim."""

from collections.abc import Collection, Mapping, Sequence

from veneer.paper.exhibit import Number, Outcome, Verdict
from veneer.paper.tabulation import average, guess, mean, noise, own_score_on_validation
from veneer.results import RunRecord

FEWEST_PAIRS = 3
"""With fewer nothing is decided: two differences can happen to be alike."""
MARGIN = 0.01
"""How much worse counts as no worse, where that is the claim: ours to set. Seeds move Table 2's scores of LoRA with
RoBERTa base by 0.1 to 1.2 points."""


def judge(
    *,
    claim: str,
    source: str,
    differences: Mapping[str, Number | None],
    margin: float | None = None,
    unlearnt: Mapping[str, str] | None = None,
    groups: Mapping[str, Collection[str]] | None = None,
) -> Verdict:
    """Return the verdict on "the first is better", or with a margin on "the first is no worse".

    The mean over the tasks that have `FEWEST_PAIRS` pairs decides, by its confidence interval: the claim holds where
    all of it lies above 0, or with a margin above -margin, and does not where all of it lies below. Anything else
    leaves it undecided; other tasks are told, and decide nothing. So is the task without which it would be otherwise.

    Args:
        claim: what the paper says.
        source: where.
        differences: task -> first - second; None where there is no pair of runs.
        margin: how much worse still counts as no worse, in the score's own unit.
        unlearnt: tasks that cannot tell one from the other -> why, in words.
        groups: model -> its tasks, whose own verdict is told beside and decides nothing.
    """
    if not any(differences.values()):
        return not_run(claim, source)
    bar, without = 0.0 if margin is None else -margin, unlearnt or {}
    measured = {task: number for task, number in differences.items() if number is not None}
    deciding = {task: one for task, one in measured.items() if _can_decide(one) and task not in without}
    overall = average(list(deciding.values())) if deciding else None
    parts = []
    if len(deciding) > 1:
        assert overall is not None, "there are tasks to average"
        parts.append(f"Over {', '.join(deciding)} together: {_told(overall, bar)}")
        parts += _hanging_on(deciding, bar)
        parts += _of_groups(groups or {}, deciding, bar)
    elif deciding and len(differences) > 1:
        parts.append(f"Judged by {next(iter(deciding))} alone")
    is_brief = len(deciding) > 1
    told = "; ".join(
        f"{task}: {_in_short(number, bar) if is_brief else _told(number, bar)}"
        + (f", {without[task]}, so it decides nothing" if task in without else "")
        for task, number in measured.items()
    )
    parts.append(f"Task by task, points [95 % interval] (seeds): {told}" if is_brief else told)
    if missing := ", ".join(task for task, number in differences.items() if number is None):
        parts.append(f"Not run yet: {missing}")
    if margin is not None:
        parts.append(
            f"No worse means by less than {100 * margin:.1f} points, a margin set here: seeds move the paper's own "
            "scores in Table 2 by 0.1 to 1.2 (RoBERTa base, LoRA)"
        )
    because = " ".join(f"{part}." for part in parts)
    return Verdict(claim=claim, source=source, outcome=_decide(overall, bar), because=because)


def _hanging_on(deciding: Mapping[str, Number], bar: float) -> list[str]:
    """Return without which one of three or more tasks the outcome would be another, as no sentence or one."""
    if len(deciding) < 3:  # of two tasks each alone is told
        return []
    outcome = _decide(average(list(deciding.values())), bar)
    others = {task: average([one for other, one in deciding.items() if other != task]) for task in deciding}
    parts = [
        f"without {task} {_decide(rest, bar)} ({in_points(rest, bar)})"
        for task, rest in others.items()
        if _decide(rest, bar) != outcome
    ]
    return [f"One task makes the difference: {'; '.join(parts)}"] if parts else []


def _of_groups(groups: Mapping[str, Collection[str]], deciding: Mapping[str, Number], bar: float) -> list[str]:
    """Return what the tasks of each of two or more models would decide by themselves, as no sentence or one."""
    numbers = {name: [one for task, one in deciding.items() if task in tasks] for name, tasks in groups.items()}
    means = {name: average(of) for name, of in numbers.items() if of}
    parts = [f"{name} {_decide(mean, bar)} ({in_points(mean, bar)})" for name, mean in means.items()]
    return [f"Each model by itself, which decides nothing: {'; '.join(parts)}"] if len(parts) > 1 else []


def _decide(overall: Number | None, bar: float) -> Outcome:
    if overall is None or overall.low is None or overall.high is None:
        return "undecided"
    return "held" if overall.low > bar else "not held" if overall.high < bar else "undecided"


def _can_decide(number: Number) -> bool:
    return number.low is not None and (number.num_runs or 0) >= FEWEST_PAIRS


def _told(number: Number, bar: float) -> str:
    """Return a difference in points and how it lies to 0 and to the bar, as a sentence's part."""
    text = in_points(number, bar)
    if number.low is None or number.high is None:
        return text
    if number.num_runs is not None and not _can_decide(number):
        return f"{text}, too few to decide"
    return text + _placed(number.low, number.high, bar)


def _placed(low: float, high: float, bar: float) -> str:
    """Return how an interval lies to 0, or to a bar below it; nothing where the first is plainly better, or worse."""
    if not bar:
        return ", which includes 0" if low <= 0 <= high else ""
    allowed = f"{-100 * bar:.1f}"
    if high < bar:
        return f": a loss of more than {allowed}"
    if high < 0:
        return f": a loss, of less than {allowed}" if low > bar else f": a loss, whether of more than {allowed} is open"
    return f": whether it loses more than {allowed} is open" if low <= bar else ""


def in_points(number: Number, bar: float = 0.0) -> str:
    """Return a difference in points with its interval, as a sentence's part.

    Args:
        number: the difference, in the score's own unit.
        bar: what the interval is held against; where one decimal would put an end on it, there are more.
    """
    points = f"{100 * number.value:+.1f} points"
    over = ""
    if number.num_runs is not None:
        noted = f" ({number.note})" if number.note else ""
        over = f" over {number.num_runs} common seed{'s' * (number.num_runs != 1)}{noted}"
    ends = _ends(number, bar)
    return f"{points} without a spread{over}" if ends is None else f"{points}, 95 % interval {' to '.join(ends)}{over}"


def _in_short(number: Number, bar: float) -> str:
    """Return the same as "+1.2 [+0.3, +2.1] (5)"."""
    ends = _ends(number, bar)
    interval = "" if ends is None else f" [{', '.join(ends)}]"
    few = "" if _can_decide(number) else ", too few to decide"
    noted = f", {number.note}" if number.note else ""
    return f"{100 * number.value:+.1f}{interval} ({number.num_runs}{few}{noted})"


def _ends(number: Number, bar: float) -> tuple[str, str] | None:
    """Return both ends of the interval in points, with as many decimals as tell on which side of the bar they lie."""
    if number.low is None or number.high is None:
        return None
    ends = [100 * end for end in (number.low, number.high)]
    digits = next((digits for digits in (1, 2) if all(round(end - 100 * bar, digits) for end in ends)), 3)
    low, high = (f"{end:+.{digits}f}" for end in ends)
    return low, high


def untested(claim: str, source: str, because: str) -> Verdict:
    """Return the verdict on a claim that is out of reach here."""
    return Verdict(claim=claim, source=source, outcome="not tested at this scale", because=because)


def not_measured(claim: str, source: str, *, quick: bool) -> Verdict:
    """Return the verdict on a claim whose measurement is missing, or was only a quick one."""
    return not_run(claim, source, "Only a quick measurement was made." if quick else "Not measured yet.")


def not_run(claim: str, source: str, because: str = "Not run yet.") -> Verdict:
    """Return the verdict on a claim whose runs or measurement are missing."""
    return Verdict(claim=claim, source=source, outcome="not run yet", because=because)


def unlearnt(*methods: Sequence[RunRecord]) -> str | None:
    """Return why a task cannot tell methods apart, if none did better there than one answer for all rows might.

    Validation rows tell it, so that test rows leave no task out.

    Args:
        methods: the runs of each on one task.
    """
    done = [records for records in methods if records]
    if not done:
        return None
    record, means = done[0][0], [mean(records, own_score_on_validation) for records in done]
    best = max(one.value for one in means if one is not None)
    constant = guess(record, record.validation)
    if best > constant + noise(record, record.validation, best):
        return None
    return (
        f"at best {best:.3f} on validation rows, which is not two standard errors above the {constant:.3f} of one "
        "answer: not learnt"
    )
