"""Choosing what to adapt: a pure function from (model, config) to a plan that can be printed. Nothing is changed.

A selector is a list of names or one regular expression. A name matches a module whose full name equals it or ends in
`.` + name. A regular expression is matched against the full name. Every term must match something that can be
adapted; a term that does not is an error that names the nearest modules. All problems are raised together.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn

from veneer.errors import AdapterStateError, TargetError, gathered
from veneer.lora.config import ALL_LINEAR, LoraConfig, Selector

ADAPTATION = "veneer_adaptation"
"""The attribute in which `adapt` leaves its record on the module it was called with."""

HEAD_NAMES = frozenset({"classifier", "score", "lm_head", "embed_out", "qa_outputs"})
"""What transformers calls the output layer of its task models; "all-linear" leaves it out."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One layer that is to be adapted."""

    name: str
    in_features: int
    out_features: int
    parameters: int
    """r (in + out): the size of A and B together."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `adapt` would do to a model; prints as a table."""

    config: LoraConfig
    """The settings, with the targets written out as a list: "all-linear" is resolved to names."""
    targets: tuple[Target, ...]
    left_out: tuple[tuple[str, str], ...]
    """(name, reason) of what the targets select and the plan does not adapt."""
    trained_modules: tuple[str, ...]
    """Full names of the modules that are trained whole."""
    trained_parameters: int
    """Parameters of `trained_modules`."""
    base_parameters: int
    """Parameters of the model as it is."""

    @property
    def lora_parameters(self) -> int:
        """Parameters of all A and B together."""
        return sum(target.parameters for target in self.targets)

    @property
    def trainable_parameters(self) -> int:
        """Parameters that training will change."""
        return self.lora_parameters + self.trained_parameters

    @property
    def total_parameters(self) -> int:
        """Parameters of the model once it is adapted."""
        return self.base_parameters + self.lora_parameters

    def __str__(self) -> str:
        width = max([len(target.name) for target in self.targets] + [len("module")])
        lines = [f"{'module':<{width}}  {'in':>7} {'out':>7} {'parameters':>12}"]
        lines += [
            f"{t.name:<{width}}  {t.in_features:>7} {t.out_features:>7} {t.parameters:>12,}" for t in self.targets
        ]
        lines += [f"left out: {name} ({reason})" for name, reason in self.left_out]
        lines += [f"trained whole: {name}" for name in self.trained_modules]
        share = self.trainable_parameters / max(self.total_parameters, 1)
        layers = "1 layer" if len(self.targets) == 1 else f"{len(self.targets)} layers"
        lines.append(
            f"{layers} at r={self.config.r}, scaling {self.config.factor:g}: "
            f"{self.lora_parameters:,} low-rank + {self.trained_parameters:,} other = "
            f"{self.trainable_parameters:,} of {self.total_parameters:,} parameters trainable ({share:.3%})"
        )
        return "\n".join(lines)


