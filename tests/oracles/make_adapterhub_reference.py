"""Write adapterhub.safetensors: what AdapterHub's library makes of tiny models, for test_adapterhub_reference.py.

The library, `adapters`, needs transformers 4, so this is run by hand, in an environment of its own:

    python -m venv adapterhub
    adapterhub/bin/pip install torch==2.13.0
    adapterhub/bin/pip install adapters==1.3.0 transformers==4.57.6
    adapterhub/bin/python tests/oracles/make_adapterhub_reference.py

Weights are drawn in float32, everything else is computed in float64. The file holds

- `inputs/ids`, `inputs/mask` (rows, tokens), and `inputs/probe` (rows, tokens, d): the loss is the sum of the last
  hidden state times the probe;
- `FAMILY/base/NAME`: the model's weights;
- `FAMILY/VARIANT/weight/NAME`, `FAMILY/VARIANT/gradient/NAME`: the adapter's, by the library's own names;
- `FAMILY/VARIANT/output`: the last hidden state, (rows, tokens, d);
- as its metadata, each family's sizes in JSON.
"""

import copy
import json
from pathlib import Path

import adapters
import torch
from adapters import BnConfig, DoubleSeqBnConfig, SeqBnConfig
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

FILE = Path(__file__).with_name("adapterhub.safetensors")
HIDDEN, INNER, WORDS, POSITIONS, BLOCKS, HEADS = 6, 10, 13, 7, 2, 3
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "vocab_size": WORDS,
    "max_position_embeddings": POSITIONS,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
}
GPT2_SIZES = {
    "n_embd": HIDDEN,
    "n_inner": INNER,
    "vocab_size": WORDS,
    "n_positions": POSITIONS,
    "n_layer": BLOCKS,
    "n_head": HEADS,
}
FAMILIES = {"bert": SIZES, "gpt2": GPT2_SIZES, "llama": SIZES}
HALF = {"reduction_factor": 2}  # r = d / 2
VARIANTS = {
    "houlsby": DoubleSeqBnConfig(**HALF),
    "pfeiffer": SeqBnConfig(**HALF),
    "adapterdrop": SeqBnConfig(**HALF, leave_out=[0]),
    "lin": BnConfig(
        **HALF,
        mh_adapter=False,
        output_adapter=True,
        non_linearity="relu",
        original_ln_before=True,
        original_ln_after=False,
        residual_before_ln=False,
        ln_before=True,
    ),
}
"""The library knows Lin et al.'s by no name: on the block's output, with a norm of its own and none after it."""


def shake(parameters):
    """Move what starts at zero or one away from it."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * 0.3)


def reference(model, config, ids, mask, probe):
    """Return the adapter's weights in float32, its gradients and the output, by their names in the file."""
    adapters.init(model)
    model.add_adapter("x", config=config)
    model.train_adapter("x")
    trained = {name: parameter for name, parameter in model.named_parameters() if ".adapters." in name}
    shake(trained.values())
    weights = {f"weight/{name}": parameter.detach().clone() for name, parameter in trained.items()}
    output = model.double().eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    (output * probe).sum().backward()
    gradients = {f"gradient/{name}": parameter.grad for name, parameter in trained.items()}
    return {"output": output.detach(), **weights, **gradients}


def main():
    torch.manual_seed(0)
    ids, mask = torch.randint(WORDS, (2, 5)), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    probe = torch.randn(2, 5, HIDDEN, dtype=torch.float64)
    tensors = {"inputs/ids": ids, "inputs/mask": mask, "inputs/probe": probe}
    for family, sizes in FAMILIES.items():
        config = AutoConfig.for_model(family, **sizes)
        base = AutoModel.from_config(config, attn_implementation="eager")
        shake(base.parameters())
        tensors |= {f"{family}/base/{name}": weight.detach().clone() for name, weight in base.state_dict().items()}
        for variant, bottleneck in VARIANTS.items():
            found = reference(copy.deepcopy(base), bottleneck, ids, mask, probe)
            tensors |= {f"{family}/{variant}/{name}": tensor for name, tensor in found.items()}
    save_file(tensors, FILE, metadata={"families": json.dumps(FAMILIES)})


if __name__ == "__main__":
    main()
