"""An adapter out of a model (`state`), into a plain model (`load_state`), and into an adapted one (`swap`)."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from veneer.errors import AdapterMismatchError, AdapterStateError, TargetError, gathered
from veneer.lora.build import Place, Values, build, located
from veneer.lora.delta import trained_dtype
from veneer.lora.fingerprint import fingerprint
from veneer.lora.fit import base_problems, misfits, overflows
from veneer.lora.inject import adapted_root, install
from veneer.lora.kinds import CONV, OpaqueKind
from veneer.lora.layers import Slot, adapted_slots, plain_weights
from veneer.lora.own_tensors import exchange, own_tensors, trained_names
from veneer.lora.plan import Plan, Target
from veneer.lora.selectors import exact_terms
from veneer.lora.state import AdapterState, LowRank, TokenRows, config_for, fitted, require_states
from veneer.lora.targets import ADAPTATION, plan
from veneer.lora.updates import DoraUpdate, LowRankUpdate, RowsUpdate, TiedUpdate, gathered_blocks
from veneer.lora.walk import named_modules, named_parameters


def state(model: nn.Module, *, base_model: str | None = None, task_type: str | None = None) -> AdapterState:
    """Return a copy of the adapter inside `model`, as trained: its strength is not in it.

    An adapter that subtracts its start (PiSSA, OLoRA, orthogonal) comes out as a plain low-rank update of twice the
    rank, s (B A - B0 A0), which needs neither the start nor the base to be read.

    Raises:
        AdapterStateError: the model is not adapted.
    """
    root, record = adapted_root(model)
    slots = adapted_slots(root)
    updates = {name: _low_rank(root, name, slot) for name, slot in slots.items() if not _is_rows(slot)}
    config = record.config
    if any(_low_rank_source(slot).start_A is not None for slot in slots.values() if not _is_rows(slot)):
        config = config_for(updates, {name: slots[name].update.scaling for name in updates}, like=config)
    trained = own_tensors(root, trained_names(record.plan, root))
    rows = {name: slots[name].update for name in config.token_rows}
    return AdapterState(
        config=config,
        updates=updates,
        trained={name: _copy(tensor) for name, tensor in trained.items()},
        trained_modules=record.plan.trained_modules,
        token_rows={
            name: TokenRows(_copy(update.ids), _copy(update.rows))
            for name, update in rows.items()
            if isinstance(update, RowsUpdate) and isinstance(update.ids, Tensor)
        },
        base_model=base_model,
        task_type=task_type,
        fingerprint=fingerprint(plain_weights(slots)),
    )


def load_state(model: nn.Module, adapter: AdapterState, *, trainable: bool = False, any_base: bool = False) -> Plan:
    """Adapt a plain `model` and fill it with `adapter`, whole or not at all; return the plan that was carried out.

    Every tensor must find its place and every place its tensor. `model.training` is left alone, and the adapter acts
    at once in both modes. On the meta device the adapter's own tensors are real, and the base is not looked at.

    Args:
        model: the base model, not adapted yet.
        adapter: what to load.
        trainable: whether the adapter and the modules trained whole may be trained on; otherwise everything is frozen.
        any_base: load also onto a base with other weights than the adapter was trained on.

    Raises:
        AdapterStateError: the model is adapted already.
        ConfigError: `adapter` is no AdapterState.
        AdapterMismatchError: the adapter does not fit, or was trained on other weights; every problem is named. The
            model is as it was.
    """
    require_states({"adapter": adapter})
    return _load(model, adapter, trainable=trainable, any_base=any_base, is_fresh=False)


def load_fresh(model: nn.Module, adapter: AdapterState, *, trainable: bool, any_base: bool) -> Plan:
    """Do what `load_state` does with an adapter just read from a file: tested for NaN there, and nobody else's.

    Its tensors are not tested again, and those that need no cast are not copied: the model has them from now on.
    """
    return _load(model, adapter, trainable=trainable, any_base=any_base, is_fresh=True)


def _load(model: nn.Module, adapter: AdapterState, *, trainable: bool, any_base: bool, is_fresh: bool) -> Plan:
    config = replace(adapter.config, init="kaiming")  # the values are at hand: nothing is drawn
    layers = {name for name, update in adapter.updates.items() if update.kind != "parameter"}
    if layers == set(config.targets):  # full names, one of which may be the end of a name that is not adapted
        names = list(named_modules(model))
        config = replace(config, targets=exact_terms([name for name in names if name in layers], names))
    try:
        the_plan = plan(model, config, adapter.trained_modules, any_rank=True)
    except TargetError as error:
        raise AdapterMismatchError(f"the adapter does not fit this model: {error}") from None
    places = located(model, the_plan)
    problems = misfits(model, the_plan, adapter) + overflows(adapter, is_tested=is_fresh)
    problems += [
        f"{name} has {base.groups} groups, but the adapter's update of it has {adapter.updates[name].groups}"
        for name, (base, kind) in places.items()
        if kind is CONV and name in adapter.updates and adapter.updates[name].groups != base.groups
    ]
    if not problems and not any_base:
        weights = {n: p.kind.weight_of(p.base) for n, p in places.items() if not isinstance(p.kind, OpaqueKind)}
        problems = base_problems(model, weights, adapter)
    if problems:
        raise AdapterMismatchError(gathered(f"the adapter does not fit {type(model).__name__}:", problems))
    values = {
        target.name: _values(target, places[target.name], adapter.updates[target.name], copy=not is_fresh)
        for target in the_plan.targets
        if target.tied_to is None
    }
    install(model, the_plan, build(model, the_plan, places, values, subtract_start=False))
    _fill_others(model, adapter)
    if not trainable:
        for parameter in named_parameters(model).values():
            parameter.requires_grad_(False)
    return the_plan


def swap(model: nn.Module, adapter: AdapterState, *, any_base: bool = False) -> None:
    """Replace the adapter inside `model` by another of the same shape, in place.

    Values are written into the tensors that are there, so a compiled model, an optimiser or a captured graph goes on
    with them. Layers, ranks, variant and the modules trained whole must be the same; alpha may differ, and dropout and
    whether A is trained, which the model takes over.

    Args:
        model: an adapted model.
        adapter: what to put there.
        any_base: see `load_state`.

    Raises:
        AdapterStateError: the model is not adapted, or its adapter subtracts its start.
        ConfigError: `adapter` is no AdapterState.
        AdapterMismatchError: the adapter does not fit; every problem is named. The model is as it was.
    """
    require_states({"adapter": adapter})
    root, record = adapted_root(model)
    slots = adapted_slots(root)
    if any(_low_rank_source(slot).start_A is not None for slot in slots.values() if not _is_rows(slot)):
        raise AdapterStateError("the adapter in the model subtracts its start; remove it and load the other one")
    problems = misfits(root, record.plan, adapter) + overflows(adapter, is_tested=False)
    if not problems and not any_base:
        problems = base_problems(root, plain_weights(slots), adapter)
    if problems:
        raise AdapterMismatchError(gathered("the adapter cannot take the place of the one in the model:", problems))
    _fill(root, adapter)
    targets = tuple(replace(target, scaling=adapter.factor(target.name)) for target in record.plan.targets)
    taken = {name: getattr(adapter.config, name) for name in ("scaling", "dropout", "train_A")}
    like = replace(record.config, **taken)
    config = fitted(like, {t.name: t.r for t in targets}, {t.name: t.scaling for t in targets})
    the_plan = replace(record.plan, config=config, targets=targets)
    setattr(root, ADAPTATION, replace(record, plan=the_plan))


def _values(target: Target, place: Place, update: LowRank, *, copy: bool) -> Values:
    """Return an update's tensors or copies of them, in the shapes, dtype and place that a layer holds them in."""
    base, kind = place
    weight = kind.like(base) if isinstance(kind, OpaqueKind) else kind.weight_of(base)
    device = torch.device("cpu") if weight.is_meta else weight.device
    dtype = trained_dtype(weight)
    A, B = update.matrices
    packed = B if target.slices is None else gathered_blocks(B, target.slices)
    A, packed = (part.to(device, dtype, copy=copy) for part in (A, packed))
    magnitude = None if update.magnitude is None else update.magnitude.to(device, dtype, copy=copy)
    return Values(A, packed, magnitude)


