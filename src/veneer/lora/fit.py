"""Whether an adapter fits a model: every tensor its place, every place its tensor, and the weights it was trained on.

Each function returns a line for each problem, so that all are told at once and nothing has changed by then.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from veneer.lora.conflicts import UNTIE
from veneer.lora.fingerprint import differs
from veneer.lora.finite import is_finite
from veneer.lora.kinds import EMBEDDING
from veneer.lora.layers import plain_modules
from veneer.lora.own_tensors import own_tensors, trained_names
from veneer.lora.plan import Plan, Target
from veneer.lora.state import AdapterState, LowRank
from veneer.lora.updates import is_scattered

TWIN_TOLERANCE = 1e-4
"""Relative difference up to which two views of one update count as the same: algebra works on each by itself."""


def misfits(model: nn.Module, the_plan: Plan, adapter: AdapterState) -> list[str]:
    """Return a line for each place without its tensor, each tensor without a place, and each that does not fit.

    The values of the updates are not looked at: see `overflows`.
    """
    found = _update_misfits(the_plan, adapter) + _trained_misfits(model, the_plan, adapter)
    return sorted(found + _token_row_misfits(model, the_plan, adapter))


def _update_misfits(the_plan: Plan, adapter: AdapterState) -> list[str]:
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
    for name in targets.keys() & adapter.updates:
        found += _update_problems(targets[name], adapter.updates[name], adapter)
    return found


def _trained_misfits(model: nn.Module, the_plan: Plan, adapter: AdapterState) -> list[str]:
    expected = own_tensors(model, trained_names(the_plan, model))
    found = [
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
    return found


def _token_row_misfits(model: nn.Module, the_plan: Plan, adapter: AdapterState) -> list[str]:
    modules = dict(plain_modules(model)) if adapter.token_rows else {}
    wanted = the_plan.config.token_rows
    found = [
        f"{name}: the adapter holds token rows that the model does not train, or the other way round"
        for name in wanted.keys() ^ adapter.token_rows.keys()
    ]
    for name in wanted.keys() & adapter.token_rows.keys():
        ids, values = wanted[name], adapter.token_rows[name]
        if tuple(sorted(values.ids.tolist())) != ids:
            found.append(f"{name}: the token rows are of the ids {values.ids.tolist()}, but the config names {ids}")
        _, width = EMBEDDING.sizes(modules[name])
        found += _tensor_problems(f"{name} rows", values.rows, (len(values.ids), width), torch.float32)
    return found


def overflows(adapter: AdapterState, *, is_tested: bool) -> list[str]:
    """Return a line for each part of an update that float32, in which updates are held, would not hold.

    Args:
        adapter: the adapter.
        is_tested: whether no part holds NaN or infinity as it is; a wider one may still overflow.
    """
    narrow = torch.float32.itemsize
    return [
        line
        for name, update in adapter.updates.items()
        for part, tensor in update.tensors().items()
        if not (is_tested and tensor.dtype.itemsize <= narrow)
        for line in _value_problems(f"{name}.{part}", tensor, torch.float32)
    ]


def _update_problems(target: Target, update: LowRank, adapter: AdapterState) -> list[str]:
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
            found += _shape_problems(f"{name}.{part}", tensor, shape, torch.float32)
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
    if not (seen - expected).norm() > TWIN_TOLERANCE * expected.norm():  # NaN is told by `overflows`, and only there
        return []
    return [f"{target.name} shares its weight with {target.tied_to}, but the adapter changes the two differently"]


def base_problems(model: nn.Module, weights: Mapping[str, Tensor], adapter: AdapterState) -> list[str]:
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


def _tensor_problems(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> list[str]:
    return _shape_problems(name, tensor, shape, dtype) or _value_problems(name, tensor, dtype)


def _shape_problems(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> list[str]:
    if tuple(tensor.shape) != shape:
        return [f"{name} has shape {tuple(tensor.shape)}, but the model needs {shape}"]
    if tensor.is_floating_point() != dtype.is_floating_point:
        return [f"{name} has dtype {tensor.dtype}, but the model needs {dtype}"]
    return []


def _value_problems(name: str, tensor: Tensor, dtype: torch.dtype) -> list[str]:
    if tensor.is_floating_point() and not is_finite(tensor.to(dtype)):
        return [f"{name} holds NaN or infinity, or what {dtype} cannot hold"]
    return []
