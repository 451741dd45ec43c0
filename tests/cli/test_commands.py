"""What train, evaluate, predict and inspect leave behind, and that it agrees with itself and with `peft`."""

import csv
import json
import shutil
import warnings
from dataclasses import replace

import pandas as pd
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from tests.cli.tiny import (
    BASELINES,
    COLUMNS,
    KEYWORDS,
    METHODS,
    SETTINGS,
    contents,
    make_rows,
    make_tokenizer,
    veneer,
    worked,
    write_csv,
)
from veneer.cli.main import app
from veneer.formats.adapter import read_adapter, write_adapter
from veneer.methods.table import find_method
from veneer.training.saved import load_trained

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

LABELS = sorted(KEYWORDS)
TEXTS = [text for text, _, _ in make_rows(9, seed=5)]
RECORD_FIELDS = {
    *("method", "model", "data", "seed", "trainable_parameters", "lora_parameters", "head_parameters"),
    *("total_parameters", "train_seconds", "peak_memory_bytes", "checkpoint_bytes", "validation", "test"),
    *("collapsed", "config"),
}
ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")


@pytest.fixture
def train(tiny, tables, tmp_path):
    """A function that trains into `tmp_path / name` and returns that folder."""

    def run(name, *changes, test=True):
        files = ("--data", tables / "train.csv", *(("--test", tables / "test.csv") if test else ()))
        worked("train", "--model", tiny, *files, *COLUMNS, *SETTINGS, "--out", tmp_path / name, *changes)
        return tmp_path / name

    return run


def record_of(run):
    [record] = json.loads((run / "results.json").read_text())["records"]
    return record


def figures(record):
    """What a run's seed and settings determine; time and memory are not among it."""
    measured = {"train_seconds", "peak_memory_bytes"}
    return {key: value for key, value in record.items() if key not in measured}


def evaluated(run, data, *more):
    return json.loads(worked("evaluate", run, "--data", data, *COLUMNS, *more, "--json").out)


def write_table(path, table):
    writers = {
        ".csv": lambda: table.to_csv(path, index=False),
        ".tsv": lambda: table.to_csv(path, index=False, sep="\t"),
        ".jsonl": lambda: table.to_json(path, orient="records", lines=True),
        ".parquet": lambda: table.to_parquet(path, index=False),
    }
    writers[path.suffix]()
    return path


def read_table(path):
    readers = {
        ".csv": pd.read_csv,
        ".tsv": lambda file: pd.read_csv(file, sep="\t"),
        ".jsonl": lambda file: pd.read_json(file, lines=True),
        ".parquet": pd.read_parquet,
    }
    return readers[path.suffix](path)


@pytest.mark.parametrize("method", METHODS)
def test_the_results_file_keeps_its_interface(trained, tiny, tables, method):
    results = json.loads((trained(method) / "results.json").read_text())
    assert results["schema"] == 1
    assert {"schema", "machine", "versions", "records"} <= set(results)
    assert results["machine"]["cores"] >= 1
    assert {"python", "veneer", "torch", "transformers"} <= set(results["versions"])
    [record] = results["records"]
    assert set(record) >= RECORD_FIELDS
    assert (record["method"], record["model"], record["seed"]) == (method, str(tiny), 0)
    assert record["data"] == str(tables / "train.csv")
    assert record["labels"] == LABELS
    for split, num_rows in {"validation": 6, "test": 21}.items():
        scores = record[split]
        assert scores["num_examples"] == num_rows == sum(map(sum, scores["confusion"]))
        hits = sum(row[number] for number, row in enumerate(scores["confusion"]))
        assert scores["accuracy"] == pytest.approx(hits / num_rows)
        assert 0 <= scores["macro_f1"] <= 1
    assert record["split"] == {"train": 54, "validation": 6, "test": 21}
    assert record["train_seconds"] > 0
    assert record["peak_memory_bytes"] > 1_000_000
    assert len(record["validation_curve"]) == 2


