"""What our files say beyond PEFT's format: notes in the safetensors metadata, which other readers pass over.

veneer_base       what the adapted weights of the base were; see `lora/fingerprint.py`
veneer_fused      fused projection -> its adapted slices, which the shapes of A and B cannot tell
veneer_settings   {"train_A": false} of an adapter whose A stays frozen, {"dropout": 0.1} where PEFT refuses dropout
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from veneer.formats.peft_layers import slices_of
from veneer.lora.config import LoraConfig
from veneer.lora.fingerprint import Fingerprint, from_note, to_note
from veneer.lora.state import AdapterState, LowRank
from veneer.lora.updates import is_scattered

BASE, FUSED, SETTINGS = "veneer_base", "veneer_fused", "veneer_settings"


class Notes(NamedTuple):
    """The notes of a file, or what holds where there are none."""

    fingerprint: Fingerprint
    fused: Mapping[str, tuple[bool, ...]]
    train_A: bool
    dropout: float | None
    """None where PEFT's own setting tells it."""


def loses_dropout(state: AdapterState) -> bool:
    """Return whether PEFT's settings cannot tell the dropout: it refuses any beside adapted parameters."""
    return bool(state.config.dropout) and any(update.kind == "parameter" for update in state.updates.values())


def notes_of(state: AdapterState) -> dict[str, str]:
    """Return the metadata of an adapter's file."""
    notes: dict[str, Mapping[str, Any]] = {
        BASE: to_note(state.fingerprint),
        FUSED: {name: list(slices) for name, slices in state.config.fused.items()},
        SETTINGS: ({} if state.config.train_A else {"train_A": False})
        | ({"dropout": state.config.dropout} if loses_dropout(state) else {}),
    }
    return {key: json.dumps(note, sort_keys=True) for key, note in notes.items() if note}


def read_notes(metadata: Mapping[str, str], updates: Mapping[str, LowRank]) -> Notes:
    """Return what a file notes of itself.

    Args:
        metadata: of the tensor file.
        updates: the file's updates, by name.

    Raises:
        ConfigError, ValueError, RecursionError: a note is malformed.
    """
    settings = _note(metadata, SETTINGS)
    return Notes(
        fingerprint=from_note(_note(metadata, BASE)),
        fused=_fused(LoraConfig(fused=_note(metadata, FUSED)).fused, updates),
        train_A=settings.get("train_A") is not False,
        dropout=settings.get("dropout"),
    )


def _note(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """Return one of our notes in the metadata; empty where there is none."""
    note = json.loads(metadata.get(key, "{}"))
    if not isinstance(note, dict):
        raise ValueError(f"its metadata has {key}={note!r}; it must be a JSON object")
    return note


def _fused(fused: Mapping[str, Sequence[bool]], updates: Mapping[str, LowRank]) -> dict[str, tuple[bool, ...]]:
    """Return the slices noted for fused projections, if every such projection is laid out so, or nothing."""
    layouts = [(update, slices) for name, update in updates.items() if len(slices := slices_of(name, fused)) > 1]
    fits = all(update.kind == "linear" and is_scattered(update.B, slices) for update, slices in layouts)
    return {name: tuple(slices) for name, slices in fused.items()} if fits else {}
