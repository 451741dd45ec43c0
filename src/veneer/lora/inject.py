"""The verbs that change a model: adapt, remove, merge, and the contexts `disabled` and `merged`.

`adapt` wraps the planned layers in place and freezes the rest. What it needs to undo that, it leaves on the module it
was called with, in one attribute, as an `Adaptation`: a plain value that `copy.deepcopy` and `pickle` carry along.
Outer wrappers (DDP, `torch.compile`, a bigger model) do not matter: every verb finds the adapted module inside.

Each verb gathers all obstacles first and raises before anything has changed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from veneer.errors import AdapterStateError, gathered
from veneer.lora.config import LoraConfig
from veneer.lora.init import kaiming
from veneer.lora.layers import AdaptedLinear, new_update
from veneer.lora.targets import ADAPTATION, Plan, plan


@dataclass(frozen=True, kw_only=True, eq=False)
class Adaptation:
    """What `adapt` did to a model: enough to save the adapter and to undo everything."""

    plan: Plan
    was_trainable: Mapping[str, bool]
    """`requires_grad` of each parameter before, by its name in the model as it was."""
    originals: Mapping[str, Mapping[str, Tensor]]
    """Parameters and buffers of each module in `plan.trained_modules` as they were before training."""

    @property
    def config(self) -> LoraConfig:
        """The settings with the targets written out."""
        return self.plan.config


class Suspended:
    """Stands in for the record while a context has taken the adapter out."""


def adapt(model: nn.Module, config: LoraConfig, train_also: Sequence[str] = ()) -> Plan:
    """Adapt `model` in place and freeze the rest; return the plan that was carried out.

    The new A is drawn with `config.seed` and B is zero, so the model's output does not change. The modules in
    `train_also` become trainable as they are; what they held is kept for `remove` and `disabled`.

    Args:
        model: any module; layers are replaced inside it.
        config: the settings.
        train_also: names of modules to train whole, such as a classifier.

    Raises:
        AdapterStateError: the model is adapted already.
        TargetError: see `plan`. Nothing has changed then.
    """
    the_plan = plan(model, config, train_also)
    record = Adaptation(
        plan=the_plan,
        was_trainable={name: parameter.requires_grad for name, parameter in model.named_parameters()},
        originals={name: _cloned(model.get_submodule(name).state_dict()) for name in the_plan.trained_modules},
    )
    generator = torch.Generator().manual_seed(config.seed)
    layers: dict[str, AdaptedLinear] = {}
    for target in the_plan.targets:
        base = model.get_submodule(target.name)
        assert isinstance(base, nn.Linear)
        start = _start(base, config.r, generator)
        update = new_update(base, start, scaling=config.factor, dropout=config.dropout)
        layers[target.name] = AdaptedLinear(base, update)
    model.requires_grad_(False)
    for layer in layers.values():
        layer.update.requires_grad_(True)
    for name in the_plan.trained_modules:
        model.get_submodule(name).requires_grad_(True)
    _replace(model, layers)
    setattr(model, ADAPTATION, record)
    return the_plan


def remove(model: nn.Module) -> None:
    """Undo `adapt`: put the very modules back that were there, with their weights and `requires_grad` as they were.

    Raises:
        AdapterStateError: the model is not adapted.
    """
    root, record = adapted_root(model)
    _replace(root, {name: layer.base for name, layer in adapted_layers(root).items()})
    for name, tensors in record.originals.items():
        _write(root.get_submodule(name), tensors)
    _finish(root, record)


def merge(model: nn.Module) -> None:
    """Make the adapter permanent: plain layers with W0 + s B A, no added latency, nothing left to remove.

    Raises:
        AdapterStateError: the model is not adapted, a merged weight would not be finite, or a weight is shared with
            a layer that is not adapted. Nothing has changed then.
    """
    root, record = adapted_root(model)
    layers = adapted_layers(root)
    merged_weights = _merged_weights(root, layers)
    for name, layer in layers.items():
        layer.base.weight = merged_weights[name]
    _replace(root, {name: layer.base for name, layer in layers.items()})
    _finish(root, record)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Within the block the model computes what its base computed before `adapt`; afterwards all is as it was.

    Raises:
        AdapterStateError: the model is not adapted.
    """
    root, record = adapted_root(model)
    with _suspended(root, record):
        modules = {name: root.get_submodule(name) for name in record.originals}
        trained = {name: _exchange(module, _cloned(record.originals[name])) for name, module in modules.items()}
        try:
            yield
        finally:
            for name, module in modules.items():
                _exchange(module, trained[name])


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Within the block the adapted layers are plain layers with merged weights; afterwards all is as it was.

    Raises:
        AdapterStateError: as for `merge`.
    """
    root, record = adapted_root(model)
    layers = adapted_layers(root)
    merged_weights = _merged_weights(root, layers)
    with _suspended(root, record):
        own = {name: _exchange(layer.base, {"weight": merged_weights[name]}) for name, layer in layers.items()}
        try:
            yield
        finally:
            for name, layer in layers.items():
                _exchange(layer.base, own[name])


def adapted_root(model: nn.Module) -> tuple[nn.Module, Adaptation]:
    """Return the module that `adapt` was called with, `model` itself or one inside it, and what was done to it.

    Raises:
        AdapterStateError: there is none, or more than one, or it is within `disabled` or `merged`.
    """
    roots = [module for module in model.modules() if ADAPTATION in vars(module)]
    if len(roots) != 1:
        found = (
            "is not adapted; call veneer.adapt or veneer.load first" if not roots else "holds several adapted models"
        )
        raise AdapterStateError(f"{type(model).__name__} {found}")
    record = vars(roots[0])[ADAPTATION]
    if isinstance(record, Suspended):
        raise AdapterStateError(
            f"{type(model).__name__} is within veneer.disabled or veneer.merged; leave the block first"
        )
    assert isinstance(record, Adaptation)
    return roots[0], record


def adapted_layers(root: nn.Module) -> dict[str, AdaptedLinear]:
    """Return the adapted layers by the names their bases had."""
    return {name: module for name, module in root.named_modules() if isinstance(module, AdaptedLinear)}


def _start(base: nn.Linear, r: int, generator: torch.Generator) -> Tensor:
    if base.weight.is_meta:
        return torch.empty(r, base.in_features, device="meta")
    return kaiming(r, base.in_features, generator)


def _cloned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@contextmanager
def _suspended(root: nn.Module, record: Adaptation) -> Iterator[None]:
    """Within the block the base layers stand where the adapted ones were, and no verb takes the model for adapted."""
    layers = adapted_layers(root)
    setattr(root, ADAPTATION, Suspended())
    try:
        _replace(root, {name: layer.base for name, layer in layers.items()})
        yield
    finally:
        _replace(root, layers)
        setattr(root, ADAPTATION, record)
        for layer in layers.values():
            layer.train(layer.base.training)  # the block may have called train() or eval()


def _exchange(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put `tensors` in the place of the parameters and buffers of these names; return the objects that were there.

    Objects change places and no value is written, so a graph that was recorded before stays valid.
    """
    earlier: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if leaf in owner._parameters:
            present = owner.get_parameter(leaf)
            owner._parameters[leaf] = _parameter_like(present, tensor)
            earlier[name] = present
        else:
            earlier[name] = owner.get_buffer(leaf)
            owner._buffers[leaf] = _like(earlier[name], tensor)
    return earlier


