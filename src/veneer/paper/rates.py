"""Which learning rate a method gets on a task: the best of a small sweep on validation rows, then used for all seeds.

Every method gets the same effort: its own rate and one step to either side. The sweep's runs are kept like any other;
test rows have no say. The paper gives each method and task a rate of its own too (Tables 9 to 12).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from veneer.methods.table import find_method
from veneer.paper.protocol import run_of
from veneer.paper.tabulation import found
from veneer.results import RunRecord
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

FACTORS = (0.3, 1.0, 3.0)
"""A sweep's rates as multiples of the method's own."""
SEED = 0


def sweep_of(task: str, method: str, factors: Sequence[float] = FACTORS, seed: int = SEED) -> list[RunConfig]:
    """Return the runs of a sweep, the lowest rate first."""
    own = find_method(method).learning_rate
    return [run_of(task, method, seed, {"learning_rate": float(f"{own * factor:.3g}")}) for factor in factors]


def best(records: Sequence[RunRecord]) -> RunRecord:
    """Return the run with the best accuracy on validation rows, among equals the one of least validation loss."""
    return max(records, key=lambda record: (record.validation.accuracy, -record.validation.loss))


def chosen_rate(grid: Grid, task: str, method: str) -> float:
    """Return the best rate of the sweep, or the method's own as long as the sweep is not complete."""
    runs = sweep_of(task, method)
    done = found(grid, runs)
    return float(best(done).config["learning_rate"]) if len(done) == len(runs) else find_method(method).learning_rate


def tuned_runs(
    grid: Grid, task: str, method: str, seeds: Sequence[int], changes: Mapping[str, Any] | None = None
) -> list[RunConfig]:
    """Return a method's runs on a task at the chosen rate, by seed, with `changes` to their other settings."""
    settings = {"learning_rate": chosen_rate(grid, task, method), **(changes or {})}
    return [run_of(task, method, seed, settings) for seed in seeds]
