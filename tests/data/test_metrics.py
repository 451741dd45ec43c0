"""Laws of scoring, against values counted by hand and against scikit-learn."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from veneer.data.metrics import METRICS, is_collapsed, judged_by, score
from veneer.results import RegressionScores, Scores

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


def logits_of(answers, num_classes):
    """Logits whose arg-max are `answers`, and which are not sure."""
    return torch.nn.functional.one_hot(torch.tensor(answers), num_classes).float() * 2


def scored(true, answers, num_classes):
    return score(logits_of(answers, num_classes), torch.tensor(true))


def test_five_rows_counted_by_hand():
    """True a a a b c, answered a a b b b: 3 of 5 right; F1 is 4/5 for a, 1/2 for b, 0 for c."""
    scores = scored([0, 0, 0, 1, 2], [0, 0, 1, 1, 1], 3)
    assert scores.accuracy == pytest.approx(3 / 5)
    assert scores.macro_f1 == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)
    assert scores.confusion == [[2, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert scores.majority_share == pytest.approx(3 / 5)
    assert scores.num_examples == 5
    right, wrong = -math.log(math.e**2 / (math.e**2 + 2)), -math.log(1 / (math.e**2 + 2))
    assert scores.loss == pytest.approx((3 * right + 2 * wrong) / 5)


def test_a_class_that_never_occurs_counts_in_no_average():
    assert scored([0, 0, 1, 1], [0, 0, 1, 1], 5).macro_f1 == 1
    assert scored([0, 0, 1, 1], [0, 0, 1, 1], 2).macro_f1 == 1


@given(rows=ROWS)
def test_scores_are_scikit_learns(rows):
    true, answers = map(list, zip(*rows, strict=True))
    scores = scored(true, answers, 4)
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(true, answers))
    assert scores.macro_f1 == pytest.approx(metrics.f1_score(true, answers, average="macro"))
    several = len({*true, *answers}) > 1  # of one class scikit-learn gives 0 with a warning
    assert scores.matthews == pytest.approx(metrics.matthews_corrcoef(true, answers) if several else 0)
    probabilities = logits_of(answers, 4).softmax(dim=1).numpy()
    assert scores.loss == pytest.approx(metrics.log_loss(true, probabilities, labels=range(4)), rel=1e-5)


@given(rows=ROWS)
def test_the_confusion_holds_every_row_once(rows):
    true, answers = map(list, zip(*rows, strict=True))
    confusion = scored(true, answers, 4).confusion
    assert [sum(row) for row in confusion] == [true.count(number) for number in range(4)]
    assert [sum(column) for column in zip(*confusion, strict=True)] == [answers.count(number) for number in range(4)]


def of_confusion(confusion):
    total = sum(map(sum, confusion))
    share = max(map(sum, confusion)) / total
    return Scores(accuracy=0, macro_f1=0, loss=0, num_examples=total, majority_share=share, confusion=confusion)


@pytest.mark.parametrize(
    ("confusion", "collapsed"),
    [
        ([[50, 0], [50, 0]], True),
        ([[0, 50], [0, 50]], True),
        ([[500, 0], [490, 10]], True),  # 99 of 100 answers
        ([[500, 0], [489, 11]], False),
        ([[50, 0], [0, 50]], False),
        ([[0, 50], [50, 0]], False),  # wrong throughout, but with two answers
        ([[100, 0], [0, 0]], False),  # the rows are of one class, so one answer is right
        ([[995, 0], [5, 0]], False),
        ([[90, 0], [10, 0]], True),
    ],
)
def test_a_model_is_collapsed_if_it_gives_one_answer_that_the_rows_do_not_ask_for(confusion, collapsed):
    assert is_collapsed(of_confusion(confusion)) == collapsed


NUMBERS = st.lists(
    st.tuples(st.integers(-20, 20), st.integers(-20, 20)).map(lambda pair: (pair[0] / 4, pair[1] / 8)),
    min_size=2,
    max_size=30,
)


@given(rows=NUMBERS)
def test_scores_of_numbers_are_scipys(rows):
    true, answers = map(np.array, zip(*rows, strict=True))
    scores = score(torch.tensor(answers)[:, None].float(), torch.tensor(true).float())
    assert isinstance(scores, RegressionScores)
    if len(set(true)) == 1 or len(set(answers)) == 1:
        assert scores.pearson == scores.spearman == 0
    else:
        assert scores.pearson == pytest.approx(scipy.stats.pearsonr(true, answers).statistic)
        assert scores.spearman == pytest.approx(scipy.stats.spearmanr(true, answers).statistic)
    assert scores.loss == pytest.approx(metrics.mean_squared_error(true, answers))
    assert scores.num_examples == len(rows)
    assert scores.target_sd**2 == pytest.approx(metrics.mean_squared_error(true, np.full(len(true), true.mean())))
    assert scores.predicted_sd == pytest.approx(np.std(answers))


@given(value=st.floats(-10, 10, width=32), num_rows=st.integers(1, 9))
def test_a_constant_answer_is_collapsed_and_correlates_with_nothing(value, num_rows):
    scores = score(torch.full((num_rows, 1), value), torch.arange(num_rows).float())
    assert (scores.pearson, scores.spearman) == (0, 0)
    assert is_collapsed(scores) == (num_rows > 1)


def test_numbers_that_vary_are_not_collapsed_however_wrong_and_equal_rows_ask_for_one_answer():
    true = torch.tensor([0.0, 1.0, 2.0])
    assert not is_collapsed(score(-true[:, None], true))
    assert is_collapsed(score(true[:, None] * 0.001, true))
    assert not is_collapsed(score(torch.zeros(3, 1), torch.ones(3)))


def test_what_is_not_finite_is_seen_in_the_loss_and_raises_nothing():
    for bad in (math.nan, math.inf):
        scores = score(torch.tensor([[0.0], [bad]]), torch.tensor([0.0, 1.0]))
        assert not math.isfinite(scores.loss)
        assert scores.choice == 0


def test_each_kind_of_data_is_judged_by_its_own_metric():
    classes, numbers = scored([0, 1], [0, 1], 2), score(torch.zeros(2, 1), torch.ones(2))
    assert [metric.key for metric in judged_by("trec", classes)] == ["accuracy", "macro_f1"]
    assert [metric.key for metric in judged_by("glue/cola", classes)] == ["matthews", "macro_f1"]
    assert [metric.key for metric in judged_by("glue/stsb", numbers)] == ["pearson", "spearman"]
    assert [metric.key for metric in judged_by("mine.csv", numbers)] == ["pearson", "spearman"]


def test_every_figure_has_its_metric_and_what_is_chosen_by_is_one_of_them():
    kinds = (scored([0, 1], [0, 1], 2), score(torch.zeros(2, 1), torch.ones(2)))
    assert {key for scores in kinds for key in scores.figures} == set(METRICS)
    for scores in kinds:
        assert scores.choice == scores.figures[scores.CHOICE]
        assert set(asdict(scores)).isdisjoint({"CHOICE"})


@pytest.mark.parametrize(("key", "value"), [("accuracy", 0.8), ("matthews", 0.6), ("pearson", 0.6)])
def test_the_standard_error_is_the_spread_over_many_samples(key, value):
    """Drawn anew two thousand times, a figure spreads as its formula says: within a twentieth, or seven of its own."""
    num_rows, generator = 400, np.random.default_rng(0)
    found = []
    for _ in range(2000):
        if key == "pearson":
            first = generator.standard_normal(num_rows)
            second = value * first + math.sqrt(1 - value**2) * generator.standard_normal(num_rows)
            found.append(float(np.corrcoef(first, second)[0, 1]))
            continue
        accuracy = value if key == "accuracy" else (1 + value) / 2
        true = generator.integers(0, 2, num_rows)
        answers = np.where(generator.random(num_rows) < accuracy, true, 1 - true)
        hits = (true == answers).mean()
        found.append(float(hits) if key == "accuracy" else float(metrics.matthews_corrcoef(true, answers)))
    assert METRICS[key].standard_error(value, num_rows) == pytest.approx(np.std(found), rel=0.05)


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.key)
def test_a_padded_figure_is_that_of_one_success_and_one_failure_more(metric):
    assert metric.lowest < metric.padded(metric.lowest, 10) < metric.padded(1.0, 10) < 1
    middle = (1 + metric.lowest) / 2
    assert metric.padded(middle, 10) == pytest.approx(middle)
    assert METRICS["accuracy"].padded(0.7, 10) == pytest.approx(8 / 12)