@pytest.mark.parametrize("method", METHODS)
def test_parameters_are_counted_apart_and_add_up(trained, method):
    record = record_of(trained(method))
    base, head = record["total_parameters"] - record["lora_parameters"], 3 * (16 + 1)
    assert record["head_parameters"] == head
    assert (record["lora_parameters"] > 0) == method.startswith("lora")
    expected = base if method == "full" else record["lora_parameters"] + head
    assert record["trainable_parameters"] == expected
    assert base == record_of(trained("full"))["total_parameters"]


@pytest.mark.parametrize("method", [*METHODS, *BASELINES])
def test_a_saved_run_comes_back_with_the_very_scores_of_its_record(trained, tables, method):
    run = trained(method)
    record = record_of(run)
    checkpoint = run / ("model" if method == "full" else "adapter")
    assert run / record["checkpoint"] == checkpoint
    assert record["checkpoint_bytes"] == sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    for path in (run, checkpoint):
        scores = evaluated(path, tables / "test.csv")
        assert {name: scores[name] for name in record["test"]} == record["test"]
        assert scores["labels"] == LABELS


def test_what_the_pretrained_model_knows_is_learned_from_a_few_rows(trained):
    for method in ("head", "lora-qv", "lora-all"):
        record = record_of(trained(method))
        assert record["test"]["accuracy"] > record["test"]["majority_share"] + 0.2
        assert not record["collapsed"]


def test_each_method_has_a_learning_rate_of_its_own_and_its_record_names_it(trained):
    rates = {method: record_of(trained(method))["config"]["learning_rate"] for method in METHODS}
    assert rates == {method: find_method(method).learning_rate for method in METHODS}
    assert rates["full"] < rates["lora-all"] <= rates["lora-qv"] < rates["head"]


@pytest.mark.parametrize("method", ["head", "lora-qv", "lora-all"])
def test_an_adapter_folder_is_pefts_two_files_and_a_card_with_the_label_names(trained, tiny, method):
    folder = trained(method) / "adapter"
    names = {"adapter_config.json", "adapter_model.safetensors", "veneer.json"}
    assert {path.name for path in folder.iterdir()} == names
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["task_type"]) == ("LORA", "SEQ_CLS")
    assert settings["base_model_name_or_path"] == str(tiny)
    assert json.loads((folder / "veneer.json").read_text())["labels"] == LABELS


@pytest.mark.parametrize("method", ["lora-qv", "lora-all"])
def test_the_adapter_gives_the_same_logits_in_peft(trained, tiny, method):
    folder = trained(method) / "adapter"
    batch = make_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=3, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    ours = load_trained(folder).classifier.model
    with torch.inference_mode():
        torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_predicting_one_text_gives_probabilities_whose_largest_is_the_label(trained, method):
    for text in TEXTS[:3]:
        answer = json.loads(worked("predict", trained(method), text, "--json").out)
        assert answer["text"] == text
        assert list(answer["probabilities"]) == LABELS
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)


def test_predicting_one_text_prints_the_likeliest_first(trained):
    lines = worked("predict", trained("lora-all"), TEXTS[0]).out.splitlines()
    assert [line.split()[0] for line in lines] == sorted((line.split()[0] for line in lines), reverse=True)
    assert sorted(line.split()[1] for line in lines) == LABELS


