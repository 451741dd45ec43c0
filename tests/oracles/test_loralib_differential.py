"""Veneer beside the installed `loralib` 0.1.2, the paper's own package: outputs, gradients, merged weights.

loralib merges in `eval()` and unmerges in `train()`, so its merged weight is what `eval()` leaves in `weight`. A layer
that it stores as (in, out), `fan_in_fan_out`, is transformers' `Conv1D` here.
"""

import itertools

import loralib
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

import veneer
from veneer import LoraConfig

SIZES = {
    "inside": st.integers(3, 9),
    "height": st.integers(3, 6),
    "r": st.integers(1, 3),
    "alpha": st.integers(1, 9),
}
FEW = settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])
PATTERNS = [p for n in (2, 3, 4) for p in itertools.product([False, True], repeat=n) if any(p)]


def stirred(layer):
    """Give loralib's factors values that training could have left."""
    torch.manual_seed(1)
    with torch.no_grad():
        layer.lora_A.normal_(std=0.3)
        layer.lora_B.normal_(std=0.3)
    layer.train()  # which returns None
    return layer


def adapted(base, theirs, **config):
    """Return a net around a copy of `theirs`' base layer, adapted here with `theirs`' factors."""
    net = nn.Sequential(base)
    net[0].load_state_dict({k: v for k, v in theirs.state_dict().items() if "lora" not in k})
    veneer.adapt(net, LoraConfig(r=theirs.r, alpha=theirs.lora_alpha, targets=["0"], **config))
    with torch.no_grad():
        net[0].update.A.copy_(theirs.lora_A)
        net[0].update.B.copy_(theirs.lora_B)
    return net


def assert_alike(net, theirs, x):
    """The same output, gradients of A, B and x, and merged weight."""
    inputs = [x.clone().requires_grad_(x.is_floating_point()) for _ in range(2)]
    for model, given_x in zip((net, theirs), inputs, strict=True):
        output = model(given_x)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    near(net(x), theirs(x))
    near(net[0].update.A.grad, theirs.lora_A.grad)
    near(net[0].update.B.grad, theirs.lora_B.grad)
    if x.is_floating_point():
        near(inputs[0].grad, inputs[1].grad)
    veneer.merge(net)
    theirs.eval()
    near(net[0].weight, theirs.weight)
    near(net(x), theirs(x))


def near(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@FEW
@given(**SIZES)
def test_a_linear_layer_agrees(fan_in_fan_out, bias, inside, height, r, alpha):
    """`Conv1D` always has a bias."""
    torch.manual_seed(0)
    theirs = stirred(
        loralib.Linear(
            inside, height, r=r, lora_alpha=alpha, fan_in_fan_out=fan_in_fan_out, bias=bias or fan_in_fan_out
        )
    )
    base = Conv1D(height, inside) if fan_in_fan_out else nn.Linear(inside, height, bias=bias)
    assert_alike(adapted(base, theirs), theirs, torch.randn(2, 4, inside))


@pytest.mark.parametrize("padding_idx", [None, 1])
@FEW
@given(**SIZES)
def test_an_embedding_agrees(padding_idx, inside, height, r, alpha):
    torch.manual_seed(0)
    theirs = stirred(loralib.Embedding(inside, height, r=r, lora_alpha=alpha, padding_idx=padding_idx))
    net = adapted(nn.Embedding(inside, height, padding_idx=padding_idx), theirs)
    assert_alike(net, theirs, torch.randint(0, inside, (2, 5)))


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
@pytest.mark.parametrize("enable_lora", PATTERNS, ids=lambda pattern: "".join("01"[on] for on in pattern))
@settings(FEW, max_examples=2)
@given(**SIZES)
def test_a_fused_projection_agrees_for_every_choice_of_slices(enable_lora, fan_in_fan_out, inside, height, r, alpha):
    torch.manual_seed(0)
    out = height * len(enable_lora)
    options = {"r": r, "lora_alpha": alpha, "enable_lora": list(enable_lora), "fan_in_fan_out": fan_in_fan_out}
    theirs = stirred(loralib.MergedLinear(inside, out, **options))
    base = Conv1D(out, inside) if fan_in_fan_out else nn.Linear(inside, out)
    assert_alike(adapted(base, theirs, fused={"0": enable_lora}), theirs, torch.randn(2, 4, inside))


def test_a_convolution_is_another_factorisation_and_agrees_only_as_a_dense_kernel():
    """loralib's A is (r k, in k) and B (out k, r k): B A, reshaped, is a kernel of rank up to r k, not a convolution of
    r channels followed by one of width 1. A kernel that has rank r both ways is still the same convolution."""
    torch.manual_seed(0)
    theirs = loralib.Conv2d(4, 6, 3, r=2, lora_alpha=5)
    assert theirs.lora_A.shape == (2 * 3, 4 * 3)
    net = nn.Sequential(nn.Conv2d(4, 6, 3))
    net[0].load_state_dict(theirs.conv.state_dict())
    veneer.adapt(net, LoraConfig(r=2, alpha=5, targets=["0"]))
    assert net[0].update.A.shape == (2, 4 * 3 * 3)
    with torch.no_grad():
        net[0].update.B.normal_()
        theirs.conv.weight += 5 / 2 * (net[0].update.B @ net[0].update.A).view(theirs.conv.weight.shape)
    x = torch.randn(2, 4, 5, 5)
    near(net(x), theirs.conv(x))
