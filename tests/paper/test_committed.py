"""What is committed is what the committed records give."""

from dataclasses import fields
from pathlib import Path

from benchmarks import recipe

from veneer.data.metrics import is_collapsed
from veneer.paper.table_of_contents import all_sheets
from veneer.report.paper_files import write_paper
from veneer.results import read_results
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

ROOT = Path(__file__).parents[2]
RUNS, PAPER = ROOT / "results" / "runs", ROOT / "results" / "paper"


def test_the_page_and_its_tables_are_made_from_the_committed_records(tmp_path):
    write_paper(all_sheets(RUNS, PAPER), tmp_path)
    made = {file.relative_to(tmp_path): file.read_text() for file in tmp_path.rglob("*.*")}
    kept = {name: (PAPER / name).read_text() for name in made if (PAPER / name).is_file()}
    different = sorted(str(name) for name in made if kept.get(name) != made[name])
    assert not different, "run: .venv/bin/veneer reproduce all --render-only"


def test_the_recipes_table_is_made_from_the_committed_records():
    assert recipe.table() == recipe.TABLE.read_text(), "run: .venv/bin/python -m benchmarks.recipe"


def config_of(record):
    """The configuration of a record, of which JSON has made lists and an object."""
    known = {field.name for field in fields(RunConfig)}
    plain = {name: value for name, value in record.config.items() if name in known}
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    return RunConfig(**{**settings, "sizes": tuple(settings.get("sizes", {}).items())})


def test_every_record_lies_where_its_configuration_is_looked_for():
    for folder in RUNS.iterdir():
        (record,) = read_results(folder).records
        assert Grid(folder=RUNS).place(config_of(record)) == folder
        assert not record.config["quick"]


def test_whether_a_run_collapsed_is_told_by_its_validation_rows():
    for folder in RUNS.iterdir():
        (record,) = read_results(folder).records
        assert record.collapsed == (record.best_epoch == 0 or is_collapsed(record.validation)), folder.name
