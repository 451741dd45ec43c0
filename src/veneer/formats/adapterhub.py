"""Folders of the `adapters` library (AdapterHub), read: its LoRA, not its other methods.

    <folder>/adapter_config.json    {"config": {"architecture": "lora", "r", "alpha", ...}, "model_name", "name", ...}
    <folder>/adapter.safetensors    or pytorch_adapter.bin, an archive of torch.save:
                                    <module>.loras.<adapter>.lora_A (r, in), .lora_B (out, r)

The tensors are laid out as loralib's, also those of a fused projection, whose three slices are q, k and v and whose
adapted ones are `attn_matrices`. The scaling is alpha / r. The file of settings is named as PEFT's; it is told apart by
"config", where PEFT has "peft_type". A prediction head lies in files of its own, in the library's own architecture:
a folder with one is refused, so that it is not left out unsaid.

Source: `adapters`, methods/lora.py and configuration/adapter_config.py.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from veneer.errors import AdapterFormatError, ConfigError, gathered
from veneer.formats.loralib import Pairs, config_of_slices, low_ranks
from veneer.formats.pickles import read_weights
from veneer.formats.tensors import distinct
from veneer.lora.config import LoraConfig
from veneer.lora.state import AdapterState

CONFIG_FILE = "adapter_config.json"
TENSOR_FILES = ("adapter.safetensors", "pytorch_adapter.bin")
HEAD_FILES = ("head_config.json", "model_head.safetensors", "pytorch_model_head.bin")

UNDERSTOOD = frozenset({"architecture", "r", "alpha", "dropout", "attn_matrices", "composition_mode", "use_gating"})
INERT = frozenset({"selfattn_lora", "intermediate_lora", "output_lora", "leave_out", "init_weights", "dtype"})
"""Where the updates are, which the tensors say themselves, and how they started."""
REQUIRED: Mapping[str, Any] = {"architecture": "lora", "composition_mode": "add", "use_gating": False}
"""Settings that must have this value: the others are other methods."""


def read_adapterhub(folder: Path, *, adapter: str | None = None) -> AdapterState:
    """Read the LoRA of an AdapterHub folder.

    Args:
        folder: holds adapter_config.json and the tensors.
        adapter: the adapter's name; needed only if the file holds several.

    Raises:
        AdapterFormatError: the folder is not one, is broken, or holds what is not plain LoRA; all is named.
    """
    config, slices, base_model = _read_settings(folder)
    tensor_file = next((folder / name for name in TENSOR_FILES if (folder / name).is_file()), None)
    if tensor_file is None:
        raise AdapterFormatError(f"{folder} holds no tensors: none of {', '.join(TENSOR_FILES)} is there")
    tensors, _ = read_weights(tensor_file)
    heads = [name for name in HEAD_FILES if (folder / name).exists()]
    problems = [f"{name} is a prediction head; move it away to read the LoRA alone" for name in heads]
    pairs = _pairs(tensors, adapter, problems)
    fused = {name: slices for name, pair in pairs.items() if _is_fused(pair)}
    updates = low_ranks(pairs, fused, (), problems)
    resolved = config_of_slices(updates, replace(config, fused=fused))
    ranks = {name: resolved.rank_of(name) for name in updates}
    problems += [f"{name} has rank {rank}, but r is {config.r}" for name, rank in ranks.items() if rank != config.r]
    if problems:
        raise AdapterFormatError(gathered(f"{tensor_file} cannot be used:", sorted(problems)))
    return AdapterState(config=resolved, updates=updates, base_model=base_model)


def _is_fused(pair: Mapping[str, Tensor]) -> bool:
    """Return whether A has the rows of several slices; a fused projection with one slice adapted cannot be told."""
    return len(pair) == 2 and all(tensor.ndim == 2 for tensor in pair.values()) and len(pair["A"]) > pair["B"].shape[1]


def _read_settings(folder: Path) -> tuple[LoraConfig, tuple[bool, ...], str | None]:
    """Return the settings of the LoRA, which of q, k and v it adapts, and the name of its base model."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise AdapterFormatError(f"{folder} is not an adapter folder: it holds no {CONFIG_FILE}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise AdapterFormatError(f"{path} is not valid JSON: {error}") from None
    settings = content.get("config") if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise AdapterFormatError(f"{path} is not AdapterHub's: it has no 'config'; PEFT's has 'peft_type' instead")
    problems = [
        f"{key} is {settings.get(key)!r}; only {value!r} can be read"
        for key, value in REQUIRED.items()
        if settings.get(key) != value
    ]
    problems += [
        f"{key}={value!r} is unknown; it could change what the adapter computes"
        for key, value in sorted(settings.items())
        if key not in UNDERSTOOD | INERT and value not in (None, False, [], {})
    ]
    matrices = settings.get("attn_matrices")
    if not isinstance(matrices, list) or not matrices or any(letter not in ("q", "k", "v") for letter in matrices):
        problems.append(f"attn_matrices is {matrices!r}; it must be a list of 'q', 'k' and 'v'")
        matrices = []
    config = LoraConfig()
    try:
        config = LoraConfig(r=settings.get("r"), alpha=settings.get("alpha"), dropout=settings.get("dropout", 0.0))  # type: ignore[arg-type]
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise AdapterFormatError(gathered(f"{path} cannot be used:", problems))
    base_model = content.get("model_name")
    slices = tuple(letter in matrices for letter in "qkv")
    return config, slices, base_model if isinstance(base_model, str) else None


def _pairs(tensors: Mapping[str, Tensor], adapter: str | None, problems: list[str]) -> Pairs:
    """Return A and B of the chosen adapter by module."""
    pairs_of: dict[str, Pairs] = {}
    for key, tensor in tensors.items():
        module, found, rest = key.rpartition(".loras.")
        name, _, part = rest.partition(".")
        if not found or not module:
            problems.append(f"{key} is no part of a LoRA: those are named <module>.loras.<adapter>.lora_A")
        elif part not in ("lora_A", "lora_B"):
            problems.append(f"{key} is not supported: only lora_A and lora_B of plain LoRA are")
        else:
            pairs_of.setdefault(name, {}).setdefault(module, {})[part[-1]] = tensor
    if adapter is None and len(pairs_of) == 1:
        return next(iter(pairs_of.values()))
    if adapter not in pairs_of and (pairs_of or not problems):
        held = ", ".join(sorted(pairs_of)) or "none"
        problems.append(f"adapter={adapter!r} must be one of those in the file: {held}")
    return pairs_of.get(adapter or "", {})
