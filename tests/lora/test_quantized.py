"""Quantised and foreign linear layers: called as they are, the update beside them, merged on request only."""

import pytest
import torch
from torch import nn

import veneer
from veneer import LoraConfig
from veneer.errors import AdapterStateError, TargetError
from veneer.lora.layers import adapted_slots

from .test_kinds import stir


class Scaled(nn.Linear):
    """Computes something else than its weight says."""

    def forward(self, x):
        return 0.5 * super().forward(x)


class Rounded(nn.Module):
    """Somebody's own quantised layer: integers and a scale, no nn.Linear."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.abs().max().item() / 127
        self.register_buffer("levels", (linear.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.levels.to(x.dtype) * self.scale, self.bias)


def by_torchao(linear):
    torchao = pytest.importorskip("torchao.quantization")
    holder = nn.Sequential(linear)
    torchao.quantize_(holder, torchao.Int8WeightOnlyConfig(version=2))
    return holder[0]


LAYERS = {"scaled": lambda _: Scaled(64, 32), "rounded": Rounded, "torchao": by_torchao}


def adapted(name, **settings):
    torch.manual_seed(0)
    net = nn.Sequential(LAYERS[name](nn.Linear(64, 32)))
    x = torch.randn(4, 64)
    before = net(x).detach()
    veneer.adapt(net, LoraConfig(**{"r": 3, "targets": ["0"], **settings}))
    return net, x, before


@pytest.mark.parametrize("name", LAYERS)
def test_the_update_stands_beside_the_quantised_layer_and_is_trained_in_float32(name):
    net, x, before = adapted(name)
    assert torch.equal(net(x), before)
    stir(net)
    update = net[0].update
    torch.testing.assert_close(net(x), before + 16 / 3 * x @ update.A.T @ update.B.T, rtol=1e-4, atol=1e-4)
    net(x).square().sum().backward()
    assert update.A.grad.dtype == update.B.grad.dtype == torch.float32
    adapter = veneer.state(net)
    output = net(x)
    veneer.remove(net)
    assert torch.equal(net(x), before)
    veneer.load_state(net, adapter)
    assert torch.equal(net(x), output)


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_merged_on_request_only_and_the_error_is_told(name):
    net, x, _ = adapted(name)
    output = stir(net)(x)
    with pytest.raises(AdapterStateError, match=r"(?s)pass quantized=.*without a plain float weight"):
        veneer.merge(net)
    with pytest.raises(AdapterStateError, match="for a block"), veneer.merged(net):
        pass
    assert torch.equal(net(x), output)
    exact = adapted_slots(net)["0"].update.matrix(net[0].kind, net[0].base).detach()
    requantized = name == "rounded"
    errors = veneer.merge(net, quantized=Rounded if requantized else lambda linear: linear)
    assert type(net[0]) is (Rounded if requantized else nn.Linear)
    if requantized:
        stored = net[0].levels * net[0].scale
        torch.testing.assert_close(errors["0"], float((stored - exact).norm() / exact.norm()), rtol=1e-3, atol=0)
    else:
        assert errors["0"] < 1e-6
        torch.testing.assert_close(net(x), output, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("settings", "reason"), [({"variant": "dora"}, "DoRA"), ({"init": "pissa"}, "to start from")])
def test_what_needs_a_float_weight_is_refused(settings, reason):
    with pytest.raises(TargetError, match=reason):
        adapted("rounded", **settings)


def test_a_parametrised_linear_layer_is_called_and_not_read():
    torch.manual_seed(0)
    net = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(7, 5)))
    x = torch.randn(2, 7)
    before = net(x)
    veneer.adapt(net, LoraConfig(r=3, targets=["0"]))
    assert torch.equal(net(x), before)
    output = stir(net)(x)
    veneer.merge(net, quantized=lambda linear: linear)
    torch.testing.assert_close(net(x), output, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_where_it_runs(bits):
    library = pytest.importorskip("bitsandbytes").nn
    torch.manual_seed(0)
    layer = (
        library.Linear4bit(64, 32, compute_dtype=torch.float32, quant_type="nf4")
        if bits == 4
        else library.Linear8bitLt(64, 32, has_fp16_weights=False)
    )
    net = nn.Sequential(layer).to("cpu")
    x = torch.randn(4, 64)
    before = net(x).detach()
    veneer.adapt(net, LoraConfig(r=3, targets=["0"]))
    torch.testing.assert_close(net(x), before)
    output = stir(net)(x)
    assert not torch.allclose(output, before, atol=1e-2)
    veneer.merge(net, quantized=lambda linear: linear)
    torch.testing.assert_close(net(x), output, rtol=1e-3, atol=1e-3)
