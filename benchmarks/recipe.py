"""`python -m benchmarks.recipe`: what the recipe's shortcuts cost in accuracy, over five seeds and two tasks.

The runs are those of `RECIPES`, alike in all but the named settings, and are kept under results/runs; those that are
there are not done again. The table goes to results/recipe.md.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from veneer.cli.reproduce import RunLines
from veneer.errors import VeneerError
from veneer.files import write_text
from veneer.paper.tabulation import difference, found, mean
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


def config_of(task: str, method: str, recipe: str, seed: int) -> RunConfig:
    """Return one run of the comparison."""
    return RunConfig(model="minilm", data=task, method=method, seed=seed, attention="eager", **RECIPES[recipe])


def table() -> str:
    """Return the runs that are there as a page: each recipe's accuracy, and its difference to the one above it."""
    lines = [
        "# recipe",
        "",
        "`python -m benchmarks.recipe`",
        "",
        "Test accuracy of MiniLM after three epochs, mean and standard deviation over seeds; the difference is that to",
        "the recipe above over common seeds, with Student's 95 % interval. The records are in results/runs.",
        "",
        "| task | method | recipe | test accuracy | seeds | against the recipe above | collapsed |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        for method in METHODS:
            above: list[RunRecord] = []
            for recipe in RECIPES:
                records = found(GRID, [config_of(task, method, recipe, seed) for seed in SEEDS])
                center, step = mean(records), difference(records, above)
                spread = "" if center is None or center.sd is None else f" \N{PLUS-MINUS SIGN} {center.sd:.4f}"
                shown = "\N{EN DASH}" if center is None else f"{center.value:.4f}{spread}"
                ends = "" if step is None or step.low is None else f" [{step.low:+.4f}, {step.high:+.4f}]"
                against = "\N{EN DASH}" if step is None else f"{step.value:+.4f}{ends}"
                collapsed = sum(record.collapsed for record in records)
                lines.append(f"| {task} | {method} | {recipe} | {shown} | {len(records)} | {against} | {collapsed} |")
                above = records
    return "\n".join(lines) + "\n"


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
    try:
        for _ in GRID.fill(configs, RunLines(), workers=workers, seconds=None if minutes is None else 60 * minutes):
            pass
    except VeneerError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    write_text(TABLE, table())
    print(table())


if __name__ == "__main__":
    typer.run(main)