def _parameter_like(present: nn.Parameter, tensor: Tensor) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(_like(present, tensor), requires_grad=present.requires_grad)


def _like(present: Tensor, tensor: Tensor) -> Tensor:
    return tensor.to(device=present.device, dtype=present.dtype)


def _write(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(tensors[name])


def _replace(root: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put each module at its name and at every other name that its predecessor is registered under."""
    successor_of = {root.get_submodule(name): module for name, module in modules.items()}
    for parent in list(root.modules()):
        for child_name, child in list(parent._modules.items()):
            if child in successor_of:
                setattr(parent, child_name, successor_of[child])


def _merged_weights(root: nn.Module, layers: Mapping[str, AdaptedLinear]) -> dict[str, nn.Parameter]:
    """Return every layer's merged weight, or raise before anything has changed."""
    owners: dict[int, list[str]] = {}
    for owner_name, module in root.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(owner_name)
    problems, weights = [], {}
    for name, layer in layers.items():
        shared = [owner for owner in owners[id(layer.base.weight)] if owner != f"{name}.base"]
        if shared:
            problems.append(f"{name}.weight is shared with {', '.join(shared)}, which a merge would change too")
        with torch.no_grad():
            weight = layer.weight
        if not weight.is_meta and not bool(torch.isfinite(weight).all()):
            problems.append(f"{name}.weight would not be finite: its A, B or base weight holds NaN or infinity")
        weights[name] = nn.Parameter(weight, requires_grad=layer.base.weight.requires_grad)
    if problems:
        raise AdapterStateError(gathered("the adapter cannot be merged:", problems))
    return weights


def _finish(root: nn.Module, record: Adaptation) -> None:
    for name, parameter in root.named_parameters():
        parameter.requires_grad_(record.was_trainable.get(name, parameter.requires_grad))
    delattr(root, ADAPTATION)
