"""Bottlenecks against AdapterHub's library, whose outputs and gradients `make_adapterhub_reference.py` wrote to a file.

No dropout acts on either side, so where the model's own stands is not compared.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.methods.families import HEADS
from veneer.methods.settings import MethodSettings

FILE = Path(__file__).with_name("adapterhub.safetensors")
SIZES = {"houlsby": {"r": 3}, "pfeiffer": {"r": 3}, "adapterdrop": {"r": 3, "dropped_blocks": 1}, "lin": {"r": 3}}
PLACES = {
    ("bert", "houlsby"): {"attention.output": "attention.output.dense", "output": "output.dense"},
    ("bert", "pfeiffer"): {"output": "output.LayerNorm"},
    ("bert", "adapterdrop"): {"output": "output.LayerNorm"},
    ("bert", "lin"): {"output": ""},
    ("gpt2", "houlsby"): {"attention_adapters": "attn.c_proj", "output_adapters": "mlp.c_proj"},
    ("gpt2", "pfeiffer"): {"output_adapters": ""},
    ("gpt2", "adapterdrop"): {"output_adapters": ""},
    ("gpt2", "lin"): {"output_adapters": ""},
    ("llama", "houlsby"): {"attention_adapters": "self_attn.o_proj", "output_adapters": "mlp.down_proj"},
    ("llama", "pfeiffer"): {"output_adapters": ""},
    ("llama", "adapterdrop"): {"output_adapters": ""},
    ("llama", "lin"): {"output_adapters": ""},
}
"""Family and method to the library's names within a block, each with that of the module which Veneer wraps."""
PARTS = {"adapter_norm_before": "norm", "adapter_down.0": "down", "adapter_down.1": "down", "adapter_up": "up"}
"""The library's names within an adapter, and Veneer's; with a norm before it, the projection is the second in a row."""


def references(*prefix):
    """The file's tensors whose names begin so, by the rest of the name."""
    start = "/".join(prefix) + "/"
    return {name.removeprefix(start): tensor for name, tensor in load_file(FILE).items() if name.startswith(start)}


def renamed(tensors, places):
    """The library's tensors by Veneer's names."""
    found = {}
    for name, tensor in tensors.items():
        block, place, part, leaf = re.fullmatch(r"(.+\.\d)\.(.+)\.adapters\.x\.(.+)\.(\w+)", name).groups()
        found[".".join(filter(None, (block, places[place], "bottleneck", PARTS[part], leaf)))] = tensor
    return found


@pytest.mark.parametrize(("family", "name"), PLACES)
def test_outputs_and_gradients_are_adapterhubs(family, name):
    with safe_open(FILE, "pt") as file:
        sizes = json.loads(file.metadata()["families"])[family]
    config = AutoConfig.for_model(family, **sizes)
    classifier = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").double().eval()
    model, method = classifier.base_model, MethodSettings(method=name, sizes=tuple(SIZES[name].items()))
    model.load_state_dict(references(family, "base"))
    method.attach(classifier, model_type=family, head=HEADS[family])
    weights, gradients = (
        renamed(references(family, name, part), PLACES[family, name]) for part in ("weight", "gradient")
    )
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained.keys() == weights.keys() == gradients.keys()
    with torch.no_grad():
        for key, parameter in trained.items():
            parameter.copy_(weights[key])
    inputs = references("inputs")
    output = model(input_ids=inputs["ids"], attention_mask=inputs["mask"]).last_hidden_state
    torch.testing.assert_close(output, references(family, name)["output"])
    (output * inputs["probe"]).sum().backward()
    for key, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, gradients[key])
