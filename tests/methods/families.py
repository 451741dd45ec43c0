"""A tiny random classifier of each model family, its sizes odd and all different, and methods that fit it."""

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from veneer.methods.settings import MethodSettings
from veneer.methods.table import METHODS

BLOCKS, HIDDEN, INNER, WORDS, POSITIONS, CLASSES, RANK = 3, 12, 20, 31, 23, 5, 3
PADDING = 1
HEADS = {
    "bert": ("classifier",),
    "roberta": ("classifier",),
    "mpnet": ("classifier",),
    "deberta-v2": ("pooler", "classifier"),
    "gpt2": ("score",),
    "llama": ("score",),
}
"""Family to its head: what `from_pretrained` would initialise anew."""
SIZES = {
    "houlsby": {"r": 5},
    "pfeiffer": {"r": 5},
    "lin": {"r": 5},
    "adapterdrop": {"r": 5, "dropped_blocks": 1},
    "prefix-embed": {"prefix_tokens": 4, "infix_tokens": 3},
    "prefix-layer": {"prefix_tokens": 2, "infix_tokens": 1},
    "lora-prefix-embed": {"prefix_tokens": 2, "infix_tokens": 3},
    "lora-prefix-layer": {"prefix_tokens": 3, "infix_tokens": 0},
}
UNCHANGED_AT_THE_START = [name for name in METHODS if "prefix" not in name]
PREFIXES = [name for name in METHODS if "prefix" in name]
BASELINES = [name for name, method in METHODS.items() if method.part]
WITHOUT_POSITIONS = {"llama", "mistral", "qwen2", "deberta-v2"}
"""Families without a table of positions, the last of them in the shape of version 3: disentangled attention."""


def sizes_of(family):
    if family == "gpt2":
        return {"n_embd": HIDDEN, "n_layer": BLOCKS, "n_inner": INNER, "n_head": 3, "n_positions": POSITIONS}
    unused = PADDING + 1 if family in {"roberta", "mpnet", "camembert", "xlm-roberta"} else 0
    sizes = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": BLOCKS,
        "intermediate_size": INNER,
        "num_attention_heads": 3,
        "max_position_embeddings": POSITIONS + unused,
    }
    own = {
        "electra": {"embedding_size": HIDDEN},
        "mistral": {"num_key_value_heads": 3},
        "qwen2": {"num_key_value_heads": 3},
        "deberta-v2": {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 4,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    }
    return sizes | own.get(family, {})


def tiny(family, *, seed=0, dtype=torch.float32):
    """A classifier in eval mode; biases and norms are random too, so that none of them can be forgotten."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family, **sizes_of(family), vocab_size=WORDS, pad_token_id=PADDING, num_labels=CLASSES
    )
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.to(dtype).eval()


def ids(num_rows=4, num_tokens=7, *, seed=1):
    """Ids without padding."""
    return torch.randint(2, WORDS, (num_rows, num_tokens), generator=torch.Generator().manual_seed(seed))


def tiny_settings(name, *, seed=0, **sizes):
    return MethodSettings(method=name, r=RANK, seed=seed, sizes=tuple((SIZES.get(name, {}) | sizes).items()))


def attached(model, name, family, *, seed=0, **sizes):
    return tiny_settings(name, seed=seed, **sizes).attach(model, model_type=family, head=HEADS[family])


def shaken(model, *, seed=2):
    """The model with everything it trains moved away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.2)
    return model


def fits(name, family):
    """Whether the family can have the method: Llama has no biases."""
    return not (name == "bitfit" and family == "llama")


CASES = [(name, family) for name in METHODS for family in HEADS if fits(name, family)]
