"""From a plan to the adapted modules that carry it out: starts are drawn, updates built, nothing put in place yet."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from veneer.errors import ConfigError
from veneer.lora.config import LoraConfig
from veneer.lora.init import input_directions, start
from veneer.lora.kinds import Kind, OpaqueKind, ParameterKind, kind_of
from veneer.lora.layers import AdaptedLayer, AdaptedParameters
from veneer.lora.plan import Plan, Target
from veneer.lora.updates import DoraUpdate, LoraUpdate, LowRankUpdate, RowsUpdate, TiedUpdate, Update
from veneer.lora.walk import named_modules


class Values(NamedTuple):
    """What an update begins with, in the shapes it holds them in: B of a fused projection packed."""

    A: Tensor
    B: Tensor
    magnitude: Tensor | None


class Place(NamedTuple):
    """The module that holds a target's weight, and its kind."""

    base: nn.Module
    kind: Kind


def located(model: nn.Module, the_plan: Plan) -> dict[str, Place]:
    """Return the place of each target of a plan by its name, in the model that the plan was made for."""
    modules = named_modules(model)
    places = {}
    for target in the_plan.targets:
        if target.kind == "parameter":
            module_name, _, parameter = target.name.rpartition(".")
            places[target.name] = Place(modules[module_name], ParameterKind(parameter))
            continue
        kind = kind_of(modules[target.name])
        assert kind is not None
        places[target.name] = Place(modules[target.name], kind)
    return places


def drawn_values(
    model: nn.Module, the_plan: Plan, places: Mapping[str, Place], batches: Iterable[object] | None = None
) -> dict[str, Values]:
    """Return the start of every update of a plan that is not another layer's.

    Args:
        model: what the plan was made for.
        the_plan: its config says how to start.
        places: of the plan's targets, see `located`.
        batches: inputs of the model, for `init="eva"`.

    Raises:
        ConfigError: `batches` is missing for `init="eva"`, or given for another; or the init cannot start a layer.
    """
    config = the_plan.config
    if (config.init == "eva") != (batches is not None):
        raise ConfigError(f"init={config.init!r}: batches of model inputs are needed for 'eva', and only there")
    own = [target for target in the_plan.targets if target.tied_to is None]
    directions: dict[str, Tensor] = {}
    if batches is not None:
        ranks = {target.name: target.r for target in own}
        directions = input_directions(model, {name: places[name].base for name in ranks}, batches, r=ranks)
    generator = torch.Generator().manual_seed(config.seed)
    drawn = {}
    for target in own:
        weight = _readable(target, *places[target.name])
        A, B = _start(target, weight, config, generator)
        if target.name in directions:
            A = directions[target.name].to(A).repeat(sum(target.slices or (True,)), 1)
        magnitude = torch.linalg.vector_norm(weight.to(A.dtype), dim=-1) if config.variant == "dora" else None
        drawn[target.name] = Values(A, B, magnitude)
    return drawn


def build(
    model: nn.Module,
    the_plan: Plan,
    places: Mapping[str, Place],
    values: Mapping[str, Values],
    *,
    subtract_start: bool,
) -> dict[str, AdaptedLayer | AdaptedParameters]:
    """Return the adapted module for each name in the model; the model is not changed.

    Args:
        model: what the plan was made for.
        the_plan: what to build.
        places: of the plan's targets, see `located`.
        values: what each update begins with, by the name of its target.
        subtract_start: whether the updates keep their start and compute with B A - B0 A0.
    """
    config = the_plan.config
    layers: dict[str, AdaptedLayer] = {}
    parameters: dict[str, dict[str, LowRankUpdate]] = {}
    for target in the_plan.targets:
        base, kind = places[target.name]
        if target.tied_to is not None:
            layers[target.name] = AdaptedLayer(base, _twin(layers[target.tied_to], kind), kind)
            continue
        update = _new_update(target, values[target.name], config, subtract_start=subtract_start)
        if isinstance(kind, ParameterKind):
            parameters.setdefault(target.name.rpartition(".")[0], {})[kind.weight_name] = update
        else:
            layers[target.name] = AdaptedLayer(base, update, kind)
    modules = {name: AdaptedParameters(model.get_submodule(name), updates) for name, updates in parameters.items()}
    return layers | modules | _rows(model, config)


def _start(target: Target, weight: Tensor, config: LoraConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the start of A and B; for a fused projection that of each adapted slice, one below the other."""
    if target.slices is None:
        return start(config.init, weight, target.r, target.scaling, generator)
    parts = [
        start(config.init, part, target.r, target.scaling, generator)
        for part, is_adapted in zip(weight.chunk(len(target.slices)), target.slices, strict=True)
        if is_adapted
    ]
    return torch.cat([part.A for part in parts]), torch.cat([part.B for part in parts])


def _readable(target: Target, base: nn.Module, kind: Kind) -> Tensor:
    """Return the weight as a float matrix; of an opaque layer, one of its sizes without values."""
    if isinstance(kind, OpaqueKind):
        return kind.like(base).new_empty(()).expand(target.out_features, target.in_features)
    return kind.matrix(base).detach()


def _new_update(target: Target, values: Values, config: LoraConfig, *, subtract_start: bool) -> LowRankUpdate:
    A, B, magnitude = values
    scaling, dropout, slices = target.scaling, config.dropout, target.slices
    update: LowRankUpdate
    if magnitude is None:
        update = LoraUpdate(A, B, scaling=scaling, dropout=dropout, slices=slices, subtract_start=subtract_start)
    else:
        update = DoraUpdate(
            A, B, magnitude, scaling=scaling, dropout=dropout, slices=slices, subtract_start=subtract_start
        )
    update.A.requires_grad_(config.train_A)
    return update


def _twin(source: AdaptedLayer, kind: Kind) -> Update:
    """Return the update of a layer that shares its weight with one that is adapted."""
    if source.kind.name == kind.name:
        return source.update
    assert isinstance(source.update, LoraUpdate)
    return TiedUpdate(source.update)


def _rows(model: nn.Module, config: LoraConfig) -> dict[str, AdaptedLayer]:
    """Return the layers of trained token rows: each embedding, and every layer that shares its weight."""
    built = {}
    for name, ids in config.token_rows.items():
        weight = model.get_submodule(name).get_parameter("weight")
        index = torch.tensor(ids, device=weight.device)
        rows = weight.detach().index_select(0, index)
        update = RowsUpdate(index, rows.to(torch.promote_types(torch.float32, rows.dtype), copy=True))
        for other, module in named_modules(model).items():
            if module._parameters.get("weight") is weight:
                kind = kind_of(module)
                assert kind is not None
                built[other] = AdaptedLayer(module, update, kind)
    return built
