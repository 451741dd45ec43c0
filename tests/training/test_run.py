"""Laws of one run: which epoch is kept, and that nothing half done stays."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from torch import nn
from transformers import EvalPrediction, TrainerControl, TrainerState, TrainingArguments

from tests.cli.tiny import contents, make_rows, write_csv
from veneer.data.tables import read_examples
from veneer.errors import ConfigError, DownloadError
from veneer.results import read_results
from veneer.training.best_epoch import KeepBest
from veneer.training.config import RunConfig
from veneer.training.run import _arguments, run
from veneer.training.saved import load_trained

TRUE = [0, 1, 1, 0, 2, 1, 0]
ANSWERS = st.lists(st.lists(st.integers(0, 2), min_size=len(TRUE), max_size=len(TRUE)), min_size=1, max_size=6)


class Small(nn.Module):
    """One layer that is trained and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 2).requires_grad_(False)
        self.trained = nn.Linear(5, 3)


@settings(max_examples=40, deadline=None)
@given(epochs=ANSWERS)
def test_the_earliest_of_the_best_epochs_is_kept_and_its_weights_come_back(epochs):
    """Best means macro-F1 on validation, as scikit-learn computes it; the weights are that epoch's, bit by bit."""
    model = Small()
    keep_best = KeepBest(model)
    frozen = model.frozen.weight.clone()
    expected = [f1_score(TRUE, answers, average="macro", zero_division=0.0) for answers in epochs]
    arguments, control = TrainingArguments(use_cpu=True, report_to="none"), TrainerControl()
    keep_best.on_train_begin(arguments, TrainerState(), control)
    for epoch, answers in enumerate(epochs, start=1):
        with torch.no_grad():
            model.trained.weight.fill_(epoch)
            model.trained.bias.fill_(-epoch)
        logits = np.eye(3)[answers] * 5
        metrics = keep_best.compute_metrics(EvalPrediction(predictions=logits, label_ids=np.array(TRUE)))
        assert metrics["macro_f1"] == pytest.approx(expected[epoch - 1])
        keep_best.on_evaluate(arguments, TrainerState(epoch=float(epoch)), control)
    keep_best.restore()
    best_epoch = int(np.argmax(np.round(expected, 12))) + 1
    assert keep_best.best_epoch == best_epoch
    assert torch.equal(model.trained.weight, torch.full((3, 5), float(best_epoch)))
    assert torch.equal(model.trained.bias, torch.full((3,), -float(best_epoch)))
    assert torch.equal(model.frozen.weight, frozen)
    assert [entry["epoch"] for entry in keep_best.history] == list(range(1, len(epochs) + 1))


def test_an_epoch_without_a_finite_loss_ends_the_training_and_the_best_before_it_is_kept():
    model = Small()
    keep_best, control = KeepBest(model), TrainerControl()
    arguments = TrainingArguments(use_cpu=True, report_to="none")
    keep_best.on_train_begin(arguments, TrainerState(), control)
    for epoch, scale in enumerate((5.0, float("nan")), start=1):
        assert not control.should_training_stop
        with torch.no_grad():
            model.trained.weight.fill_(epoch)
        logits = np.eye(3)[TRUE] * scale
        keep_best.compute_metrics(EvalPrediction(predictions=logits, label_ids=np.array(TRUE)))
        keep_best.on_evaluate(arguments, TrainerState(epoch=float(epoch)), control)
    assert control.should_training_stop
    assert keep_best.best_epoch == 1
    assert [entry["epoch"] for entry in keep_best.history] == [1]
    keep_best.restore()
    assert torch.equal(model.trained.weight, torch.ones(3, 5))


@pytest.fixture
def config(tiny, tmp_path):
    data = write_csv(tmp_path / "data.csv", make_rows(40, seed=1))
    shared = {"text": "text", "label": "label", "epochs": 2, "batch_size": 8, "max_tokens": 24, "precision": "float32"}
    return RunConfig(model=str(tiny), data=str(data), test_share=0.2, **shared)


def test_progress_is_reported_for_every_step_and_the_record_is_the_one_on_disk(config, tmp_path):
    steps = []
    record = run(config, tmp_path / "deep" / "run", on_progress=steps.append)
    assert [progress.step for progress in steps] == list(range(1, steps[-1].num_steps + 1))
    assert read_results(tmp_path / "deep" / "run").records == [record]
    best = max(record.validation_curve, key=lambda entry: (entry["macro_f1"], -entry["epoch"]))
    assert (record.best_epoch, record.validation.macro_f1) == (best["epoch"], best["macro_f1"])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DownloadError("the disk is full"), RuntimeError("a bug")])
def test_a_run_that_is_interrupted_leaves_nothing_behind(config, tmp_path, error):
    def stop(progress):
        raise error

    before = contents(tmp_path)
    with pytest.raises(type(error)):
        run(config, tmp_path / "deep" / "run", on_progress=stop)
    assert contents(tmp_path) == before


def diverging(first):
    """Return how validation is scored where epochs from `first` on give no number."""
    scored = KeepBest.compute_metrics

    def compute_metrics(self, prediction):
        if len(self.history) + 1 >= first:
            lost = np.full_like(prediction.predictions, np.nan)
            prediction = EvalPrediction(predictions=lost, label_ids=prediction.label_ids)
        return scored(self, prediction)

    return compute_metrics


