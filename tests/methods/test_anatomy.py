"""Every family's parts are where the table says, in transformers' own model."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.methods.families import BLOCKS, HIDDEN, INNER, POSITIONS, WITHOUT_POSITIONS, WORDS, tiny
from veneer.errors import ConfigError
from veneer.methods.anatomy import ANATOMIES, anatomy_of, block_names, num_positions, part_name


@pytest.mark.parametrize("family", ANATOMIES)
def test_parts_are_where_the_table_says(family):
    model, anatomy = tiny(family), anatomy_of(family)
    words = model.get_submodule(part_name(model, anatomy.words))
    assert words is model.get_input_embeddings()
    assert words.weight.shape == (WORDS, HIDDEN)
    blocks = block_names(model, anatomy)
    assert len(blocks) == BLOCKS
    for block in map(model.get_submodule, blocks):
        for name, inputs in ((anatomy.attention_output, HIDDEN), (anatomy.mlp_output, INNER)):
            layer = block.get_submodule(name)
            assert isinstance(layer, nn.Linear | Conv1D)
            shape = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.T.shape
            assert shape == (HIDDEN, inputs)
        for projection in {anatomy.query, anatomy.key, anatomy.value}:
            assert sum(f".{name}".endswith(f".{projection}") for name, _ in block.named_modules()) == 1
        norms = [name for name, module in block.named_modules() if "Norm" in type(module).__name__]
        assert anatomy.last_norm is None or anatomy.last_norm == norms[-1]
    if family != "deberta-v2":  # which has a table of positions by a setting
        assert num_positions(model) == (None if family in WITHOUT_POSITIONS else POSITIONS)


@pytest.mark.parametrize("family", ANATOMIES)
def test_the_last_norm_ends_the_block_where_there_is_one(family):
    model, anatomy = tiny(family), anatomy_of(family)
    seen = {}
    block = model.get_submodule(block_names(model, anatomy)[0])
    block.register_forward_hook(lambda *call: seen.update(block=call[-1]))
    if anatomy.last_norm:
        block.get_submodule(anatomy.last_norm).register_forward_hook(lambda *call: seen.update(norm=call[-1]))
    model(torch.arange(2, 8)[None])
    output = seen["block"][0] if isinstance(seen["block"], tuple) else seen["block"]
    assert output.shape == (1, 6, HIDDEN)
    assert anatomy.last_norm is None or torch.equal(output, seen["norm"])


def test_an_unknown_family_lists_the_known_and_what_can_be_used():
    with pytest.raises(ConfigError, match=r"'t5' are not known \(known: bert, .*xlm-roberta\); use head, lora-all"):
        anatomy_of("t5")


def test_a_part_must_be_there_once():
    model = tiny("bert")
    with pytest.raises(ConfigError, match="one module called 'h', but has none"):
        block_names(model, ANATOMIES["gpt2"])
    with pytest.raises(ConfigError, match=r"one module called 'dense', but has bert\.encoder"):
        part_name(model, "dense")
