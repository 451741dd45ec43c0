"""An adapter for vLLM: a PEFT folder of what every release of vLLM reads alike.

vLLM up to 0.30 multiplies every layer by the one alpha / r of the settings and passes over `rank_pattern` and
`alpha_pattern`: an adapter with patterns is served wrongly, without a word. So each layer's scaling is folded into its
B, lower ranks are filled up with zeros, and alpha = r. The folder stays one that PEFT and Veneer read.

vLLM reads linear layers and embeddings, and no head: a classifier's is left out, and said so. DoRA, convolutions,
parameters, trained biases, trained token rows and other modules trained whole are refused.

Source: `vllm/lora/peft_helper.py` and `vllm/lora/lora_model.py`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from veneer.errors import AdapterFormatError, gathered
from veneer.formats.peft_layers import padded
from veneer.formats.peft_settings import AUTOMATIC_HEADS
from veneer.formats.peft_writing import write_peft
from veneer.lora.state import AdapterState, LowRank

DEFAULT_MAX_RANK = 16
"""vLLM's `--max-lora-rank` where nothing is given."""


def write_vllm(state: AdapterState, folder: Path) -> tuple[str, ...]:
    """Write an adapter for vLLM.

    Args:
        state: the adapter.
        folder: where to; made if absent, its two adapter files replaced if present.

    Returns:
        What was folded, filled up and left out, and what vLLM has to be told, a sentence each.

    Raises:
        AdapterFormatError: the adapter holds what vLLM cannot serve; all is named. Nothing is written.
        OutputExistsError: a file is where the folder should be.
        OSError: the folder cannot be written.
    """
    if problems := _unservable(state):
        raise AdapterFormatError(gathered("vLLM cannot serve this adapter:", problems))
    rank = max(update.rank for update in state.updates.values())
    factors = {name: state.factor(name) for name in state.updates}
    updates = {name: padded(_folded(update, factors[name]), rank) for name, update in state.updates.items()}
    config = replace(
        state.config, r=rank, alpha=rank, scaling="lora", bias="none", rank_pattern={}, alpha_pattern={}, fused={}
    )
    plain = replace(state, config=config, updates=updates, trained={}, trained_modules=(), base_copies={})
    write_peft(plain, folder)
    return tuple(_notes(state, factors, rank))


def _unservable(state: AdapterState) -> list[str]:
    found = []
    for name, update in sorted(state.updates.items()):
        if update.kind not in ("linear", "embedding"):
            found.append(f"{name} is a {update.kind}; vLLM adapts linear layers and embeddings")
        if update.magnitude is not None:
            found.append(f"{name} has a DoRA magnitude; merge the adapter into its base, or extract a plain one")
    found += [f"{name}: trained rows of an embedding" for name in sorted(state.token_rows)]
    found += [
        f"{name}: a trained parameter that is not of a head"
        for name in sorted(state.trained)
        if not _is_head(name, state.trained_modules)
    ]
    return found or ([] if state.updates else ["it has no layers"])


def _is_head(name: str, modules: tuple[str, ...]) -> bool:
    """Return whether a tensor is of a classification head that was trained whole."""
    return any(name.startswith(f"{module}.") and module.rpartition(".")[2] in AUTOMATIC_HEADS for module in modules)


def _folded(update: LowRank, factor: float) -> LowRank:
    """Return the update that needs no scaling, in the dtype it has: B is multiplied in float64 and rounded once."""
    return replace(update, B=(update.B.to(torch.float64) * factor).to(update.B.dtype))


def _notes(state: AdapterState, factors: Mapping[str, float], rank: int) -> list[str]:
    scalings = sorted({factor for factor in factors.values() if factor != 1})
    smaller = [f"{name} ({update.rank})" for name, update in sorted(state.updates.items()) if update.rank < rank]
    notes = []
    if scalings:
        listed = ", ".join(f"{factor:.4g}" for factor in scalings)
        notes.append(f"folded the scaling ({listed}) into B of {sum(f != 1 for f in factors.values())} layers")
    if smaller:
        notes.append(f"filled up to rank {rank} with zeros: {', '.join(smaller)}")
    notes += [f"dropped {name} (vLLM reads no head)" for name in sorted(state.trained)]
    notes += [f"dropped {name} (a copy of the base's)" for name in sorted(state.base_copies)]
    if rank > DEFAULT_MAX_RANK:
        notes.append(f"start vLLM with --max-lora-rank of at least {rank}")
    return notes