def plan(model: nn.Module, config: LoraConfig, train_also: Sequence[str] = ()) -> Plan:
    """Return what `adapt(model, config, train_also)` would do, without doing it.

    Args:
        model: any module; it may live on the meta device.
        config: the settings; `targets` and `exclude` select the layers.
        train_also: names of modules to train whole, matched as a list of names is.

    Raises:
        AdapterStateError: the model is adapted already.
        TargetError: a selector matches nothing, or matches what cannot be adapted; every problem is named.
    """
    modules = dict(model.named_modules())
    if any(ADAPTATION in vars(module) for module in modules.values()):
        raise AdapterStateError("the model is adapted already; call veneer.remove(model) or veneer.merge(model) first")
    names = [name for name in modules if name]
    problems = [f"train_also {term!r} matches no module{nearest(term, names)}" for term in _idle(train_also, names)]
    trained = tuple(name for name in names if matches(train_also, name))
    excluded = [name for name in names if matches(config.exclude, name)]
    problems += [f"exclude {term!r} matches no module{nearest(term, names)}" for term in _idle(config.exclude, names)]

    if config.targets == ALL_LINEAR:
        chosen, left_out = _all_linear(model, config, trained, excluded)
        wanted = [] if chosen else names
        problems += [] if chosen else [f"{ALL_LINEAR!r} selects nothing: {_kinds(modules.values())}"]
    else:
        wanted = [n for n in names if matches(config.targets, n) and not _inside(n, excluded)]
        chosen = [name for name in wanted if not _inside(name, trained)]
        left_out = [(name, "trained whole") for name in wanted if _inside(name, trained)]
        problems += _target_problems(modules, config, wanted, chosen)
        chosen = [name for name in chosen if _obstacle(modules[name], config) is None]
    problems += _rank_problems(modules, chosen, config.r) + _tied_problems(modules, trained)
    if not chosen and not trained and not problems:
        problems.append("nothing is left to train: no layer is targeted and train_also is empty")
    if problems:
        raise TargetError(gathered(f"cannot adapt {type(model).__name__}:", problems))
    return Plan(
        config=_resolved(config, chosen, names, exact=wanted == chosen),
        targets=tuple(_target(name, modules[name], config.r) for name in chosen),
        left_out=tuple(left_out),
        trained_modules=tuple(name for name in trained if not _inside(name, [t for t in trained if t != name])),
        trained_parameters=_count(modules[name] for name in trained),
        base_parameters=_count([model]),
    )


def matches(selector: Selector, name: str) -> bool:
    """Return whether a module's full name is selected."""
    if isinstance(selector, str):
        return re.fullmatch(selector, name) is not None
    return any(name == term or name.endswith("." + term) for term in selector)


def nearest(term: str, names: Iterable[str]) -> str:
    """Return "; nearest: ..." for a term that matched nothing, or "" where nothing is near."""
    last = {name.rsplit(".", 1)[-1]: name for name in names}
    close = get_close_matches(term, [*last.values(), *last], n=3, cutoff=0.6)
    return f"; nearest: {', '.join(repr(name) for name in close)}" if close else ""


def _idle(selector: Selector, names: Sequence[str]) -> list[str]:
    """Return the terms of a selector that match none of `names`."""
    terms = [selector] if isinstance(selector, str) else selector
    return [term for term in terms if not any(matches(_as_selector(selector, term), name) for name in names)]


def _as_selector(selector: Selector, term: str) -> Selector:
    return term if isinstance(selector, str) else (term,)


def _inside(name: str, containers: Sequence[str]) -> bool:
    return any(name == outer or name.startswith(outer + ".") for outer in containers)


def _count(modules: Iterable[nn.Module]) -> int:
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def _target(name: str, module: nn.Module, r: int) -> Target:
    assert isinstance(module, nn.Linear)
    size = r * (module.in_features + module.out_features)
    return Target(name=name, in_features=module.in_features, out_features=module.out_features, parameters=size)


def _obstacle(module: nn.Module, config: LoraConfig) -> str | None:
    """Return why a module cannot be adapted, or None where it can."""
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        return f"is a {type(module).__name__}; only torch.nn.Linear can be adapted"
    if "weight" not in module._parameters:
        return f"is a {type(module).__name__} whose weight is computed from other tensors; remove that first"
    if module.weight.shape != (module.out_features, module.in_features) or not module.weight.is_floating_point():
        return f"is a quantised {type(module).__name__}; only floating-point weights can be adapted"
    if config.dropout and isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "is used by nn.MultiheadAttention through its weight, where dropout cannot act; set dropout to 0"
    return None


def _kinds(modules: Iterable[nn.Module]) -> str:
    """Return which layers with a weight matrix a model has, for a message."""
    kinds = sorted({type(module).__name__ for module in modules if _owns_matrix(module)})
    return f"the model's layers are of the kinds {', '.join(kinds) or 'none'}; only torch.nn.Linear can be adapted"


