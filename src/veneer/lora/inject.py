"""The verbs that change a model: adapt, remove, merge, set_strength, and the contexts `disabled` and `merged`.

`adapt` wraps the planned layers in place and freezes the rest. What it needs to undo that, it leaves on the module it
was called with, in one attribute, as an `Adaptation`: a plain value that `copy.deepcopy` and `pickle` carry along.
Outer wrappers (DDP, `torch.compile`, a bigger model) do not matter: every verb finds the adapted module inside.

Each verb gathers all obstacles first and raises before anything has changed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from veneer.errors import AdapterStateError, ConfigError, gathered
from veneer.lora.build import build, drawn_values, located
from veneer.lora.config import MAX_ALPHA, LoraConfig, is_number
from veneer.lora.finite import is_finite
from veneer.lora.init import INITS
from veneer.lora.kinds import OpaqueKind
from veneer.lora.layers import (
    AdaptedLayer,
    AdaptedParameters,
    Slot,
    adapted_modules,
    adapted_slots,
    is_other_part,
    plain_modules,
)
from veneer.lora.own_tensors import exchange, own_tensors, trained_names
from veneer.lora.plan import Plan
from veneer.lora.selectors import Inside
from veneer.lora.targets import ADAPTATION, plan
from veneer.lora.walk import named_modules, named_parameters, parameters_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Adaptation:
    """What `adapt` did to a model: enough to save the adapter and to undo everything."""

    plan: Plan
    was_trainable: Mapping[str, bool]
    """`requires_grad` of each parameter before, by its name in the model as it was."""
    originals: Mapping[str, Tensor]
    """What is trained besides the updates, and the buffers of frozen batch norms, as they were, by full name."""
    momenta: Mapping[str, float | None]
    """`momentum` of the frozen batch norms before: it is 0 while adapted, so that their statistics stay frozen too."""

    @property
    def config(self) -> LoraConfig:
        """The settings with the targets written out."""
        return self.plan.config


class Suspended:
    """Stands in for the record while a context has taken the adapter out.

    A copy or pickle that is made within the block has the plain layers, and no record to put anything back.
    """

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Become None in a copy."""
        return type(None), ()


def adapt(
    model: nn.Module,
    config: LoraConfig,
    train_also: Sequence[str] = (),
    *,
    batches: Iterable[object] | None = None,
) -> Plan:
    """Adapt `model` in place and freeze the rest; return the plan that was carried out.

    The start is drawn with `config.seed`. Whatever the init, the model's output does not change: not at all where B
    starts at zero, to rounding where a start is subtracted (orthogonal, PiSSA, OLoRA). The modules in `train_also`
    become trainable as they are; what they held is kept for `remove` and `disabled`.

    Args:
        model: any module; layers are replaced inside it.
        config: the settings.
        train_also: names of modules to train whole, such as a classifier.
        batches: inputs of the model, for `init="eva"` only: mappings of keyword arguments, tuples, or single inputs.

    Raises:
        AdapterStateError: as for `plan`.
        ConfigError: `batches` is missing for `init="eva"`, or given for another.
        TargetError: see `plan`. Nothing has changed then.
    """
    the_plan = plan(model, config, train_also)
    places = located(model, the_plan)
    values = drawn_values(model, the_plan, places, batches)
    install(model, the_plan, build(model, the_plan, places, values, subtract_start=INITS[config.init].subtracted))
    return the_plan


def install(model: nn.Module, the_plan: Plan, modules: Mapping[str, AdaptedLayer | AdaptedParameters]) -> None:
    """Put built modules into their places, freeze the rest, and leave the record of it all on `model`."""
    all_modules = named_modules(model)
    norms = _frozen_norms(all_modules, the_plan)
    statistics = [
        f"{name}.{leaf}" for name, norm in norms.items() for leaf, buffer in norm._buffers.items() if buffer is not None
    ]
    own = own_tensors(model, [*trained_names(the_plan, model), *statistics])
    parameters = parameters_of(all_modules)
    record = Adaptation(
        plan=the_plan,
        was_trainable={name: parameter.requires_grad for name, parameter in parameters.items()},
        originals={name: tensor.detach().clone() for name, tensor in own.items()},
        momenta={name: norm.momentum for name, norm in norms.items()},
    )
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    for name in the_plan.trained_modules:
        for parameter in model.get_submodule(name).parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    for name in the_plan.trained_biases:
        model.get_parameter(name).requires_grad_(True)
    for norm in norms.values():
        norm.momentum = 0.0
    _replace(all_modules.values(), {module.base: module for module in modules.values()})
    setattr(model, ADAPTATION, record)


def remove(model: nn.Module) -> None:
    """Undo `adapt`: put the very modules back that were there, with their weights and `requires_grad` as they were.

    Raises:
        AdapterStateError: the model is not adapted, or what is to be put back has no place in it any more. Nothing
            has changed then.
    """
    root, record = adapted_root(model)
    trained = _places_of(root, record.originals)
    _replace(named_modules(root).values(), {module: module.base for module in adapted_modules(root).values()})
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(record.originals[name])
    _finish(root, record)


