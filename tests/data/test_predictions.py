"""Laws of prediction tables and files."""

import pandas as pd
import pytest
import torch

from veneer.data.predictions import WRITERS, check_output, prediction_table, write_predictions
from veneer.data.splits import Examples
from veneer.data.tables import read_examples
from veneer.errors import OutputExistsError, UnknownNameError

TEXTS = ("third", 'with "quotes", commas\tand tabs', "two\nlines", "car\rriage", "Ünï 中文 😀", "NA", "007", "third")
LABELS = ("no", "yes", "per,haps")
READERS = {
    ".csv": lambda path: pd.read_csv(path, keep_default_na=False, dtype={"text": str}),
    ".tsv": lambda path: pd.read_csv(path, sep="\t", keep_default_na=False, dtype={"text": str}),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype={"text": str}),
    ".parquet": pd.read_parquet,
}


@pytest.fixture
def probabilities():
    return torch.rand(len(TEXTS), len(LABELS), generator=torch.Generator().manual_seed(1)).softmax(dim=1)


@pytest.fixture
def table(probabilities):
    return prediction_table(Examples(texts=TEXTS), LABELS, probabilities)


def test_each_row_names_its_likeliest_label_and_every_probability(table, probabilities):
    assert list(table) == ["text", "label", "probability", "p(no)", "p(yes)", "p(per,haps)"]
    assert table["text"].tolist() == list(TEXTS)
    for row, expected in zip(table.to_dict("records"), probabilities.tolist(), strict=True):
        assert [row[f"p({label})"] for label in LABELS] == expected
        assert row["probability"] == max(expected)
        assert row["label"] == LABELS[expected.index(max(expected))]


def test_the_second_text_stands_beside_the_first(probabilities):
    pairs = tuple(text[::-1] for text in TEXTS)
    table = prediction_table(Examples(texts=TEXTS, pairs=pairs), LABELS, probabilities)
    assert list(table)[:2] == ["text", "text_pair"]
    assert table["text_pair"].tolist() == list(pairs)


@pytest.mark.parametrize("ending", WRITERS)
def test_what_is_written_comes_back_in_order_and_nothing_stands_beside_it(table, tmp_path, ending):
    path = tmp_path / f"out{ending}"
    write_predictions(table, path, overwrite=False)
    read = READERS[ending](path)
    pd.testing.assert_frame_equal(read, table, check_dtype=False, rtol=1e-9)
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_replaced_only_if_asked(table, tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"out\.csv exists already.*--overwrite"):
        write_predictions(table, path, overwrite=False)
    assert path.read_text() == "mine"
    write_predictions(table, path, overwrite=True)
    assert READERS[".csv"](path)["text"].tolist() == list(TEXTS)


def test_writing_that_fails_leaves_the_old_file_and_nothing_else(table, tmp_path, monkeypatch):
    path = tmp_path / "out.csv"
    path.write_text("mine")

    def full(self, target, **options):
        target.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="No space left"):
        write_predictions(table, path, overwrite=True)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["out.xlsx", "out", "out.csv.gz"])
def test_an_ending_that_is_not_known_lists_those_that_are(tmp_path, name):
    with pytest.raises(UnknownNameError, match=r"\.csv, \.tsv, \.jsonl, \.parquet"):
        check_output(tmp_path / name, overwrite=False)


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(OutputExistsError, match="is no folder; make it"):
        check_output(tmp_path / "no" / "out.csv", overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", WRITERS)
def test_predictions_are_read_back_as_the_texts_that_they_are_of(table, tmp_path, ending):
    path = tmp_path / f"predictions{ending}"
    write_predictions(table, path, overwrite=False)
    assert read_examples(path, text="text", label=None).texts == TEXTS


def test_a_folder_and_a_folder_that_is_read_only_are_refused_before_anything_is_computed(tmp_path, monkeypatch):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(OutputExistsError, match="is a folder"):
        check_output(tmp_path / "folder.csv", overwrite=True)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OutputExistsError, match="cannot be written to"):
        check_output(tmp_path / "p.csv", overwrite=False)
