"""Table 2 on GLUE: each task by its own metric, beside the paper's own cell, with runs that any folder serves."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.paper.kept import keep_all, keep_sweeps
from tests.report.records import record, results
from veneer.data.glue import TASKS
from veneer.paper import data, glue, roberta, table2
from veneer.results import read_results, write_results
from veneer.training.config import RunConfig
from veneer.training.grid import Grid


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return Grid(folder=tmp_path / "runs")


def accuracy(config: RunConfig) -> float:
    return 0.9 - 0.1 * (config.method != "lora-qv") + 0.002 * config.seed * (1 + (config.method == "full"))


def test_every_task_has_a_table_in_its_own_metric_beside_the_papers_cell(grid):
    keep_all(grid, glue.EXHIBIT, accuracy)
    sheet = glue.EXHIBIT.sheet(grid)
    assert sheet.missing == ()
    tables = {table.name: table for table in sheet.tables}
    expected = {
        "table2-sst2": ("Accuracy on dev", "95.1 ± .2"),
        "table2-mrpc": ("Accuracy on dev", "89.7 ± .7"),
        "table2-cola": ("Matthews on dev", "63.4 ± 1.2"),
        "table2-rte": ("Accuracy on dev", "86.6 ± .7"),
        "table2-stsb": ("Pearson on dev", "91.5 ± .2"),
    }
    mpnet = {f"table2-{name}-mpnet" for name in ("mrpc", "rte", "cola")}
    assert set(tables) == {"glue-tasks", "glue-rates", *expected, *mpnet}
    for name, (heading, cell) in expected.items():
        assert heading in tables[name].columns
        row = next(row for row in tables[name].rows if row[0] == "LoRA, query + value")
        assert row[-2:] == (cell, "87.2")
    assert [verdict.outcome for verdict in sheet.verdicts] == ["held"] * len(sheet.verdicts)


def test_the_tables_own_score_is_what_the_verdicts_turn_with(grid):
    """On CoLA accuracy is 0.9 against 0.8, and Matthews's correlation of two equal classes 0.8 against 0.6."""
    keep_all(grid, glue.EXHIBIT, lambda config: 0.9 if config.method == "lora-qv" else 0.8)
    claim = glue.EXHIBIT.sheet(grid).verdicts[0]
    assert "; CoLA: +20.0 [" in claim.because
    assert "; RTE: +10.0 [" in claim.because


def test_of_sst2_a_sample_is_trained_on_but_not_at_the_papers_scale(grid):
    keep_sweeps(grid, glue.EXHIBIT, accuracy)
    assert {run.max_train_rows for run in glue.runs(grid) if run.data == "glue/sst2"} == {100, 1000, 10_000}
    assert {run.max_train_rows for run in [*glue.runs(grid), *roberta.runs(grid)] if run.data != "glue/sst2"} == {None}
    assert {run.max_train_rows for run in roberta.runs(grid)} == {None}


def test_the_methods_are_those_of_table_2_and_what_it_is_about_has_five_seeds(grid):
    num_seeds = {name: 5 if name == "full" or name.startswith("lora") else 3 for name in table2.ENTRIES}
    keep_sweeps(grid, glue.EXHIBIT, accuracy)
    runs = glue.runs(grid)
    for task in TASKS:
        whole = [run for run in runs if run.data == task and run.max_train_rows not in data.SIZES.keys() - {None}]
        mine = [(run.method, run.seed) for run in whole if run.model == "minilm"]
        assert sorted(mine) == sorted((name, seed) for name, number in num_seeds.items() for seed in range(number))


def test_a_method_of_which_a_run_collapsed_gets_as_many_seeds_as_the_others(grid):
    keep_all(grid, glue.EXHIBIT, accuracy)
    of_cola = {"task": "glue/cola", "model": {"model": "minilm"}}
    assert [run.seed for run in glue.runs_of(grid, method="bitfit", **of_cola)] == [0, 1, 2]
    (third,) = glue.runs_of(grid, method="bitfit", **of_cola)[2:]
    (kept,) = read_results(grid.place(third)).records
    write_results(grid.place(third), results(replace(kept, collapsed=True)))
    assert [run.seed for run in grid.missing(glue.runs(grid))] == [3, 4]
    assert [run.seed for run in glue.runs_of(grid, method="bitfit", **of_cola)] == [0, 1, 2, 3, 4]
    assert [run.seed for run in glue.runs_of(grid, method="houlsby", **of_cola)] == [0, 1, 2]


