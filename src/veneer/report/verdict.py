"""The comparison in plain words: did LoRA reach full fine-tuning, and can these rows tell?

The LoRA method in the sentence is the one that validation prefers. Picking it by the test would make it lean high.

A difference d of two scores counts as noise while |d| is below two standard errors. For accuracy the standard error is
that of Agresti and Caffo (The American Statistician 54(4), 2000: one success and one failure added to each sample, so
that it stays sensible near 0 and 1), joined with the spread over runs:

    p' = (n p + 1) / (n + 2)      se^2 = sum over both methods of  p' (1 - p') / (n + 2) + sd^2 / runs

For a correlation p' = n p / (n + 2), and `veneer.data.metrics` has the standard error of one sample.

Both methods answered the same rows, so their errors go together and the true error of the difference is smaller: the
sentence is rather too careful than too bold. With one run the spread over runs is unknown and counts as 0, which is
why the sentence then says "one run each". "Within the noise" is not "equal", and the words keep that apart.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from veneer.report.formatting import count, percent, score
from veneer.report.summary import MethodSummary, Spread, best_by_validation, is_lora

SENTENCE_NAMES: Mapping[str, str] = {
    "head": "Training the head alone",
    "lora-qv": "LoRA on query and value",
    "lora-all": "LoRA on all linear layers",
    "full": "Full fine-tuning",
}
"""What each method is called as the subject of a sentence; the others go by their label."""
_INNER_NAMES: Mapping[str, str] = {**SENTENCE_NAMES, "head": "training the head alone", "full": "full fine-tuning"}
"""The same inside a sentence."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the numbers say, and what a reader must add to it."""

    claim: str
    caveats: tuple[str, ...]


def headline(summaries: Sequence[MethodSummary]) -> str:
    """Return the claim and its caveats as one text."""
    said = verdict(summaries)
    return " ".join([said.claim, *said.caveats])


def verdict(summaries: Sequence[MethodSummary]) -> Verdict:
    """Return what can be said of LoRA against full fine-tuning, or of what was run instead."""
    if not summaries:
        return Verdict(claim="No run has finished.", caveats=())
    by_method = {summary.method: summary for summary in summaries}
    full, head = by_method.get("full"), by_method.get("head")
    lora = best_by_validation([summary for summary in summaries if is_lora(summary)])
    if lora is None:
        return _verdict_without_lora(summaries)
    if lora.all_collapsed:
        claim = f"{_subject(lora)} {_failure(lora)} in every run, so there is nothing to compare."
        return Verdict(claim=claim, caveats=_optimism(lora))
    if full is not None and full.all_collapsed:
        claim = f"{_reached(lora)}. Full fine-tuning {_failure(full)} in every run, so it is no yardstick here."
        return Verdict(claim=claim, caveats=(*_left_out(lora), *_optimism(lora)))
    if full is not None:
        return Verdict(claim=_claim_against_full(lora, full), caveats=_caveats(lora, full))
    absent = "Full fine-tuning was not run."
    if head is not None and not head.all_collapsed:
        both = _pair(lora, head, joint=", the head alone ")
        claim = f"{_subject(lora)} reached a {lora.split} {lora.metric.name} of {both}{_cost(lora)}."
        return Verdict(claim=claim, caveats=(absent, *_caveats(lora, head)))
    return Verdict(claim=f"{_reached(lora)}.", caveats=(absent, *_left_out(lora), *_optimism(lora)))


def noise(one: MethodSummary, other: MethodSummary) -> float:
    """Return two standard errors of the difference of two scores; see the module's docstring."""
    variance = 0.0
    for summary in (one, other):
        of_rows = summary.metric.standard_error(_padded(summary), summary.num_examples + 2)
        variance += of_rows**2 + (summary.score.sd or 0.0) ** 2 / len(summary.scored)
    return 2 * math.sqrt(variance)


def within_noise(one: MethodSummary, other: MethodSummary) -> bool:
    """Return whether the difference of two scores is below two standard errors."""
    return abs(_padded(one) - _padded(other)) < noise(one, other)


def _padded(summary: MethodSummary) -> float:
    return summary.metric.padded(summary.score.mean, summary.num_examples)


def _verdict_without_lora(summaries: Sequence[MethodSummary]) -> Verdict:
    best = best_by_validation(summaries)
    assert best is not None, "the caller has seen that there is a summary"
    if best.all_collapsed:
        claim = f"{_subject(best)} {_failure(best)} in every run."
        return Verdict(claim=claim, caveats=_optimism(best))
    caveats = ("No LoRA method was run to compare with.", *_left_out(best), *_optimism(best))
    return Verdict(claim=f"{_reached(best)}.", caveats=caveats)


