"""Bottlenecks against blocks written out by hand, and their sizes against the paper's formula."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.methods.families import BLOCKS, HEADS, HIDDEN, attached, ids, shaken, tiny
from veneer.errors import ConfigError, UnknownNameError
from veneer.methods.bottleneck import Bottleneck, BottleneckConfig
from veneer.methods.trained import trained_state

R = 5
EACH = 2 * HIDDEN * R + R + HIDDEN


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("houlsby", 2 * BLOCKS * EACH),
        ("pfeiffer", BLOCKS * EACH),
        ("lin", BLOCKS * (EACH + 2 * HIDDEN)),
        ("adapterdrop", (BLOCKS - 1) * EACH),
    ],
)
def test_the_count_is_the_papers_formula(name, expected, family):
    assert attached(tiny(family), name, family, r=R).other == expected


@pytest.mark.parametrize(("variant", "places"), [("houlsby", 2), ("lin", 1)])
def test_drop_leaves_out_the_first_blocks(variant, places):
    model = tiny("bert")
    attached(model, variant, "bert", dropped_blocks=2)
    inside = {name.split(".bottleneck.")[0] for name in trained_state(model) if ".bottleneck." in name}
    assert len(inside) == places
    assert all(name.startswith("bert.encoder.layer.2") for name in inside)


def linear(x, weights, name):
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(x, weights, name, eps):
    return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def extra(x, weights, place, activation):
    inside = f"{place}.bottleneck"
    x = norm(x, weights, f"{inside}.norm", 1e-5) if f"{inside}.norm.weight" in weights else x
    return linear(activation(linear(x, weights, f"{inside}.down")), weights, f"{inside}.up")


def bert_block(x, attended, weights, block, variant):
    """One post-norm block from what attention's heads hand on; `weights` by plain name."""
    sides = [f"{block}.attention.output", f"{block}.output"]
    hidden, residual = attended, x
    for side in sides:
        u = linear(hidden, weights, f"{side}.dense")
        if variant == "houlsby":
            u = u + extra(u, weights, f"{side}.dense", functional.silu)
        u = u + residual
        if variant == "pfeiffer" and side == sides[1]:
            normed = norm(u, weights, f"{side}.LayerNorm", 1e-12)
            u = u + extra(normed, weights, f"{side}.LayerNorm", functional.relu)
        residual = norm(u, weights, f"{side}.LayerNorm", 1e-12)
        hidden = functional.gelu(linear(residual, weights, f"{block}.intermediate.dense"))
    return residual + extra(residual, weights, block, functional.relu) if variant == "lin" else residual


@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer", "lin"])
def test_a_bert_block_is_the_one_written_out_by_hand(variant):
    model, plain = tiny("bert", dtype=torch.float64), tiny("bert", dtype=torch.float64)
    attached(model, variant, "bert")
    shaken(model)
    weights = dict(plain.named_parameters()) | trained_state(model)
    x = torch.randn(2, 7, HIDDEN, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    attended = plain.bert.encoder.layer[1].attention.self(x)[0]
    expected = bert_block(x, attended, weights, "bert.encoder.layer.1", variant)
    torch.testing.assert_close(model.bert.encoder.layer[1](x), expected)


@pytest.mark.parametrize(("family", "block"), [("gpt2", "transformer.h"), ("llama", "model.layers")])
@pytest.mark.parametrize("variant", ["pfeiffer", "lin"])
def test_after_a_block_that_ends_in_a_sum_the_bottleneck_stands_on_the_sum(variant, family, block):
    model, plain = tiny(family, dtype=torch.float64), tiny(family, dtype=torch.float64)
    attached(model, variant, family)
    shaken(model)
    weights = trained_state(model)
    outputs = {}

    def keep(name):
        return lambda module, args, output: outputs.update({name: output})

    plain.get_submodule(f"{block}.0").register_forward_hook(keep("plain"))
    model.get_submodule(f"{block}.0").register_forward_hook(keep("adapted"))
    plain(ids())
    model(ids())
    expected = outputs["plain"] + extra(outputs["plain"], weights, f"{block}.0", functional.relu)
    torch.testing.assert_close(outputs["adapted"], expected)


def test_the_start_is_the_seeds_and_leaves_the_global_generator_alone():
    starts = []
    for seed in (0, 0, 1):
        model = tiny("bert")
        before = torch.get_rng_state()
        attached(model, "houlsby", "bert", seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        starts.append(trained_state(model)["bert.encoder.layer.0.output.dense.bottleneck.down.weight"])
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_the_start_of_down_keeps_the_size_of_what_it_reads_and_up_is_zero():
    made = Bottleneck(
        400, 60, activation=nn.ReLU(), has_norm=False, like=torch.empty(0), generator=torch.Generator().manual_seed(0)
    )
    x = torch.randn(50, 400, generator=torch.Generator().manual_seed(1))
    assert made.down(x).std().item() == pytest.approx(x.std().item(), rel=0.05)
    assert not made.up.weight.any()
    assert not any(layer.bias.any() for layer in (made.down, made.up))


def test_bad_settings_are_all_named():
    with pytest.raises(ConfigError, match=r"r is 0(.|\n)*dropped_blocks is 1\.5"):
        BottleneckConfig(variant="lin", r=0, dropped_blocks=1.5)
    with pytest.raises(UnknownNameError, match=r"'houlsbi'.*'houlsby'"):
        BottleneckConfig(variant="houlsbi", r=1)


def test_at_least_one_block_must_have_one_and_the_model_is_as_it_was():
    model = tiny("bert")
    with pytest.raises(ConfigError, match="dropped_blocks is 3, but the model has 3 blocks: 2 is the most"):
        attached(model, "lin", "bert", dropped_blocks=3)
    assert all(parameter.requires_grad for parameter in model.parameters())
    attached(model, "lin", "bert")
