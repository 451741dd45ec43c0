"""The analysis of four made-up adapters, and what the exhibit makes of it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import veneer
from veneer.paper import subspaces
from veneer.paper.subspace_measurement import LARGE, MOST_BASE, SEEDS, SMALL, analysis
from veneer.training.grid import Grid

D = 80


class Attention(nn.Module):
    """The two projections of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            nn.ModuleDict({"query": nn.Linear(D, D, bias=False), "value": nn.Linear(D, D, bias=False)})
            for _ in range(2)
        )


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
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
    assert len(measured["layers"]) == 4
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
    assert [len(figure.panels) for figure in sheet.figures] == [4, 5, 4]
    assert "not tested at this scale" not in {verdict.outcome for verdict in sheet.verdicts}
    quick = subspaces.EXHIBIT.sheet(grid, {**measured, "quick": True})
    assert {verdict.outcome for verdict in quick.verdicts} == {"not tested at this scale"}
    assert any("QUICK" in line for line in quick.scaled_down)


def test_a_verdict_turns_with_the_figures(measured, tmp_path):
    def outcome(phi: float) -> str:
        layers = [
            {**layer, "ranks": [[phi, *layer["ranks"][0][1:]], *layer["ranks"][1:]]} for layer in measured["layers"]
        ]
        verdicts = subspaces.EXHIBIT.sheet(Grid(folder=tmp_path), {**measured, "layers": layers}).verdicts
        return next(verdict.outcome for verdict in verdicts if verdict.source.startswith("Figure 3"))

    assert (outcome(0.9), outcome(0.1)) == ("held", "not held")
