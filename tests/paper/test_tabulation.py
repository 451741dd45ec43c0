"""Collapsed runs enter no mean, and differences are paired."""

import pytest

from tests.paper.kept import gap
from tests.report.records import collapsed, record, regression
from veneer.paper.tabulation import (
    accuracy_on_test,
    average,
    best_on_dev,
    difference,
    mean,
    mean_curves,
    median_on_dev,
    of_other_rows,
    own_score_on_test,
)


def test_a_collapsed_run_is_left_out_of_the_mean_and_told_with_it():
    runs = [record("full", 0.8, 0), record("full", 0.9, 1), collapsed("full", 2)]
    number = mean(runs)
    assert number is not None
    assert (number.value, number.num_runs) == (pytest.approx(0.85), 2)
    assert number.sd == pytest.approx(0.1 / 2**0.5)
    assert number.note == "1 of 3 collapsed; 0.733 with it"


def test_where_every_run_collapsed_the_mean_says_so():
    number = mean([collapsed("full", 0), collapsed("full", 1)])
    assert number is not None
    assert (number.value, number.note) == (0.5, "all collapsed")


def test_nothing_comes_of_no_run():
    assert mean([]) is None
    assert median_on_dev([]) is None
    assert difference([], []) is None


def test_one_run_has_no_spread_and_one_pair_no_interval():
    one, other = [record("full", 0.8, 0)], [record("head", 0.7, 0)]
    number, gap = mean(one), difference(one, other)
    assert number is not None
    assert number.sd is None
    assert gap is not None
    assert gap.low is None
    assert gap.value == pytest.approx(0.1)


def test_the_papers_statistic_is_the_best_epoch_and_the_median():
    runs = [record("full", accuracy, seed) for seed, accuracy in enumerate((0.7, 0.8, 0.99))]
    assert best_on_dev(runs[0]) == max(point["accuracy"] for point in runs[0].validation_curve)
    number = median_on_dev(runs)
    assert number is not None
    assert number.value == best_on_dev(runs[1])
    at_once = record("full", 0.3, test_curve=[], config={"watch_test": True})  # diverged before any epoch had ended
    assert best_on_dev(at_once) == 0.3


def test_only_seeds_that_both_have_are_compared():
    first = [record("lora-qv", accuracy, seed) for seed, accuracy in ((0, 0.80), (1, 0.82), (5, 0.1))]
    second = [record("full", accuracy, seed) for seed, accuracy in ((0, 0.70), (1, 0.74), (7, 0.9))]
    gap = difference(first, second)
    assert gap is not None
    assert (gap.value, gap.num_runs) == (pytest.approx(0.09), 2)
    assert gap.low is not None
    assert gap.high is not None
    # Student's 97.5 % quantile with one degree of freedom is 12.706; the standard error of 0.10 and 0.08 is 0.01
    assert (gap.high - gap.low) / 2 == pytest.approx(12.706 * 0.01, rel=1e-3)


def test_a_pair_with_a_collapsed_run_is_left_out_and_told():
    first = [record("lora-qv", 0.8, seed) for seed in range(3)]
    second = [record("full", 0.7, 0), record("full", 0.7, 1), collapsed("full", 2)]
    gap = difference(first, second)
    assert gap is not None
    assert gap.num_runs == 2
    assert gap.note == "1 pair with a collapsed run left out"


def test_differences_that_happen_to_be_equal_are_no_more_certain_than_their_rows_are_fine():
    first, second = ([record(name, accuracy, seed) for seed in range(3)] for name, accuracy in (("a", 0.8), ("b", 0.7)))
    assert first[0].test is not None
    one = difference(first, second)
    assert one is not None
    assert one.high is not None
    # a score of n rows is rounded to 1 / n: variance 1 / (12 n^2), twice that for a difference; t(2) is 4.303
    assert one.high - one.value == pytest.approx(4.303 / (6 * 3) ** 0.5 / first[0].test.num_examples, rel=1e-3)


def test_a_curve_tells_which_of_its_runs_collapsed():
    of = {"full": {0.1: [record("full", 0.8, 0), collapsed("full", 1)], 0.3: [record("full", 0.8, 0)]}}
    (curves,) = mean_curves(name="n", title="t", x_label="rate", series=of)
    assert "full at 0.1: 1 of 2 collapsed" in curves.caption
    assert "0.3" not in curves.caption
    (whole,) = mean_curves(name="n", title="t", x_label="rate", series={"full": {0.3: of["full"][0.3]}})
    assert not whole.caption


def test_tasks_count_alike_and_their_variances_add():
    """Two tasks of equal spread: the mean's error is a root of two smaller, on twice the degrees of freedom.

    Student's 97.5 % quantile is 4.303 with two degrees of freedom and 2.776 with four.
    """
    number = average([gap(0.04, 4.303 * 0.01), gap(0.02, 4.303 * 0.01)])
    assert number.value == pytest.approx(0.03)
    assert number.high - number.value == pytest.approx(2.776 * 0.01 / 2**0.5, rel=1e-3)
    assert average([gap(0.04, 0.01)]) == gap(0.04, 0.01)


def test_a_records_own_score_is_what_its_task_is_judged_by():
    """Accuracy is that of the counts; Matthews's correlation of two even classes is 2 p - 1."""
    ordinary, cola, stsb = record("full", 0.8), record("full", 0.8, data="glue/cola"), regression("full", 0.7)
    assert own_score_on_test(ordinary) == accuracy_on_test(ordinary) == 0.8
    assert own_score_on_test(cola) == pytest.approx(0.6)
    assert accuracy_on_test(cola) == 0.8
    assert own_score_on_test(stsb) == 0.7
    assert best_on_dev(stsb) == max(epoch["pearson"] for epoch in stsb.validation_curve)
    number = mean([stsb, regression("full", 0.8, 1)], own_score_on_test)
    assert number is not None
    assert number.value == pytest.approx(0.75)


def test_what_other_rows_would_change_is_told_by_two_standard_errors_of_each_score():
    """2 sqrt(p (1 - p) / 1000) is 0.025 at 0.8 and 0.032 at 0.5."""
    good, poor = (
        [record(method, score, seed) for seed in range(2)] for method, score in (("full", 0.8), ("head", 0.5))
    )
    assert of_other_rows([[], []]) == ()
    (one,) = of_other_rows([good, []])
    assert "as many as these 1,000, would move each score by about ±0.025 (two standard errors)" in one
    (both,) = of_other_rows([good, poor])
    assert "by ±0.025 to ±0.032" in both
