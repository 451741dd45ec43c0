"""Laws of scoring, against values counted by hand and against scikit-learn."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from veneer.data.metrics import is_collapsed, score
from veneer.results import Scores

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
