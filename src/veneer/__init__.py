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
"""

from veneer.errors import VeneerError
from veneer.formats.adapter import load, save
from veneer.lora.config import LoraConfig
from veneer.lora.inject import adapt, disabled, merge, merged, remove, set_strength
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
    "disabled",
    "load",
    "load_state",
    "merge",
    "merged",
    "plan",
    "remove",
    "save",
    "set_strength",
    "state",
    "swap",
]
