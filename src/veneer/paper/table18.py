"""`table18`: does more rank help? The paper asks it of generation (Table 18), these runs of classification."""

from collections.abc import Mapping, Sequence

from veneer.paper.exhibit import Cell, Contents, Exhibit, Measurement, Table
from veneer.paper.protocol import ON_TREC, by_seed
from veneer.paper.ranks import METHOD, ONE_RATE, QUERY_VALUE, SEEDS, Choice, changes_of
from veneer.paper.rates import sweep_of, tuned_runs
from veneer.paper.tabulation import difference, found, mean, mean_curves, of_other_rows
from veneer.paper.verdicts import MARGIN, judge
from veneer.results import RunRecord
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

TASK = "trec"
PAPER: Mapping[int, tuple[str, str]] = {
    1: ("1.23", "68.72"),
    2: ("1.21", "69.17"),
    4: ("1.18", "70.38"),
    8: ("1.17", "69.57"),
    16: ("1.16", "69.61"),
    32: ("1.16", "69.33"),
    64: ("1.16", "69.24"),
    128: ("1.16", "68.73"),
    256: ("1.16", "68.92"),
    512: ("1.16", "68.78"),
    1024: ("1.17", "69.37"),
}
"""Rank to the paper's validation loss and BLEU on E2E with GPT-2 medium."""
RANKS = tuple(r for r in PAPER if r <= 256)
"""MiniLM's width, 384, is the largest rank that an update of its projections can have."""
Records = Mapping[float, Sequence[RunRecord]]


def sweep(grid: Grid) -> list[RunConfig]:
    """Return the runs that choose the learning rate, at r = 8: the paper's was tuned at r = 4 alone."""
    return sweep_of(grid, TASK, METHOD)


def runs_of(grid: Grid, r: int) -> list[RunConfig]:
    """Return the runs of a rank, by seed."""
    return tuned_runs(grid, TASK, METHOD, SEEDS, changes_of(Choice(QUERY_VALUE, r)))


def runs(grid: Grid) -> list[RunConfig]:
    """Return every run, one seed of everything first."""
    return by_seed([config for r in RANKS for config in runs_of(grid, r)])


def validation_loss(record: RunRecord) -> float:
    """Return the cross-entropy on validation rows, in nats."""
    return record.validation.loss


def contents(grid: Grid, measurement: Measurement | None) -> Contents:
    """Return the table beside the paper's, accuracy along the ranks, and the verdicts."""
    records: Records = {r: found(grid, runs_of(grid, r)) for r in RANKS}
    return Contents(
        tables=(_table(records),),
        figures=mean_curves(
            name="table18",
            title=f"Accuracy along the ranks on {TASK}",
            x_label="Rank r",
            series={"query + value": records},
        ),
        verdicts=(
            judge(
                claim="More rank does not help: r = 4 does no worse than r = 256 (70.38 against 68.92 BLEU)",
                source="Table 18, section 7.2",
                differences={TASK: difference(records[4], records[256])},
                margin=MARGIN,
            ),
            judge(
                claim="A tiny rank is too small: r = 16 does better than r = 1 (69.61 against 68.72 BLEU)",
                source="Table 18's figures; not in words",
                differences={TASK: difference(records[16], records[1])},
            ),
        ),
    )


def _table(records: Records) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for r, paper in PAPER.items():
        mine = records.get(r, [])
        trained = mine[0].lora_parameters if mine else None
        rows.append((r, trained, mean(mine, validation_loss), mean(mine), *paper))
    return Table(
        name="table18",
        title=f"Table 18's question on {TASK}: query and value, rank after rank",
        columns=("Rank", "# trained", "Validation loss", "Test accuracy", "Validation loss there", "BLEU there"),
        rows=tuple(rows),
        notes=(
            "Mean ± sample standard deviation over seeds. Alpha is 16 throughout, so the update is scaled by 16 / r: "
            "the page on modern checks asks what happens where it is not.",
            *of_other_rows(records.values()),
        ),
    )


EXHIBIT = Exhibit(
    name="table18",
    title="Does more rank help?",
    shows="Table 18 (appendix H): GPT-2 medium on E2E from r = 1 to r = 1024; loss is least from 16 to 512, BLEU best "
    "at 4, for which some of the settings had been tuned.",
    contents=contents,
    sweep=sweep,
    runs=runs,
    scaled_down=(
        *ON_TREC,
        "Classification instead of generation; up to r = 256 of MiniLM's 384; seeds: three.",
        ONE_RATE,
    ),
)
