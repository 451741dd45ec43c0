"""`python -m benchmarks.recipe`: what the recipe's shortcuts cost in accuracy, over five seeds and two tasks.

The runs are those of `RECIPES`, alike in all but the named settings, and are kept under results/runs; those that are
there are not done again. The table goes to results/recipe.md.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from veneer.cli.reproduce import RunLines
from veneer.errors import VeneerError
from veneer.files import write_text
from veneer.paper.exhibit import Number
from veneer.paper.tabulation import (
    Read,
    accuracy_on_test,
    average,
    difference,
    found,
    mean,
    mean_difference,
    own_score_on_validation,
)
from veneer.results import RunRecord
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

ROOT = Path(__file__).parents[1]
GRID = Grid(folder=ROOT / "results" / "runs")
TABLE = ROOT / "results" / "recipe.md"
TASKS = ("trec", "rotten-tomatoes")
METHODS = ("lora-all", "full")
SEEDS = range(5)
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "float32, base dropout": {"precision": "float32", "base_dropout": True},
    "bfloat16, base dropout": {"precision": "bfloat16", "base_dropout": True},
    "bfloat16, no base dropout": {"precision": "bfloat16", "base_dropout": False},
}
"""The first is what the others must not fall behind."""
READ: Mapping[str, Read] = {"Validation": own_score_on_validation, "Test": accuracy_on_test}
COLUMNS = ("task", "method", "recipe", "accuracy", "seeds", "minus the recipe above", "minus the first", "collapsed")
NOTHING = "\N{EN DASH}"


def config_of(task: str, method: str, recipe: str, seed: int) -> RunConfig:
    """Return one run of the comparison."""
    return RunConfig(model="minilm", data=task, method=method, seed=seed, attention="eager", **RECIPES[recipe])


def table() -> str:
    """Return the runs that are there as a page: on validation rows, which decide, and on test rows beside."""
    lines = [
        "# recipe",
        "",
        "`python -m benchmarks.recipe`",
        "",
        "Accuracy of MiniLM after three epochs: mean and standard deviation over seeds; differences are over common",
        "seeds (how many), with Student's 95 % interval. Validation rows decide; test rows are told beside. The",
        "records are in results/runs.",
    ]
    for title, read in READ.items():
        lines += ["", f"## {title} accuracy", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        for task in TASKS:
            for method in METHODS:
                done = {name: _found(task, method, name) for name in RECIPES}
                lines += [f"| {task} | {method} | {cells} |" for cells in _rows(done, read)]
    lines += ["", "## LoRA on all linear layers minus full fine-tuning", ""]
    lines += [f"| recipe | rows | {' | '.join(TASKS)} | both |", "|---" * (len(TASKS) + 3) + "|"]
    lines += [
        f"| {name} | {title.lower()} | {' | '.join(_told_of(_gaps(name, read)))} |"
        for name in RECIPES
        for title, read in READ.items()
    ]
    change = "| the last minus the one above it |"
    lines += [f"{change} {title.lower()} | {' | '.join(_told_of(_changes(read)))} |" for title, read in READ.items()]
    return "\n".join(lines) + "\n"


def _gaps(recipe: str, read: Read) -> list[Number | None]:
    """Return what LoRA reached more than full fine-tuning on each task."""
    lora, full = METHODS
    return [difference(_found(task, lora, recipe), _found(task, full, recipe), read) for task in TASKS]


def _changes(read: Read) -> list[Number | None]:
    """Return by how much that is more in the last recipe than in the one before it, seed by seed, on each task."""
    changes: list[Number | None] = []
    for task in TASKS:
        by_recipe = [
            [{record.seed: read(record) for record in _found(task, method, recipe)} for method in METHODS]
            for recipe in list(RECIPES)[-2:]
        ]
        common = set.intersection(*(set(of) for both in by_recipe for of in both))
        gaps = [[lora[seed] - full[seed] for seed in sorted(common)] for lora, full in by_recipe]
        changes.append(mean_difference([new - old for old, new in zip(*gaps, strict=True)]) if common else None)
    return changes


def _told_of(numbers: list[Number | None]) -> Iterator[str]:
    """Yield each task's number, and what they are together."""
    yield from (NOTHING if number is None else _told(number) for number in numbers)
    known = [number for number in numbers if number is not None and number.low is not None]
    yield _told(average(known)) if len(known) == len(TASKS) else NOTHING


def _found(task: str, method: str, recipe: str) -> list[RunRecord]:
    return found(GRID, [config_of(task, method, recipe, seed) for seed in SEEDS])


def _rows(done: Mapping[str, list[RunRecord]], read: Read) -> Iterator[str]:
    """Yield the cells of each recipe: what it reached, and what that is more than the one above it and the first."""
    names = list(done)
    for number, (name, records) in enumerate(done.items()):
        center = mean(records, read)
        spread = "" if center is None or center.sd is None else f" \N{PLUS-MINUS SIGN} {center.sd:.4f}"
        shown = NOTHING if center is None else f"{center.value:.4f}{spread}"
        steps = [difference(records, done[other], read) for other in (names[max(number - 1, 0)], names[0])]
        told = [NOTHING if step is None or not number else _told(step) for step in steps]
        collapsed = sum(record.collapsed for record in records)
        yield f"{name} | {shown} | {len(records)} | {told[0]} | {told[1]} | {collapsed}"


def _told(step: Number) -> str:
    ends = "" if step.low is None else f" [{step.low:+.4f}, {step.high:+.4f}]"
    over = "" if step.num_runs is None else f" ({step.num_runs})"
    return f"{step.value:+.4f}{ends}{over}"


def main(
    *,
    workers: Annotated[int, typer.Option(help="Runs at once; they share the processors.", min=1)] = 1,
    minutes: Annotated[float | None, typer.Option(help="Begin no run after so many minutes.", min=0)] = None,
) -> None:
    """Do the missing runs and write the table."""
    configs = [
        config_of(task, method, recipe, seed)
        for recipes in (list(RECIPES)[1:], list(RECIPES)[:1])  # the slowest last
        for seed in SEEDS
        for task in TASKS
        for method in METHODS
        for recipe in recipes
    ]
    seconds = None if minutes is None else 60 * minutes
    try:
        for _ in GRID.fill(lambda: configs, RunLines(), workers=workers, seconds=seconds):
            pass
    except VeneerError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    write_text(TABLE, table())
    print(table())


if __name__ == "__main__":
    typer.run(main)