@pytest.mark.parametrize("ending", ENDINGS)
def test_predicting_a_file_keeps_the_order_of_rows_and_agrees_with_one_text_at_a_time(trained, tmp_path, ending):
    texts = [f"{'the ' * (number % 4)}{text}" for number, text in enumerate(TEXTS)]
    given = write_table(tmp_path / f"given{ending}", pd.DataFrame({"id": range(len(texts)), "text": texts}))
    out = tmp_path / f"predicted{ending}"
    files = ("--data", given, "--text", "text", "--out", out)
    summary = json.loads(worked("predict", trained("lora-all"), *files, "--json").out)
    table = read_table(out)
    assert summary == {"out": str(out), "rows": len(texts), "counts": table["label"].value_counts().to_dict()}
    assert table["text"].tolist() == texts
    probabilities = table[[f"p({label})" for label in LABELS]]
    assert probabilities.sum(axis=1).tolist() == pytest.approx([1] * len(texts), abs=1e-5)
    assert [LABELS[place] for place in probabilities.to_numpy().argmax(axis=1)] == table["label"].tolist()
    assert table["probability"].tolist() == pytest.approx(probabilities.max(axis=1).tolist())
    alone = json.loads(worked("predict", trained("lora-all"), texts[-1], "--json").out)
    assert probabilities.iloc[-1].tolist() == pytest.approx(list(alone["probabilities"].values()), abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([given.name, out.name])


def test_predictions_replace_a_file_only_when_asked(trained, tmp_path):
    out = tmp_path / "predicted.csv"
    out.write_text("mine")
    worked("predict", trained("lora-all"), TEXTS[0], "--out", out, "--overwrite")
    assert read_table(out)["text"].tolist() == TEXTS[:1]


def test_the_format_of_the_data_does_not_matter(train, tables, tmp_path):
    """The same rows from each of the four formats give the same adapter, byte for byte."""
    rows = pd.read_csv(tables / "train.csv")
    runs = [
        train(f"run{ending}", "--data", write_table(tmp_path / f"rows{ending}", rows), "--epochs", 1, test=False)
        for ending in ENDINGS
    ]
    first, *others = [contents(run / "adapter") for run in runs]
    assert all(other == first for other in others)
    assert all(record_of(run)["test"] is None for run in runs)


def test_the_same_seed_gives_the_same_scores_and_bytes_and_another_seed_others(train):
    first, again, other = (train(name, "--seed", seed) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert figures(record_of(first)) == figures(record_of(again))
    assert contents(first / "adapter") == contents(again / "adapter")
    tensors = "adapter_model.safetensors"
    assert contents(first / "adapter")[tensors] != contents(other / "adapter")[tensors]


def test_overwrite_replaces_the_run_and_nothing_else(train):
    run = train("run", "--method", "full", "--epochs", 1)
    (run / "notes.txt").write_text("mine")
    (run / "plots").mkdir()
    (run / "plots" / "adapter").write_text("mine too")
    train("run", "--method", "head", "--overwrite")
    assert record_of(run)["method"] == "head"
    assert {path.name for path in run.iterdir()} == {"notes.txt", "plots", "adapter", "results.json"}
    assert (run / "notes.txt").read_text() == "mine"
    assert (run / "plots" / "adapter").read_text() == "mine too"


def test_options_reach_the_record(train):
    options = {"epochs": 1, "batch_size": 7, "max_tokens": 9, "r": 3, "alpha": 5.0, "dropout": 0.25}
    options |= {"learning_rate": 0.002, "validation_share": 0.2, "scaling": "rslora"}
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    run = train("run", *given, "--target", "query", "--target", "dense")
    record = record_of(run)
    assert {name: record["config"][name] for name in options} == options
    assert record["config"]["targets"] == ["query", "dense"]
    assert len(record["validation_curve"]) == 1
    assert record["split"]["validation"] == 12
    settings = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (3, 5, True)
    assert json.loads((run / "adapter" / "veneer.json").read_text())["max_tokens"] == 9


def test_texts_longer_than_the_model_can_read_are_cut_and_said_so(tiny, tables, tmp_path):
    rows = [(f"{text}{' the' * 60}", second, label) for text, second, label in make_rows(30, seed=1)]
    data = write_csv(tmp_path / "long.csv", rows)
    ended = worked("train", "--model", tiny, "--data", data, *COLUMNS, "--epochs", 1, "--out", tmp_path / "run")
    assert "texts are cut to 40 tokens, not 128" in ended.err
    worked("predict", tmp_path / "run", rows[0][0])


def test_a_validation_split_is_made_and_reported(tiny, tables, tmp_path):
    shared = ("train", "--model", tiny, "--data", tables / "train.csv", *COLUMNS, *SETTINGS, "--epochs", 1)
    ended = worked(*shared, "--seed", 5, "--out", tmp_path / "held-out")
    assert "validation: 6 rows (10 %), held out of train, stratified by label, seed 5" in ended.err
    assert "no test rows" in ended.err
    validation = record_of(tmp_path / "held-out")["validation"]
    assert [sum(row) for row in validation["confusion"]] == [2, 2, 2]
    ended = worked(*shared, "--validation", tables / "test.csv", "--out", tmp_path / "given")
    assert "validation: 21 rows, as given" in ended.err
    assert record_of(tmp_path / "given")["split"] == {"train": 60, "validation": 21}


def test_two_texts_a_row_are_read_trained_scored_and_predicted(train, tables, tmp_path):
    run = train("pairs", "--text-pair", "second")
    scores = evaluated(run, tables / "test.csv", "--text-pair", "second")
    record = record_of(run)
    assert {name: scores[name] for name in record["test"]} == record["test"]
    assert record["config"]["text_pair"] == "second"
    first, second, label = make_rows(1, seed=9)[0]
    alone = json.loads(worked("predict", run, first, "--pair", second, "--json").out)
    assert list(alone["probabilities"]) == LABELS
    given = write_csv(tmp_path / "given.csv", [(first, second, label)])
    out = tmp_path / "out.csv"
    worked("predict", run, "--data", given, "--text", "text", "--text-pair", "second", "--out", out)
    table = read_table(out)
    assert table["text_pair"].tolist() == [second]
    assert table["label"].tolist() == [alone["label"]]
    assert table["probability"].tolist() == pytest.approx([alone["probabilities"][alone["label"]]], abs=1e-6)


def test_an_adapter_can_be_put_on_its_base_model_elsewhere(trained, tiny, tables, tmp_path):
    moved = shutil.copytree(tiny, tmp_path / "moved")
    scores = evaluated(trained("lora-all"), tables / "test.csv", "--model", moved)
    assert scores["accuracy"] == record_of(trained("lora-all"))["test"]["accuracy"]


def test_labels_that_look_like_numbers_stay_names(train, tmp_path):
    rows = [
        (text, pair, {"food": "10", "sport": "9", "weather": "007"}[label])
        for text, pair, label in make_rows(30, seed=4)
    ]
    run = train("numbers", "--data", write_csv(tmp_path / "numbers.csv", rows), test=False)
    assert record_of(run)["labels"] == ["007", "9", "10"]
    assert json.loads(worked("predict", run, "soup", "--json").out)["label"] in {"007", "9", "10"}


def test_evaluate_prints_the_accuracy_of_its_json(trained, tables):
    text = worked("evaluate", trained("lora-all"), "--data", tables / "test.csv", *COLUMNS).out
    scores = evaluated(trained("lora-all"), tables / "test.csv")
    assert f"accuracy {scores['accuracy']:.4f}, macro-F1 {scores['macro_f1']:.4f}" in text
    assert "21 rows" in text


def test_evaluate_reads_a_split_of_a_folder(trained, tables):
    whole = evaluated(trained("lora-all"), tables / "train.csv")
    assert evaluated(trained("lora-all"), tables, "--split", "train")["confusion"] == whole["confusion"]


@pytest.mark.parametrize("method", ["head", "lora-qv", "lora-all"])
def test_inspect_shows_what_is_in_an_adapter(trained, method):
    run = trained(method)
    shown = json.loads(worked("inspect", run, "--json").out)
    assert shown == json.loads(worked("inspect", run / "adapter", "--json").out)
    assert shown["lora_parameters"] == record_of(run)["lora_parameters"]
    assert shown["lora_parameters"] == sum(layer["r"] * (layer["in"] + layer["out"]) for layer in shown["layers"])
    assert shown["trained_whole"] == {"classifier.bias": [3], "classifier.weight": [3, 16]}
    assert shown["task_card"]["labels"] == LABELS
    text = worked("inspect", run).out
    assert all(name in text for name in [*LABELS, *(layer["name"] for layer in shown["layers"])])


def test_inspect_measures_each_layer_and_puts_the_summary_first(trained):
    run = trained("lora-qv")
    layers = json.loads(worked("inspect", run, "--json").out)["layers"]
    state = read_adapter(run / "adapter")
    for layer in layers:
        values = torch.linalg.svdvals(state.delta(layer["name"]).double())[: layer["r"]]
        shares = values / values.sum()
        assert layer["kind"] == "linear"
        assert layer["scaling"] == 2
        assert layer["delta_norm"] == pytest.approx(float(values.norm()), rel=1e-5)
        assert layer["effective_rank"] == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-4)
        assert "relative_norm" not in layer
    lines = worked("inspect", run).out.splitlines()
    [summary] = [number for number, line in enumerate(lines) if f"{len(layers)} layers, " in line]
    assert summary < min(number for number, line in enumerate(lines) if line.startswith(layers[0]["name"]))


def test_inspect_compares_an_adapter_with_its_base(trained, tiny, tmp_path):
    run = trained("lora-qv")
    shown = json.loads(worked("inspect", run, "--model", tiny, "--json").out)
    assert shown["base"] == {"model": str(tiny), "fits": True}
    weights = load_file(tiny / "model.safetensors")
    state = read_adapter(run / "adapter")
    for layer in shown["layers"]:
        weight = weights[f"{layer['name'].removeprefix('bert.')}.weight"].double()
        delta = state.delta(layer["name"]).double()
        assert layer["relative_norm"] == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-5)
        known, changed = (torch.linalg.svd(matrix).U for matrix in (weight, weight + delta))
        new = ((changed[:, :10].T @ known).abs().amax(dim=1) < 0.5).sum()
        assert layer["intruders"] == int(new)
    assert f"{tiny} has the weights that the adapter was trained on" in worked("inspect", run, "--model", tiny).out


