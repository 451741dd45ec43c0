"""An adapter as a value: `AdapterState`, out of a model and into a model.

This is the one thing that crosses borders: file formats read and write it, and none of them sees a module.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from veneer.errors import AdapterMismatchError, AdapterStateError, TargetError, gathered
from veneer.lora.config import LoraConfig
from veneer.lora.inject import adapt, adapted_layers, adapted_root
from veneer.lora.targets import Plan, plan


class LowRank(NamedTuple):
    """The two matrices of one layer's update."""

    A: Float[Tensor, "r in"]
    B: Float[Tensor, "out r"]


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterState:
    """Everything that was trained, by the names it has in the plain base model."""

    config: LoraConfig
    """The settings, targets written out."""
    updates: Mapping[str, LowRank]
    """A and B of each adapted layer, on the CPU."""
    trained: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameters and buffers of the modules that were trained whole, by full name, on the CPU."""
    trained_modules: tuple[str, ...] = ()
    """The names of those modules."""
    base_model: str | None = None
    """Hub id or path of the pretrained model, as a hint for whoever loads the adapter."""
    task_type: str | None = None
    """PEFT's name of the task, such as "SEQ_CLS"."""


def state(model: nn.Module, *, base_model: str | None = None, task_type: str | None = None) -> AdapterState:
    """Return a copy of the adapter inside `model`.

    Raises:
        AdapterStateError: the model is not adapted.
    """
    root, record = adapted_root(model)
    return AdapterState(
        config=record.config,
        updates={
            name: LowRank(_copy(layer.update.A), _copy(layer.update.B)) for name, layer in adapted_layers(root).items()
        },
        trained={
            f"{module_name}.{name}": _copy(tensor)
            for module_name in record.plan.trained_modules
            for name, tensor in root.get_submodule(module_name).state_dict().items()
        },
        trained_modules=record.plan.trained_modules,
        base_model=base_model,
        task_type=task_type,
    )


def load_state(model: nn.Module, adapter: AdapterState, *, trainable: bool = False) -> Plan:
    """Adapt a plain `model` and fill it with `adapter`, whole or not at all; return the plan that was carried out.

    Every tensor must find its place and every place its tensor. `model.training` is left alone, and the adapter acts
    at once in both modes.

    Args:
        model: the base model, not adapted yet.
        adapter: what to load.
        trainable: whether A, B and the modules trained whole may be trained on; otherwise everything is frozen.

    Raises:
        AdapterStateError: the model is adapted already, or is on the meta device.
        AdapterMismatchError: the adapter does not fit; every problem is named. The model is as it was.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise AdapterStateError(f"{type(model).__name__} is on the meta device; load its weights before the adapter")
    try:
        the_plan = plan(model, adapter.config, adapter.trained_modules)
    except TargetError as error:
        raise AdapterMismatchError(f"the adapter does not fit this model: {error}") from None
    if problems := _update_problems(the_plan, adapter.updates) + _trained_problems(model, the_plan, adapter.trained):
        raise AdapterMismatchError(gathered(f"the adapter does not fit {type(model).__name__}:", problems))
    adapt(model, adapter.config, adapter.trained_modules)
    layers = adapted_layers(model)
    with torch.no_grad():
        for name, (A, B) in adapter.updates.items():
            layers[name].update.A.copy_(A)
            layers[name].update.B.copy_(B)
        for module_name in the_plan.trained_modules:
            for name, tensor in model.get_submodule(module_name).state_dict().items():
                tensor.copy_(adapter.trained[f"{module_name}.{name}"])
    if not trainable:
        model.requires_grad_(False)
    return the_plan


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _update_problems(the_plan: Plan, updates: Mapping[str, LowRank]) -> list[str]:
    """Return a line for each layer without its A and B, each A and B without a layer, and each that does not fit."""
    targets = {target.name: target for target in the_plan.targets}
    r = the_plan.config.r
    found = [f"{name}: selected by the adapter's targets, but it holds no A and B" for name in targets.keys() - updates]
    found += [
        f"{name}: the adapter holds A and B, but the model has no such target" for name in updates.keys() - targets
    ]
    for name in sorted(targets.keys() & updates):
        expected = {"A": (r, targets[name].in_features), "B": (targets[name].out_features, r)}
        for part, tensor in updates[name]._asdict().items():
            found += _tensor_problems(f"{name}.{part}", tensor, expected[part], torch.float32)
    return sorted(found)


def _trained_problems(model: nn.Module, the_plan: Plan, trained: Mapping[str, Tensor]) -> list[str]:
    expected = {
        f"{module_name}.{name}": tensor
        for module_name in the_plan.trained_modules
        for name, tensor in model.get_submodule(module_name).state_dict().items()
    }
    found = [f"{name}: the model needs it, but the adapter holds no such tensor" for name in expected.keys() - trained]
    found += [f"{name}: the adapter holds it, but the model has no such tensor" for name in trained.keys() - expected]
    for name in sorted(expected.keys() & trained):
        found += _tensor_problems(name, trained[name], tuple(expected[name].shape), expected[name].dtype)
    return sorted(found)


def _tensor_problems(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> list[str]:
    if tuple(tensor.shape) != shape:
        return [f"{name} has shape {tuple(tensor.shape)}, but the model needs {shape}"]
    if tensor.is_floating_point() != dtype.is_floating_point:
        return [f"{name} has dtype {tensor.dtype}, but the model needs {dtype}"]
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor.to(dtype)).all()):
        return [f"{name} holds NaN or infinity, or what {dtype} cannot hold"]
    return []
