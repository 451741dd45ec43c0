"""The analysis of four made-up adapters, and what the exhibit makes of it."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import veneer
from tests.report.records import record
from veneer.cli.reproduce import RunLines
from veneer.errors import VeneerError
from veneer.paper import subspace_measurement, subspaces
from veneer.paper.subspace import projected_norm, random_similarity
from veneer.paper.subspace_measurement import LARGE, MOST_BASE, SEEDS, SMALL, analysis
from veneer.paper.subspace_verdicts import RANDOM_SPREAD, side, unlike_random, verdicts
from veneer.training.grid import Grid

D, NUM_LAYERS = 80, 6


class Attention(nn.Module):
    """The two projections of each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            nn.ModuleDict({"query": nn.Linear(D, D, bias=False), "value": nn.Linear(D, D, bias=False)})
            for _ in range(NUM_LAYERS)
        )


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """What is measured of weights and updates that are all drawn at random, independent of each other."""
    torch.manual_seed(3)
    model = Attention()
    bases = {
        name: module.weight.detach().clone() for name, module in model.named_modules() if hasattr(module, "weight")
    }
    adapters = {}
    for r in (SMALL, LARGE):
        for seed in SEEDS:
            veneer.adapt(model, veneer.LoraConfig(r=r, alpha=16, targets=("query", "value"), seed=seed))
            state = veneer.state(model)
            filled = {name: replace(up, B=0.1 * torch.randn_like(up.B)) for name, up in state.updates.items()}
            adapters[r, seed] = replace(state, updates=filled)
            veneer.remove(model)
    return {"quick": False, **analysis(adapters, bases)}


def test_every_figure_has_the_shape_and_range_it_is_drawn_with(measured):
    assert len(measured["layers"]) == 2 * NUM_LAYERS
    for layer in measured["layers"]:
        for figure, rows, columns in (("ranks", SMALL, LARGE), ("seeds", LARGE, LARGE), ("base", SMALL, MOST_BASE)):
            values = torch.tensor(layer[figure])
            assert values.shape == (rows, columns)
            assert values.min() >= 0
            assert values.max() <= 1
        assert [(update["r"], update["seed"]) for update in layer["adapters"]] == [(8, 0), (8, 1), (64, 0), (64, 1)]


def test_a_weights_own_directions_hold_more_of_it_than_any_other(measured):
    for layer in measured["layers"]:
        for update in layer["adapters"]:
            assert update["base"] > update["own"] > 0
            assert update["base"] <= layer["base_norm"] + 1e-9
            assert 0 < update["top_share"] <= 1
            assert 1 <= update["effective_rank"] <= update["r"] + 1e-9


def test_the_sheet_judges_a_measurement_and_not_a_quick_one(measured, tmp_path):
    grid = Grid(folder=tmp_path)
    sheet = subspaces.EXHIBIT.sheet(grid, measured)
    assert sheet.missing == ()
    assert [len(figure.panels) for figure in sheet.figures] == [2 * NUM_LAYERS + 1] * 3
    assert "not tested at this scale" not in {verdict.outcome for verdict in sheet.verdicts}
    quick = subspaces.EXHIBIT.sheet(grid, {**measured, "quick": True})
    assert {verdict.outcome for verdict in quick.verdicts} == {"not run yet"}
    assert any("QUICK" in line for line in quick.scaled_down)


def outcomes(measurement: dict[str, Any]) -> list[str]:
    return [verdict.outcome for verdict in verdicts(measurement)]


