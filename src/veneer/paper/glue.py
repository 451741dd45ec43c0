"""`glue`: the paper's Table 2 on five of its own tasks, where GLUE's files are at hand or the hub is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from veneer.data.glue import TASKS
from veneer.data.metrics import METRICS
from veneer.paper import data
from veneer.paper.exhibit import Contents, Exhibit, Measurement, Table
from veneer.paper.protocol import MODEL, PRETRAINING, SCORED_ON, SHORT_TRAINING, by_seed, on_model, run_of
from veneer.paper.rates import Swept, learnt_nowhere, rates_table, sweep_of, tuned_runs
from veneer.paper.table2 import COLUMNS, ENTRIES, FULL_ROW, LORA_ROW, PAPER_ROWS, SEEDS, claims, method_table
from veneer.paper.tabulation import difference, found
from veneer.paper.verdicts import in_points
from veneer.results import RunRecord
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

MPNET = "mpnet"
"""109 million parameters, of the class of RoBERTa base."""
MPNET_TASKS = ("glue/mrpc", "glue/rte", "glue/cola")
MAIN = ("full", "lora-qv", "lora-all")
"""What the table is about, with as many seeds as the paper has."""
RATE_AT_FIRST = 0.001
FEWER_SEEDS = range(3)
"""Those of other methods."""


def _parts() -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield each task and the setting that names its model."""
    yield from ((task, {"model": MODEL}) for task in TASKS)
    yield from ((task, {"model": MPNET}) for task in MPNET_TASKS)


def sweep(grid: Grid) -> list[RunConfig]:
    """Return the runs that choose each method's learning rate for each task and model."""
    return [config for task, model in _parts() for method in ENTRIES for config in sweep_of(grid, task, method, model)]


def runs_of(grid: Grid, task: str, method: str, model: Mapping[str, str]) -> list[RunConfig]:
    """Return a method's runs on a task, by seed: all seeds also where one of the fewer collapsed.

    Pairs with a collapsed run are left out, and of three seeds too few would be left.
    """
    runs = tuned_runs(grid, task, method, SEEDS if method in MAIN else FEWER_SEEDS, swept=model)
    if any(record.collapsed for record in found(grid, runs)):
        return tuned_runs(grid, task, method, SEEDS, swept=model)
    return runs


def runs(grid: Grid) -> list[RunConfig]:
    """Return every run, and those that `data` needs of SST-2's, one seed of everything first."""
    parts = [(task, method, model) for task, model in _parts() for method in ENTRIES]
    return by_seed([*(config for part in parts for config in runs_of(grid, *part)), *data.runs(grid, data.LARGE_TASK)])


def contents(grid: Grid, measurement: Measurement | None) -> Contents:
    """Return a table for each task and model that has runs beside the paper's, and the verdicts over all of them."""
    tables, records = [], {}
    groups: dict[str, list[str]] = {}
    nowhere: dict[str, list[str]] = {}
    for task, model in _parts():
        of = {method: found(grid, runs_of(grid, task, method, model)) for method in ENTRIES}
        name = on_model(TASKS[task].folder, model["model"])
        records[name] = of
        nowhere[name] = [method for method in ENTRIES if learnt_nowhere(grid, task, method, model)]
        groups.setdefault(model["model"], []).append(name)
        if any(of.values()):
            table = method_table(task, of, (TASKS[task].folder, "Avg"), model=model["model"])
            tables.append(replace(table, notes=(*table.notes, *_at_first(grid, task, model["model"], of["full"]))))
    swept = [
        Swept(task=task, method=method, label=entry.label, changes=model)
        for task, model in _parts()
        for method, entry in ENTRIES.items()
    ]
    return Contents(
        tables=(_tasks_table(), *tables, rates_table(grid, "glue-rates", swept)),
        verdicts=claims(records, groups, nowhere),
    )


def _at_first(grid: Grid, task: str, model: str, full: Sequence[RunRecord]) -> Iterator[str]:
    """Yield what LoRA reached at the rate that MRPC's sweep chose as long as there were no half steps."""
    if (task, model) != ("glue/mrpc", MODEL):
        return
    runs = [run_of(task, "lora-qv", seed, {"learning_rate": RATE_AT_FIRST}) for seed in SEEDS]
    gap = difference(found(grid, runs), full)
    if gap is not None:
        yield (
            f"Before sweeps had half steps, {RATE_AT_FIRST:g} was the rate of {ENTRIES['lora-qv'].label}; there, minus "
            f"full fine-tuning, {in_points(gap)}."
        )


def _tasks_table() -> Table:
    full, lora = (PAPER_ROWS[place][-1] for place in (FULL_ROW, LORA_ROW))
    return Table(
        name="glue-tasks",
        title="The tasks",
        columns=("Task", "Metric", "Rows of train", "Rows of dev", "Full fine-tuning there, %", "LoRA there, %"),
        rows=tuple(
            (task.folder, METRICS[task.metric].heading, *task.num_rows, full[place], lora[place])
            for task in TASKS.values()
            for place in [COLUMNS.index(task.folder)]
        ),
        notes=(
            "The paper's scores are those of RoBERTa base. Its LoRA rows on MRPC, RTE and STS-B start from MNLI.",
            "Rows are GLUE's; of MRPC's a copy may lack some whose texts cannot be had, as the one behind these runs "
            "lacks one of train.",
        ),
    )


EXHIBIT = Exhibit(
    name="glue",
    title="Table 2 on GLUE itself",
    shows="Table 2 (section 5.2) on SST-2, MRPC, CoLA, RTE and STS-B: with 0.2 % of the parameters LoRA scores as full "
    "fine-tuning does.",
    contents=contents,
    sweep=sweep,
    runs=runs,
    scaled_down=(
        "Models: MiniLM, 22.7 million parameters, and on MRPC, RTE and CoLA also MPNet, 109 million, of the size of "
        "RoBERTa base.",
        PRETRAINING,
        SHORT_TRAINING,
        SCORED_ON,
        "Seeds: five for full fine-tuning and LoRA, three for the other methods, and two more where one of the three "
        "collapsed; the paper has five.",
        "Rows: of SST-2 10,000 are trained on, a sixth, most of them phrases of its sentences; validation, a tenth of "
        "the train set, may hold parts of the same sentences, which favours what remembers them. GLUE's dev set is the "
        "test set here and chooses nothing. Texts are cut at 128 tokens, of RTE's pairs an eighth; the paper reads up "
        "to 512.",
        "Rules: that a sweep takes half steps where its neighbours collapsed, and that a task which nobody learnt "
        "decides nothing, was settled after the first runs on MRPC had been seen; what they gave stands there. Settled "
        "when the tables of three seeds had been seen: that a method gets two more where one collapsed; that a task "
        "decides nothing of a method which collapsed at each rate of its sweep, as no score has chosen its rate (else "
        "the first would have LoRA ahead of AdapterDrop, by CoLA alone); and that validation rows tell what was "
        "learnt, where test rows told it before, with the same outcomes. The epoch and the rate were chosen by these "
        "rows too, which leans towards learnt.",
        "Points of accuracy, of Matthews's and of Pearson's correlation count alike where tasks are put together, as "
        "in the paper's average; but MRPC, RTE and CoLA count once for each model that was trained on them.",
    ),
)