def _tied_problems(modules: Mapping[str, nn.Module], trained: Sequence[str]) -> list[str]:
    """Return a line for each module trained whole that shares a parameter with one that is not."""
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return [
        f"{inner!r} is trained whole, but shares a parameter with {outer!r}; train both, or untie them first"
        for names in owners.values()
        for inner in names
        for outer in names
        if _inside(inner, trained) and not _inside(outer, trained)
    ]


def _target_problems(
    modules: Mapping[str, nn.Module], config: LoraConfig, wanted: Sequence[str], chosen: Sequence[str]
) -> list[str]:
    """Return a line for each term that selects nothing adaptable, or else for each module that cannot be adapted."""
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    found = []
    for term in [config.targets] if isinstance(config.targets, str) else config.targets:
        selector = _as_selector(config.targets, term)
        hits = [name for name in chosen if matches(selector, name)]
        if any(_obstacle(modules[name], config) is None for name in hits):
            continue
        if not hits and any(matches(selector, name) for name in wanted):
            continue  # selects only what is trained whole, as PEFT's own files do; the plan lists it as left out
        if hits:
            reason = _obstacle(modules[hits[0]], config)
            found.append(
                f"target {term!r} selects only what cannot be adapted: {hits[0]!r} {reason}{nearest(term, linear)}"
            )
        elif any(matches(selector, name) for name in modules if name):
            found.append(f"target {term!r} selects only what is excluded")
        else:
            found.append(f"target {term!r} matches no module{nearest(term, linear)}{_hint(config.targets)}")
    if found:
        return found
    blocked = [name for name in chosen if _owns_matrix(modules[name]) and _obstacle(modules[name], config)]
    return [f"{name!r} {_obstacle(modules[name], config)}; exclude it or select more narrowly" for name in blocked]


def _hint(selector: Selector) -> str:
    return (
        " (a string is a regular expression for the full name; a list gives names)" if isinstance(selector, str) else ""
    )


def _owns_matrix(module: nn.Module) -> bool:
    """Return whether a module holds a weight of its own that a low-rank update would make sense for."""
    return any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))


def _all_linear(
    model: nn.Module, config: LoraConfig, trained: Sequence[str], excluded: Sequence[str]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the linear layers to adapt, and those left out with the reason."""
    get_output = getattr(model, "get_output_embeddings", None)  # transformers' own name for the output layer
    output = get_output() if callable(get_output) else None
    chosen, left_out = [], []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not name:
            continue
        if _inside(name, excluded):
            left_out.append((name, "excluded"))
        elif _inside(name, trained):
            left_out.append((name, "trained whole"))
        elif module is output or HEAD_NAMES & set(name.split(".")):
            left_out.append((name, "output head"))
        elif reason := _obstacle(module, config):
            left_out.append((name, reason))
        else:
            chosen.append(name)
    return chosen, left_out


def _rank_problems(modules: dict[str, nn.Module], chosen: Sequence[str], r: int) -> list[str]:
    return [
        f"r={r} is larger than {name!r} allows: at most {limit} for a layer of {target.in_features} x "
        f"{target.out_features}; lower r or exclude the layer"
        for name in chosen
        if r > (limit := min((target := _target(name, modules[name], r)).in_features, target.out_features))
    ]


def _resolved(config: LoraConfig, chosen: Sequence[str], names: Sequence[str], *, exact: bool) -> LoraConfig:
    """Return `config` with targets that select the chosen layers and nothing else, here and in PEFT.

    They stay as given where they are `exact`. Otherwise they become last name parts ("query") where those select
    exactly the chosen layers, and full names where not.
    """
    if exact and not config.exclude:
        return config
    short = tuple(sorted({name.rsplit(".", 1)[-1] for name in chosen}))
    same = [name for name in names if matches(short, name)] == list(chosen)
    return LoraConfig(**{**vars(config), "targets": short if same else tuple(chosen), "exclude": ()})
