"""PEFT's adapter folder, read; `peft_writing.py` writes it.

    <folder>/adapter_config.json        the settings; see `peft_settings.py`
    <folder>/adapter_model.safetensors  A and B of each layer; see `peft_keys.py` and `peft_layers.py`; and
        <embedding>.token_adapter.trainable_tokens_delta    rows that replace the base's, for all their name
        <module>.base_layer.bias, <module>.bias             trained biases, of adapted modules and of others
        <module>.base_layer.weight, <embedding>.weight      copies of the base's weights, not trained
        <parameter>                                         of modules trained whole

Reading is strict: every tensor is understood or the folder is refused, and so is every setting that would change the
maths and is not supported. The tensors decide what is adapted, the settings its ranks and scalings. Nothing is
unpickled: `adapter_model.bin` is not read.

Source: the files peft 0.21.2 writes.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from veneer.errors import AdapterFormatError, ConfigError, gathered
from veneer.formats.notes import read_notes
from veneer.formats.peft_keys import (
    WRAPPED,
    Layer,
    named_layers,
    plain,
    sorted_tensors,
)
from veneer.formats.peft_layers import from_peft, one_slice, slices_of
from veneer.formats.peft_settings import AUTOMATIC_HEADS, declared_config, pattern_problems, read_settings
from veneer.formats.tensors import DIGEST, read_tensors
from veneer.lora.config import LoraConfig
from veneer.lora.selectors import Selector
from veneer.lora.state import AdapterState, LowRank, TokenRows, fitted

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"

EMBEDDINGS = frozenset({"embed_in", "embed_out", "embed_tokens", "lm_head", "shared", "word_embeddings", "wte"})
"""Names of embeddings, whose weight PEFT copies into the file where their size was changed."""
STACKS_SINCE = (0, 19)
"""The release of PEFT since which stacked experts are read as (experts, out, in)."""
Home = Callable[[str], str | None]
"""Name of a tensor -> the module trained whole that it belongs to."""


def read_peft(folder: Path) -> AdapterState:
    """Read a PEFT folder.

    Raises:
        AdapterFormatError: the folder is not one, is broken, or asks for what is not supported; all is named.
    """
    if not folder.is_dir():
        raise AdapterFormatError(f"no adapter folder at {folder}: give the folder that holds {CONFIG_FILE}")
    if not (folder / CONFIG_FILE).is_file():
        raise AdapterFormatError(f"{folder} is not an adapter: it holds no {CONFIG_FILE}")
    settings = read_settings(folder / CONFIG_FILE)
    if not (folder / TENSOR_FILE).is_file():
        pickled = "adapter_model.bin is a pickle, which can run code; `veneer convert` makes it safetensors"
        reason = pickled if (folder / "adapter_model.bin").is_file() else "missing"
        raise AdapterFormatError(f"{folder / TENSOR_FILE}: {reason}")
    tensors, metadata = read_tensors(folder / TENSOR_FILE)
    return state_from(settings, tensors, metadata, folder)


def state_from(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], metadata: Mapping[str, str], folder: Path
) -> AdapterState:
    """Return the adapter that a folder's settings and tensors describe.

    Args:
        settings: as `read_settings` returns them.
        tensors: by the keys of the tensor file, wherever they were read from.
        metadata: of the tensor file.
        folder: where they come from, for messages.

    Raises:
        AdapterFormatError: they do not belong together, or ask for what is not supported; all is named.
    """
    declared = declared_config(settings, folder / CONFIG_FILE)
    found = sorted_tensors(tensors)
    _refuse(folder / TENSOR_FILE, found.problems)
    _refuse(folder / CONFIG_FILE, pattern_problems(settings, longest=max(map(len, found.layers), default=0)))
    layers, problems = named_layers(found.layers, settings, declared, ordered=DIGEST in metadata)
    updates, factors = _updates(layers, declared, problems)
    if any(update.kind == "parameter" and update.A.ndim == 3 for update in updates.values()):
        problems += _release_problems(settings.get("peft_version") or "none")
    rows = _token_rows(found.rows, settings.get("trainable_token_indices") or {}, problems)
    home = homes(settings.get("modules_to_save") or (), exact=DIGEST in metadata)
    trained, copies = _others(found.others, settings, home, problems)
    modules = _trained_modules(settings, trained, home, problems)
    _refuse(folder, problems)
    try:
        notes = read_notes(metadata, updates)
        config = _config(settings, declared, updates, factors, notes.fused)
        token_rows = {name: entry.ids.tolist() for name, entry in rows.items()}
        dropout = config.dropout if notes.dropout is None else notes.dropout
        config = replace(config, token_rows=token_rows, train_A=notes.train_A, dropout=dropout)
    except (ConfigError, ValueError, RecursionError) as error:
        raise AdapterFormatError(f"{folder} cannot be used: {error}") from None
    return AdapterState(
        config=config,
        updates=updates,
        trained=trained,
        trained_modules=modules,
        token_rows=rows,
        base_copies=copies,
        base_model=settings.get("base_model_name_or_path"),
        task_type=settings.get("task_type"),
        fingerprint=notes.fingerprint,
    )


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        raise AdapterFormatError(gathered(f"{path} cannot be used:", sorted(problems)))


def _updates(
    layers: Iterable[Layer], declared: LoraConfig, problems: list[str]
) -> tuple[dict[str, LowRank], dict[str, float]]:
    """Return the update and the scaling of each layer by name; what does not fit is added to `problems`."""
    updates, factors = {}, {}
    for layer in layers:
        prefix = "embedding_" if layer.kind == "embedding" else ""
        A, B, magnitude = layer.parts[f"{prefix}A"], layer.parts[f"{prefix}B"], layer.parts.get("magnitude")
        if (magnitude is None) == (declared.variant == "dora"):
            problems.append(
                f"{layer.name}: use_dora={declared.variant == 'dora'}, but lora_magnitude_vector is "
                f"{'missing' if magnitude is None else 'there'}"
            )
        try:
            r = declared.rank_of(layer.declared)
            updates[layer.name] = from_peft(layer.kind, A, B, magnitude, r)
            factors[layer.name] = declared.factor_of(layer.declared)
        except AdapterFormatError as error:
            problems.append(f"{layer.name}: {error}")
    return updates, factors


def _release_problems(version: str) -> list[str]:
    release = tuple(int(number) for number in re.findall(r"\d{1,9}", version)[:2])
    if release >= STACKS_SINCE:
        return []
    since = ".".join(str(number) for number in STACKS_SINCE)
    return [f"peft_version is {version!r}: before {since} stacked experts were laid out otherwise; train or save anew"]


def _token_rows(
    found: Mapping[str, Tensor], wanted: list[int] | Mapping[str, list[int]], problems: list[str]
) -> dict[str, TokenRows]:
    """Return the trained rows by embedding; a list of ids is for whichever embedding has rows."""
    rows = {}
    by_name = wanted if isinstance(wanted, Mapping) else dict.fromkeys(found, wanted)
    for name, tensor in sorted(found.items()):
        ids = next((ids for key, ids in by_name.items() if name.endswith(key)), None)  # PEFT's rule: at no boundary
        if not isinstance(ids, list) or not all(type(number) is int and 0 <= number < 2**63 for number in ids):
            problems.append(f"{name}: trainable_token_indices gives {ids!r} for it; it must be a list of token ids")
        elif tensor.ndim != 2 or tensor.shape[0] != len(ids) or not tensor.is_floating_point():
            problems.append(f"{name}: {len(ids)} token ids, but rows of shape {tuple(tensor.shape)}, {tensor.dtype}")
        else:
            rows[name] = TokenRows(torch.tensor(ids), tensor)
    present = [ids for key, ids in by_name.items() if any(name.endswith(key) for name in found)]
    problems += [  # of tied embeddings with the same ids only one is saved
        f"trainable_token_indices names {key!r}, but no rows of it are there"
        for key, ids in by_name.items()
        if ids not in present
    ]
    if wanted and not found and not isinstance(wanted, Mapping):
        problems.append("trainable_token_indices is set, but no rows are there")
    return rows


def _others(
    found: Mapping[str, Tensor], settings: Mapping[str, Any], home: Home, problems: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what was trained, and the copies of the base's weights, by the plain model's names."""
    trained: dict[str, Tensor] = {}
    copies: dict[str, Tensor] = {}
    for key, tensor in sorted(found.items()):
        if settings.get("bias") == "all" and _is_second_copy(key, tensor, found):
            continue
        name = plain(key)
        is_copy = key.endswith(f".{WRAPPED}.weight") or is_embedding(name)
        into = copies if is_copy and home(name) is None else trained
        if name in into:
            problems.append(f"{name} is there twice")
        into[name] = tensor
    return trained, copies


