"""Made-up records where a grid looks for them, and made-up differences."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.report.records import of_config, results
from veneer.paper.exhibit import Exhibit, Number
from veneer.results import write_results
from veneer.training.config import RunConfig
from veneer.training.grid import Grid


def keep(grid: Grid, configs: Sequence[RunConfig], accuracy: Callable[[RunConfig], float]) -> None:
    """Put a made-up record where the grid looks for each run; on STS-B `accuracy` is Pearson's correlation."""
    for config in configs:
        folder = grid.place(config)
        folder.mkdir(parents=True)
        made = of_config(config, accuracy(config))
        watched = [{"epoch": 1, **made.test.figures}] if config.watch_test and made.test else []
        write_results(folder, results(replace(made, test_curve=watched)))


def keep_sweeps(grid: Grid, exhibit: Exhibit, accuracy: Callable[[RunConfig], float]) -> None:
    """Put the runs there that choose an exhibit's rates."""
    while missing := grid.missing(exhibit.sweep(grid)):
        keep(grid, missing, accuracy)


def keep_all(grid: Grid, exhibit: Exhibit, accuracy: Callable[[RunConfig], float]) -> None:
    """Put every run of an exhibit there, those that choose the rates first."""
    keep_sweeps(grid, exhibit, accuracy)
    keep(grid, grid.missing(exhibit.runs(grid)), accuracy)


def gap(value: float, half: float | None) -> Number:
    """Return a difference of three pairs whose interval reaches `half` to either side."""
    low, high = (None, None) if half is None else (value - half, value + half)
    return Number(value=value, low=low, high=high, num_runs=3)
