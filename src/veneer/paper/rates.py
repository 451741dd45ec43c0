"""Which learning rate a method gets on a task: the best of a small sweep on validation rows, then used for all seeds.

One rule for every method: its own rate and a step to either side are tried, and as long as the best of them lies at an
edge, one step beyond it. The sweep's runs are kept like any other; test rows have no say. The paper gives each method
and task a rate of its own too (Tables 9 to 12). Until a sweep is complete nothing is shown of its method.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from veneer.methods.table import find_method
from veneer.paper.protocol import ForeseenGrid, run_of
from veneer.paper.tabulation import found, own_score_on_validation
from veneer.results import RunRecord
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

SEED = 0
FURTHEST = 4
"""Steps, a hundredth or a hundred times the method's own rate: no sweep goes beyond."""


def rate_at(method: str, step: int) -> float:
    """Return the rate so many steps above the method's own, or below: steps go by 1, 3, 10, 30 and so on."""
    decade, is_odd = divmod(step, 2)
    return float(f"{find_method(method).learning_rate * 10.0**decade * (3 if is_odd else 1):.3g}")


def runs_at(
    task: str, method: str, steps: Sequence[int], *, seed: int = SEED, changes: Mapping[str, Any] | None = None
) -> list[RunConfig]:
    """Return one run for each of these steps, with `changes` to its other settings."""
    return [run_of(task, method, seed, {**(changes or {}), "learning_rate": rate_at(method, step)}) for step in steps]


def sweep_of(grid: Grid, task: str, method: str, changes: Mapping[str, Any] | None = None) -> list[RunConfig]:
    """Return the runs of the sweep, the lowest rate first, as far as the records at hand tell which are needed.

    Args:
        grid: where the records are.
        task: what is trained on.
        method: by which method.
        changes: to the settings of every run of the sweep.
    """
    low, high = -1, 1
    while True:
        runs = runs_at(task, method, range(low, high + 1), changes=changes)
        done = found(grid, runs)
        if len(done) < len(runs):
            return runs
        place = done.index(best(done))
        if place == 0 and low > -FURTHEST:
            low -= 1
        elif place == len(done) - 1 and high < FURTHEST and rate_at(method, high + 1) < 1:
            high += 1
        else:
            return runs


def best(records: Sequence[RunRecord]) -> RunRecord:
    """Return the run with the best score on validation rows, among equals the one of least validation loss."""
    return max(records, key=lambda record: (own_score_on_validation(record), -record.validation.loss))


def chosen_rate(grid: Grid, task: str, method: str, changes: Mapping[str, Any] | None = None) -> float | None:
    """Return the best rate of the sweep; as long as it is not complete None, or what is foreseen."""
    runs = sweep_of(grid, task, method, changes)
    done = found(grid, runs)
    if len(done) == len(runs):
        return float(best(done).config["learning_rate"])
    return rate_at(method, -FURTHEST - 1) if isinstance(grid, ForeseenGrid) else None


def tuned_runs(
    grid: Grid,
    task: str,
    method: str,
    seeds: Sequence[int],
    changes: Mapping[str, Any] | None = None,
    *,
    swept: Mapping[str, Any] | None = None,
) -> list[RunConfig]:
    """Return a method's runs on a task by seed, at the chosen rate; none as long as none is chosen.

    Args:
        grid: where the records are.
        task: what is trained on.
        method: by which method.
        seeds: one run for each.
        changes: to the settings of these runs alone.
        swept: to the settings of these runs and of those that choose the rate.
    """
    rate = chosen_rate(grid, task, method, swept)
    settings = {**(swept or {}), "learning_rate": rate, **(changes or {})}
    return [] if rate is None else [run_of(task, method, seed, settings) for seed in seeds]