def test_a_run_that_diverges_late_is_saved_as_it_was_before(config, tmp_path, monkeypatch):
    said, steps = [], []
    monkeypatch.setattr(KeepBest, "compute_metrics", diverging(2))
    record = run(replace(config, epochs=4), tmp_path / "run", on_progress=steps.append, notify=said.append)
    assert steps[-1].step == steps[-1].num_steps // 2
    assert record.best_epoch == len(record.validation_curve) == 1
    assert (record.diverged_in, record.collapsed) == (2, False)
    assert read_results(tmp_path / "run").records == [record]
    assert any("ended in epoch 2" in line and "epoch 1 is kept" in line for line in said)


def test_whether_a_run_collapsed_is_told_by_validation_rows_and_not_by_the_test(config, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("veneer.training.run.is_collapsed", lambda scores: asked.append(scores) or True)
    record = run(config, tmp_path / "run")
    assert record.test is not None
    assert asked == [record.validation]
    assert record.collapsed


def test_a_run_that_diverges_at_once_is_refused_and_leaves_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setattr(KeepBest, "compute_metrics", diverging(1))
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="Lower the learning rate"):
        run(config, tmp_path / "run")
    assert contents(tmp_path) == before


def test_where_others_depend_on_it_a_run_that_diverges_at_once_is_the_model_as_it_began(config, tmp_path, monkeypatch):
    said, scored = [], KeepBest.compute_metrics
    monkeypatch.setattr(KeepBest, "compute_metrics", diverging(1))
    record = run(config, tmp_path / "run", keep_diverged=True, notify=said.append)
    assert (record.best_epoch, record.diverged_in, record.collapsed) == (0, 1, True)
    assert read_results(tmp_path / "run").records == [record]
    assert any("ended in epoch 1" in line and "as it began" in line for line in said)
    monkeypatch.setattr(KeepBest, "compute_metrics", scored)
    still = run(replace(config, learning_rate=1e-30), tmp_path / "still")
    assert (record.validation, record.test) == (still.validation, still.test)


def test_a_batch_is_as_large_as_it_says_however_many_gpus_there_are(config, tmp_path, monkeypatch):
    four = property(lambda self: setattr(self, "_n_gpu", 4) or torch.device("cpu"))
    monkeypatch.setattr(TrainingArguments, "_setup_devices", four)
    arguments = _arguments(config.resolved(), str(tmp_path), 1)
    assert arguments.train_batch_size == config.batch_size


def test_a_run_that_fails_leaves_the_one_it_was_to_replace(config, tmp_path):
    run(config, tmp_path / "run")
    before = contents(tmp_path)

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", on_progress=stop, overwrite=True)
    assert contents(tmp_path) == before


def test_training_raises_no_warning_and_leaves_the_warning_filters_alone(config, tmp_path):
    before = list(warnings.filters)
    run(config, tmp_path / "run")
    assert warnings.filters == before


def test_watching_the_test_rows_changes_nothing_but_the_record(config, tmp_path):
    plain = run(config, tmp_path / "plain")
    watched = run(replace(config, watch_test=True), tmp_path / "watched")
    assert plain.test_curve == []
    assert [point["epoch"] for point in watched.test_curve] == [point["epoch"] for point in watched.validation_curve]
    assert watched.test is not None
    assert watched.test_curve[watched.best_epoch - 1]["accuracy"] == watched.test.accuracy
    assert (watched.test, watched.validation_curve) == (plain.test, plain.validation_curve)
    assert "watch_test" not in plain.config


def test_what_is_saved_is_the_best_epoch_and_not_the_last(config, tmp_path):
    """A rate this low changes the loss and not one answer: all epochs are equally good, so the first is kept."""
    validation = write_csv(tmp_path / "validation.csv", make_rows(21, seed=2))
    slow = replace(config, method="head", epochs=4, learning_rate=1e-4, validation=str(validation))
    record = run(slow, tmp_path / "run")
    first, *_, last = record.validation_curve
    assert record.best_epoch == 1
    assert abs(first["loss"] - last["loss"]) > 1e-4
    rows = read_examples(validation, text="text", label="label")
    scores = load_trained(tmp_path / "run").scores(rows)
    assert scores.loss == pytest.approx(first["loss"], abs=1e-6)
    assert scores.confusion == record.validation.confusion


def test_dropout_before_A_acts_in_training(config, tmp_path):
    lora = replace(config, method="lora-qv")
    curves = [run(replace(lora, dropout=p), tmp_path / f"run{p}").train_curve for p in (0.0, 0.9)]
    assert curves[0] != curves[1]


def test_a_run_is_found_its_pretrained_model_from_anywhere(config, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    run(replace(config, model=tiny.name, epochs=1), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert load_trained(tmp_path / "run").card.model == tiny.name


@pytest.mark.parametrize("method", ["full", "lora-all"])
def test_a_loaded_classifier_trains_nothing_and_lies_where_it_is_fastest(config, tmp_path, monkeypatch, method):
    run(replace(config, method=method, epochs=1), tmp_path / "run")
    moved = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.nn.Module.to", lambda module, place: moved.append(place))
    monkeypatch.setattr("veneer.training.saved.narrow_frozen", lambda model, precision: None)
    loaded = load_trained(tmp_path / "run")
    assert moved == ["cuda"]
    assert not any(parameter.requires_grad for parameter in loaded.classifier.model.parameters())


def test_texts_that_may_have_been_cut_are_counted(config, tmp_path):
    lines = []
    run(replace(config, max_tokens=5, epochs=1), tmp_path / "run", notify=lines.append)
    assert any("training rows fill 5 tokens: what is longer is cut" in line for line in lines)
