"""`data`: LoRA, full fine-tuning and prefixes with few training rows (the paper's Table 16)."""

from collections.abc import Mapping, Sequence

from veneer.paper.exhibit import Cell, Contents, Curves, Exhibit, Measurement, Number, Table, Verdict
from veneer.paper.protocol import SCALED_DOWN, by_seed
from veneer.paper.rates import sweep_of, tuned_runs
from veneer.paper.tabulation import difference, found, judge, mean, mean_curves, untested
from veneer.results import RunRecord
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

TASK = "trec"
SEEDS = range(3)
MARGIN = 0.01
SIZES: Mapping[int | None, Mapping[str, int]] = {
    100: {"epochs": 40, "batch_size": 20, "max_eval_rows": 500},
    1000: {"epochs": 15, "batch_size": 20, "max_eval_rows": 500},
    None: {},
}
"""Training rows, None for all, to what changes with them: fewer rows are passed more often, as in Table 17."""
HEADINGS: Mapping[int | None, str] = {100: "100 rows", 1000: "1,000 rows", None: "all rows"}
ENTRIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "full": ("Full fine-tuning", ("60.2", "85.8", "88.9", "89.5")),
    "prefix-embed": ("PrefixEmbed", ("37.6", "75.2", "79.5", "88.6")),
    "prefix-layer": ("PrefixLayer", ("48.3", "82.5", "85.9", "89.6")),
    "lora-qv": ("LoRA, query + value", ("63.8", "85.6", "89.2", "91.7")),
}
"""Method to its name and the paper's accuracies on MNLI-100, 1k, 10k and 392k, in per cent; seeds move them by 0.3."""
Records = Mapping[str, Mapping[int | None, Sequence[RunRecord]]]


def sweep(grid: Grid) -> list[RunConfig]:
    """Return the runs that choose each method's rate, on all rows; it then stays, as for LoRA in Table 17."""
    return [config for method in ENTRIES for config in sweep_of(grid, TASK, method)]


def runs_of(grid: Grid, method: str, rows: int | None) -> list[RunConfig]:
    """Return a method's runs on so many rows, by seed; those on all rows are `table2`'s."""
    changes: dict[str, int] = dict(SIZES[rows])
    if rows is not None:
        changes["max_train_rows"] = rows
    return tuned_runs(grid, TASK, method, SEEDS, changes)


def runs(grid: Grid) -> list[RunConfig]:
    """Return every run, one seed of everything first."""
    return by_seed([config for rows in SIZES for method in ENTRIES for config in runs_of(grid, method, rows)])


def contents(grid: Grid, measurement: Measurement | None) -> Contents:
    """Return the table, the accuracy along the rows, and the verdicts."""
    records = {method: {rows: found(grid, runs_of(grid, method, rows)) for rows in SIZES} for method in ENTRIES}
    return Contents(tables=(_table(records),), figures=_figure(records), verdicts=_verdicts(records))


def _table(records: Records) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (label, *(mean(records[method][rows]) for rows in SIZES), *paper) for method, (label, paper) in ENTRIES.items()
    ]
    there = tuple(f"MNLI-{size} there, %" for size in ("100", "1k", "10k", "392k"))
    return Table(
        name="data-table16",
        title=f"Table 16 on {TASK}",
        columns=("Method", *HEADINGS.values(), *there),
        rows=tuple(rows),
        notes=("Test accuracy: mean ± sample standard deviation over seeds; collapsed runs are left out and told.",),
    )


def _figure(records: Records) -> tuple[Curves, ...]:
    return mean_curves(
        name="data",
        title="Accuracy along the training rows",
        x_label="Training rows",
        series={
            label: {of[0].split["train"]: of for of in records[method].values() if of}
            for method, (label, _) in ENTRIES.items()
        },
    )


def _verdicts(records: Records) -> tuple[Verdict, ...]:
    def minus(first: str, second: str, rows: int | None) -> Mapping[str, Number | None]:
        return {HEADINGS[rows]: difference(records[first][rows], records[second][rows])}

    return (
        judge(
            claim="With 100 rows LoRA does better than full fine-tuning (63.8 against 60.2)",
            source="Table 16, appendix F",
            differences=minus("lora-qv", "full", 100),
        ),
        judge(
            claim="With 1,000 rows LoRA does no worse than full fine-tuning (85.6 against 85.8)",
            source="Table 16, appendix F",
            differences=minus("lora-qv", "full", 1000),
            margin=MARGIN,
        ),
        *(
            judge(
                claim=f"With 100 rows full fine-tuning does better than {ENTRIES[method][0]}",
                source="Table 16, appendix F",
                differences=minus("full", method, 100),
            )
            for method in ("prefix-embed", "prefix-layer")
        ),
        untested(
            "With 10,000 rows LoRA does no worse than full fine-tuning (89.2 against 88.9)",
            "Table 16, appendix F",
            "The data set here has 5,452 rows.",
        ),
        untested(
            "With 392,000 rows LoRA does better than full fine-tuning (91.7 against 89.5)",
            "Table 16, appendix F",
            "The data set here has 5,452 rows.",
        ),
    )


EXHIBIT = Exhibit(
    name="data",
    title="Few training rows",
    shows="Table 16 (appendix F): GPT-3 on 100 to 392,702 rows of MNLI; with few rows prefixes fail, LoRA does not.",
    contents=contents,
    sweep=sweep,
    runs=runs,
    scaled_down=(
        *SCALED_DOWN,
        "Rows: 100, 1,000 and all; seeds: three; with few rows the best epoch is chosen on 500.",
    ),
)
