"""A verdict is what the interval says, and tells what it rests on."""

import pytest

from tests.paper.kept import gap
from tests.report.records import collapsed, record, regression, scores
from veneer.paper.exhibit import Number
from veneer.paper.tabulation import difference
from veneer.paper.verdicts import judge, unlearnt


def test_what_a_verdict_rests_on_is_told():
    """How many seeds, on which tasks, and that a loss within the margin is a loss."""
    within = judge(claim="c", source="s", differences={"a": gap(-0.005, 0.002), "b": gap(0.1, None)}, margin=0.01)
    assert within.outcome == "held"
    assert "a loss, of less than 1.0" in within.because
    assert "b: +10.0 points without a spread over 3 common seeds" in within.because
    assert "Judged by a alone" in within.because
    part = judge(
        claim="c", source="s", differences={"a": gap(0.1, 0.01), "b": None, "c": None}, unlearnt={"b": "guess"}
    )
    assert "Not run yet: b, c." in part.because
    assert "guess" not in part.because
    one = Number(value=0.1, num_runs=1)
    assert "over 1 common seed." in judge(claim="c", source="s", differences={"a": one}).because
    gain = judge(claim="c", source="s", differences={"a": gap(0.005, 0.002)}, margin=0.01)
    assert "loss" not in gain.because


@pytest.mark.parametrize(
    ("value", "half", "margin", "text"),
    [
        (0.0052, 0.005, None, "interval +0.02 to +1.02"),
        (0.0052, 0.0056, None, "interval -0.04 to +1.08"),
        (0.005, 0.004, None, "interval +0.1 to +0.9"),
        (-0.006, 0.0038, 0.01, "interval -0.98 to -0.22"),
        (0.005, 0.00497, None, "interval +0.003 to +0.997"),
        (-0.006, 0.006, 0.01, "interval -1.2 to +0.0"),
    ],
)
def test_an_interval_shows_on_which_side_of_the_bar_it_ends(value, half, margin, text):
    assert text in judge(claim="c", source="s", differences={"a": gap(value, half)}, margin=margin).because


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (-0.02, 0.005, "a loss of more than 1.0"),
        (-0.01, 0.005, "a loss, whether of more than 1.0 is open"),
        (-0.005, 0.002, "a loss, of less than 1.0"),
        (-0.005, 0.01, "whether it loses more than 1.0 is open"),
    ],
)
def test_a_loss_is_called_one_whether_or_not_the_margin_allows_it(value, half, text):
    assert f": {text}." in judge(claim="c", source="s", differences={"a": gap(value, half)}, margin=0.01).because


def test_a_task_that_was_not_learnt_is_told_and_decides_nothing():
    differences = {"a": gap(0.02, 0.01), "b": gap(-0.5, 0.01)}
    assert judge(claim="c", source="s", differences=differences).outcome == "not held"
    without = judge(claim="c", source="s", differences=differences, unlearnt={"b": "both guess"})
    assert without.outcome == "held"
    assert "b: -50.0 points" in without.because
    assert "both guess, so it decides nothing" in without.because
    assert (
        judge(claim="c", source="s", differences=differences, unlearnt=dict.fromkeys("ab", "")).outcome == "undecided"
    )


def test_the_one_task_that_makes_the_difference_is_named():
    differences = {"a": gap(0.02, 0.005), "b": gap(0.02, 0.005), "c": gap(-0.02, 0.005)}
    verdict = judge(claim="c", source="s", differences=differences)
    assert verdict.outcome == "held"
    _, told = verdict.because.split("One task makes the difference: ")
    assert told.startswith("without a undecided")
    assert "without b undecided" in told
    assert "without c" not in told
    alike = dict.fromkeys("abc", gap(0.02, 0.005))
    assert "makes the difference" not in judge(claim="c", source="s", differences=alike).because


def test_groups_of_tasks_are_told_apart_and_decide_nothing():
    differences = {"a": gap(0.02, 0.005), "b": gap(0.02, 0.005), "c": gap(-0.01, 0.005), "d": None}
    groups = {"one": ["a", "b"], "other": ["c", "d"], "none": ["d"]}
    verdict = judge(claim="c", source="s", differences=differences, groups=groups)
    assert verdict.outcome == judge(claim="c", source="s", differences=differences).outcome == "held"
    assert "Each model by itself, which decides nothing: one held (+2.0 points" in verdict.because
    assert "; other not held (-1.0 points, 95 % interval -1.5 to -0.5 over 3 common seeds)." in verdict.because
    assert "none" not in verdict.because
    alone = judge(claim="c", source="s", differences=differences, groups={"one": ["a", "b"]})
    assert "by itself" not in alone.because