def merge(model: nn.Module, *, quantized: Callable[[nn.Linear], nn.Module] | None = None) -> dict[str, float]:
    """Make the adapter permanent: plain layers with W0 + s B A, no added latency, nothing left to remove.

    Args:
        model: the adapted model.
        quantized: what becomes of quantised layers, which are refused otherwise: given a plain `nn.Linear` with the
            merged weight, return the layer to put in its place. `lambda linear: linear` leaves it plain.

    Returns:
        For each quantised layer the relative error of its new weight, |W' - (W0 + s B A)| / |W0 + s B A|.

    Raises:
        AdapterStateError: the model is not adapted, a merged weight would not be finite, or a layer is quantised and
            `quantized` is not given. Nothing has changed then.
    """
    root, record = adapted_root(model)
    slots, adapted = adapted_slots(root), adapted_modules(root)
    successors: dict[nn.Module, nn.Module] = {module: module.base for module in adapted.values()}
    opaque = {name: slot for name, slot in slots.items() if isinstance(slot.kind, OpaqueKind)}
    refused = [] if quantized else _without_weight(opaque)
    if refused:
        advice = "; pass quantized= to say what to put in the place of such layers, as in `lambda linear: linear`:"
        raise AdapterStateError(gathered("the adapter cannot be merged" + advice, refused))
    weights = _merged_weights(root, {name: slot for name, slot in slots.items() if name not in opaque})
    errors = {}
    for name, slot in opaque.items():
        assert quantized is not None
        successors[adapted[name]], errors[name] = _requantized(slot, quantized)
    for name, weight in weights.items():
        slots[name].base._parameters[slots[name].kind.weight_name] = weight
    _replace(named_modules(root).values(), successors)
    _finish(root, record)
    return errors


def set_strength(model: nn.Module, strength: float) -> None:
    """Let a share of the adapter act: 0 is the base, 1 the adapter as trained, 0.5 halfway, more than 1 beyond.

    The effective weight is W0 + strength (W' - W0). Modules trained whole and biases act in full at every strength. A
    compiled model is not compiled again.

    Raises:
        AdapterStateError: the model is not adapted.
        ConfigError: `strength` is not a number, or beyond any use.
    """
    root, _ = adapted_root(model)
    if not is_number(strength) or not abs(strength) <= MAX_ALPHA:
        limit = f"from -{MAX_ALPHA:g} to {MAX_ALPHA:g}"
        raise ConfigError(f"strength is {strength!r}; it must be a number {limit}, 1 for the adapter as trained")
    for slot in adapted_slots(root).values():
        slot.update.set_constants(scaling=slot.update.scaling, strength=float(strength))


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Within the block the model computes what its base computed before `adapt`; afterwards all is as it was.

    Raises:
        AdapterStateError: the model is not adapted.
    """
    root, record = adapted_root(model)
    _places_of(root, record.originals)
    with _suspended(root, record):
        trained = exchange(root, {name: tensor.clone() for name, tensor in record.originals.items()})
        try:
            yield
        finally:
            exchange(root, trained)


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Within the block the adapted layers are plain layers with merged weights; afterwards all is as it was.

    Raises:
        AdapterStateError: as for `merge`; quantised layers cannot be merged for a while.
    """
    root, record = adapted_root(model)
    slots = adapted_slots(root)
    if opaque := _without_weight(slots):
        raise AdapterStateError(gathered("the adapter cannot be merged for a block:", opaque))
    weights = _merged_weights(root, slots)
    with _suspended(root, record):
        own: dict[str, nn.Parameter | None] = {}
        for name, slot in slots.items():
            own[name] = slot.base._parameters[slot.kind.weight_name]
            slot.base._parameters[slot.kind.weight_name] = weights[name]
        try:
            yield
        finally:
            for name, slot in slots.items():
                slot.base._parameters[slot.kind.weight_name] = own[name]


def adapted_root(model: nn.Module) -> tuple[nn.Module, Adaptation]:
    """Return the module that `adapt` was called with, `model` itself or one inside it, and what was done to it.

    Raises:
        AdapterStateError: there is none, or more than one, or it is within `disabled` or `merged`, or it holds parts
            that are no low-rank updates, of which these verbs would know nothing.
    """
    modules = named_modules(model)
    root, record = _recorded(model, modules.values())
    inside = modules if root is model else named_modules(root)
    parts = [name for name, module in inside.items() if is_other_part(module)]
    if parts:
        raise AdapterStateError(
            f"{type(model).__name__} holds parts of a method that is not LoRA alone ({', '.join(parts[:3])}"
            f"{', ...' if len(parts) > 3 else ''}); use trained_state, load_trained_state and detach of "
            "veneer.methods.trained"
        )
    return root, record


def recorded_root(model: nn.Module) -> tuple[nn.Module, Adaptation]:
    """Return the same whatever else the model holds.

    Raises:
        AdapterStateError: there is none, or more than one, or it is within `disabled` or `merged`.
    """
    return _recorded(model, named_modules(model).values())


