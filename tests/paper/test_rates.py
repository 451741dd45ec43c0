"""The learning rate of a method on a task: the best on validation rows, whatever the test rows say."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.records import of_config, results, scores
from veneer.methods.table import METHODS, find_method
from veneer.paper.exhibit import Number
from veneer.paper.rates import SEED, Swept, chosen_rate, rate_at, rates_table, sweep_of, tuned_runs
from veneer.report.paper_cells import is_waiting
from veneer.results import write_results
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

TASK, METHOD = "trec", "lora-qv"


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return Grid(folder=tmp_path / "runs")


def keep(
    grid: Grid,
    config: RunConfig,
    *,
    validation: float,
    test: float = 0.5,
    loss: float = 1.0,
    collapsed: bool = False,
) -> None:
    folder = grid.place(config)
    folder.mkdir(parents=True)
    found = {"validation": replace(scores(validation), loss=loss), "test": replace(scores(test), loss=loss)}
    write_results(folder, results(of_config(config, **found, collapsed=collapsed)))


def runs(grid: Grid) -> list[RunConfig]:
    return sweep_of(grid, TASK, METHOD)


def fill(grid: Grid, peak: float) -> None:
    """Do the whole sweep where validation falls off from `peak`, and test does the opposite."""
    for _ in range(20):
        for config in grid.missing(runs(grid)):
            distance = abs(math.log(config.peak_learning_rate() / peak))
            keep(grid, config, validation=0.9 - 0.01 * distance, test=0.1 + 0.01 * distance)
        if not grid.missing(runs(grid)):
            return
    raise AssertionError("the sweep does not end")


def test_steps_go_by_one_three_and_ten():
    own = find_method(METHOD).learning_rate
    assert [rate_at(METHOD, step) / own for step in range(-3, 4)] == pytest.approx([0.03, 0.1, 0.3, 1, 3, 10, 30])


def test_every_method_starts_with_its_own_rate_and_a_step_to_either_side(grid):
    for method in METHODS:
        rates = [config.peak_learning_rate() for config in sweep_of(grid, TASK, method)]
        own = find_method(method).learning_rate
        assert rates == pytest.approx([0.3 * own, own, 3 * own])
        assert {config.seed for config in sweep_of(grid, TASK, method)} == {SEED}


@pytest.mark.parametrize("step", range(-3, 4))
def test_the_sweep_goes_on_until_validation_has_its_best_inside(grid, step):
    fill(grid, rate_at(METHOD, step))
    assert chosen_rate(grid, TASK, METHOD) == rate_at(METHOD, step)
    tried = [config.peak_learning_rate() for config in runs(grid)]
    assert tried[0] < rate_at(METHOD, step) < tried[-1]
    assert len(tried) == 3 + max(0, abs(step))  # none further than needed


def test_no_sweep_goes_further_than_a_thousandfold(grid):
    fill(grid, 1e-9)
    assert chosen_rate(grid, TASK, METHOD) == pytest.approx(find_method(METHOD).learning_rate / 1000)
    while missing := grid.missing(sweep_of(grid, TASK, "full")):
        for config in missing:
            keep(grid, config, validation=config.peak_learning_rate())
    assert chosen_rate(grid, TASK, "full") == pytest.approx(find_method("full").learning_rate * 1000)


@pytest.mark.parametrize(("collapsed", "num_tried"), [((0, 2), 5), ((0,), 3), ((), 3)])
def test_between_two_rates_that_collapse_it_goes_by_half_steps(grid, collapsed, num_tried):
    """The best of one is no choice; the rates tried then lie between the three, and the best of all five is chosen."""
    for place, config in enumerate(runs(grid)):
        keep(grid, config, validation=0.6 if place == 1 else 0.5, collapsed=place in collapsed)
    steps = [config.peak_learning_rate() for config in runs(grid)]
    assert len(steps) == num_tried
    assert steps == sorted(steps)
    if num_tried > 3:
        own = find_method(METHOD).learning_rate
        assert [rate / own for rate in steps] == pytest.approx([0.3, 0.5, 1, 2, 3])
        assert chosen_rate(grid, TASK, METHOD) is None
        for config in grid.missing(runs(grid)):
            keep(grid, config, validation=0.7 if config.peak_learning_rate() > own else 0.65)
        assert chosen_rate(grid, TASK, METHOD) == pytest.approx(2 * own)
        assert not grid.missing(runs(grid))


def test_a_rate_that_collapses_is_chosen_only_where_all_do(grid):
    """On uneven classes one answer for all rows may score better than what has learnt a little."""
    for place, config in enumerate(runs(grid)):
        keep(grid, config, validation=(0.60, 0.64, 0.68)[place], collapsed=place == 2)
    assert chosen_rate(grid, TASK, METHOD) == runs(grid)[1].peak_learning_rate()


def test_the_table_shows_what_was_tried_with_its_noise_and_what_was_chosen(grid):
    keep(grid, runs(grid)[2], validation=0.6)
    part = Swept(task=TASK, method=METHOD, label=METHOD)
    open_yet = rates_table(grid, "rates", [part])
    assert not is_waiting(open_yet)  # although nothing is chosen
    assert open_yet.rows[0][4] is None
    for place, config in enumerate(runs(grid)[:2]):
        keep(grid, config, validation=(0.5, 0.8, 0.6)[place], collapsed=place == 0)
    (row,) = rates_table(grid, "rates", [part, replace(part, method="houlsby")]).rows  # of which nothing was tried
    low, own, high = (f"{config.peak_learning_rate():g}" for config in runs(grid))
    told = f"{low}: 0.500 (collapsed), {own}: 0.800, {high}: 0.600"
    num_rows = grid.find(runs(grid)[1]).validation.num_examples
    noise = Number(value=pytest.approx(2 * math.sqrt(0.8 * 0.2 / num_rows)))
    assert row == (TASK, METHOD, told, noise, own, own)


def test_no_rate_reaches_one(grid):
    while missing := grid.missing(sweep_of(grid, TASK, "head")):
        for config in missing:
            keep(grid, config, validation=config.peak_learning_rate())
    assert 1 / 3 < sweep_of(grid, TASK, "head")[-1].peak_learning_rate() < 1


def test_among_equals_the_lower_validation_loss_chooses(grid):
    configs = runs(grid)
    for config, loss in zip(configs, (0.5, 0.4, 0.6), strict=True):
        keep(grid, config, validation=0.8, loss=loss)
    assert chosen_rate(grid, TASK, METHOD) == configs[1].peak_learning_rate()


def test_an_unfinished_sweep_chooses_nothing_and_no_run_is_planned(grid):
    *some, _ = runs(grid)
    for place, config in enumerate(some):
        keep(grid, config, validation=0.8 - 0.1 * place)
        assert chosen_rate(grid, TASK, METHOD) is None
        assert tuned_runs(grid, TASK, METHOD, [1]) == []


def test_the_sweeps_own_run_is_the_first_seed_of_the_table(grid):
    fill(grid, rate_at(METHOD, 1))
    first, *others = tuned_runs(grid, TASK, METHOD, range(3))
    assert first in runs(grid)
    assert {run.peak_learning_rate() for run in others} == {first.peak_learning_rate()} == {rate_at(METHOD, 1)}
    assert tuned_runs(grid, TASK, METHOD, [0], {"r": 4})[0].r == 4


def test_settings_that_are_swept_have_a_rate_of_their_own_and_others_share_one(grid):
    fill(grid, rate_at(METHOD, 1))
    swept = {"r": 64}
    assert tuned_runs(grid, TASK, METHOD, [0], swept=swept) == []
    assert {config.r for config in sweep_of(grid, TASK, METHOD, swept)} == {64}
    for config in sweep_of(grid, TASK, METHOD, swept):
        keep(grid, config, validation=0.8 + 0.1 * (config.peak_learning_rate() == rate_at(METHOD, 0)))
    (own,), (shared,) = tuned_runs(grid, TASK, METHOD, [1], swept=swept), tuned_runs(grid, TASK, METHOD, [1], swept)
    assert (own.peak_learning_rate(), shared.peak_learning_rate()) == (rate_at(METHOD, 0), rate_at(METHOD, 1))
    assert own.r == shared.r == 64
