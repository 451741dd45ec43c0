"""What a method trains, out of a model and back into one, and the way back to the plain model."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from veneer.errors import AdapterMismatchError, AdapterStateError, gathered
from veneer.lora.inject import recorded_root, remove
from veneer.lora.layers import is_other_part, plain_modules
from veneer.lora.targets import ADAPTATION

RECORD = "veneer_method"
"""The attribute in which `attach` leaves its record on the model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attached:
    """What `attach` did to a model: enough to save what is trained and to undo it."""

    names: tuple[str, ...]
    """What is trained, by name."""
    was_trainable: Mapping[str, bool]
    """`requires_grad` of each parameter before, by its name in the plain model."""
    hooks: tuple[RemovableHandle, ...]


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter once: by its name in the plain model, or by the wrapped module's and its own part's."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, module in plain_modules(model):
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), (f"{name}.{leaf}" if name else leaf, parameter))
    return dict(found.values())


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of everything that the attached method trains, the head included.

    Raises:
        AdapterStateError: no method is attached.
    """
    record, weights = _record(model), named_weights(model)
    return {name: weights[name].detach().clone() for name in record.names}


def load_trained_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill a model that the same method is attached to, whole or not at all.

    Raises:
        AdapterStateError: no method is attached.
        AdapterMismatchError: a tensor is missing, unknown or of another shape; every problem is named.
    """
    record, weights = _record(model), named_weights(model)
    problems = [f"{name} is missing" for name in record.names if name not in tensors]
    for name, tensor in tensors.items():
        if name not in record.names:
            problems.append(f"{name} is not trained by the method that is attached")
        elif tensor.shape != weights[name].shape:
            problems.append(f"{name} has shape {tuple(tensor.shape)}; it must be {tuple(weights[name].shape)}")
    if problems:
        raise AdapterMismatchError(gathered(f"these weights do not fit {type(model).__name__}:", problems))
    with torch.no_grad():
        for name, tensor in tensors.items():
            weights[name].copy_(tensor)


def detach(model: nn.Module) -> None:
    """Undo `attach`: the very modules are back, `requires_grad` is as it was, and so is every value, bit for bit.

    With one exception: full fine-tuning keeps no copy of the model, so there only the flags go back.

    Raises:
        AdapterStateError: no method is attached, or the model is within `disabled` or `merged`.
    """
    record = _record(model)
    if is_adapted := ADAPTATION in vars(model):
        recorded_root(model)
    for hook in record.hooks:
        hook.remove()
    for name, module in list(model.named_modules()):  # none of these is within another
        if is_other_part(module):
            model.set_submodule(name, module.base)
    if is_adapted:
        remove(model)
    for name, weight in named_weights(model).items():
        weight.requires_grad_(record.was_trainable[name])
    delattr(model, RECORD)


def _record(model: nn.Module) -> Attached:
    record = vars(model).get(RECORD)
    if not isinstance(record, Attached):
        raise AdapterStateError(f"no method is attached to this {type(model).__name__}; call attach first")
    return record