@pytest.fixture
def other(tiny, tmp_path):
    """A model of the same shape with other weights."""
    folder = shutil.copytree(tiny, tmp_path / "other")
    weights = {name: tensor + 0.01 for name, tensor in load_file(tiny / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_an_adapter_goes_onto_other_weights_only_when_asked(trained, tables, other):
    run, data = trained("lora-qv"), ("--data", tables / "test.csv", *COLUMNS, "--model", other)
    refused = veneer("evaluate", run, *data)
    assert refused.code == 2
    assert "other weights" in refused.err
    assert "--any-base" in refused.err
    worked("evaluate", run, *data, "--any-base")
    assert veneer("predict", run, "bread", "--model", other).code == 2
    worked("predict", run, "bread", "--model", other, "--any-base")


def test_inspect_says_what_doras_figures_are_of(trained, tiny, tmp_path):
    shutil.copytree(trained("lora-qv") / "adapter", tmp_path / "dora")
    plain = read_adapter(tmp_path / "dora")
    updates = {n: replace(u, magnitude=torch.linspace(0.5, 1.5, len(u.B))) for n, u in plain.updates.items()}
    write_adapter(replace(plain, config=replace(plain.config, variant="dora"), updates=updates), tmp_path / "dora")
    assert "the figures are of s B A alone" in worked("inspect", tmp_path / "dora").out
    alone = json.loads(worked("inspect", tmp_path / "dora", "--json").out)["layers"]
    assert "the figures are of DoRA's whole change" in worked("inspect", tmp_path / "dora", "--model", tiny).out
    layers = json.loads(worked("inspect", tmp_path / "dora", "--model", tiny, "--json").out)["layers"]
    weights = load_file(tiny / "model.safetensors")
    for layer, other in zip(layers, alone, strict=True):
        weight = weights[f"{layer['name'].removeprefix('bert.')}.weight"].double()
        summed = weight + plain.delta(layer["name"])
        change = updates[layer["name"]].magnitude.unsqueeze(1) * summed / summed.norm(dim=1, keepdim=True) - weight
        assert layer["magnitude_applied"] is True
        assert layer["delta_norm"] == pytest.approx(float(change.norm()), rel=1e-5)
        assert layer["relative_norm"] == pytest.approx(float(change.norm() / weight.norm()), rel=1e-5)
        assert other["magnitude_applied"] is False
        assert other["delta_norm"] == pytest.approx(float(plain.delta(layer["name"]).norm()), rel=1e-5)


def test_inspect_says_that_a_base_has_other_weights(trained, other):
    run = trained("lora-qv")
    assert json.loads(worked("inspect", run, "--model", other, "--json").out)["base"]["fits"] is False
    assert f"{other} has other weights" in worked("inspect", run, "--model", other).out
    shown = json.loads(worked("inspect", trained("head"), "--model", other, "--json").out)
    assert shown["base"]["fits"] is None
    assert shown["layers"] == []


def test_inspect_reads_other_formats_and_a_pickle_only_when_its_format_is_named(tmp_path):
    A, B = torch.randn(3, 7), torch.randn(5, 3)
    file = tmp_path / "file.safetensors"
    save_file({"unet.x.to_q.lora_A.weight": A, "unet.x.to_q.lora_B.weight": B}, file)
    shown = json.loads(worked("inspect", file, "--json").out)
    assert shown["format"] == "diffusers"
    [layer] = shown["layers"]
    assert (layer["name"], layer["r"], layer["in"], layer["out"]) == ("x.to_q", 3, 7, 5)
    assert layer["delta_norm"] == pytest.approx(float((B @ A).norm()), rel=1e-5)
    pickle = tmp_path / "file.pt"
    torch.save({"x.lora_A": A, "x.lora_B": B}, pickle)
    refused = veneer("inspect", pickle, "--alpha", 6)
    assert refused.code == 2
    assert "is a pickle" in refused.err
    [layer] = json.loads(worked("inspect", pickle, "--alpha", 6, "--from", "loralib", "--json").out)["layers"]
    assert layer["delta_norm"] == pytest.approx(float(2 * (B @ A).norm()), rel=1e-5)


def test_inspect_finds_the_names_of_a_kohya_file_in_the_model(tiny, tmp_path):
    flat, A, B = "lora_te_encoder_layer_1_output_dense", torch.randn(3, 24), torch.randn(16, 3)
    file = tmp_path / "file.safetensors"
    save_file({f"{flat}.lora_down.weight": A, f"{flat}.lora_up.weight": B}, file)
    shown = json.loads(worked("inspect", file, "--model", tiny, "--json").out)
    [layer] = shown["layers"]
    weight = load_file(tiny / "model.safetensors")["encoder.layer.1.output.dense.weight"]
    assert layer["name"] == "encoder.layer.1.output.dense"
    assert layer["relative_norm"] == pytest.approx(float((B @ A).norm() / weight.norm()), rel=1e-5)
    assert shown["base"]["fits"] is None


@pytest.mark.parametrize("method", ["head", "lora-qv", "lora-all"])
def test_inspect_shows_what_would_be_adapted_without_the_weights(trained, tiny, tmp_path, method):
    bare = shutil.copytree(tiny, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    shown = json.loads(worked("inspect", "--model", bare, "--method", method, "--json").out)
    assert shown["lora_parameters"] == record_of(trained(method))["lora_parameters"]
    assert shown["trained_modules"] == ["classifier"]
    text = worked("inspect", "--model", bare, "--method", method).out
    assert all(target["name"] in text for target in shown["targets"])
    assert f"{shown['lora_parameters']:,} low-rank" in text


def test_json_is_all_that_stands_on_standard_output(trained, tables):
    for arguments in (
        ("evaluate", trained("head"), "--data", tables / "test.csv", *COLUMNS),
        ("predict", trained("head"), "soup"),
        ("inspect", trained("head")),
    ):
        assert json.loads(worked(*arguments, "--json").out)


def test_help_names_every_command_and_option():
    commands = typer.main.get_command(app).commands
    text = worked("--help").out
    assert commands
    for name, command in commands.items():
        assert name in text
        told = worked(name, "--help").out
        for parameter in command.params:
            assert parameter.help
            spelt = [parameter.metavar or parameter.name] if parameter.param_type_name == "argument" else parameter.opts
            assert all(one in told for one in spelt), (name, spelt)


def test_a_csv_with_quotes_newlines_and_other_alphabets_is_read(train, tmp_path):
    rows = [
        (f'{text}, "quoted"\n{number} Ünï中文😀', pair, label)
        for number, (text, pair, label) in enumerate(make_rows(30, seed=6))
    ]
    run = train("odd", "--data", write_csv(tmp_path / "odd.csv", rows), "--epochs", 1, test=False)
    given = write_csv(tmp_path / "odd-test.csv", rows[:5])
    out = tmp_path / "odd-out.csv"
    worked("predict", run, "--data", given, "--text", "text", "--out", out)
    with out.open(encoding="utf-8", newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == [text for text, _, _ in rows[:5]]