def test_a_task_decides_nothing_of_a_method_that_learnt_it_at_no_rate(grid):
    keep_all(grid, glue.EXHIBIT, accuracy)
    for run in (run for run in glue.sweep(grid) if (run.data, run.method) == ("glue/cola", "bitfit")):
        (kept,) = read_results(grid.place(run)).records
        write_results(grid.place(run), results(replace(kept, collapsed=True)))
    *_, houlsby, bitfit = glue.EXHIBIT.sheet(grid).verdicts
    assert "BitFit collapsed at each rate of the sweep, so it decides nothing" in bitfit.because
    assert "together" in bitfit.because.split("CoLA")[0]  # it is not among those that are put together
    assert "collapsed" not in houlsby.because


def test_few_rows_of_sst2_decide_beside_trec_and_10_000_alone(grid):
    lora_is_better = {"lora-qv": 0.05, "full": 0.0}
    keep_all(grid, glue.EXHIBIT, lambda run: 0.8 + lora_is_better.get(run.method, 0) + 1e-3 * run.seed * (run.r % 7))
    sheet = data.EXHIBIT.sheet(grid)
    (table,) = (table for table in sheet.tables if table.name == "data-table16-sst2")
    assert [row[0] for row in table.rows] == ["Full fine-tuning", "LoRA, query + value"]
    hundred, thousand, *_, ten_thousand, _ = sheet.verdicts
    assert [verdict.outcome for verdict in (hundred, thousand, ten_thousand)] == ["held"] * 3
    assert "glue/sst2 with 100 rows: +5.0 points" in hundred.because
    assert ten_thousand.because.startswith("glue/sst2 with 10,000 rows: +5.0 points")


def test_where_glues_files_lie_is_no_part_of_a_run(grid):
    (run, *_) = glue.sweep(grid)
    elsewhere = RunConfig(**{**vars(run), "glue": "/anywhere"})
    assert grid.place(run) == grid.place(elsewhere)


@pytest.mark.parametrize(("score", "outcome"), [(0.96, "held"), (0.5, "not held")])
def test_at_the_papers_size_ours_is_judged_by_the_printed_score(grid, score, outcome):
    keep_all(grid, roberta.EXHIBIT, lambda config: score + 0.001 * config.seed)
    (verdict,) = roberta.EXHIBIT.sheet(grid).verdicts
    assert verdict.outcome == outcome
    assert "glue/mrpc" not in verdict.because  # the paper's starts from MNLI


def test_at_the_papers_size_collapsed_runs_are_left_out_and_told(grid):
    keep_all(grid, roberta.EXHIBIT, lambda config: 0.9 + 0.001 * config.seed)
    for config in (run for run in roberta.runs(grid) if run.seed == 0):
        (kept,) = read_results(grid.place(config)).records
        write_results(grid.place(config), results(replace(kept, collapsed=True)))
    (verdict,) = roberta.EXHIBIT.sheet(grid).verdicts
    assert verdict.because.count("(4, 1 collapsed run left out)") == 2


def test_the_papers_scores_are_read_as_shares():
    assert {task: roberta.printed(task) for task in roberta.RECIPES} == {
        "glue/sst2": 0.951, "glue/mrpc": 0.897, "glue/cola": 0.634, "glue/rte": 0.866, "glue/stsb": 0.915,
    }  # fmt: skip


def test_methods_without_runs_are_named_below_the_table_where_others_have_some():
    runs = {
        method: [record(method, 0.8, seed, data="glue/mrpc") for seed in range(2)] for method in ("full", "lora-qv")
    }
    none = dict.fromkeys(table2.ENTRIES, ())
    some = table2.method_table("glue/mrpc", {**none, **runs}, ("MRPC",), model="mpnet")
    assert [row[0] for row in some.rows] == ["Full fine-tuning", "LoRA, query + value"]
    (told,) = [note for note in some.notes if note.startswith("Not run yet")]
    assert told.startswith("Not run yet on glue/mrpc with mpnet: Head only; BitFit; ")
    empty = table2.method_table("glue/mrpc", none, ("MRPC",))
    assert len(empty.rows) == len(table2.ENTRIES)
    assert not [note for note in empty.notes if note.startswith("Not run yet")]
