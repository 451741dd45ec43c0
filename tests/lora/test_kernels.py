"""The one-node linear layer against plain torch, its oracle: values, gradients, dropout, what it keeps in memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import veneer
from veneer import LoraConfig
from veneer.lora.kernels import _mask, adapted_linear
from veneer.lora.kinds import LINEAR

from .test_kinds import stir


def parts(n, in_features, out_features, r, *, bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    base = nn.Linear(in_features, out_features, bias=bias).to(dtype).requires_grad_(False)
    x = torch.randn(n, in_features, dtype=dtype, requires_grad=True)
    A = torch.randn(r, in_features, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    B = torch.randn(out_features, r, dtype=A.dtype, requires_grad=True)
    return base, x, A, B, torch.tensor(0.7, dtype=A.dtype)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("bias", [True, False])
def test_its_gradients_agree_with_finite_differences(dropout, bias):
    base, x, A, B, s = parts(4, 7, 5, 3, bias=bias)

    def output(x, A, B):
        torch.manual_seed(5)
        return adapted_linear(x, base, (A, B), s, dropout=dropout)

    assert torch.autograd.gradcheck(output, (x, A, B))


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    needs=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_it_does_what_plain_torch_does(sizes, bias, dtype, needs):
    base, x, A, B, s = parts(*sizes, bias=bias, dtype=dtype)
    inputs = [t.requires_grad_(need) for t, need in zip((x, A, B), needs, strict=True)]
    expected = LINEAR.add(base, x, base(x), (A, B), s)
    output = adapted_linear(x, base, (A, B), s)
    tolerance = {"rtol": 5e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(output, expected, **tolerance)
    wanted = [t for t in inputs if t.requires_grad]
    if not wanted:
        assert not output.requires_grad
        return
    weights = torch.randn(output.shape, dtype=dtype)
    ours = torch.autograd.grad((output * weights).sum(), wanted)
    theirs = torch.autograd.grad((expected * weights).sum(), wanted)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, **tolerance)


def test_the_mask_keeps_the_right_share_at_the_right_scale_and_is_drawn_from_its_seed():
    like = torch.empty(1000, 501)
    mask = _mask(like, 0.1, 3)
    assert set(mask.unique().tolist()) == {0.0, mask.max().item()}
    assert mask.max().item() == pytest.approx(1 / 0.9, rel=1e-4)
    share = (mask == 0).double().mean().item()
    assert abs(share - 0.1) < 5 * (0.1 * 0.9 / like.numel()) ** 0.5
    for quarter in mask.flatten()[:500_000].view(-1, 4).T:  # the four lanes of a random word
        assert abs((quarter == 0).double().mean().item() - 0.1) < 5 * (0.1 * 0.9 / 125_000) ** 0.5
    assert torch.equal(mask, _mask(like, 0.1, 3))
    assert not torch.equal(mask, _mask(like, 0.1, 4))


def kept_bytes(net, x):
    """Return the bytes that a forward pass keeps for the backward pass, weights and updates left out."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.dim():
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor is held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = [layer(x) for layer in net]
    assert outputs
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(("dropout", "most"), [(0.0, 1.1), (0.1, 1.3)])
def test_three_layers_on_one_x_keep_it_once(dropout, most):
    net = nn.ModuleList([nn.Linear(256, 256) for _ in "qkv"]).bfloat16()
    veneer.adapt(net, LoraConfig(r=8, targets=["0", "1", "2"], dropout=dropout))
    x = torch.randn(2048, 256, dtype=torch.bfloat16, requires_grad=True)
    assert x.nbytes <= kept_bytes(stir(net).train(), x) <= most * x.nbytes


def test_with_A_frozen_x_is_not_kept():
    net = nn.ModuleList([nn.Linear(256, 256)]).bfloat16()
    veneer.adapt(net, LoraConfig(r=8, targets=["0"], train_A=False))
    x = torch.randn(2048, 256, dtype=torch.bfloat16, requires_grad=True)
    assert kept_bytes(stir(net), x) < 0.1 * x.nbytes


def test_hooks_on_the_base_layer_are_called():
    net = nn.Sequential(nn.Linear(7, 5))
    veneer.adapt(net, LoraConfig(r=3, targets=["0"]))
    seen = []
    net[0].base.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    net(torch.randn(2, 7))
    assert seen == [(2, 5)]
