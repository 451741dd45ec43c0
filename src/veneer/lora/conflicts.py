"""Why a plan is refused: which settings do not go with which layers, one rule a line, and what terms match nothing."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from veneer.errors import AdapterStateError, ConfigError, gathered
from veneer.lora.config import ALL_LINEAR, LoraConfig
from veneer.lora.init import INITS, odd_rank
from veneer.lora.kinds import OPAQUE, Kind, kind_of, own_matrices
from veneer.lora.plan import Target
from veneer.lora.selectors import Pattern, Selector, nearest

UNTIE = "untie them first, as in layer.weight = nn.Parameter(layer.weight.detach().clone())"
"""What to do where two layers share a weight and the adapter needs two."""

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


def require_types(model: object, config: object, train_also: object) -> None:
    """Raise a `ConfigError` where the arguments of `plan` are not of the kinds it takes."""
    problems = []
    if not isinstance(model, nn.Module):
        problems.append(f"model is {model!r}; it must be an nn.Module")
    if not isinstance(config, LoraConfig):
        problems.append(f"config is {config!r}; it must be a LoraConfig, as in LoraConfig(r=8)")
    if not isinstance(train_also, Sequence) or not all(isinstance(name, str) and name for name in train_also):
        problems.append(f"train_also is {train_also!r}; it must be a list of names, as in ['classifier']")
    elif isinstance(train_also, str):
        problems.append(f"train_also is the text {train_also!r}; it must be a list of names, as in [{train_also!r}]")
    if problems:
        raise ConfigError(gathered("cannot plan an adapter:", problems))


def require_bare(model: nn.Module) -> None:
    """Raise an `AdapterStateError` where an adapter would not work as the model is, or where this is called."""
    if "_orig_mod" in model._modules:
        raise AdapterStateError("the model is compiled already; adapt it first and compile it then")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise AdapterStateError(
            f"the model is in {type(model).__name__}, which would not pass the adapter's gradients on; adapt the "
            "model first and wrap it then"
        )
    if torch.is_inference_mode_enabled():
        raise AdapterStateError(
            "within torch.inference_mode nothing can be adapted that is used outside; leave it first"
        )


def target_problems(
    selector: Selector,
    term_of: Mapping[str, str],
    wanted: Sequence[str],
    reasons: Mapping[str, str | None],
    modules: Mapping[str, nn.Module],
) -> list[str]:
    """Return a line for each term that selects nothing adaptable, or else for each layer that cannot be adapted.

    Args:
        selector: the targets.
        term_of: the term that selects each module, of those that are selected.
        wanted: the selected modules that are not excluded.
        reasons: of those that are not trained whole, why they cannot be adapted, or None.
        modules: all modules by full name.
    """
    served = {term_of[name] for name, reason in reasons.items() if reason is None}
    only_trained = {term_of[name] for name in wanted} - {term_of[name] for name in reasons}
    found = []
    for term in selector.terms:
        if term in served or term in only_trained:
            continue  # what selects only modules trained whole, as PEFT's own files do, is listed as left out
        blocked = next((name for name in reasons if term_of[name] == term), None)
        if blocked:
            reason = f"selects only what cannot be adapted: {blocked!r} {reasons[blocked]}"
        elif term in term_of.values():
            reason = "selects only what is excluded or in other layers"
        elif any(other.endswith("." + term) for other in served):
            continue  # longer terms have taken everything that this one would select
        else:
            reason = f"matches no module{_hint(term, selector, modules)}"
        found.append(f"target {term!r} {reason}")
    return found or [
        f"{name!r} {reason}; exclude it or select more narrowly"
        for name, reason in reasons.items()
        if reason and own_matrices(modules[name])
    ]


def _hint(term: str, selector: Selector, modules: Mapping[str, nn.Module]) -> str:
    """Return what a term that matches no module may have meant."""
    if term.replace("_", "-").replace(" ", "-").lower() == ALL_LINEAR:
        return f"; all linear layers are targets={ALL_LINEAR!r}, a text by itself"
    owner = next((name for name, module in modules.items() if term.rpartition(".")[2] in module._parameters), None)
    if owner is not None and not selector.is_regex:
        return f"; {owner or 'the model'!r} has a parameter of that name: name it in `parameters`"
    near = nearest(term, [name for name, module in modules.items() if kind_of(module) is not None])
    return near + " (a string is a regular expression for the full name; a list gives names)" * selector.is_regex


def idle_patterns(config: LoraConfig, targets: Sequence[Target]) -> list[str]:
    """Return a line for each key of a pattern that is the rank or alpha of no target."""
    names = [target.name for target in targets]
    return [
        f"{label} {key!r} matches no layer that is adapted{nearest(key, names)}"
        for label in ("rank_pattern", "alpha_pattern")
        for key in Pattern(getattr(config, label)).idle(names)
        if names
    ]


def size_problems(target: Target, init: str, *, any_rank: bool) -> list[str]:
    """Return a line where a rank does not go with a layer or with the start that is to be drawn."""
    out = target.out_features
    if target.slices is not None:
        if target.kind != "linear" or out % len(target.slices):
            return [
                f"fused gives {target.name!r} {len(target.slices)} slices, but it is a {target.kind} layer with {out} "
                "outputs; only a linear layer whose outputs they divide can be fused"
            ]
        out //= len(target.slices)
    if any_rank:  # of what exists already
        return []
    if odd := odd_rank(init, target.r):
        return [f"{target.name!r}: {odd}"]
    if target.r <= (limit := min(target.in_features, out)):
        return []
    size = f"at most {limit} for a layer of {target.in_features} x {out}"
    return [f"r={target.r} is larger than {target.name!r} allows: {size}; lower r or exclude the layer"]
