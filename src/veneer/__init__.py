"""Veneer: LoRA for PyTorch.

plan(model, config)            what would be adapted; changes nothing
adapt(model, config)           add low-rank updates in place, freeze the rest
save(model, path)              write the adapter as a PEFT folder
load(model, path)              put an adapter onto a plain base model
state(model)                   the adapter as a value; load_state(model, value) is the way back
with disabled(model): ...      the base model's own output
with merged(model): ...        plain layers with merged weights
merge(model)                   make the adapter permanent
remove(model)                  the original modules back, bit for bit
set_strength(model, share)     let a share of the adapter act
swap(model, value)             another adapter of the same shape, in place
read_adapter(path)             the value in a PEFT or AdapterHub folder, no model needed
write_adapter(value, path)     the value as a PEFT folder
optimizer_groups(model, lr=)   LoRA+: B learns faster than A
algebra, analysis              sums, shrinking, extraction, TIES, DARE; norms, effective rank, intruder dimensions

A name is imported when it is first asked for: what needs no torch, as the command's help does, does not wait for it.
"""

import importlib
import typing

from veneer.errors import VeneerError

if typing.TYPE_CHECKING:
    from veneer.formats.adapter import load, read_adapter, save, write_adapter
    from veneer.lora import algebra, analysis
    from veneer.lora.config import LoraConfig
    from veneer.lora.inject import adapt, disabled, merge, merged, remove, set_strength
    from veneer.lora.optimizer import optimizer_groups
    from veneer.lora.plan import Plan
    from veneer.lora.state import AdapterState
    from veneer.lora.targets import plan
    from veneer.lora.transfer import load_state, state, swap

__version__ = "0.1.0"

__all__ = [
    "AdapterState",
    "LoraConfig",
    "Plan",
    "VeneerError",
    "adapt",
    "algebra",
    "analysis",
    "disabled",
    "load",
    "load_state",
    "merge",
    "merged",
    "optimizer_groups",
    "plan",
    "read_adapter",
    "remove",
    "save",
    "set_strength",
    "state",
    "swap",
    "write_adapter",
]

_HOMES = {
    "formats.adapter": ("load", "read_adapter", "save", "write_adapter"),
    "lora": ("algebra", "analysis"),
    "lora.config": ("LoraConfig",),
    "lora.inject": ("adapt", "disabled", "merge", "merged", "remove", "set_strength"),
    "lora.optimizer": ("optimizer_groups",),
    "lora.plan": ("Plan",),
    "lora.state": ("AdapterState",),
    "lora.targets": ("plan",),
    "lora.transfer": ("load_state", "state", "swap"),
}
"""Module -> the public names in it."""


def __getattr__(name: str) -> object:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'veneer' has no attribute {name!r}")
    if home == "lora":  # the name is a module's
        importlib.import_module(f"veneer.lora.{name}")
    globals()[name] = value = getattr(importlib.import_module(f"veneer.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
