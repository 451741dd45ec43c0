"""Laws of learning numbers: the unit of the labels changes nothing, and what is saved is a plain layer."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from tests.cli.tiny import make_rows, write_csv
from veneer.data.splits import Examples
from veneer.errors import DataError
from veneer.results import read_results
from veneer.training.config import RunConfig
from veneer.training.numbers import NumberLayer, put_number_layer, standardized
from veneer.training.run import run
from veneer.training.saved import load_trained

MEANINGS = {"food": -1.5, "sport": 0.25, "weather": 2.0}
TEXTS = Examples(texts=tuple(text for text, _, _ in make_rows(9, seed=4)))


def trained(folder, tiny, method, *, factor, shift):
    folder.mkdir(exist_ok=True)
    rows = [(text, "", str(factor * MEANINGS[label] + shift)) for text, _, label in make_rows(40, seed=1)]
    data = write_csv(folder / "data.csv", rows, header=("text", "second", "number"))
    shared = {"text": "text", "label": "number", "task": "regression", "epochs": 3, "batch_size": 8, "max_tokens": 24}
    config = RunConfig(model=str(tiny), data=str(data), method=method, precision="float32", **shared)
    run(config, folder / "run")
    return load_trained(folder / "run").numbers(TEXTS), read_results(folder / "run").records[0]


@pytest.mark.parametrize("method", ["lora-all", "full", "bitfit"])
def test_the_unit_of_the_labels_changes_nothing(tiny, tmp_path, method):
    """A power of two scales every number of a training run without rounding, so the answers scale exactly."""
    plain, record = trained(tmp_path / "plain", tiny, method, factor=1, shift=0)
    scaled, scaled_record = trained(tmp_path / "scaled", tiny, method, factor=2**17, shift=0)
    assert torch.equal(scaled, 2**17 * plain)
    assert scaled_record.validation.loss == 2**34 * record.validation.loss
    losses = [[entry["loss"] for entry in one.train_curve] for one in (record, scaled_record)]
    assert losses[1] == pytest.approx([2**34 * loss for loss in losses[0]])


def test_where_the_labels_lie_changes_nothing(tiny, tmp_path):
    """Up to rounding, which Adam makes larger."""
    plain, shifted = (trained(tmp_path / str(s), tiny, "full", factor=1, shift=s)[0] - s for s in (0, 16))
    torch.testing.assert_close(shifted, plain, atol=0.02, rtol=0)


def test_a_new_head_starts_at_the_mean(tiny, tmp_path):
    _, record = trained(tmp_path, tiny, "head", factor=1000, shift=250_000)
    spread = record.validation.target_sd**2
    assert record.train_curve[0]["loss"] < 3 * spread
    assert all(entry["loss"] < 3 * spread for entry in record.validation_curve)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("is_new", [True, False])
def test_the_units_go_into_the_weights(bias, is_new):
    model = nn.ModuleDict({"head": nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1, bias=bias))})
    x, targets = torch.randn(5, 4), [1990.0, 2001.0, 2003.5]
    before = model["head"](x)
    layer = put_number_layer(model, ["head"])
    assert torch.equal(model["head"](x), before)
    with standardized(layer, targets, is_new=is_new):
        within = model["head"](x)
    torch.testing.assert_close(model["head"](x), within, atol=1e-3, rtol=1e-6)
    if not is_new:
        torch.testing.assert_close(within, before, atol=1e-3, rtol=1e-5)
    elif bias:
        unit = torch.tensor(targets, dtype=torch.float64).std(correction=0).float()
        torch.testing.assert_close((within - 5994.5 / 3) / unit, before, atol=1e-3, rtol=1e-3)
    assert [name for name, _ in model.named_parameters()] == [
        "head.0.weight", "head.0.bias", "head.2.weight", *(["head.2.bias"] if bias else []),
    ]  # fmt: skip


def test_equal_targets_are_in_units_of_one():
    layer = put_number_layer(nn.ModuleDict({"head": nn.Linear(3, 1)}), ["head"])
    with standardized(layer, [7.0, 7.0], is_new=True):
        assert (layer.mean, layer.sd) == (7.0, 1.0)


def test_numbers_are_not_rounded_to_bfloat16():
    """Of the years around 2000 bfloat16 has every eighth."""
    layer = NumberLayer(3, 1)
    with torch.no_grad():
        layer.bias.fill_(2001.25)
    x = torch.randn(50, 3)
    expected = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=0)


def test_transformers_reads_the_saved_model_without_knowing_of_units(tiny, tmp_path):
    ours, _ = trained(tmp_path, tiny, "full", factor=100, shift=5000)
    saved = load_trained(tmp_path / "run")
    batch = saved.classifier.tokenizer(list(TEXTS.texts), padding=True, return_tensors="pt")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").eval()
    assert not any(isinstance(module, NumberLayer) for module in plain.modules())
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits[:, 0], ours, atol=1e-2, rtol=0)


def test_a_head_without_a_layer_of_one_output_is_refused():
    with pytest.raises(DataError, match="no linear layer with one output"):
        put_number_layer(nn.ModuleDict({"head": nn.Linear(3, 2)}), ["head"])
