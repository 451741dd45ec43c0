"""`data`: LoRA, full fine-tuning and prefixes with few training rows (the paper's Table 16)."""

from collections.abc import Iterable, Mapping, Sequence

from veneer.paper import table2
from veneer.paper.exhibit import Cell, Contents, Curves, Exhibit, Measurement, Number, Table, Verdict
from veneer.paper.protocol import SCORED_ON, SMALL_MODEL, by_seed
from veneer.paper.rates import sweep_of, tuned_runs
from veneer.paper.tabulation import difference, found, mean, mean_curves, of_other_rows
from veneer.paper.verdicts import MARGIN, judge, untested
from veneer.results import RunRecord
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

TASK = "trec"
LARGE_TASK = "glue/sst2"
"""Has 10,000 rows; its runs are done by `glue`, for which its files are at hand."""
SEEDS = range(3)
SEEDS_OF_ALL: Mapping[str, range] = {"full": table2.SEEDS, "lora-qv": table2.SEEDS}
"""Method to the seeds with which `table2` and `glue` train it on all rows."""
SIZES: Mapping[int | None, Mapping[str, int]] = {
    100: {"epochs": 40, "batch_size": 20},
    1000: {"epochs": 15, "batch_size": 20},
    None: {},
}
"""Training rows, None for all, to what changes with them: fewer rows are passed more often, as in Table 17."""
EVAL_ROWS: Mapping[str, int] = {TASK: 500, LARGE_TASK: 872}
"""Task to the validation rows that choose among so many epochs; no fewer than its test rows, which all count."""
HEADINGS: Mapping[str, Mapping[int | None, str]] = {
    TASK: {100: "100 rows", 1000: "1,000 rows", None: "all rows"},
    LARGE_TASK: {100: "100 rows", 1000: "1,000 rows", None: "10,000 rows"},
}
"""Task to what each size is called there."""
ENTRIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "full": ("Full fine-tuning", ("60.2", "85.8", "88.9", "89.5")),
    "prefix-embed": ("PrefixEmbed", ("37.6", "75.2", "79.5", "88.6")),
    "prefix-layer": ("PrefixLayer", ("48.3", "82.5", "85.9", "89.6")),
    "lora-qv": ("LoRA, query + value", ("63.8", "85.6", "89.2", "91.7")),
}
"""Method to its name and the paper's accuracies on MNLI-100, 1k, 10k and 392k, in per cent; seeds move them by 0.3."""
METHODS: Mapping[str, tuple[str, ...]] = {TASK: tuple(ENTRIES), LARGE_TASK: ("full", "lora-qv")}
"""Task to what is compared on it."""
Records = Mapping[str, Mapping[str, Mapping[int | None, Sequence[RunRecord]]]]
"""Task to method to rows to the runs."""


def sweep(grid: Grid) -> list[RunConfig]:
    """Return the runs that choose each method's rate, on all rows; it then stays, as for LoRA in Table 17."""
    return [config for method in ENTRIES for config in sweep_of(grid, TASK, method)]


def runs_of(grid: Grid, task: str, method: str, rows: int | None) -> list[RunConfig]:
    """Return a method's runs on so many rows of a task, by seed; those on all rows are `table2`'s or `glue`'s."""
    changes: dict[str, int] = dict(SIZES[rows])
    if rows is None:
        return tuned_runs(grid, task, method, SEEDS_OF_ALL.get(method, SEEDS), changes)
    changes |= {"max_train_rows": rows, "max_eval_rows": EVAL_ROWS[task], "watch_test": False}
    return tuned_runs(grid, task, method, SEEDS, changes)


def runs(grid: Grid, task: str = TASK) -> list[RunConfig]:
    """Return every run on a task, one seed of everything first."""
    sizes = [(method, rows) for rows in SIZES for method in METHODS[task]]
    return by_seed([config for method, rows in sizes for config in runs_of(grid, task, method, rows)])


def contents(grid: Grid, measurement: Measurement | None) -> Contents:
    """Return a table for each task with runs, the accuracy along the rows, and the verdicts."""
    records = {
        task: {method: {rows: found(grid, runs_of(grid, task, method, rows)) for rows in SIZES} for method in methods}
        for task, methods in METHODS.items()
    }
    shown = [task for task, of in records.items() if task == TASK or any(any(sizes.values()) for sizes in of.values())]
    return Contents(
        tables=tuple(_table(task, records) for task in shown),
        figures=tuple(figure for task in shown for figure in _figure(task, records)),
        verdicts=_verdicts(records),
    )


