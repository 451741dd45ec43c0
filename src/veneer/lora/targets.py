"""Choosing what to adapt: a pure function from (model, config) to a plan that can be printed. Nothing is changed.

Every term of every selector must match something that can be adapted; one that does not is an error that names the
nearest modules. All problems are raised together. How names match is in `selectors.py`, what can be adapted in
`kinds.py` and `conflicts.py`.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import nn
from torch.nn.parameter import is_lazy

from veneer.errors import AdapterStateError, TargetError, gathered
from veneer.lora.config import ALL_LINEAR, LoraConfig
from veneer.lora.conflicts import (
    UNTIE,
    conflict,
    idle_patterns,
    require_bare,
    require_types,
    size_problems,
    target_problems,
)
from veneer.lora.kinds import EMBEDDING, OPAQUE, Kind, ParameterKind, is_wide_float, kind_of, obstacle, own_matrices
from veneer.lora.plan import Plan, Target
from veneer.lora.selectors import Inside, Selector, exact_terms, nearest
from veneer.lora.state import fitted
from veneer.lora.walk import named_modules, parameters_of

ADAPTATION = "veneer_adaptation"
"""The attribute in which `adapt` leaves its record on the module it was called with."""

HEAD_NAMES = frozenset({"classifier", "score", "lm_head", "embed_out", "qa_outputs"})
"""What transformers calls the output layer of its task models; "all-linear" leaves it out."""

_LISTS = (nn.ParameterList, nn.ParameterDict)
_LAYER_NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def plan(model: nn.Module, config: LoraConfig, train_also: Sequence[str] = (), *, any_rank: bool = False) -> Plan:
    """Return what `adapt(model, config, train_also)` would do, without doing it.

    Args:
        model: any module; it may live on the meta device.
        config: the settings; `targets` and `exclude` select the layers.
        train_also: names of modules to train whole, matched as a list of names is; a full name means itself alone.
        any_rank: accept ranks above a layer's smaller side, which sums of adapters can have.

    Raises:
        AdapterStateError: the model is adapted already, compiled, or in a wrapper that spreads it, or this is called
            in inference mode.
        ConfigError: `config` or `train_also` is something else altogether.
        TargetError: a selector matches nothing, or matches what cannot be adapted; every problem is named.
    """
    require_types(model, config, train_also)
    require_bare(model)
    survey = _Survey(model, config, train_also, any_rank=any_rank)
    chosen = survey.choose()
    targets = survey.targets(chosen)
    parameters = survey.parameter_targets([target.name for target in targets])
    owners = {target.name for target in targets} | {target.name.rpartition(".")[0] for target in parameters}
    rows = survey.token_row_names(owners)
    problems = survey.problems + idle_patterns(config, [*targets, *parameters])
    if not targets and not parameters and not survey.trained and not rows and not problems:
        problems.append("nothing is left to train: no layer is targeted and train_also is empty")
    if problems:
        raise TargetError(gathered(f"cannot adapt {type(model).__name__}:", problems))
    biases = survey.biases(owners)
    inside = (p for name in survey.trained for p in survey.modules[name].parameters())
    trained = [p for p in inside if p.is_floating_point() or p.is_complex()]
    counts = {id(p): p.numel() for p in (*trained, *biases.values())}
    row_count = sum(len(ids) * EMBEDDING.sizes(survey.modules[name])[1] for name, ids in rows.items())
    return Plan(
        config=survey.resolved(targets, parameters, rows),
        targets=(*targets, *parameters),
        left_out=tuple((name, reason) for name, reason in survey.left_out if name not in owners),
        trained_modules=tuple(n for n in survey.trained if not Inside(set(survey.trained) - {n})(n)),
        trained_biases=tuple(biases),
        trained_parameters=sum(counts.values()) + row_count,
        base_parameters=sum(p.numel() for p in survey.owners),
    )


def require_plain(modules: Iterable[nn.Module]) -> None:
    """Raise an `AdapterStateError` if one of a model's modules tells of an adapter in it, ours or PEFT's."""
    for module in modules:
        if type(module).__module__.startswith("peft."):
            raise AdapterStateError("the model has an adapter of PEFT's; take it off first: model = model.unload()")
        if vars(module).get(ADAPTATION) is not None:
            raise AdapterStateError(
                "the model is adapted already; call veneer.remove(model) or veneer.merge(model) first"
            )


class _Survey:
    """One look at a model with one config in hand: what is selected, and every problem found on the way."""

    def __init__(self, model: nn.Module, config: LoraConfig, train_also: Sequence[str], *, any_rank: bool) -> None:
        self.config, self.any_rank = config, any_rank
        self.modules = named_modules(model)
        require_plain(self.modules.values())
        self.names = [name for name in self.modules if name]
        self.kinds = {name: kind_of(module) for name, module in self.modules.items()}
        self.problems: list[str] = []
        self.left_out: list[tuple[str, str]] = []
        trained, excluded = Selector(train_also, whole=self.modules), Selector(config.exclude)
        for label, selector in (("train_also", trained), ("exclude", excluded)):
            self.problems += [
                f"{label} {term!r} matches no module{nearest(term, self.names)}" for term in selector.idle(self.names)
            ]
        self.trained = tuple(name for name in self.names if trained(name))
        self.is_trained = Inside(self.trained)
        self.is_excluded = Inside(name for name in self.names if excluded(name))
        get_output = getattr(model, "get_output_embeddings", None)  # transformers' own name for the output layer
        self.output = get_output() if callable(get_output) else None
        self.owners: dict[nn.Parameter, list[str]] = {}
        unknown: list[str] = []
        for name, module in self.modules.items():
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    self.owners.setdefault(parameter, []).append(name)
                    unknown += [repr(f"{name}.{leaf}" if name else leaf)] if is_lazy(parameter) else []
        if unknown:
            raise AdapterStateError(
                f"the sizes of {', '.join(unknown[:3])} are not known yet; run the model once first"
            )
        self.problems += self._half_trained()

    def choose(self) -> list[str]:
        """Return the names of the layers to adapt, in the model's order."""
        if self.config.targets == ALL_LINEAR:
            chosen = self._all_linear()
            if idle := self._idle_layers():
                self.problems += idle
            elif not chosen and not self.config.parameters:
                self.problems.append(f"{ALL_LINEAR!r} selects nothing: {self._kinds()}")
            return chosen
        selector = Selector(self.config.targets)
        self.problems += self._idle_layers()
        term_of = {name: term for name in self.names if (term := selector.term_for(name)) is not None}
        wanted = [n for n in term_of if not self.is_excluded(n) and self._in_layers(n)]
        self.left_out += [(name, "trained whole") for name in wanted if self.is_trained(name)]
        chosen = [name for name in wanted if not self.is_trained(name)]
        reasons = {name: self._obstacle(name) for name in chosen}
        self.left_out += [
            (name, reason)
            for name, kind in self.kinds.items()
            if kind is not None and name not in term_of and not self.is_trained(name)
            if (reason := self._head_reason(name)) and self.modules[name] is not self.output
        ]
        self.problems += target_problems(selector, term_of, wanted, reasons, self.modules)
        return [name for name in chosen if reasons[name] is None]

    def targets(self, chosen: Sequence[str]) -> list[Target]:
        """Return the target of each chosen layer, and of each layer that shares a weight with one."""
        first_with: dict[int, str] = {}
        sharing = {name: layer for layer in chosen for name in self._sharing(layer)}
        names = {*chosen, *sharing}
        found = []
        for name in (n for n in self.names if n in names):
            if name in sharing and (reason := self._tie_obstacle(name, sharing[name])):
                self.problems.append(f"{sharing[name]!r} shares its weight with {name!r}, which {reason}; {UNTIE}")
                continue
            weight = self.modules[name]._parameters.get("weight")
            first = first_with.setdefault(id(weight), name) if weight is not None else name
            tied_to = first if first != name else None
            kind = self.kinds[name]
            assert kind is not None
            target = self._sized(name, kind, self.modules[name], tied_to)
            self.problems += size_problems(target, self.config.init, any_rank=self.any_rank)
            if tied_to and (reason := self._twin_obstacle(target)):
                self.problems.append(f"{first!r} shares its weight with {name!r}, and {reason}; {UNTIE}")
            found.append(target)
        fused = Selector(tuple(self.config.fused))
        self.problems += [
            f"fused {term!r} matches no layer that is adapted{nearest(term, chosen)}" for term in fused.idle(chosen)
        ]
        return found

    def parameter_targets(self, layers: Collection[str]) -> list[Target]:
        """Return a target for each parameter that is adapted inside a module of its own.

        Args:
            layers: what is adapted as a layer.
        """
        if not self.config.parameters:
            return []
        present = {name: p for name, p in parameters_of(self.modules).items() if p.ndim in (2, 3) and is_wide_float(p)}
        selector = Selector(self.config.parameters, whole=present)
        self.problems += [
            f"parameters {term!r} matches no floating-point parameter of two or three dimensions"
            f"{nearest(term, present)}"
            for term in selector.idle(present)
        ]
        found = []
        for name, parameter in present.items():
            module, _, leaf = name.rpartition(".")
            if not selector(name) or self.is_excluded(module) or not self._in_layers(name):
                continue
            kind = ParameterKind(leaf)
            shared = [owner for owner in self.owners[parameter] if owner != module]
            reason = (
                ("is the model's own; put the model into another module" if not module else None)
                or (f"is shared with {shared[0]!r}" if shared else None)
                or ("is of a layer that is adapted as well" if module in layers else None)
                or ("is in a list, which hands out its own" if isinstance(self.modules[module], _LISTS) else None)
                or conflict(self.modules[module], kind, self.config)
            )
            if self.is_trained(module):
                reason = "is trained whole as well"
            if reason:
                self.problems.append(f"{name!r} {reason}")
                continue
            experts = parameter.shape[0] if parameter.ndim == 3 else None
            target = self._sized(name, kind, self.modules[module], None, experts=experts)
            self.problems += size_problems(target, self.config.init, any_rank=self.any_rank)
            found.append(target)
        return found

    def token_row_names(self, chosen: Collection[str]) -> dict[str, tuple[int, ...]]:
        """Return the ids to train by the full name of their embedding."""
        found = {}
        for term, ids in self.config.token_rows.items():
            selects = Selector((term,), whole=self.modules)
            hits = [name for name in self.names if self.kinds[name] is EMBEDDING and selects(name)]
            if len(hits) != 1:
                what = f"matches {len(hits)} embeddings; it must name one"
                self.problems.append(f"token_rows {term!r} {what}{nearest(term, self.names) if not hits else ''}")
                continue
            tokens, _ = EMBEDDING.sizes(self.modules[hits[0]])
            reason = obstacle(self.modules[hits[0]], EMBEDDING)
            if reason or hits[0] in chosen or self.is_trained(hits[0]):
                self.problems.append(f"token_rows {term!r}: {hits[0]!r} {reason or 'is adapted or trained as well'}")
            if max(ids) >= tokens:
                self.problems.append(f"token_rows {term!r} asks for id {max(ids)}, but {hits[0]!r} has {tokens} rows")
            if hits[0] in found:
                self.problems.append(f"token_rows {term!r} names {hits[0]!r} a second time; give all its ids at once")
            for other in self._sharing(hits[0]):
                if reason := self._tie_obstacle(other, hits[0]):
                    self.problems.append(
                        f"token_rows {term!r} shares its weight with {other!r}, which {reason}; {UNTIE}"
                    )
            found[hits[0]] = tuple(sorted(ids))
        return found

    def biases(self, adapted: set[str]) -> dict[str, nn.Parameter]:
        """Return the biases to train, by full name."""
        if self.config.bias == "none":
            return {}
        return {
            f"{name}.{leaf}" if name else leaf: parameter
            for name, module in self.modules.items()
            for leaf, parameter in module._parameters.items()
            if parameter is not None and leaf == "bias" and not self.is_trained(name)
            if self.config.bias == "all" or name in adapted
        }

    def resolved(
        self, targets: Sequence[Target], parameters: Sequence[Target], rows: Mapping[str, tuple[int, ...]]
    ) -> LoraConfig:
        """Return the config with targets that select the chosen layers and nothing else, here and in PEFT.

        They stay as given where they do that. Otherwise they become last name parts ("query") where those select
        exactly the chosen layers, and full names where not.
        """
        chosen, terms = [target.name for target in targets], self.config.targets
        selects = Selector(terms)
        is_narrowed = terms == ALL_LINEAR or self.config.exclude or self.config.layers is not None
        if is_narrowed or [n for n in self.names if selects(n)] != chosen:
            short = tuple(sorted({name.rsplit(".", 1)[-1] for name in chosen}))
            selects = Selector(short)
            terms = short if [n for n in self.names if selects(n)] == chosen else exact_terms(chosen, self.names)
        config = self.config
        if any(target.tied_to for target in targets):  # a twin has the other's rank and scaling, whatever its name says
            each = [*targets, *parameters]
            config = fitted(config, {t.name: t.r for t in each}, {t.name: t.scaling for t in each})
        return replace(
            config,
            targets=terms,
            exclude=(),
            layers=None,
            parameters=tuple(target.name for target in parameters),
            token_rows=dict(rows),
        )

    def _all_linear(self) -> list[str]:
        """Return the linear layers to adapt; note those left out."""
        chosen = []
        for name in self.names:
            module = self.modules[name]
            kind = self.kinds[name]
            if kind is None and (matrices := own_matrices(module)):
                self.left_out.append((name, f"computes with {', '.join(matrices)} itself: a matter of `parameters`"))
            if kind is None or kind.name != "linear" or (kind is OPAQUE and not isinstance(module, nn.Linear)):
                continue
            reason = (
                ("excluded" if self.is_excluded(name) else None)
                or ("trained whole" if self.is_trained(name) else None)
                or self._head_reason(name)
                or ("in another layer" if not self._in_layers(name) else None)
                or self._obstacle(name)
            )
            if reason:
                self.left_out.append((name, reason))
            else:
                chosen.append(name)
        return chosen

    def _head_reason(self, name: str) -> str | None:
        """Return what to say of a layer that belongs to an output head, or None for any other."""
        if self.modules[name] is self.output:
            return "output head"
        return "output head, frozen; train_also would train it" if HEAD_NAMES & set(name.split(".")) else None

    def _in_layers(self, name: str) -> bool:
        if self.config.layers is None:
            return True
        found = _LAYER_NUMBER.search(name)
        return found is not None and int(found[1]) in self.config.layers

    def _idle_layers(self) -> list[str]:
        """Return a line if some of the layer numbers are in no module's name."""
        found = {int(number[1]) for name in self.names if (number := _LAYER_NUMBER.search(name))}
        idle = [number for number in self.config.layers or () if number not in found]
        present = f"those in the names are {sorted(found)}" if found else "no name holds a number"
        return [f"layers {idle} match no module; {present}"] if idle else []

    def _obstacle(self, name: str) -> str | None:
        module = self.modules[name]
        kind = self.kinds[name]
        return obstacle(module, kind) or (conflict(module, kind, self.config) if kind else None)

    def _sharing(self, name: str) -> list[str]:
        """Return the other modules whose weight is this one's."""
        weight = self.modules[name]._parameters.get("weight")
        return [] if weight is None else [other for other in self.owners[weight] if other != name]

    def _tie_obstacle(self, name: str, layer: str) -> str | None:
        """Return why the update of `layer` cannot be that of `name` too, which has the same weight."""
        if self.modules[name]._parameters.get("weight") is not self.modules[layer]._parameters["weight"]:
            return "holds it under another name"
        if self.is_excluded(name):
            return "is excluded"
        if self.is_trained(name):
            return "is trained whole"
        return self._obstacle(name)

    def _twin_obstacle(self, target: Target) -> str | None:
        """Return why a layer cannot use the update of another that its weight is shared with."""
        if self.config.variant == "dora":
            return "DoRA scales rows, which the two see differently"
        if target.slices is not None or target.kind == "conv":
            return "neither convolutions nor fused projections can share an update"
        return None

    def _sized(
        self, name: str, kind: Kind, module: nn.Module, tied_to: str | None, *, experts: int | None = None
    ) -> Target:
        in_features, out_features = kind.sizes(module)
        main = tied_to or name
        r = self.config.rank_of(main)
        term = Selector(tuple(self.config.fused)).term_for(name) if self.config.fused else None
        slices = None if term is None else tuple(self.config.fused[term])
        share = 1.0 if slices is None else sum(slices) / len(slices)
        trained = r * (out_features * share)
        if self.config.train_A:
            trained += r * in_features * (1 if slices is None else sum(slices))
        if self.config.variant == "dora":
            trained += out_features
        return Target(
            name=name,
            kind=kind.name,
            in_features=in_features,
            out_features=out_features,
            r=r,
            scaling=self.config.factor_of(main),
            parameters=0 if tied_to else int(trained) * (experts or 1),
            slices=slices,
            experts=experts,
            tied_to=tied_to,
        )

    def _half_trained(self) -> list[str]:
        """Return a line for each module trained whole that shares a parameter with one that is not."""
        return [
            f"{inner!r} is trained whole, but shares a parameter with {outer!r}; train both, or {UNTIE}"
            for names in self.owners.values()
            if len(names) > 1
            for inner in names
            for outer in names
            if self.is_trained(inner) and not self.is_trained(outer)
        ]

    def _kinds(self) -> str:
        """Return which layers with a weight matrix the model has, for a message."""
        kinds = sorted({type(m).__name__ for m in self.modules.values() if own_matrices(m)})
        return f"the model's layers are of the kinds {', '.join(kinds) or 'none'}; name those to adapt in a list"