def with_layers(measured: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    changed = deepcopy(measured)
    for layer in changed["layers"]:
        change(layer)
    return changed


def as_the_paper_has_it(layer: dict[str, Any]) -> None:
    """Give a layer what the paper says of its own: 16 times chance in Table 7, twice chance in Figure 8, and so on."""
    for update in layer["adapters"]:
        update["base"] = 100 * update["random"]
        update["own"] = (16 if update["r"] == SMALL else 5) * update["random"]
        update["delta_norm"] = (21.6 if update["r"] == SMALL else 1.9) * update["own"]
    layer["ranks"][0][0] = 0.7
    layer["base"][3][37] = 0.24
    if layer["weight"] == "query":
        layer["seeds"] = [[phi + 0.1 for phi in row] for row in layer["seeds"]]
        layer["seeds"][0][0] = 0.9


def test_a_training_that_collapsed_is_not_taken_apart(monkeypatch, tmp_path):
    def train(config, folder, watcher):
        return record(config.method, collapsed=config.seed == 1)

    monkeypatch.setattr(subspace_measurement, "run_in_process", train)
    monkeypatch.setattr(subspace_measurement, "read_adapter", lambda folder: None)
    with pytest.raises(VeneerError, match=f"with r = {SMALL} and seed 1 collapsed"):
        subspace_measurement.measure(RunLines(), Grid(folder=tmp_path), quick=True)


def test_random_directions_hold_no_claim(measured):
    assert "held" not in outcomes(measured)


@pytest.mark.parametrize("times", [0.001, 1000])
def test_random_directions_hold_no_claim_whatever_the_size_of_the_update(measured, times):
    def scale(layer: dict[str, Any]) -> None:
        for update in layer["adapters"]:
            update["delta_norm"] *= times

    assert "held" not in outcomes(with_layers(measured, scale))


def test_what_the_paper_describes_holds_every_claim_but_that_of_ranks(measured):
    # its ratio of ranks is below that of random directions: 11.5 against 31
    described = {**with_layers(measured, as_the_paper_has_it), "width": 384}
    assert outcomes(described) == ["held", "undecided", *["held"] * 6]


def test_no_amplification_contradicts_only_where_random_directions_would_amplify(measured):
    def outcome(by_chance: float) -> str:
        def weak(layer: dict[str, Any]) -> None:
            for update in layer["adapters"]:
                update["delta_norm"] = by_chance * update["random"]
                update["own"] = 5 * update["delta_norm"]  # a factor of a fifth

        return outcomes(with_layers(measured, weak))[0]

    assert (outcome(1.5), outcome(0.9)) == ("not held", "undecided")


def test_ranks_differ_beyond_chance_where_the_larger_has_more_of_the_weight_beside_random(measured):
    def more_at_the_larger(layer: dict[str, Any]) -> None:
        for update in layer["adapters"]:
            update["own"] = (1 if update["r"] == SMALL else 1.2) * update["random"]
            update["delta_norm"] = layer["base_norm"]

    assert outcomes(with_layers(measured, more_at_the_larger))[1] == "held"


def test_a_verdict_turns_with_the_figures(measured):
    def outcome(phi: float) -> str:
        def top(layer: dict[str, Any]) -> None:
            layer["ranks"][0][0] = phi

        found = verdicts(with_layers(measured, top))
        return next(verdict.outcome for verdict in found if verdict.source.startswith("Figure 3"))

    assert (outcome(0.9), outcome(0.5), outcome(0.1)) == ("held", "undecided", "not held")


def test_the_seeds_of_a_figure_are_told_by_all_sizes_and_not_by_one(measured):
    def outcome(query: float, value: float) -> str:
        def top(layer: dict[str, Any]) -> None:
            layer["seeds"][0][0] = query if layer["weight"] == "query" else value

        found = verdicts(with_layers(measured, top))
        return next(verdict.outcome for verdict in found if verdict.source.startswith("Figure 4"))

    assert (outcome(0.2, 0.8), outcome(0.8, 0.2)) == ("not held", "undecided")


def test_a_mean_is_above_a_bound_only_with_its_whole_interval():
    assert side([1.1, 1.2, 1.3], 1) == "undecided"
    assert side([1.1, 1.2, 1.3], 0.9) == "held"
    assert side([1.1, 1.2, 1.3], 1.5) == "not held"
    assert side([2.0, 2.0], 1) == "undecided"  # too few to tell


def test_what_chance_gives_as_well_is_undecided_and_what_contradicts_stays():
    near, above = [1.0, 1.1, 0.9], [3.0, 3.1, 2.9]
    assert [unlike_random("held", values, 2) for values in (near, above)] == ["undecided", "held"]
    assert [unlike_random("not held", values, 2) for values in (near, above)] == ["not held"] * 2


def test_the_spread_of_a_random_projection_is_the_formula():
    generator = torch.Generator().manual_seed(2)
    W = torch.randn(D, D, generator=generator, dtype=torch.float64)

    def drawn() -> float:
        U, V = (torch.linalg.qr(torch.randn(D, SMALL, generator=generator, dtype=torch.float64))[0] for _ in range(2))
        return projected_norm(U, W, V)

    norms = torch.tensor([drawn() for _ in range(1000)])
    assert (norms.std() / norms.mean()).item() == pytest.approx(RANDOM_SPREAD, rel=0.15)


def test_the_panels_of_random_directions_are_the_formula(measured, tmp_path):
    ranks, _, base = subspaces.EXHIBIT.sheet(Grid(folder=tmp_path), measured).figures
    for figure in (ranks, base):
        (expected,) = [panel for panel in figure.panels if panel.title == "random, expected"]
        assert expected.values[SMALL - 1][LARGE - 1] == random_similarity(SMALL, LARGE, D)
        assert max(max(row) for panel in figure.panels for row in panel.values) <= figure.high
