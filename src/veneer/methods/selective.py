"""Methods that train a part of the pretrained weights where they are and add nothing.

- BitFit (Ben Zaken et al., arXiv 2106.10199): every bias, those of the norms included, besides the head.
- FT^Top2 (Li and Liang, arXiv 2101.00190, section 5.3; the LoRA paper's Table 3): the last two blocks, whole.

Head only and full fine-tuning need no settings: see `table.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from veneer.errors import ConfigError
from veneer.lora.config import LoraConfig
from veneer.methods.anatomy import anatomy_of, block_names
from veneer.methods.sizes import require_counts


@dataclass(frozen=True, kw_only=True)
class BiasConfig:
    """Trains every bias; there is nothing to set."""


@dataclass(frozen=True, kw_only=True)
class LastBlocksConfig:
    """Trains the last blocks.

    Raises:
        ConfigError: the number is outside what is allowed.
    """

    num_blocks: int = 2
    """At least 1."""

    def __post_init__(self) -> None:
        require_counts(self, {"num_blocks": 1})


def with_biases(model: nn.Module, head: Sequence[str], config: LoraConfig) -> LoraConfig:
    """Return `config` with every bias trained.

    Raises:
        ConfigError: the model has no bias outside its head.
    """
    outside = [name for name, _ in model.named_parameters() if not name.startswith(tuple(f"{part}." for part in head))]
    if not any(name.rpartition(".")[2] == "bias" for name in outside):
        raise ConfigError(f"bitfit trains biases, but {type(model).__name__} has none; use another method")
    return replace(config, bias="all")


def last_blocks(model: nn.Module, model_type: str, config: LastBlocksConfig) -> list[str]:
    """Return the full names of the blocks to train.

    Raises:
        ConfigError: the family is not known, or the model has fewer blocks.
    """
    blocks = block_names(model, anatomy_of(model_type))
    if config.num_blocks > len(blocks):
        raise ConfigError(f"num_blocks is {config.num_blocks}, but the model has only {len(blocks)} blocks")
    return blocks[-config.num_blocks :]
