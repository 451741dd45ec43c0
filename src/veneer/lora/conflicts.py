"""Which settings do not go with which layers: one rule a line, each with the reason a refusal gives."""

from collections.abc import Callable, Sequence

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from veneer.lora.config import LoraConfig
from veneer.lora.init import INITS
from veneer.lora.kinds import OPAQUE, Kind
from veneer.lora.plan import Target
from veneer.lora.selectors import Pattern, nearest

Rule = Callable[[nn.Module, Kind, LoraConfig], bool]

RULES: tuple[tuple[Rule, str], ...] = (
    (
        lambda module, _kind, config: config.dropout > 0 and isinstance(module, NonDynamicallyQuantizableLinear),
        "is used by nn.MultiheadAttention through its weight, where dropout cannot act; set dropout to 0",
    ),
    (
        lambda _module, kind, config: config.variant == "dora" and kind is OPAQUE,
        "has no float weight whose rows DoRA could scale; use variant='lora'",
    ),
    (
        lambda _module, kind, config: config.variant == "dora" and kind.name == "parameter",
        "is a parameter of its own, for which no file format knows DoRA; use variant='lora'",
    ),
    (
        lambda _module, kind, config: INITS[config.init].needs_weight and kind is OPAQUE,
        "has no float weight to start from; use init='kaiming'",
    ),
    (
        lambda module, kind, config: (
            INITS[config.init].needs_weight and kind is not OPAQUE and any(p.is_meta for p in module.parameters())
        ),
        "is on the meta device, and this init reads the weights; load them first",
    ),
    (
        lambda _module, kind, config: config.init not in {"kaiming", "gaussian"} and kind.name == "parameter",
        "is a parameter of its own; use init='kaiming' or 'gaussian'",
    ),
    (
        lambda _module, kind, config: config.init == "eva" and kind.name in {"embedding", "conv"},
        "has no vectors as inputs for EVA to look at; exclude it or use another init",
    ),
)


def conflict(module: nn.Module, kind: Kind, config: LoraConfig) -> str | None:
    """Return why `config` cannot be applied to a layer that can be adapted as such, or None where it can."""
    return next((reason for applies, reason in RULES if applies(module, kind, config)), None)


def idle_patterns(config: LoraConfig, targets: Sequence[Target]) -> list[str]:
    """Return a line for each key of a pattern that is the rank or alpha of no target."""
    names = [target.name for target in targets]
    return [
        f"{label} {key!r} matches no layer that is adapted{nearest(key, names)}"
        for label in ("rank_pattern", "alpha_pattern")
        for key in Pattern(getattr(config, label)).idle(names)
        if names
    ]


def size_problems(target: Target, *, any_rank: bool) -> list[str]:
    """Return a line where a rank is too high for a layer, or its slices do not divide it."""
    out = target.out_features
    if target.slices is not None:
        if target.kind != "linear" or out % len(target.slices):
            return [
                f"fused gives {target.name!r} {len(target.slices)} slices, but it is a {target.kind} layer with {out} "
                "outputs; only a linear layer whose outputs they divide can be fused"
            ]
        out //= len(target.slices)
    if any_rank or target.r <= (limit := min(target.in_features, out)):
        return []
    size = f"at most {limit} for a layer of {target.in_features} x {out}"
    return [f"r={target.r} is larger than {target.name!r} allows: {size}; lower r or exclude the layer"]
