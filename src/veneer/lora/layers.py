"""Adapted layers: a frozen `base` module and the update, or updates, beside it.

They wrap their base and are no subclass of it: the base stays the user's very object, untouched, and can be put back.
What they have not themselves, they take from the base, so a model that asks a layer for its `in_features`, `nf` or
`padding_idx` gets an answer. A forward pass changes nothing. There is no merged state: see `inject.py` for merging.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from veneer.lora.kernels import can_fuse
from veneer.lora.kinds import Kind, LinearKind, OpaqueKind, ParameterKind
from veneer.lora.updates import LoraUpdate, LowRankUpdate, RowsUpdate, Update
from veneer.lora.walk import named_modules


@dataclass(frozen=True, eq=False)
class Slot:
    """One weight of a base module and its update."""

    base: nn.Module
    kind: Kind
    update: Update

    @property
    def weight(self) -> Tensor:
        """The base's own weight."""
        return self.kind.weight_of(self.base)

    def merged_weight(self) -> Tensor:
        """Return the adapted weight in the shape and dtype of the base's, rounded once."""
        return self.kind.shaped(self.update.matrix(self.kind, self.base), self.base)


class AdaptedModule(nn.Module):
    """A base module with something added; what is not here is the base's."""

    base: nn.Module

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as nn.Module's own
        """Return a parameter or module of this layer, or else the base's attribute of that name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base" or name.startswith("__"):
                raise
            return getattr(self.base, name)

    def follow_mode(self) -> None:
        """Take over whether the base is in training mode, and leave the modules inside the base as they are."""
        self.training = self.base.training
        for name, module in self._modules.items():
            if name != "base" and module is not None:
                module.train(self.training)


class AdaptedLayer(AdaptedModule):
    """A layer with an update: h = W0 x + b + s B A x, in the words of its kind.

    Args:
        base: the layer as it was; it is not changed.
        update: the trained part.
        kind: how the base's weight is seen.
    """

    update: Update
    kind: Kind

    def __init__(self, base: nn.Module, update: Update, kind: Kind) -> None:
        super().__init__()
        self._modules.update(base=base, update=update)
        vars(self).update(kind=kind, training=base.training)
        vars(update).update(training=base.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map an input of the base to an output of the base's shape."""
        x = self.kind.cast(x)
        base, update = self.base, self.update
        if type(self.kind) is LinearKind and isinstance(update, LoraUpdate) and can_fuse(base, update, x):
            return update.fused(x, base)
        output: Tensor = update(x, base(x), self.kind, base)
        return output

    @property
    def weight(self) -> Tensor:
        """The weight this layer acts with, with gradients to the update.

        Some modules bypass `forward` and compute with `layer.weight` themselves: `nn.MultiheadAttention` with its
        output projection, `nn.TransformerEncoderLayer` with both linear layers on its fast path. They get the adapted
        weight. Costs one product B A at each reading. Of a quantised layer it is the base's own weight, which nothing
        can compute with but the layer.
        """
        slot = Slot(self.base, self.kind, self.update)
        return slot.weight if isinstance(self.kind, OpaqueKind) else slot.merged_weight()

    def slots(self) -> Iterator[tuple[str, Slot]]:
        """Yield ("", the one weight and its update)."""
        yield "", Slot(self.base, self.kind, self.update)


_MAKING = threading.Lock()
_LOCKS: WeakKeyDictionary[nn.Module, AbstractContextManager[object]] = WeakKeyDictionary()
"""One for each base, apart from it, so that copies and pickles hold none."""


def _alone(base: nn.Module) -> AbstractContextManager[object]:
    """Return a context that one thread is in at a time for each base; none where a compiler traces what is in it.

    `functional_call` puts tensors into a module and takes them out again: two threads would take out each other's.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    with _MAKING:
        return _LOCKS.setdefault(base, threading.RLock())


class AdaptedParameters(AdaptedModule):
    """A module that computes with parameters of its own, such as stacked experts, and the updates of some of them.

    The base is called with the adapted parameters in the place of its own (`torch.func.functional_call`): it keeps
    its class and its weights. Each call forms the adapted weights once, and so does reading one of them: some modules
    compute with another's parameters, as `nn.TransformerEncoderLayer` does with its attention's on its fast path.

    Args:
        base: the module as it was.
        updates: the update of each adapted parameter, by its name.
    """

    def __init__(self, base: nn.Module, updates: Mapping[str, LowRankUpdate]) -> None:
        super().__init__()
        self.base = base
        self.updates = nn.Module()
        self.updates._modules.update(updates)  # whatever they are called: ModuleDict keeps some names to itself
        self.follow_mode()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as nn.Module's own
        """Return the adapted weight of a parameter that has an update; all else as in every adapted module."""
        updates = vars(self).get("_modules", {}).get("updates")  # modules too are looked up by this method
        if updates is None or name not in updates._modules:
            return super().__getattr__(name)
        with _alone(self.base):
            return dict(self.slots())[name].merged_weight()

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the base's own signature
        """Map what the base maps."""
        with _alone(self.base):
            weights = {slot.kind.weight_name: slot.merged_weight() for _, slot in self.slots()}
            return torch.func.functional_call(self.base, weights, args, kwargs)

    def slots(self) -> Iterator[tuple[str, Slot]]:
        """Yield (name of a parameter, the parameter and its update)."""
        for name, update in self.updates._modules.items():
            assert isinstance(update, Update)
            yield name, Slot(self.base, ParameterKind(name), update)


def plain_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module with the name it has in the plain model; an adapted one just before its base."""
    plain = {"": ""}
    wrappers = set()
    for name, module in named_modules(root).items():
        parent, _, leaf = name.rpartition(".")
        if name and parent in wrappers and leaf == "base":
            plain[name] = plain[parent]
        elif name:
            plain[name] = f"{plain[parent]}.{leaf}" if plain[parent] else leaf
        if isinstance(module, AdaptedModule):
            wrappers.add(name)
        yield plain[name], module


def is_other_part(module: nn.Module) -> bool:
    """Return whether a module has something added that is no low-rank update."""
    return isinstance(module, AdaptedModule) and not isinstance(module, AdaptedLayer | AdaptedParameters)


def adapted_modules(root: nn.Module) -> dict[str, AdaptedLayer | AdaptedParameters]:
    """Return the adapted modules by the names their bases had."""
    return {
        name: module for name, module in plain_modules(root) if isinstance(module, AdaptedLayer | AdaptedParameters)
    }


def plain_weights(slots: Mapping[str, Slot]) -> dict[str, Tensor]:
    """Return the base's weight of each slot with a low-rank update and a float matrix of its own."""
    return {
        name: slot.weight
        for name, slot in slots.items()
        if not isinstance(slot.kind, OpaqueKind) and not isinstance(slot.update, RowsUpdate)
    }


def adapted_slots(root: nn.Module) -> dict[str, Slot]:
    """Return every adapted weight by the name of its layer, or of the parameter where a module has several."""
    return {
        f"{name}.{parameter}" if parameter else name: slot
        for name, module in adapted_modules(root).items()
        for parameter, slot in module.slots()
    }