def test_over_several_tasks_the_whole_comes_first_and_each_follows_in_short():
    few = Number(value=0.1, low=0.0, high=0.2, num_runs=2, note="1 pair left out")
    verdict = judge(claim="c", source="s", differences={"a": gap(0.02, 0.005), "b": gap(0.01, 0.005), "c": few})
    assert verdict.because.startswith("Over a, b together: +1.5 points, 95 % interval +1.")
    assert "a: +2.0 [+1.5, +2.5] (3); b: +1.0 [+0.5, +1.5] (3); c: +10.0" in verdict.because
    assert "(2, too few to decide, 1 pair left out)." in verdict.because


def test_two_pairs_decide_nothing_however_alike_they_are():
    equal = Number(value=0.02, low=0.02, high=0.02, num_runs=2)
    verdict = judge(claim="c", source="s", differences={"task": equal})
    assert verdict.outcome == "undecided"
    assert "too few" in verdict.because


@pytest.mark.parametrize(
    ("differences", "margin", "outcome"),
    [
        ([gap(0.02, 0.01)], None, "held"),
        ([gap(-0.02, 0.01)], None, "not held"),
        ([gap(0.005, 0.01)], None, "undecided"),
        ([gap(-0.005, 0.002)], None, "not held"),
        ([gap(-0.005, 0.002)], 0.01, "held"),  # worse, but by less than the margin
        ([gap(-0.02, 0.005)], 0.01, "not held"),
        ([gap(-0.01, 0.005)], 0.01, "undecided"),  # worse, but perhaps by less than the margin
        ([gap(0.0, 0.02)], 0.01, "undecided"),
        ([gap(0.02, None)], None, "undecided"),  # one pair tells nothing
        ([None], None, "not run yet"),
        ([], None, "not run yet"),
        ([gap(0.02, 0.01), None], None, "held"),
        ([gap(0.02, 0.01), gap(-0.02, None)], None, "held"),  # one pair on another task undoes nothing
        ([gap(0.02, 0.01), gap(0.02, 0.01)], None, "held"),
        ([gap(0.02, 0.01), gap(-0.02, 0.01)], None, "undecided"),
        ([gap(0.05, 0.01), gap(-0.01, 0.01)], None, "held"),  # the mean over tasks is what is claimed
    ],
)
def test_a_claim_is_decided_by_where_its_intervals_lie(differences, margin, outcome):
    tasks = {f"task {number}": one for number, one in enumerate(differences)}
    verdict = judge(claim="c", source="s", differences=tasks, margin=margin)
    assert verdict.outcome == outcome
    if any(differences):
        assert all(task in verdict.because for task in tasks)
    else:
        assert verdict.because == "Not run yet."


def test_where_every_pair_has_a_collapsed_run_nothing_is_decided_and_it_is_told():
    first, second = [record("lora-qv", 0.8, seed) for seed in range(3)], [collapsed("full", seed) for seed in range(3)]
    verdict = judge(claim="c", source="s", differences={"task": difference(first, second)})
    assert verdict.outcome == "undecided"
    assert "every pair has a collapsed run" in verdict.because


def test_a_task_is_learnt_where_one_method_beats_one_answer_beyond_the_noise_of_its_rows():
    """Records have 1,000 validation rows and even classes: two standard errors are 0.032. Test rows have no say."""
    guessing = [record("full", 0.9, seed, validation=scores(0.53)) for seed in range(3)]
    learnt = [record("lora-qv", 0.5, 0, validation=scores(0.9))]
    told = unlearnt(guessing, [])
    assert told is not None
    assert "at best 0.530 on validation rows, which is not two standard errors above the 0.500 of one answer" in told
    assert unlearnt(guessing, learnt) is None
    assert unlearnt(learnt) is None
    assert unlearnt([record("full", 0.5, 0, validation=scores(0.54))]) is None
    assert unlearnt([], []) is None
    assert unlearnt([regression("full", 0.9, 0)]) is None
    assert unlearnt([regression("full", 0.05, 0)]) is not None