def _fill(root: nn.Module, adapter: AdapterState) -> None:
    """Write the adapter's values into the tensors of an adapted model that they fit."""
    with torch.no_grad():
        for name, slot in adapted_slots(root).items():
            if isinstance(slot.update, LowRankUpdate):
                values = adapter.updates[name]
                A, B = values.matrices
                slot.update.A.copy_(A)
                slot.update.B.copy_(B if slot.update.slices is None else gathered_blocks(B, slot.update.slices))
                if isinstance(slot.update, DoraUpdate):
                    assert values.magnitude is not None
                    slot.update.magnitude.copy_(values.magnitude)
                slot.update.dropout = adapter.config.dropout
                slot.update.A.requires_grad_(slot.update.B.requires_grad and adapter.config.train_A)
            if not isinstance(slot.update, RowsUpdate):
                slot.update.set_constants(scaling=adapter.factor(name), strength=slot.update.strength)
    _fill_others(root, adapter)


def _fill_others(root: nn.Module, adapter: AdapterState) -> None:
    """Write what the adapter holds besides updates; onto the meta device comes the adapter's tensor itself."""
    slots = adapted_slots(root) if adapter.token_rows else {}
    present = own_tensors(root, adapter.trained)
    with torch.no_grad():
        for name, values in adapter.token_rows.items():
            update = slots[name].update
            assert isinstance(update, RowsUpdate)
            update.fill(values.rows[values.ids.argsort()], values.ids.sort().values)
        for name, tensor in present.items():
            if not tensor.is_meta:
                tensor.copy_(adapter.trained[name])
    exchange(root, {name: adapter.trained[name].clone() for name, tensor in present.items() if tensor.is_meta})


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _is_rows(slot: Slot) -> bool:
    return isinstance(slot.update, RowsUpdate)


def _low_rank_source(slot: Slot) -> LowRankUpdate:
    """Return the update whose parameters a slot computes with: its own, or the one it is tied to."""
    update = slot.update.source if isinstance(slot.update, TiedUpdate) else slot.update
    assert isinstance(update, LowRankUpdate)
    return update


def _low_rank(root: nn.Module, name: str, slot: Slot) -> LowRank:
    assert isinstance(slot.update, LowRankUpdate | TiedUpdate)
    A, B = (_copy(factor) for factor in slot.update.factors())
    if slot.kind.name == "conv":
        A = A.view(A.shape[0], *slot.weight.shape[1:])
    return LowRank(
        A.contiguous(),
        B.contiguous(),
        magnitude=_copy(slot.update.magnitude) if isinstance(slot.update, DoraUpdate) else None,
        kind=slot.kind.name,
        groups=getattr(slot.base, "groups", 1) if slot.kind.name == "conv" else 1,
    )