def _recorded(model: nn.Module, modules: Iterable[nn.Module]) -> tuple[nn.Module, Adaptation]:
    roots = [module for module in modules if vars(module).get(ADAPTATION) is not None]
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


def _places_of(root: nn.Module, originals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what stands where these values were, or raise where something else does now."""
    try:
        present = own_tensors(root, originals)
        misfits = [name for name, tensor in present.items() if tensor.shape != originals[name].shape]
    except (AttributeError, KeyError) as error:
        present, misfits = {}, [str(error)]
    if misfits:
        raise AdapterStateError(
            f"the adapter cannot be taken out: modules were replaced after it went in ({', '.join(misfits)}); "
            "put the ones back that were there"
        )
    return present


def _frozen_norms(modules: Mapping[str, nn.Module], the_plan: Plan) -> dict[str, _NormBase]:
    """Return the norms whose running statistics would move in training although they are frozen."""
    is_trained = Inside(the_plan.trained_modules)
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, _NormBase) and module.running_mean is not None and not is_trained(name)
    }


@contextmanager
def _suspended(root: nn.Module, record: Adaptation) -> Iterator[None]:
    """Within the block the base layers stand where the adapted ones were, and no verb takes the model for adapted."""
    modules = list(adapted_modules(root).values())
    setattr(root, ADAPTATION, Suspended())
    try:
        _replace(named_modules(root).values(), {module: module.base for module in modules})
        yield
    finally:
        _replace(named_modules(root).values(), {module.base: module for module in modules})
        setattr(root, ADAPTATION, record)
        for module in modules:
            module.follow_mode()  # the block may have called train() or eval()


def _replace(parents: Iterable[nn.Module], successors: Mapping[nn.Module, nn.Module]) -> None:
    """Put each child's successor in its place, under every name that it is registered under."""
    for parent in parents:
        for name, child in parent._modules.items():
            if child is not None and child in successors:
                parent._modules[name] = successors[child]


def _without_weight(slots: Mapping[str, Slot]) -> list[str]:
    """Return a line for each layer whose weight is not at hand."""
    return [
        f"{name} is a {type(slot.base).__name__} without a plain float weight"
        for name, slot in slots.items()
        if isinstance(slot.kind, OpaqueKind)
    ]


def _merged_weights(root: nn.Module, slots: Mapping[str, Slot]) -> dict[str, nn.Parameter]:
    """Return every slot's merged weight, one for all that share it, or raise before anything has changed."""
    adapted_at = {(id(slot.base), slot.kind.weight_name) for slot in slots.values()}
    owners: dict[int, list[str]] = {}
    for owner_name, module in plain_modules(root):
        for leaf, parameter in module._parameters.items():
            if parameter is not None and (id(module), leaf) not in adapted_at:
                owners.setdefault(id(parameter), []).append(owner_name)
    problems, weights, by_base = [], {}, {}
    for name, slot in slots.items():
        if others := owners.get(id(slot.weight)):
            problems.append(f"{name}.weight is shared with {', '.join(others)}, which a merge would change too")
        if id(slot.weight) not in by_base:
            with torch.inference_mode(False), torch.no_grad():  # an inference tensor could never be trained again
                weight = slot.merged_weight()
            if not weight.is_meta and not is_finite(weight):
                problems.append(f"{name}.weight would not be finite: its update or base weight holds NaN or infinity")
            by_base[id(slot.weight)] = nn.Parameter(weight, requires_grad=slot.weight.requires_grad)
        weights[name] = by_base[id(slot.weight)]
    if problems:
        raise AdapterStateError(gathered("the adapter cannot be merged:", problems))
    return weights


def _requantized(slot: Slot, quantized: Callable[[nn.Linear], nn.Module]) -> tuple[nn.Module, float]:
    """Return the layer to put in a quantised one's place, and the relative error of its weight."""
    assert isinstance(slot.kind, OpaqueKind)
    with torch.no_grad():
        target = slot.update.matrix(slot.kind, slot.base).float()
        offset = slot.kind.offset(slot.base)
        linear = nn.Linear(target.shape[1], target.shape[0], bias=bool(offset.any()), device=target.device)
        linear.weight.copy_(target)
        if offset.any():
            linear.bias.copy_(offset)
        layer = quantized(linear.to(offset.dtype).requires_grad_(False)).train(slot.base.training)
        error = (slot.kind.matrix(layer).float() - target).norm() / target.norm().clamp_min(1e-30)
    return layer, float(error)


def _finish(root: nn.Module, record: Adaptation) -> None:
    for name, parameter in named_parameters(root).items():
        parameter.requires_grad_(record.was_trainable.get(name, parameter.requires_grad))
    modules = named_modules(root)
    for name, momentum in record.momenta.items():
        if isinstance(norm := modules.get(name), _NormBase):  # else it was replaced since
            norm.momentum = momentum  # None is a cumulative average
    delattr(root, ADAPTATION)
