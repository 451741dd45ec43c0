"""`ranks`: which attention weights to adapt at one budget, and with which rank (the paper's Tables 5 and 6)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veneer.paper.exhibit import Cell, Contents, Curves, Exhibit, Measurement, Number, Table, Verdict
from veneer.paper.protocol import ON_BOTH, TASKS, by_seed
from veneer.paper.rates import sweep_of, tuned_runs
from veneer.paper.tabulation import difference, found, mean, mean_curves, median_on_dev, of_other_rows
from veneer.paper.verdicts import MARGIN, judge
from veneer.results import RunRecord
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

METHOD = "lora-qv"
SEEDS = range(3)
RANKS = (1, 2, 4, 8, 64)
QUERY_VALUE = ("query", "value")
ALL_FOUR = ("query", "key", "value", "output")
ALL_LINEAR = ()
"""Every linear layer, the feed-forward's too: a row that the paper does not have."""
SHORT: Mapping[str, str] = {"query": "W_q", "key": "W_k", "value": "W_v", "output": "W_o"}


@dataclass(frozen=True)
class Choice:
    """Some of attention's projections, or `ALL_LINEAR`, and the rank of their updates."""

    weights: tuple[str, ...]
    r: int

    @property
    def label(self) -> str:
        """The projections in the paper's symbols."""
        return ", ".join(SHORT[weight] for weight in self.weights) or "all linear layers"

    @property
    def method(self) -> str:
        """Which method adapts them."""
        return METHOD if self.weights else "lora-all"


TABLE_5: Mapping[Choice, tuple[str, str]] = {
    Choice(("query",), 8): ("70.4", "91.0"),
    Choice(("key",), 8): ("70.0", "90.8"),
    Choice(("value",), 8): ("73.0", "91.0"),
    Choice(("output",), 8): ("73.2", "91.3"),
    Choice(("query", "key"), 4): ("71.4", "91.3"),
    Choice(QUERY_VALUE, 4): ("73.7", "91.3"),
    Choice(ALL_FOUR, 2): ("73.7", "91.7"),
}
"""To the paper's accuracies on WikiSQL (± 0.5) and MultiNLI (± 0.1), in per cent."""
TABLE_6: Mapping[tuple[str, ...], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("query",): (("68.8", "69.6", "70.5", "70.4", "70.0"), ("90.7", "90.9", "91.1", "90.7", "90.7")),
    QUERY_VALUE: (("73.4", "73.3", "73.7", "73.8", "73.5"), ("91.3", "91.4", "91.3", "91.6", "91.4")),
    ALL_FOUR: (("74.1", "73.7", "74.0", "74.0", "73.9"), ("91.2", "91.7", "91.7", "91.5", "91.4")),
}
"""Projections to the paper's accuracies on WikiSQL and on MultiNLI, one for each of `RANKS`."""
ONE_RATE = (
    "Rates: chosen once at r = 8, with a scale of 2, and the same for every rank; alpha stays 16, so that the "
    "scale is 16 / r."
)
LINES = (*TABLE_6, ALL_LINEAR)
Records = Mapping[str, Mapping[Choice, Sequence[RunRecord]]]


def choices() -> list[Choice]:
    """Return every choice of both tables once."""
    return list(dict.fromkeys([*TABLE_5, *(Choice(weights, r) for weights in LINES for r in RANKS)]))


def changes_of(choice: Choice) -> dict[str, Any]:
    """Return what a choice changes in its method's settings; alpha stays what it is for every rank, as in the paper."""
    own = choice.weights in (QUERY_VALUE, ALL_LINEAR)  # the methods' own: named alike, `table2` has the same runs
    return {"r": choice.r} if own else {"weights": choice.weights, "r": choice.r}


def sweep(grid: Grid) -> list[RunConfig]:
    """Return the runs that choose the learning rates, with LoRA as it is in `table2`."""
    return [config for task in TASKS for method in (METHOD, "lora-all") for config in sweep_of(grid, task, method)]


def runs_of(grid: Grid, task: str, choice: Choice) -> list[RunConfig]:
    """Return the runs of a choice on a task, by seed."""
    return tuned_runs(grid, task, choice.method, SEEDS, changes_of(choice))


def runs(grid: Grid) -> list[RunConfig]:
    """Return every run of both tables, one seed of everything first."""
    return by_seed([config for task in TASKS for choice in choices() for config in runs_of(grid, task, choice)])


def contents(grid: Grid, measurement: Measurement | None) -> Contents:
    """Return both tables for each task, the accuracy along the ranks, and the verdicts."""
    records = {task: {choice: found(grid, runs_of(grid, task, choice)) for choice in choices()} for task in TASKS}
    tables = [make(task, records[task]) for task in TASKS for make in (_table_5, _table_6)]
    figures = [figure for task in TASKS for figure in _figure(task, records[task])]
    return Contents(tables=tuple(tables), figures=tuple(figures), verdicts=_verdicts(records))


