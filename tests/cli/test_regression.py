"""Numbers instead of classes, from a table or from GLUE's STS-B: every command, and that they agree."""

import json
import re
import warnings

import pandas as pd
import pytest
import torch
from sklearn.metrics import mean_squared_error
from transformers import AutoModelForSequenceClassification

from tests.cli.tiny import SETTINGS, make_rows, veneer, worked, write_csv
from tests.glue_files import made_rows, write_archive
from veneer.cli.use import _loss_and_baseline
from veneer.data.splits import Examples
from veneer.results import RegressionScores, read_results
from veneer.training.saved import load_trained, read_card

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

COLUMNS = ("--text", "text", "--label", "score")
REGRESSION = (*COLUMNS, "--task", "regression")
MEANINGS = {"food": -1.5, "sport": 0.25, "weather": 2.0}
"""What a text about it scores."""
METHODS = ("head", "lora-all", "full", "houlsby")
TABLE = (*SETTINGS[2:], "--epochs", "4")


def scored_rows(num_rows, *, seed):
    return [(text, second, str(MEANINGS[label])) for text, second, label in make_rows(num_rows, seed=seed)]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """A folder with train.csv (60 rows) and test.csv (21), whose last column is a number."""
    folder = tmp_path_factory.mktemp("numbers")
    for name, num_rows, seed in (("train", 60, 1), ("test", 21, 2)):
        write_csv(folder / f"{name}.csv", scored_rows(num_rows, seed=seed), header=("text", "second", "score"))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny, numbers):
    """A function from a method to the folder of its run; the run is made when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def run_of(method):
        place = folder / method
        if not place.exists():
            size = ("--size", "r=3") if method == "houlsby" else ()
            files = ("--data", numbers / "train.csv", "--test", numbers / "test.csv")
            worked("train", "--model", tiny, *files, *REGRESSION, *TABLE, "--method", method, *size, "--out", place)
        return place

    return run_of


@pytest.mark.parametrize("method", METHODS)
def test_what_was_trained_is_evaluated_and_predicts_as_it_was_tested(runs, numbers, method, tmp_path):
    run, data = runs(method), numbers / "test.csv"
    [record] = read_results(run).records
    assert record.labels == []
    assert isinstance(record.test, RegressionScores)
    assert record.config["task"] == "regression"
    evaluated = json.loads(worked("evaluate", run, "--data", data, *COLUMNS, "--json").out)
    assert evaluated["pearson"] == pytest.approx(record.test.pearson)
    assert evaluated["loss"] == pytest.approx(record.test.loss)
    worked("predict", run, "--data", data, "--text", "text", "--out", tmp_path / "predicted.csv")
    table = pd.read_csv(tmp_path / "predicted.csv")
    assert list(table.columns) == ["text", "prediction"]
    true = pd.read_csv(data)["score"]
    assert mean_squared_error(true, table["prediction"]) == pytest.approx(record.test.loss, rel=1e-5)
    text = table["text"][3]
    one = json.loads(worked("predict", run, text, "--json").out)
    assert one == {"text": text, "prediction": pytest.approx(table["prediction"][3], abs=1e-5)}
    assert float(worked("predict", run, text).out) == pytest.approx(table["prediction"][3], abs=1e-4)


def test_training_learns_and_keeps_the_epoch_with_the_best_correlation(runs):
    [record] = read_results(runs("lora-all")).records
    curve = record.validation_curve
    assert (
        record.validation.pearson == max(entry["pearson"] for entry in curve) == curve[record.best_epoch - 1]["pearson"]
    )
    assert record.test.pearson > 0.6
    assert record.test.loss < record.test.target_sd**2
    assert not record.collapsed


def test_the_card_says_that_the_output_is_a_number(runs, tiny):
    for method in METHODS:
        trained = load_trained(runs(method))
        assert (trained.card.task, trained.card.labels) == ("regression", ())
        assert trained.classifier.model.config.num_labels == 1
    assert "to predict a number" in worked("inspect", runs("lora-all")).out
    assert read_card(runs("full") / "model").task == "regression"


def test_a_fully_fine_tuned_model_computes_its_own_loss_as_the_mean_squared_error(runs):
    model = AutoModelForSequenceClassification.from_pretrained(runs("full") / "model")
    ids, target = torch.tensor([[2, 7, 3], [2, 9, 3]]), torch.tensor([0.5, -1.0])
    output = model(input_ids=ids, labels=target)
    assert output.loss.item() == pytest.approx(((output.logits[:, 0] - target) ** 2).mean().item())


def test_peft_reads_the_adapter_and_predicts_the_same(runs, tiny):
    trained = load_trained(runs("lora-all"))
    base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1)
    theirs = peft.PeftModel.from_pretrained(base, runs("lora-all") / "adapter").eval()
    texts = [text for text, _, _ in make_rows(7, seed=4)]
    batch = trained.classifier.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**batch).logits[:, 0]
    torch.testing.assert_close(trained.numbers(Examples(texts=tuple(texts))), expected, atol=1e-5, rtol=1e-5)


def test_merged_it_is_the_same_model(runs, numbers, tmp_path):
    worked("merge", runs("lora-all"), tmp_path / "merged")
    rows = ("--data", numbers / "test.csv", *COLUMNS, "--json")
    merged, adapted = (
        json.loads(worked("evaluate", path, *rows).out) for path in (tmp_path / "merged", runs("lora-all"))
    )
    assert merged["loss"] == pytest.approx(adapted["loss"], rel=1e-4)


@pytest.mark.parametrize(("dtype", "warned"), [("float32", False), ("bfloat16", True)])
def test_who_merges_in_bfloat16_is_told_that_numbers_are_rounded(runs, tmp_path, dtype, warned):
    ended = worked("merge", runs("lora-all"), tmp_path / "merged", "--dtype", dtype)
    assert ("numbers are rounded" in " ".join(ended.err.split())) == warned


def test_a_line_names_the_metrics_and_what_the_mean_would_reach(runs, numbers):
    printed = worked("evaluate", runs("lora-all"), "--data", numbers / "test.csv", *COLUMNS).out
    for part in (
        "Pearson correlation",
        "Spearman correlation",
        "mean squared error",
        "on 21 rows",
        "answering the mean",
    ):
        assert part in printed
    assert "accuracy" not in printed


def test_small_numbers_are_printed_as_numbers():
    fit = {"pearson": 0.5, "spearman": 0.5, "num_examples": 9, "target_sd": 2e-5, "predicted_sd": 1e-5}
    line = _loss_and_baseline(RegressionScores(loss=3.25e-10, **fit))
    assert line == "mean squared error 3.25e-10 on 9 rows (always answering the mean: 4e-10)"


def test_a_comparison_names_its_metric_everywhere(tiny, numbers, tmp_path):
    files = ("--data", numbers / "train.csv", "--test", numbers / "test.csv")
    methods = ("--methods", "head,lora-all", "--out", tmp_path / "comparison")
    ended = worked("compare", "--model", tiny, *files, *REGRESSION, *TABLE, *methods)
    page = (tmp_path / "comparison" / "report.html").read_text()
    assert re.search(r"reached a test Pearson correlation of \d\.\d{3}", ended.out)
    for part in ("Pearson", "Spearman", "mean squared error"):
        assert part in page
    for shown in (ended.out, ended.err, page):
        assert "ccuracy" not in shown
        assert "acro-F1" not in shown
    assert "confused" not in page


@pytest.mark.parametrize("data", ["classes", "numbers"])
def test_data_of_the_other_task_is_refused(runs, trained, tmp_path, data):
    run, task = (runs("head"), "cola") if data == "classes" else (trained("head"), "stsb")
    parts = {"train": made_rows(task, 12, seed=0), "dev": made_rows(task, 5, seed=1)}
    ended = veneer("evaluate", run, "--data", f"glue/{task}", "--glue", write_archive(tmp_path, task, parts))
    assert ended.code == 2
    assert f"the data's labels are {data}" in ended.err


def test_labels_that_are_no_numbers_are_named_by_their_rows(tiny, tables, tmp_path):
    files = ("--data", tables / "train.csv", "--text", "text", "--label", "label", "--task", "regression")
    ended = veneer("train", "--model", tiny, *files, "--out", tmp_path / "new")
    assert ended.code == 2
    assert "not a number, such as 'food'" in ended.err
    assert not (tmp_path / "new").exists()


def test_sts_b_is_regression_by_itself_and_cola_is_judged_by_matthews(tiny, tmp_path):
    for task, metric in (("stsb", "Pearson correlation"), ("cola", "Matthews correlation")):
        parts = {"train": made_rows(task, 30, seed=0), "dev": made_rows(task, 12, seed=1)}
        files = ("--data", f"glue/{task}", "--glue", write_archive(tmp_path / "glue", task, parts))
        ended = worked("train", "--model", tiny, *files, *SETTINGS, "--method", "head", "--out", tmp_path / task)
        assert f"validation {metric}" in ended.out
        [record] = read_results(tmp_path / task).records
        assert not {"glue", "task"} & record.config.keys()
        evaluated = json.loads(worked("evaluate", tmp_path / task, *files, "--json").out)
        key = "pearson" if task == "stsb" else "matthews"
        assert evaluated[key] == pytest.approx(record.test.figures[key])
        assert evaluated["num_examples"] == 12