def _name(task: str, stem: str) -> str:
    return stem if task == TASK else f"{stem}-{task.rpartition('/')[2]}"


def _table(task: str, records: Records) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (ENTRIES[method][0], *(mean(sizes[rows]) for rows in SIZES), *ENTRIES[method][1])
        for method, sizes in records[task].items()
    ]
    there = tuple(f"MNLI-{size} there, %" for size in ("100", "1k", "10k", "392k"))
    return Table(
        name=_name(task, "data-table16"),
        title=f"Table 16 on {task}",
        columns=("Method", *HEADINGS[task].values(), *there),
        rows=tuple(rows),
        notes=(
            "Test accuracy: mean ± sample standard deviation over seeds; collapsed runs are left out and told.",
            *of_other_rows(of for sizes in records[task].values() for of in sizes.values()),
        ),
    )


def _figure(task: str, records: Records) -> tuple[Curves, ...]:
    return mean_curves(
        name=_name(task, "data"),
        title=f"Accuracy along the training rows on {task}",
        x_label="Training rows",
        series={
            ENTRIES[method][0]: {of[0].split["train"]: of for of in sizes.values() if of}
            for method, sizes in records[task].items()
        },
    )


def _verdicts(records: Records) -> tuple[Verdict, ...]:
    def minus(first: str, second: str, rows: int | None, tasks: Iterable[str]) -> Mapping[str, Number | None]:
        return {
            f"{task} with {HEADINGS[task][rows]}": difference(records[task][first][rows], records[task][second][rows])
            for task in tasks
        }

    return (
        judge(
            claim="With 100 rows LoRA does better than full fine-tuning (63.8 against 60.2)",
            source="Table 16, appendix F",
            differences=minus("lora-qv", "full", 100, METHODS),
        ),
        judge(
            claim="With 1,000 rows LoRA does no worse than full fine-tuning (85.6 against 85.8)",
            source="Table 16, appendix F",
            differences=minus("lora-qv", "full", 1000, METHODS),
            margin=MARGIN,
        ),
        *(
            judge(
                claim=f"With 100 rows full fine-tuning does better than {ENTRIES[method][0]}, each at its rate for all "
                "rows",
                source="Table 16, appendix F",
                differences=minus("full", method, 100, [TASK]),
            )
            for method in ("prefix-embed", "prefix-layer")
        ),
        judge(
            claim="With 10,000 rows LoRA does no worse than full fine-tuning (89.2 against 88.9)",
            source="Table 16, appendix F",
            differences=minus("lora-qv", "full", None, [LARGE_TASK]),
            margin=MARGIN,
        ),
        untested(
            "With 392,000 rows LoRA does better than full fine-tuning (91.7 against 89.5)",
            "Table 16, appendix F",
            "The largest data set that is trained on here has 10,000 rows.",
        ),
    )


EXHIBIT = Exhibit(
    name="data",
    title="Few training rows",
    shows="Table 16 (appendix F): GPT-3 on 100 to 392,702 rows of MNLI; with few rows prefixes fail, LoRA does not.",
    contents=contents,
    sweep=sweep,
    runs=runs,
    borrowed=lambda grid: runs(grid, LARGE_TASK),
    scaled_down=(
        SMALL_MODEL,
        "Tasks: question types (TREC, 6 classes), and SST-2, instead of MNLI.",
        "Training: 40 epochs in batches of 20 on 100 rows, 15 on 1,000, 3 in batches of 32 on all, as the paper passes "
        "few rows more often; so what changes along the rows is how often each is seen, too. Each method's learning "
        "rate is the best on validation rows after training on all, and stays with fewer; the paper gives prefixes one "
        "for each number of rows (Table 17).",
        SCORED_ON,
        "Rows: 100, 1,000 and all of TREC; 100, 1,000 and 10,000 of SST-2, where `glue` is done. SST-2's rows are "
        "mostly phrases, and validation may hold parts of the sentences that are trained on. Seeds: three, on all rows "
        "those that other exhibits have; with few rows the best epoch is chosen on 500 and 872.",
    ),
)