def _table_5(task: str, records: Mapping[Choice, Sequence[RunRecord]]) -> Table:
    rows = []
    for choice, (wikisql, mnli) in TABLE_5.items():
        mine = records[choice]
        trained = mine[0].lora_parameters if mine else None
        rows.append((choice.label, choice.r, trained, mean(mine), median_on_dev(mine), len(mine), wikisql, mnli))
    return Table(
        name=f"ranks-table5-{task}",
        title=f"Table 5 on {task}: one budget, spent on different weights",
        columns=(
            "Weights", "Rank", "# trained", "Test accuracy", "Best epoch on validation", "Runs", "WikiSQL there, %",
            "MultiNLI there, %",
        ),
        rows=tuple(rows),
        notes=(
            "The paper's GPT-3 trains 18,874,368 parameters in every row; seeds move its figures by 0.5 and 0.1.",
            *of_other_rows(records[choice] for choice in TABLE_5),
        ),
    )  # fmt: skip


def _table_6(task: str, records: Mapping[Choice, Sequence[RunRecord]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for weights in LINES:
        label = Choice(weights, 1).label
        rows.append((label, "ours", *(mean(records[Choice(weights, r)]) for r in RANKS)))
        for name, paper in zip(("WikiSQL", "MultiNLI"), TABLE_6.get(weights, ()), strict=False):
            rows.append((label, f"paper, {name}, %", *paper))
    return Table(
        name=f"ranks-table6-{task}",
        title=f"Table 6 on {task}: rank",
        columns=("Weights", "Whose", *(f"r = {r}" for r in RANKS)),
        rows=tuple(rows),
        notes=(
            "Test accuracy: mean ± sample standard deviation over seeds.",
            "The paper prints W_q with r = 8 on MultiNLI as 90.7 here and as 91.0 in Table 5.",
            *of_other_rows(records[Choice(weights, r)] for weights in LINES for r in RANKS),
        ),
    )


def _figure(task: str, records: Mapping[Choice, Sequence[RunRecord]]) -> tuple[Curves, ...]:
    return mean_curves(
        name=f"ranks-{task}",
        title=f"Accuracy along the ranks on {task}",
        x_label="Rank r",
        series={Choice(weights, 1).label: {r: records[Choice(weights, r)] for r in RANKS} for weights in LINES},
    )


def _verdicts(records: Records) -> tuple[Verdict, ...]:
    pair = QUERY_VALUE
    better = tuple(
        (
            f"At one budget, W_q and W_v with r = 4 do better than {SHORT[weight]} alone with r = 8 "
            f"({' and '.join(TABLE_5[Choice(pair, 4)])} against {' and '.join(TABLE_5[Choice((weight,), 8)])})",
            Choice((weight,), 8),
        )
        for weight in SHORT
    )
    return (
        *(
            judge(claim=claim, source="Table 5, section 7.1", differences=_minus(records, Choice(pair, 4), other))
            for claim, other in better
        ),
        judge(
            claim="At one budget, all four with r = 2 do no worse than W_q and W_v with r = 4",
            source="Table 5, section 7.1",
            differences=_minus(records, Choice(ALL_FOUR, 2), Choice(pair, 4)),
            margin=MARGIN,
        ),
        judge(
            claim="A very small rank is enough for W_q and W_v: r = 1 does no worse than r = 64",
            source="Table 6, section 7.2",
            differences=_minus(records, Choice(pair, 1), Choice(pair, 64)),
            margin=MARGIN,
        ),
        judge(
            claim="W_q alone needs a larger rank: r = 4 does better than r = 1",
            source="Table 6, section 7.2",
            differences=_minus(records, Choice(("query",), 4), Choice(("query",), 1)),
        ),
    )


def _minus(records: Records, first: Choice, second: Choice) -> dict[str, Number | None]:
    return {task: difference(of[first], of[second]) for task, of in records.items()}


EXHIBIT = Exhibit(
    name="ranks",
    title="Which weights to adapt, and with which rank",
    shows="Tables 5 and 6 (sections 7.1 and 7.2): GPT-3; W_q and W_v together make more of a budget than either "
    "alone (73.7 and 91.3; all four together 73.7 and 91.7), and r = 1 is enough for them.",
    contents=contents,
    sweep=sweep,
    runs=runs,
    scaled_down=(
        *ON_BOTH,
        "Seeds: three; the budget of Table 5 is 36,864 parameters instead of 18.9 million.",
        ONE_RATE,
    ),
)
