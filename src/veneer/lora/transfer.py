"""An adapter out of a model (`state`), into a plain model (`load_state`), and into an adapted one (`swap`)."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from veneer.errors import AdapterMismatchError, AdapterStateError, TargetError, gathered
from veneer.lora.build import Place, Values, build, located
from veneer.lora.conflicts import UNTIE
from veneer.lora.delta import trained_dtype
from veneer.lora.fingerprint import differs, fingerprint
from veneer.lora.finite import is_finite
from veneer.lora.inject import adapted_root, install
from veneer.lora.kinds import CONV, EMBEDDING, OpaqueKind
from veneer.lora.layers import Slot, adapted_slots, plain_modules, plain_weights
from veneer.lora.own_tensors import exchange, own_tensors, trained_names
from veneer.lora.plan import Plan, Target
from veneer.lora.selectors import exact_terms
from veneer.lora.state import AdapterState, LowRank, TokenRows, config_for, fitted, require_states
from veneer.lora.targets import ADAPTATION, plan
from veneer.lora.updates import DoraUpdate, LowRankUpdate, RowsUpdate, TiedUpdate, gathered_blocks, is_scattered
from veneer.lora.walk import named_modules, named_parameters

TWIN_TOLERANCE = 1e-4
"""Relative difference up to which two views of one update count as the same: algebra works on each by itself."""


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
    problems = _misfits(model, the_plan, adapter, is_fresh=is_fresh)
    problems += [
        f"{name} has {base.groups} groups, but the adapter's update of it has {adapter.updates[name].groups}"
        for name, (base, kind) in places.items()
        if kind is CONV and name in adapter.updates and adapter.updates[name].groups != base.groups
    ]
    if not problems and not any_base:
        weights = {n: p.kind.weight_of(p.base) for n, p in places.items() if not isinstance(p.kind, OpaqueKind)}
        problems = _base_problems(model, weights, adapter)
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
    problems = _misfits(root, record.plan, adapter)
    if not problems and not any_base:
        problems = _base_problems(root, plain_weights(slots), adapter)
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


def _misfits(model: nn.Module, the_plan: Plan, adapter: AdapterState, *, is_fresh: bool = False) -> list[str]:
    """Return a line for each place without its tensor, each tensor without a place, and each that does not fit."""
    targets = {target.name: target for target in the_plan.targets}
    twins = {target.tied_to: target.name for target in the_plan.targets if target.tied_to}
    found = []
    for name in targets.keys() - adapter.updates:
        if partner := targets[name].tied_to or twins.get(name):
            found.append(f"{name} shares its weight with {partner}, which the adapter changes alone; {UNTIE}")
        else:
            found.append(f"{name}: selected by the adapter's targets, but it holds no A and B")
    found += [
        f"{name}: the adapter holds A and B, but the model has no such target"
        for name in adapter.updates.keys() - targets.keys()
    ]
    for name in sorted(targets.keys() & adapter.updates):
        found += _update_problems(targets[name], adapter.updates[name], adapter, is_fresh=is_fresh)
    expected = own_tensors(model, trained_names(the_plan, model))
    found += [
        f"{name}: the model needs it, but the adapter holds no such tensor"
        for name in expected.keys() - adapter.trained
    ]
    found += [
        f"{name}: the adapter holds it, but the model has no such tensor" for name in adapter.trained.keys() - expected
    ]
    first_with: dict[int, str] = {}
    for name in sorted(expected.keys() & adapter.trained):
        first = first_with.setdefault(id(expected[name]), name)
        if first != name and not torch.equal(adapter.trained[first], adapter.trained[name]):
            found.append(f"{name} is shared with {first}, but the adapter holds two different values; {UNTIE}")
        found += _tensor_problems(name, adapter.trained[name], tuple(expected[name].shape), expected[name].dtype)
    modules = dict(plain_modules(model)) if adapter.token_rows else {}
    for name in the_plan.config.token_rows.keys() ^ adapter.token_rows.keys():
        found.append(f"{name}: the adapter holds token rows that the model does not train, or the other way round")
    for name, ids in the_plan.config.token_rows.items():
        values = adapter.token_rows.get(name)
        if values is None:
            continue
        if tuple(sorted(values.ids.tolist())) != ids:
            found.append(f"{name}: the token rows are of the ids {values.ids.tolist()}, but the config names {ids}")
        _, width = EMBEDDING.sizes(modules[name])
        found += _tensor_problems(f"{name} rows", values.rows, (len(values.ids), width), torch.float32)
    return sorted(found)


def _update_problems(target: Target, update: LowRank, adapter: AdapterState, *, is_fresh: bool) -> list[str]:
    """Return a line for each way in which an update does not fit its layer."""
    name = target.name
    if update.kind != target.kind:
        return [f"{name} is a {target.kind} layer, but the adapter holds the update of a {update.kind} layer"]
    if (update.magnitude is not None) != (adapter.config.variant == "dora"):
        return [f"{name}: a magnitude belongs to DoRA, and only there; the variant is {adapter.config.variant}"]
    A, B = update.matrices
    stack = () if target.experts is None else (target.experts,)
    expected = {
        "A": (A, (*stack, target.rank, target.in_features)),
        "B": (B, (*stack, target.out_features, target.rank)),
        "magnitude": (update.magnitude, (target.out_features,)),
    }
    found = []
    for part, (tensor, shape) in expected.items():
        if tensor is not None:
            found += _tensor_problems(f"{name}.{part}", tensor, shape, torch.float32, is_fresh=is_fresh)
    if not found and target.slices is not None and not is_scattered(B, target.slices):
        found.append(f"{name}.B reaches outside the adapted slices {target.slices} of the fused projection")
    if not found and target.tied_to is not None:
        found += _twin_problems(target, update, adapter)
    return found


def _twin_problems(target: Target, update: LowRank, adapter: AdapterState) -> list[str]:
    """Return a line where two layers that share a weight would get different updates."""
    source = adapter.updates.get(target.tied_to or "")
    if source is None:
        return []
    A, B = (source.A, source.B) if source.kind == update.kind else (source.B.t(), source.A.t())
    probe = torch.randn(update.A.shape[1], 4, generator=torch.Generator().manual_seed(0))
    seen, expected = (
        right @ (left @ probe) for left, right in ((update.A.float(), update.B.float()), (A.float(), B.float()))
    )
    if (seen - expected).norm() <= TWIN_TOLERANCE * expected.norm():
        return []
    return [f"{target.name} shares its weight with {target.tied_to}, but the adapter changes the two differently"]


def _base_problems(model: nn.Module, weights: Mapping[str, Tensor], adapter: AdapterState) -> list[str]:
    """Return a line for each sign that the adapter was trained on other weights than the model's."""
    advice = "load the base model it belongs to, or pass any_base=True (--any-base)"
    found = []
    if differs(adapter.fingerprint, weights):
        found.append(f"it was trained on a base model with other weights than this {type(model).__name__}; {advice}")
    modules = dict(plain_modules(model)) if adapter.base_copies else {}
    present = own_tensors(model, [name for name in adapter.base_copies if _has(modules, name)])
    for name, tensor in adapter.base_copies.items():
        if name not in present:
            found.append(f"{name}: the adapter carries a copy of it, but the model has no such tensor")
        elif not present[name].is_meta and not _equal(present[name], tensor):
            found.append(f"{name}: the model's differs from the copy that the adapter carries along; {advice}")
    return found


def _has(modules: Mapping[str, nn.Module], name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    owner = modules.get(path)
    return owner is not None and (leaf in owner._parameters or leaf in owner._buffers)


def _equal(present: Tensor, copy: Tensor) -> bool:
    return present.shape == copy.shape and torch.equal(present.detach().cpu(), copy.to(present.dtype))


def _tensor_problems(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, *, is_fresh: bool = False
) -> list[str]:
    if tuple(tensor.shape) != shape:
        return [f"{name} has shape {tuple(tensor.shape)}, but the model needs {shape}"]
    if tensor.is_floating_point() != dtype.is_floating_point:
        return [f"{name} has dtype {tensor.dtype}, but the model needs {dtype}"]
    is_tested = is_fresh and tensor.dtype.itemsize <= dtype.itemsize  # a wider one may hold what overflows
    if tensor.is_floating_point() and not is_tested and not is_finite(tensor.to(dtype)):
        return [f"{name} holds NaN or infinity, or what {dtype} cannot hold"]
    return []
