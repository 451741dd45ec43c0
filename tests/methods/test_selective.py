"""What BitFit and the last blocks train, by name."""

import pytest
from torch import nn

from tests.methods.families import BASELINES, HEADS, attached, fits, tiny, tiny_settings
from veneer.errors import ConfigError, UnknownNameError
from veneer.lora.config import LoraConfig
from veneer.methods.selective import LastBlocksConfig
from veneer.methods.settings import MethodSettings
from veneer.methods.table import METHODS, low_rank, resized


def trained_outside_the_head(model, family):
    heads = tuple(f"{name}." for name in HEADS[family])
    return {name for name, p in model.named_parameters() if p.requires_grad and not name.startswith(heads)}


@pytest.mark.parametrize("family", [family for family in HEADS if fits("bitfit", family)])
def test_bitfit_trains_every_bias_and_nothing_else(family):
    model = tiny(family)
    heads = tuple(f"{name}." for name in HEADS[family])
    biases = {name for name, _ in model.named_parameters() if name.endswith(".bias") and not name.startswith(heads)}
    attached(model, "bitfit", family)
    assert trained_outside_the_head(model, family) == biases


def test_bitfit_refuses_a_model_without_biases():
    with pytest.raises(ConfigError, match="LlamaForSequenceClassification has none"):
        attached(tiny("llama"), "bitfit", "llama")
    model = tiny("llama")
    model.score = nn.Linear(12, 5)  # a bias in the head, which is trained anyway
    with pytest.raises(ConfigError, match="has none"):
        attached(model, "bitfit", "llama")


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize("num_blocks", [1, 2, 3])
def test_the_last_blocks_are_trained_whole(family, num_blocks):
    model = tiny(family)
    counts = attached(model, "top2", family, num_blocks=num_blocks)
    last = tuple(f".{number}." for number in range(3 - num_blocks, 3))
    blocks = {name for name, _ in model.named_parameters() if any(number in name for number in last)}
    assert trained_outside_the_head(model, family) == blocks
    assert counts.other == sum(model.get_parameter(name).numel() for name in blocks)


def test_there_must_be_as_many_blocks():
    with pytest.raises(ConfigError, match="num_blocks is 4, but the model has only 3 blocks"):
        attached(tiny("gpt2"), "top2", "gpt2", num_blocks=4)
    with pytest.raises(ConfigError, match="num_blocks is True"):
        LastBlocksConfig(num_blocks=True)


def test_sizes_are_changed_by_name_and_unknown_ones_listed():
    assert resized(METHODS["houlsby"], {"r": 3}).part.r == 3
    assert resized(METHODS["bitfit"], {}) is METHODS["bitfit"]
    with pytest.raises(UnknownNameError, match=r"size of the method houlsby 'rank'.*Known: r, dropped_blocks"):
        resized(METHODS["houlsby"], {"rank": 3})
    with pytest.raises(UnknownNameError, match="Known: prefix_tokens, infix_tokens"):
        resized(METHODS["prefix-layer"], {"every_block": 0})
    with pytest.raises(UnknownNameError, match="Known: none"):
        resized(METHODS["lora-qv"], {"r": 8})
    with pytest.raises(ConfigError, match="r is 0"):
        resized(METHODS["houlsby"], {"r": 0})


@pytest.mark.parametrize("name", BASELINES)
def test_a_family_that_is_not_known_is_refused_only_where_its_parts_matter(name):
    model, call = tiny("bert"), {"model_type": "unheard-of", "head": ("classifier",)}
    if name == "bitfit":
        assert tiny_settings(name).attach(model, **call).other > 0
        return
    with pytest.raises(ConfigError, match=r"'unheard-of' .*known: .*bert"):
        tiny_settings(name).attach(model, **call)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize(
    ("weights", "matrices"), [(("query",), 1), (("query", "value"), 2), (("query", "key", "value", "output"), 4)]
)
def test_low_rank_updates_go_to_the_chosen_projections_of_every_family(family, weights, matrices):
    settings = MethodSettings(method="lora-qv", weights=weights, r=3)
    counts = settings.attach(tiny(family), model_type=family, head=HEADS[family])
    assert counts.lora == 3 * matrices * 2 * 12 * 3


def test_an_unknown_projection_is_named():
    with pytest.raises(UnknownNameError, match=r"projection 'q'.*query, key, value, output"):
        low_rank(LoraConfig(), "bert", ("q",))
