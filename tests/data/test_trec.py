"""The official split of TREC, shown on a small file of the same make."""

import pandas as pd
import pytest

from veneer.data import trec

ROWS = [(number % 6, f"question  number {number} ?") for number in range(trec.NUM_TEST + 120)]


@pytest.fixture
def splits(tmp_path):
    table = pd.DataFrame(ROWS, columns=["label-coarse", "text"])
    table.to_csv(tmp_path / trec.WHEEL.members[0].name)
    return trec.read_splits(tmp_path)


def test_the_test_questions_are_the_last_500_in_their_order(splits):
    assert list(splits.test.texts) == [" ".join(text.split()) for _, text in ROWS[120:]]
    assert list(splits.test.labels) == [trec.LABELS[number] for number, _ in ROWS[120:]]


def test_validation_is_a_tenth_of_the_training_questions_and_none_is_lost(splits):
    assert len(splits.validation) == 12
    held_in = {*splits.train.texts, *splits.validation.texts}
    assert held_in == {" ".join(text.split()) for _, text in ROWS[:120]}
    assert sorted(splits.labels) == sorted(trec.LABELS)
