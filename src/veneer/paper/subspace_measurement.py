"""Four small adapters, trained and taken apart: the numbers behind `subspaces.py`, kept as JSON; no weights are kept.

Adapters that are compared have different seeds: with one seed the smaller A would start as a part of the larger.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from veneer.data.sources import find_model
from veneer.errors import VeneerError
from veneer.formats.adapter import read_adapter
from veneer.lora.analysis import effective_rank, intruder_dimensions, singular_values
from veneer.lora.state import AdapterState
from veneer.paper.exhibit import Measurement
from veneer.paper.protocol import MODEL, run_of
from veneer.paper.subspace import (
    left_directions,
    projected_norm,
    random_projected_norm,
    right_directions,
    similarities,
)
from veneer.training.compare import Watcher, run_in_process
from veneer.training.config import RunConfig
from veneer.training.grid import Grid
from veneer.training.machine import describe_machine, describe_versions
from veneer.training.models import load_classifier
from veneer.training.saved import ADAPTER_FOLDER

DATA = "rotten-tomatoes"
SMALL, LARGE = 8, 64
SEEDS = (0, 1)
ROWS = 2000
QUICK_ROWS = 64
WEIGHTS = ("query", "value")
MOST_BASE = 64
"""So many of W's directions are compared with the update's."""
Adapters = Mapping[tuple[int, int], AdapterState]
"""(rank, seed) to the trained adapter."""


def config_of(r: int, seed: int, *, quick: bool) -> RunConfig:
    """Return one of the four trainings; alpha is the same for both ranks."""
    shortened = {"max_train_rows": QUICK_ROWS, "epochs": 1} if quick else {"max_train_rows": ROWS}
    return run_of(DATA, "lora-qv", seed, {"r": r, "max_eval_rows": 300, **shortened})


def measure(watcher: Watcher, grid: Grid, quick: bool) -> Measurement:
    """Train the four adapters and return what is in them, layer by layer; no record is needed.

    Raises:
        VeneerError: a training collapsed.
    """
    adapters = {}
    for number, (r, seed) in enumerate([(r, seed) for r in (SMALL, LARGE) for seed in SEEDS], start=1):
        config = config_of(r, seed, quick=quick)
        watcher.run_started(config, number, 2 * len(SEEDS))
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "run"
            record = run_in_process(config, folder, watcher)
            watcher.run_ended(record)
            if record.collapsed:
                raise VeneerError(f"the training with r = {r} and seed {seed} collapsed: nothing was learnt")
            adapters[r, seed] = read_adapter(folder / ADAPTER_FOLDER)
    source = find_model(MODEL, watcher.notify)
    model = load_classifier(source, ("negative", "positive"), seed=0, attention="eager").model
    weights = dict(model.named_parameters())
    bases = {name: weights[f"{name}.weight"].detach() for name in adapters[SMALL, 0].updates}
    return {
        "quick": quick,
        "machine": describe_machine(),
        "versions": describe_versions(),
        "settings": config_of(SMALL, 0, quick=quick).resolved().to_json(),
        **analysis(adapters, bases),
    }


def analysis(adapters: Adapters, bases: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the figures of each layer of the four adapters, as plain values."""
    layers = [layer_analysis(name, adapters, base) for name, base in bases.items()]
    width = next(iter(bases.values())).shape[1]
    generator = torch.Generator().manual_seed(0)
    first, second = (
        right_directions(torch.randn(LARGE, width, generator=generator, dtype=torch.float64), LARGE) for _ in SEEDS
    )
    return {"width": width, "random": _rounded(similarities(first, second)), "layers": layers}


def layer_analysis(name: str, adapters: Adapters, base: Tensor) -> dict[str, Any]:
    """Return the figures of one layer: how the four updates relate to each other and to its weight W (out, in)."""

    def directions(r: int, seed: int) -> Tensor:
        return right_directions(adapters[r, seed].updates[name].A, r)

    def changes(r: int, seed: int) -> Tensor:
        return right_directions(adapters[r, seed].delta(name), r)

    of_base = right_directions(base, MOST_BASE)
    return {
        "name": name,
        "weight": name.rpartition(".")[2],
        "base_norm": float(base.double().norm()),
        "adapters": [_update_figures(name, adapters, base, r, seed) for r, seed in adapters],
        "ranks": _rounded(similarities(directions(SMALL, 0), directions(LARGE, 1))),
        "seeds": _rounded(similarities(directions(LARGE, 0), directions(LARGE, 1))),
        "rank_changes_top": round(float(similarities(changes(SMALL, 0), changes(LARGE, 1))[0, 0]), 4),
        "base": _rounded(similarities(changes(SMALL, 0), of_base)),
    }


def _update_figures(name: str, adapters: Adapters, base: Tensor, r: int, seed: int) -> dict[str, Any]:
    """Return what Table 7 tells of one update, and what else is in its singular values."""
    state = adapters[r, seed]
    delta = state.delta(name).double()
    values = singular_values(state.updates[name], state.factor(name))
    return {
        "r": r,
        "seed": seed,
        "delta_norm": float(values.norm()),
        "top_share": float(values[0].square() / values.square().sum()),
        "effective_rank": effective_rank(values),
        "intruders": intruder_dimensions(base, base.double() + delta),
        "own": projected_norm(left_directions(delta, r), base, right_directions(delta, r)),
        "base": projected_norm(left_directions(base, r), base, right_directions(base, r)),
        "random": random_projected_norm(base, r),
    }


def _rounded(matrix: Tensor) -> list[list[float]]:
    return [[round(value, 3) for value in row] for row in matrix.tolist()]
