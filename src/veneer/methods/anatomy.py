"""Where each model family has its parts, said once.

The names are those of the modules at run time in transformers 5. A family is what config.json calls `model_type`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from veneer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The parts of a family that the methods act on."""

    blocks: str
    """End of the full name of the list of blocks."""
    query: str
    """End of the full name of the query projection; the same as `key` and `value` where one layer makes all three."""
    key: str
    value: str
    attention_output: str
    """Name within a block of attention's output projection."""
    mlp_output: str
    """Name within a block of the feed-forward's second projection."""
    last_norm: str | None
    """Name within a block of the norm that ends it; None where norms come first and a block ends in a plain sum."""
    words: str
    """End of the full name of the word embedding."""
    pools_first: bool
    """Whether classifiers read the first token; they read the last real one otherwise."""

    @property
    def is_fused(self) -> bool:
        """Whether one layer makes query, key and value."""
        return self.query == self.key == self.value


_BERT = Anatomy(
    blocks="encoder.layer",
    query="query",
    key="key",
    value="value",
    attention_output="attention.output.dense",
    mlp_output="output.dense",
    last_norm="output.LayerNorm",
    words="embeddings.word_embeddings",
    pools_first=True,
)
_LLAMA = Anatomy(
    blocks="layers",
    query="q_proj",
    key="k_proj",
    value="v_proj",
    attention_output="self_attn.o_proj",
    mlp_output="mlp.down_proj",
    last_norm=None,
    words="embed_tokens",
    pools_first=False,
)
ANATOMIES: Mapping[str, Anatomy] = {
    "bert": _BERT,
    "camembert": _BERT,
    "deberta-v2": replace(_BERT, query="query_proj", key="key_proj", value="value_proj"),
    "electra": _BERT,
    "gpt2": Anatomy(
        blocks="h",
        query="attn.c_attn",
        key="attn.c_attn",
        value="attn.c_attn",
        attention_output="attn.c_proj",
        mlp_output="mlp.c_proj",
        last_norm=None,
        words="wte",
        pools_first=False,
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mpnet": replace(_BERT, query="attn.q", key="attn.k", value="attn.v", attention_output="attention.attn.o"),
    "qwen2": _LLAMA,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}
"""Model family to its parts."""

POSITION_TABLES = frozenset({"position_embeddings", "wpe"})
"""What the embeddings are called that give each position a row of its own, in any family."""

QUERY_VALUE: Mapping[str, tuple[str, str]] = {
    "albert": ("query", "value"),
    **{family: (anatomy.query, anatomy.value) for family, anatomy in ANATOMIES.items() if not anatomy.is_fused},
    "distilbert": ("q_lin", "v_lin"),
}
"""Model family to the names of its query and value projections."""


def anatomy_of(model_type: str) -> Anatomy:
    """Return the parts of a model family.

    Raises:
        ConfigError: the family is not known.
    """
    if model_type not in ANATOMIES:
        raise ConfigError(
            f"the parts of model family {model_type!r} are not known (known: {', '.join(ANATOMIES)}); use head, "
            "lora-all, bitfit or full, which need not know them"
        )
    return ANATOMIES[model_type]


def has_fused(model_type: str) -> bool:
    """Return whether the family's query, key and value are known to be one layer."""
    return model_type in ANATOMIES and ANATOMIES[model_type].is_fused


def query_value(model_type: str) -> tuple[str, str]:
    """Return the names of the query and value projections of a model family.

    Raises:
        ConfigError: the family is not known, or its projections are fused into one layer.
    """
    if has_fused(model_type):
        raise ConfigError(
            f"query and value are parts of one layer in model family {model_type!r}; choose them by weights, "
            "query and value"
        )
    if model_type not in QUERY_VALUE:
        raise ConfigError(
            f"no query and value projections are known for model family {model_type!r} (known: "
            f"{', '.join(QUERY_VALUE)}); use the method lora-all, or lora-qv with --target NAME for each projection"
        )
    return QUERY_VALUE[model_type]


def part_name(model: nn.Module, end: str) -> str:
    """Return the full name of the module that is called `end`, or whose name ends so after a `.`.

    Raises:
        ConfigError: there is none, or more than one.
    """
    found: list[str] = [name for name, _ in model.named_modules() if name == end or name.endswith(f".{end}")]
    if len(found) != 1:
        what = f"has {', '.join(found)}" if found else "has none"
        raise ConfigError(f"{type(model).__name__} must have one module called {end!r}, but {what}")
    return found[0]


def block_names(model: nn.Module, anatomy: Anatomy) -> list[str]:
    """Return the full names of the blocks, the first of them first.

    Raises:
        ConfigError: see `part_name`.
    """
    blocks = part_name(model, anatomy.blocks)
    return [f"{blocks}.{name}" for name, _ in model.get_submodule(blocks).named_children()]


def hidden_size(model: nn.Module) -> int:
    """Return d, the width of a transformers model's blocks."""
    config: Any = model.config
    return int(config.hidden_size)


def num_positions(model: nn.Module) -> int | None:
    """Return how many tokens the model's table of positions is for, None where it has none, as with rotations.

    A table with a padding row counts from behind it, as RoBERTa's does.
    """
    tables = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in POSITION_TABLES and isinstance(module, nn.Embedding)
    ]
    unused = [0 if table.padding_idx is None else table.padding_idx + 1 for table in tables]
    return min((table.num_embeddings - rows for table, rows in zip(tables, unused, strict=True)), default=None)
