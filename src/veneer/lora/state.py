"""An adapter as a value: `AdapterState`, the one thing that crosses borders.

File formats read and write it, algebra acts on it, and none of them sees a module. `transfer.py` takes it out of a
model and puts it into one. Names are those of the plain base model.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from jaxtyping import Float, Int
from torch import Tensor

from veneer.errors import require_type
from veneer.lora.config import LoraConfig
from veneer.lora.delta import ALPHA_RULES, delta_weight
from veneer.lora.fingerprint import Fingerprint
from veneer.lora.selectors import name_ends

Number = TypeVar("Number", int, float)
KindName = Literal["linear", "embedding", "conv", "parameter"]


@dataclass(frozen=True, eq=False)
class LowRank:
    """The update of one layer.

    A and B are seen as `delta.py` sees them: an embedding of V tokens has in = V, and a convolution
    in = channels / groups * kernel, for which A keeps the kernel's dimensions. Layers that share one weight, as an
    embedding and an output layer do, each carry the update as they see it.
    """

    A: Tensor
    """(r, in); of a convolution (r, in / groups, *kernel); of stacked experts (experts, r, in)."""
    B: Tensor
    """(out, r); of stacked experts (experts, out, r)."""
    magnitude: Tensor | None = None
    """DoRA's length of each row of the weight, (out,); None for plain LoRA."""
    kind: KindName = "linear"
    """"linear" covers transposed and quantised linear layers too; "parameter" is one that a module computes with
    itself, named "<module>.<parameter>"."""
    groups: int = 1
    """Groups of a convolution."""

    @property
    def matrices(self) -> tuple[Float[Tensor, "*stack r in"], Float[Tensor, "*stack out r"]]:
        """A and B as matrices: the kernel's dimensions of a convolution flattened into `in`."""
        return (self.A.flatten(1) if self.kind == "conv" else self.A), self.B

    @property
    def rank(self) -> int:
        """Rows of A: r, times the adapted slices of a fused projection."""
        return self.B.shape[-1]

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained tensors by their names."""
        named = {"A": self.A, "B": self.B, "magnitude": self.magnitude}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of an embedding that replace the base model's."""

    ids: Int[Tensor, " tokens"]
    rows: Float[Tensor, "tokens dim"]


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterState:
    """Everything that was trained, by the names it has in the plain base model; all tensors on the CPU."""

    config: LoraConfig
    """The settings, targets written out. Ranks and scalings of all layers follow from it and from A's shape."""
    updates: Mapping[str, LowRank]
    """The update of each adapted layer."""
    trained: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameters and buffers of the modules that were trained whole, and trained biases, by full name."""
    trained_modules: tuple[str, ...] = ()
    """The names of those modules."""
    token_rows: Mapping[str, TokenRows] = field(default_factory=dict)
    """Trained rows by the name of their embedding."""
    base_copies: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights of the base that the file carried along, by full name; loading checks that the model has the same."""
    base_model: str | None = None
    """Hub id or path of the pretrained model, as a hint for whoever loads the adapter."""
    task_type: str | None = None
    """PEFT's name of the task, such as "SEQ_CLS"."""
    fingerprint: Fingerprint = field(default_factory=dict)
    """What the base's adapted weights were, dtype -> layer -> digest; empty where unknown. See `fingerprint.py`."""

    def __repr__(self) -> str:
        """Return one line: layers, ranks, variant, what was trained whole and the base model; no tensors."""
        ranks = sorted({update.rank for update in self.updates.values()})
        parts = [f"{len(self.updates)} layer{'s' * (len(self.updates) != 1)}"]
        if ranks:
            parts.append(f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}")
        parts.append(self.config.variant)
        if whole := [*self.trained, *(f"{len(entry.ids)} rows of {name}" for name, entry in self.token_rows.items())]:
            more = f" and {len(whole) - 3} more" * (len(whole) > 3)
            parts.append(f"trained whole: {', '.join(whole[:3])}{more}")
        return f"AdapterState({'; '.join([*parts, f'base_model={self.base_model!r}'])})"

    def factor(self, name: str) -> float:
        """Return the scaling s of a layer's update."""
        return self.config.factor_of(name)

    def delta(self, name: str) -> Float[Tensor, "*stack out in"]:
        """Return s B A of a layer, as a matrix, in float32 or wider."""
        A, B = self.updates[name].matrices
        wide = A.double() if A.dtype.itemsize == 8 else A.float()
        return delta_weight(wide, B.to(wide.dtype), self.factor(name))


def require_states(values: Mapping[str, object]) -> None:
    """Raise a `ConfigError` that names each value, by its name, that is no AdapterState."""
    advice = "take an adapter out of a model by veneer.state(model), or read one by veneer.read_adapter(path)"
    require_type(values, AdapterState, advice)


def config_for(
    updates: Mapping[str, LowRank], factors: Mapping[str, float], like: LoraConfig | None = None
) -> LoraConfig:
    """Return the config under which `updates` have their ranks and these scalings: plain names, patterns as needed.

    Args:
        updates: the updates by full name; a fused projection counts as one layer of its full rank.
        factors: s of each of them.
        like: the settings that all else is taken from.
    """
    settings = fitted(like or LoraConfig(), {name: update.rank for name, update in updates.items()}, factors)
    return replace(
        settings,
        targets=tuple(name for name, update in updates.items() if update.kind != "parameter"),
        parameters=tuple(name for name, update in updates.items() if update.kind == "parameter"),
        exclude=(),
        layers=None,
        fused={},
        variant="dora" if any(update.magnitude is not None for update in updates.values()) else "lora",
        init="kaiming",
    )


def fitted(config: LoraConfig, ranks: Mapping[str, int], factors: Mapping[str, float]) -> LoraConfig:
    """Return a config with the r and alpha of most layers, and a pattern entry for each of the others.

    Args:
        config: what all else is taken from.
        ranks: rank by full name.
        factors: the scaling s by full name.
    """
    alphas = {name: _alpha(config, factors[name], rank) for name, rank in ranks.items()}
    r, alpha = _most_common(ranks.values(), config.r), _most_common(alphas.values(), config.alpha)
    return replace(config, r=r, alpha=alpha, rank_pattern=_pattern(ranks, r), alpha_pattern=_pattern(alphas, alpha))


def _pattern(values: Mapping[str, Number], default: Number) -> dict[str, Number]:
    """Return the entries that give each name its value where it is not the default.

    PEFT matches an entry at the end of a name too, so a name that is the end of another one is tied to its start.
    """
    others = {name: value for name, value in values.items() if value != default}
    ends = {end for name in values for end in list(name_ends(name))[1:]} if others else ()
    return {f"{'^' * (name in ends)}{re.escape(name)}": value for name, value in others.items()}


def _alpha(config: LoraConfig, factor: float, rank: int) -> float:
    """Return the alpha that gives a layer its scaling, without the last digits' noise."""
    if factor == config.factor and rank == config.r:
        return config.alpha
    return float(f"{ALPHA_RULES[config.scaling](factor, rank):.15g}")


def _most_common(values: Iterable[Number], default: Number) -> Number:
    return next((value for value, _ in Counter(values).most_common(1)), default)
