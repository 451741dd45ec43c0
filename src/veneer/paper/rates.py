"""Which learning rate a method gets on a task: the best of a small sweep on validation rows, then used for all seeds.

One rule for every method: its own rate and a step to either side are tried, and as long as the best of them lies at an
edge, one step beyond it. Where the runs to both sides of the best collapsed, half a step to either side is tried too:
one rate that learns is too few to choose from. One that collapsed is chosen only where all did. The sweep's runs are
kept like any other; test rows have no say. The paper gives each method and task a rate of its own too (Tables 9 to 12).
Until a sweep is complete nothing is shown of its method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veneer.methods.table import find_method
from veneer.paper.exhibit import Cell, Number, Table
from veneer.paper.protocol import MODEL, ForeseenGrid, on_model, run_of
from veneer.paper.tabulation import found, noise, own_score_on_validation
from veneer.results import RunRecord
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

SEED = 0
FURTHEST = 6
"""Steps, a thousandth or a thousand times the method's own rate: no sweep goes beyond."""
HALF_STEPS = (1, 2, 3, 5)
"""Times which a rate goes up by half steps, until it is ten times as high."""


def rate_at(method: str, step: float) -> float:
    """Return the rate so many steps above the method's own, or below: whole ones go by 1, 3, 10, 30 and so on."""
    decade, half_steps = divmod(round(2 * step), len(HALF_STEPS))
    return float(f"{find_method(method).learning_rate * 10.0**decade * HALF_STEPS[half_steps]:.3g}")


def runs_at(
    task: str, method: str, steps: Sequence[float], *, seed: int = SEED, changes: Mapping[str, Any] | None = None
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
        elif 0 < place < len(done) - 1 and done[place - 1].collapsed and done[place + 1].collapsed:
            step = low + place
            steps = sorted([*range(low, high + 1), step - 0.5, step + 0.5])
            return runs_at(task, method, steps, changes=changes)
        else:
            return runs


def best(records: Sequence[RunRecord]) -> RunRecord:
    """Return the run with the best score on validation rows, among equals the one of least validation loss.

    Runs that collapsed come after all others: on uneven classes one answer for all rows may score well.
    """
    return max(
        records, key=lambda record: (not record.collapsed, own_score_on_validation(record), -record.validation.loss)
    )


def chosen_rate(grid: Grid, task: str, method: str, changes: Mapping[str, Any] | None = None) -> float | None:
    """Return the best rate of the sweep; as long as it is not complete None, or what is foreseen."""
    if done := _completed(grid, task, method, changes):
        return float(best(done).config["learning_rate"])
    return rate_at(method, -FURTHEST - 1) if isinstance(grid, ForeseenGrid) else None


def learnt_nowhere(grid: Grid, task: str, method: str, changes: Mapping[str, Any] | None = None) -> bool:
    """Return whether every run of the sweep collapsed, so that no score has chosen the rate."""
    done = _completed(grid, task, method, changes)
    return bool(done) and all(record.collapsed for record in done)


def _completed(grid: Grid, task: str, method: str, changes: Mapping[str, Any] | None) -> list[RunRecord]:
    """Return the records of a sweep; none as long as it is not complete."""
    runs = sweep_of(grid, task, method, changes)
    done = found(grid, runs)
    return done if len(done) == len(runs) else []


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


@dataclass(frozen=True, kw_only=True)
class Swept:
    """One method on one task, whose rates a table shows."""

    task: str
    method: str
    label: str
    """What the method is called there."""
    changes: Mapping[str, Any] | None = None
    """To the settings of every run of its sweep."""


def rates_table(grid: Grid, name: str, parts: Sequence[Swept]) -> Table:
    """Return what each sweep that has begun tried, and what it chose.

    Args:
        grid: where the records are.
        name: of the table.
        parts: the sweeps, in order.
    """
    rows: list[tuple[Cell, ...]] = []
    for part in parts:
        done = found(grid, sweep_of(grid, part.task, part.method, part.changes))
        if not done:
            continue
        told = (
            f"{record.config['learning_rate']:g}: {own_score_on_validation(record):.3f}"
            + " (collapsed)" * record.collapsed
            for record in done
        )
        leader, chosen = best(done), chosen_rate(grid, part.task, part.method, part.changes)
        is_edge = chosen in (done[0].config["learning_rate"], done[-1].config["learning_rate"])
        model = (part.changes or {}).get("model", MODEL)
        rows.append(
            (
                on_model(part.task, model),
                part.label,
                ", ".join(told),
                Number(value=noise(leader, leader.validation, own_score_on_validation(leader))),
                None if chosen is None else f"{chosen:g}" + ", at an edge" * is_edge,
                f"{find_method(part.method).learning_rate:g}",
            )
        )
    return Table(
        name=name,
        title="The learning rates that were tried",
        columns=("Task", "Method", "Rate: score on validation", "Noise", "Chosen", "The method's own"),
        rows=tuple(rows),
        notes=(
            "One seed a rate; a step beyond the edge as long as the best lies there, up to a rate of 1; half a step to "
            "either side of a best one between two that collapsed. The best on validation rows is used for all seeds, "
            "among equals the one of least validation loss; one that collapsed only where all did.",
            "Noise: two standard errors of the best score, by which other validation rows would move it; among rates "
            "that differ by less, chance may have chosen.",
        ),
    )