def _is_second_copy(key: str, tensor: Tensor, found: Mapping[str, Tensor]) -> bool:
    """Return whether this is what PEFT adds for bias="all": of modules trained whole the base's own, and one again."""
    if ".original_module." in key:
        return True
    again = found.get(key.replace(".modules_to_save.", "."))
    return ".modules_to_save." in key and again is not None and torch.equal(again, tensor)


def is_embedding(name: str) -> bool:
    """Return whether a tensor is the weight of an embedding, by its name."""
    return name.endswith(".weight") and name.split(".")[-2] in EMBEDDINGS


def homes(listed: Iterable[str], *, exact: bool) -> Home:
    """Return what finds the listed module that a tensor belongs to.

    Args:
        listed: `modules_to_save`.
        exact: whether these are full names, as we write them; to PEFT they are ends of names, at no boundary.
    """
    ends = tuple(listed)

    def home(name: str) -> str | None:
        parts = name.split(".")
        prefixes = (".".join(parts[:end]) for end in range(1, len(parts)))
        return next((p for p in prefixes if (p in ends if exact else p.endswith(ends))), None)

    return home


def _trained_modules(
    settings: Mapping[str, Any], trained: Mapping[str, Tensor], home: Home, problems: list[str]
) -> tuple[str, ...]:
    """Return the full names of the modules that were trained whole; what is trained besides may be a bias."""
    listed = tuple(settings.get("modules_to_save") or [])
    biases = settings.get("bias") or "none"
    modules = set()
    for name in trained:
        module = home(name)
        if module is not None:
            modules.add(module)
        elif biases == "none" or not name.rpartition(".")[2].endswith("bias"):
            problems.append(f"{name} belongs to no module in modules_to_save={list(listed)!r}, with bias={biases!r}")
    missing = [m for m in listed if not any(found.endswith(m) for found in modules)]
    automatic = AUTOMATIC_HEADS if any(found.endswith(tuple(AUTOMATIC_HEADS)) for found in modules) else frozenset()
    problems += [f"modules_to_save names {m!r}, but no tensor of it is there" for m in missing if m not in automatic]
    return tuple(sorted(modules))


def _config(
    settings: Mapping[str, Any],
    declared: LoraConfig,
    updates: Mapping[str, LowRank],
    factors: Mapping[str, float],
    fused: Mapping[str, tuple[bool, ...]],
) -> LoraConfig:
    """Return the config of the adapter: the listed targets where they say it all, otherwise each layer's name."""
    single = {name: one_slice(update, slices_of(name, fused)) for name, update in updates.items()}
    config = fitted(declared, {name: update.rank for name, update in single.items()}, factors)
    modules = [name for name, update in updates.items() if update.kind != "parameter"]
    listed = settings.get("target_modules")
    resolved = bool(config.rank_pattern or config.alpha_pattern)
    own_rules = settings.get("exclude_modules") or settings.get("layers_to_transform") is not None  # PEFT's, not ours
    if isinstance(listed, list) and not resolved and not own_rules and all(map(Selector(listed), modules)):
        targets = sorted(listed)
    else:
        targets = modules
    return replace(
        config,
        targets=targets,
        parameters=[name for name, update in updates.items() if update.kind == "parameter"],
        fused=fused,
    )
