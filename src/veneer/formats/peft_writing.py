"""PEFT's adapter folder, written; `peft.py` says what is in it.

What PEFT cannot hold is refused, and so is what would be read back as something else: names that end in one another,
to which PEFT gives one setting. Both files are written or none.

Written are notes more, as metadata of the tensor file, that PEFT passes over: what the base was, and which slices of
fused projections are adapted; to PEFT such a projection is one layer of the slices' ranks together.

Source: the files peft 0.21.2 writes.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from veneer.errors import AdapterFormatError, OutputExistsError, gathered
from veneer.files import write_together
from veneer.formats.notes import notes_of
from veneer.formats.peft import CONFIG_FILE, TENSOR_FILE, homes, is_embedding, state_from
from veneer.formats.peft_keys import IN_PROJ, KEY_PREFIX, OUT_PROJ, TOKEN_ROWS, WRAPPED, injection_order, wrapped
from veneer.formats.peft_layers import paired, to_peft
from veneer.formats.peft_settings import settings_text
from veneer.formats.tensors import DIGEST, tensor_file
from veneer.lora.selectors import Selector
from veneer.lora.state import AdapterState, LowRank, fitted


def write_peft(state: AdapterState, folder: Path) -> None:
    """Write an adapter as a PEFT folder, replacing the two files if they are there. Same state, same bytes.

    Raises:
        AdapterFormatError: the adapter holds what PEFT's format cannot; all is named. Nothing is written.
        OutputExistsError: a file is where the folder should be.
        OSError: the folder cannot be written.
    """
    if problems := _unwritable(state):
        raise AdapterFormatError(gathered("PEFT's format cannot hold this adapter:", problems))
    layers, owned = _file_layers(state)
    depths = {name: 1 for name, *_ in layers} | {module: len(leaves) for module, leaves in owned.items()}
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    factors: dict[str, float] = {}
    for name, declared, update, factor in layers:
        parts, ranks[declared] = to_peft(update)
        factors[declared] = factor
        tensors |= {f"{wrapped(name, depths)}.{part}": tensor for part, tensor in parts.items()}
    for module, leaves in owned.items():
        for position, leaf in enumerate(leaves):
            name, levels = f"{module}.{leaf}", f".{WRAPPED}" * (len(leaves) - 1 - position)
            parts, ranks[name] = to_peft(state.updates[name])
            factors[name] = state.factor(name)
            tensors |= {f"{wrapped(module, depths)}{levels}.{part}": tensor for part, tensor in parts.items()}
    plain_tensors = {**state.trained, **state.base_copies}
    tensors |= {wrapped(name, depths): tensor for name, tensor in plain_tensors.items()}
    tensors |= {f"{wrapped(name, depths)}{TOKEN_ROWS}": entry.rows for name, entry in state.token_rows.items()}
    targets, exclude = _targets(state, [declared for _, declared, *_ in layers])
    text = settings_text(
        state,
        fitted(state.config, ranks, factors),
        targets=targets,
        exclude=exclude,
        parameters=[f"{module}.{leaf}" for module, leaves in owned.items() for leaf in leaves],
    )
    tensors = {f"{KEY_PREFIX}{name}": tensor for name, tensor in tensors.items()}
    _require_readable(state, text, tensors, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputExistsError(f"{folder} is a file; choose another path for the folder to write") from None
    files = {folder / TENSOR_FILE: tensor_file(tensors, notes_of(state)), folder / CONFIG_FILE: text.encode()}
    write_together(files)


def _require_readable(state: AdapterState, text: str, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Raise where what is about to be written would be refused in reading, or read as something else."""
    cannot = "PEFT's format cannot hold this adapter:"
    try:
        read = state_from(json.loads(text), tensors, {**notes_of(state), DIGEST: ""}, folder)
    except AdapterFormatError as error:
        raise AdapterFormatError(f"{cannot} what was written would be refused: {error}") from None
    wanted, found = _inventory(state), _inventory(read)
    if mixed := sorted(name for name in wanted if wanted[name] != found.get(name, "")):
        raise AdapterFormatError(gathered(f"{cannot} names that end in one another would be mixed up:", mixed))


def _inventory(state: AdapterState) -> dict[str, object]:
    """Return what an adapter holds by name: kinds of updates, ids of token rows, other tensors."""
    held: dict[str, object] = dict.fromkeys((*state.trained, *state.base_copies))
    held |= {name: update.kind for name, update in state.updates.items()}
    return held | {f"{name} (rows)": sorted(rows.ids.tolist()) for name, rows in state.token_rows.items()}


def _unwritable(state: AdapterState) -> list[str]:
    """Return a line for each thing that PEFT's format has no place for."""
    updates, home = state.updates, homes(state.trained_modules, exact=True)
    plain_layers = [name for name, update in updates.items() if update.magnitude is None]
    found = []
    if plain_layers and len(plain_layers) < len(updates):
        found.append(f"DoRA is for all layers or none, but {', '.join(sorted(plain_layers)[:3])} have no magnitude")
    for name, update in updates.items():
        if update.magnitude is not None and (update.kind == "parameter" or update.groups > 1):
            found.append(f"{name}: DoRA of a parameter or of a convolution with groups")
        if update.kind == "parameter" and "." not in name:
            found.append(f"{name}: a parameter of the model itself, not of a module in it")
        if name in state.token_rows:
            found.append(f"{name}: trained rows of an embedding that has an update too")
    found += [
        f"{name}: a trained parameter that is neither a bias nor of a module trained whole"
        for name in state.trained
        if not name.endswith("bias") and home(name) is None
    ]
    found += [
        f"{name}: a copy of a base weight that is neither an embedding's nor an adapted layer's"
        for name in state.base_copies
        if not is_embedding(name) and name.removesuffix(".weight") not in updates
    ]
    return found


_Written = tuple[str, str, LowRank, float]
"""Name of a module, the name PEFT looks its rank up by, its update and scaling."""


def _file_layers(state: AdapterState) -> tuple[list[_Written], dict[str, list[str]]]:
    """Return the layers as PEFT sees them, and the parameters of modules in the order PEFT wraps them."""
    layers: list[_Written] = []
    owned: dict[str, list[str]] = {}
    for name, update in state.updates.items():
        module, _, leaf = name.rpartition(".")
        if leaf == IN_PROJ and update.kind == "parameter" and update.A.ndim == 2:
            partner = state.updates.get(f"{module}.{OUT_PROJ}")
            factor = state.factor(name)
            ratio = 1.0 if partner is None else state.factor(f"{module}.{OUT_PROJ}") / factor
            first, second = paired(update, partner, ratio)
            layers += [(module, module, first, factor), (f"{module}.{OUT_PROJ}", module, second, factor)]
        elif update.kind == "parameter":
            owned.setdefault(module, []).append(leaf)
        elif leaf != OUT_PROJ or f"{module}.{IN_PROJ}" not in state.updates:
            layers.append((name, name, update, state.factor(name)))
    return sorted(layers, key=lambda layer: layer[0]), {m: injection_order(owned[m]) for m in sorted(owned)}


def _targets(state: AdapterState, names: list[str]) -> tuple[str | list[str], str | list[str]]:
    """Return `target_modules` and `exclude_modules`: the config's where they mean the same to PEFT."""
    config = state.config
    if config.layers is not None or not all(map(Selector(config.targets), names)):
        return sorted(set(names)), []
    targets, exclude = (t if isinstance(t, str) else sorted(t) for t in (config.targets, config.exclude))
    return targets, exclude
