"""The learning rate of a method on a task: the best on validation rows, whatever the test rows say."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.records import record, results
from veneer.methods.table import find_method
from veneer.paper.rates import FACTORS, SEED, chosen_rate, sweep_of, tuned_runs
from veneer.results import Scores, write_results
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

TASK, METHOD = "trec", "lora-qv"


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return Grid(folder=tmp_path / "runs")


def keep(grid: Grid, config: RunConfig, *, validation: float, test: float = 0.5, loss: float = 1.0) -> None:
    folder = grid.place(config)
    folder.mkdir(parents=True)
    made = record(config.method, 0.5, config.seed, data=config.data)
    assert made.test is not None

    def scores(old: Scores, accuracy: float) -> Scores:
        return replace(old, accuracy=accuracy, loss=loss)

    found = {"validation": scores(made.validation, validation), "test": scores(made.test, test)}
    write_results(folder, results(replace(made, **found, config=config.resolved().to_json())))


def test_every_method_gets_the_same_effort():
    for method in ("full", "head", METHOD):
        rates = [config.peak_learning_rate() for config in sweep_of(TASK, method)]
        assert rates == pytest.approx([factor * find_method(method).learning_rate for factor in FACTORS])
        assert {config.seed for config in sweep_of(TASK, method)} == {SEED}


@pytest.mark.parametrize("best", range(len(FACTORS)))
def test_validation_chooses_and_test_does_not(grid, best):
    runs = sweep_of(TASK, METHOD)
    for place, config in enumerate(runs):
        keep(grid, config, validation=0.8 if place == best else 0.7, test=0.1 if place == best else 0.9)
    assert chosen_rate(grid, TASK, METHOD) == runs[best].peak_learning_rate()


def test_among_equals_the_lower_validation_loss_chooses(grid):
    runs = sweep_of(TASK, METHOD)
    for config, loss in zip(runs, (0.5, 0.4, 0.6), strict=True):
        keep(grid, config, validation=0.8, loss=loss)
    assert chosen_rate(grid, TASK, METHOD) == runs[1].peak_learning_rate()


def test_an_unfinished_sweep_chooses_nothing(grid):
    own = find_method(METHOD).learning_rate
    *some, _ = sweep_of(TASK, METHOD)
    for place, config in enumerate(some):
        keep(grid, config, validation=0.8 - 0.1 * place)
        assert chosen_rate(grid, TASK, METHOD) == own


def test_the_sweeps_own_run_is_the_first_seed_of_the_table(grid):
    runs = sweep_of(TASK, METHOD)
    for place, config in enumerate(runs):
        keep(grid, config, validation=0.1 * place)
    first, *others = tuned_runs(grid, TASK, METHOD, range(3))
    assert first == runs[-1]
    assert {run.peak_learning_rate() for run in others} == {first.peak_learning_rate()}
    assert tuned_runs(grid, TASK, METHOD, [0], {"r": 4})[0].r == 4
