"""Every layer kind with every variant: start exact, forward == merged, undo exact, copies whole."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import veneer
from veneer import LoraConfig
from veneer.lora.layers import adapted_slots

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 6e-2}


class Experts(nn.Module):
    """Three stacked matrices, 7 -> 5, each used by some of the rows."""

    def __init__(self, *, is_transposed=False):
        super().__init__()
        self.is_transposed = is_transposed
        self.up = nn.Parameter(torch.randn(3, 7, 5) if is_transposed else torch.randn(3, 5, 7))

    def forward(self, x):
        weight = self.up.transpose(1, 2) if self.is_transposed else self.up
        return torch.stack([nn.functional.linear(row, weight[i % 3]) for i, row in enumerate(x)])


class Holder(nn.Sequential):
    """Holds the layer under the name "0", as nn.Sequential does."""


def vectors(*shape):
    return lambda dtype: torch.randn(*shape, dtype=dtype)


LAYERS = {
    "linear": (lambda bias: nn.Linear(7, 5, bias=bias), vectors(2, 3, 7)),
    "conv1d_transposed": (lambda _: Conv1D(5, 7), vectors(2, 3, 7)),
    "embedding": (lambda _: nn.Embedding(9, 5, padding_idx=1), lambda _: torch.randint(0, 9, (2, 3))),
    "conv1": (lambda bias: nn.Conv1d(4, 6, 3, stride=2, padding=1, bias=bias), vectors(2, 4, 11)),
    "conv2": (
        lambda bias: nn.Conv2d(4, 6, (3, 2), padding=2, dilation=(2, 1), padding_mode="reflect", bias=bias),
        vectors(2, 4, 9, 7),
    ),
    "conv2_groups": (lambda bias: nn.Conv2d(4, 6, 3, groups=2, padding="same", bias=bias), vectors(2, 4, 5, 6)),
    "conv3": (lambda bias: nn.Conv3d(2, 5, 2, stride=(1, 2, 1), bias=bias), vectors(2, 2, 4, 5, 3)),
    "fused": (lambda bias: nn.Linear(7, 12, bias=bias), vectors(2, 3, 7)),
    "fused_transposed": (lambda _: Conv1D(12, 7), vectors(2, 3, 7)),
    "experts": (lambda _: Experts(), vectors(4, 2, 7)),
    "experts_transposed": (lambda _: Experts(is_transposed=True), vectors(4, 2, 7)),
}
VARIANTS = {
    "lora": {},
    "dora": {"variant": "dora"},
    "rslora": {"scaling": "rslora"},
    "lora-fa": {"train_A": False},
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal", "r": 2},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "dora-pissa": {"init": "pissa", "variant": "dora"},
}


def config_for(kind, variant):
    settings = {"r": 3, "alpha": 5, "targets": ["0"], **VARIANTS[variant]}
    if kind.startswith("fused"):
        settings["fused"] = {"0": (True, False, True)}
    if kind.startswith("experts"):
        settings |= {"targets": [], "parameters": ["up"]}
    return LoraConfig(**settings)


def stir(model, seed=0):
    """Move everything trainable, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3)
    return model


def unsupported(kind, variant):
    return kind.startswith("experts") and variant not in {"lora", "rslora", "lora-fa", "gaussian"}


CASES = [case for case in itertools.product(LAYERS, VARIANTS) if not unsupported(*case)]


def adapted(kind, variant, *, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    make_layer, make_input = LAYERS[kind]
    net = Holder(make_layer(bias)).to(dtype)
    x = make_input(dtype)
    before = net(x).detach()
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    veneer.adapt(net, config_for(kind, variant))
    return net, x, before, weights


@pytest.mark.parametrize(("kind", "variant"), CASES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_laws_hold_for_every_kind_variant_and_dtype(kind, variant, bias, dtype):
    net, x, before, weights = adapted(kind, variant, bias=bias, dtype=dtype)
    start = net(x)
    if "init" in VARIANTS[variant] or dtype == torch.bfloat16:
        torch.testing.assert_close(start, before, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    else:
        assert torch.equal(start, before)
    stir(net)
    output = net(x)
    assert output.dtype == before.dtype
    assert not torch.allclose(output, before, atol=1e-3)
    with veneer.disabled(net):
        assert torch.equal(net(x), before)
    with veneer.merged(net):
        torch.testing.assert_close(net(x), output, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(net(x), output)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), output)
    veneer.remove(net)
    assert torch.equal(net(x), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_a_state_put_onto_the_plain_base_computes_the_same(kind, variant):
    net, x, _, _ = adapted(kind, variant)
    output = stir(net)(x)
    adapter = veneer.state(net)
    torch.manual_seed(0)
    twin = Holder(LAYERS[kind][0](True))
    veneer.load_state(twin, adapter)
    torch.testing.assert_close(twin(x), output, rtol=2e-5, atol=2e-5)
    again = veneer.state(twin)
    for name, update in again.updates.items():
        assert update.kind == adapter.updates[name].kind
        for part, tensor in update.tensors().items():
            assert torch.equal(tensor, adapter.updates[name].tensors()[part])
    veneer.merge(twin)
    torch.testing.assert_close(twin(x), output, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_half_strength_is_halfway_between_base_and_adapter_in_the_weights(kind, variant):
    net, x, before, _ = adapted(kind, variant)
    stir(net)
    full = {name: slot.merged_weight().detach() for name, slot in adapted_slots(net).items()}
    veneer.set_strength(net, 0.5)
    for name, slot in adapted_slots(net).items():
        torch.testing.assert_close(slot.merged_weight(), (slot.weight + full[name]) / 2, rtol=1e-5, atol=1e-6)
    output = net(x)
    with veneer.merged(net):
        torch.testing.assert_close(net(x), output, rtol=2e-5, atol=2e-5)
    veneer.set_strength(net, 0)
    torch.testing.assert_close(net(x), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", True])
def test_a_strength_that_is_no_number_is_refused(value):
    net, *_ = adapted("linear", "lora")
    with pytest.raises(veneer.VeneerError, match="strength is"):
        veneer.set_strength(net, value)