def _claim_against_full(lora: MethodSummary, full: MethodSummary) -> str:
    subject, what = _subject(lora), f"{lora.split} {lora.metric.name}"
    ours, theirs = lora.score.mean, full.score.mean
    if score(ours) == score(theirs):
        return f"{subject} matched full fine-tuning's {what} ({_pair(lora, full)}){_cost(lora)}."
    if ours > theirs:
        above = "slightly above" if within_noise(lora, full) else "above"
        return f"{subject} was {above} full fine-tuning in {what} ({_pair(lora, full)}){_cost(lora)}."
    if ours < 0:  # only a correlation can be, and a percentage of one says nothing then
        return f"{subject} was below full fine-tuning in {what} ({_pair(lora, full)}){_cost(lora)}."
    # What displays as less is never rounded up to the whole.
    reached = min(100 * ours / theirs, 99.9)
    return f"{subject} reached {reached:.1f} % of full fine-tuning's {what} ({_pair(lora, full)}){_cost(lora)}."


def _pair(one: MethodSummary, other: MethodSummary, *, joint: str = " against ") -> str:
    """Return both accuracies and how many runs they come from."""
    runs = len(one.scored), len(other.scored)
    if runs == (1, 1):
        over = "one run each"
    elif runs[0] == runs[1]:
        over = f"mean ± standard deviation of {runs[0]} runs each"
    else:
        over = f"mean ± standard deviation of {runs[0]} and {_runs(runs[1])}"
    return f"{_score(one.score)}{joint}{_score(other.score)}, {over}"


def _reached(summary: MethodSummary) -> str:
    return f"{_subject(summary)} reached a {summary.split} {summary.metric.name} of {_alone(summary)}{_cost(summary)}"


def _alone(summary: MethodSummary) -> str:
    over = "" if summary.score.sd is None else "mean ± standard deviation of "
    return f"{_score(summary.score)} ({over}{_runs(len(summary.scored))})"


def _caveats(one: MethodSummary, other: MethodSummary) -> tuple[str, ...]:
    return (*_within_noise(one, other), *_left_out(one), *_left_out(other), *_optimism(one))


def _within_noise(one: MethodSummary, other: MethodSummary) -> tuple[str, ...]:
    if not within_noise(one, other):
        return ()
    difference = abs(one.score.mean - other.score.mean)
    seeds = " and seeds" * (one.score.sd is not None or other.score.sd is not None)
    return (
        f"The difference of {difference:.3f} is within the noise: another {count(one.num_examples)} {one.split} rows"
        f"{seeds} might move it by about {noise(one, other):.3f} (two standard errors; by less as far as both err on "
        "the same rows).",
    )


def _left_out(summary: MethodSummary) -> tuple[str, ...]:
    if not summary.num_collapsed or summary.all_collapsed:
        return ()
    verb, them = ("is", "it") if summary.num_collapsed == 1 else ("are", "them")
    name = _INNER_NAMES.get(summary.method, summary.label)
    return (
        f"{summary.num_collapsed} of {summary.num_runs} runs of {name} {_failure(summary)} and {verb} "
        f"left out ({_score(summary.score_with_collapsed)} with {them}).",
    )


def _failure(summary: MethodSummary) -> str:
    """Return what became of the runs that count as collapsed, as a verb."""
    diverged = {record.best_epoch == 0 for record in summary.records if record.collapsed}
    if len(diverged) > 1:
        return "collapsed or diverged"
    return "diverged" if True in diverged else "collapsed onto one answer"


def _optimism(summary: MethodSummary) -> tuple[str, ...]:
    if summary.split == "test":
        return ()
    return ("No test rows were given: the validation rows also chose the epoch, so these figures lean high.",)


def _cost(summary: MethodSummary) -> str:
    if summary.trainable_share >= 1:
        return " while training all parameters"
    return f" while training {percent(summary.trainable_share)} of the parameters"


def _subject(summary: MethodSummary) -> str:
    return SENTENCE_NAMES.get(summary.method, summary.label)


def _score(spread: Spread) -> str:
    return score(spread.mean, spread.sd)


def _runs(number: int) -> str:
    return "one run" if number == 1 else f"{number} runs"
