"""`veneer compare` end to end: real runs in real processes, on the tiny model."""

import json
import shutil

import pytest

from tests.cli.tiny import COLUMNS, METHODS, contents, make_rows, veneer, worked, write_csv

RUNS = [f"{method}-seed{seed}" for seed in (0, 1) for method in METHODS]
LABELS = {"head": "Head only", "lora-qv": "query + value", "lora-all": "all linear", "full": "Full fine-tuning"}


@pytest.fixture(scope="module")
def arguments(tiny, tables):
    """What every comparison here asks for, but the folder."""
    data = ("--data", tables / "train.csv", "--test", tables / "test.csv", *COLUMNS)
    settings = ("--seeds", 2, "--epochs", 1, "--batch-size", 8, "--max-tokens", 24, "--precision", "float32")
    return ("compare", "--model", tiny, *data, *settings)


@pytest.fixture(scope="module")
def compared(arguments, tmp_path_factory):
    """The folder of a finished comparison, only read, and how the command ended."""
    folder = tmp_path_factory.mktemp("compared") / "deep" / "run"
    return folder, worked(*arguments, "--out", folder)


@pytest.fixture
def folder(compared, tmp_path):
    """A copy of the comparison, with its times, to be changed."""
    return shutil.copytree(compared[0], tmp_path / "run")


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def when_written(folder):
    return {name: (folder / name / "results.json").stat().st_mtime_ns for name in RUNS}


def test_there_is_one_record_per_method_and_seed_each_with_its_checkpoint(compared):
    folder, _ = compared
    results = results_of(folder)
    assert results["schema"] == 1
    assert [f"{record['method']}-seed{record['seed']}" for record in results["records"]] == RUNS
    for record in results["records"]:
        checkpoint = folder / record["checkpoint"]
        size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
        assert record["checkpoint_bytes"] == size > 0
        assert checkpoint.parent.name == f"{record['method']}-seed{record['seed']}"
        assert record["test"]["num_examples"] == 21
    assert {path.name for path in folder.iterdir()} == {"results.json", "report.html", *RUNS}


def test_every_run_sees_the_same_rows(compared):
    records = results_of(compared[0])["records"]
    assert len({json.dumps(record["split"]) for record in records}) == 1
    assert {record["config"]["split_seed"] for record in records} == {0}


def test_a_record_is_the_one_in_the_runs_own_folder_and_its_checkpoint_scores_the_same(compared, tables):
    folder, _ = compared
    for record in results_of(folder)["records"]:
        run = folder / f"{record['method']}-seed{record['seed']}"
        [own] = results_of(run)["records"]
        assert {**own, "checkpoint": record["checkpoint"]} == record
        if record["seed"] == 1:
            scores = json.loads(worked("evaluate", run, "--data", tables / "test.csv", *COLUMNS, "--json").out)
            assert {name: scores[name] for name in record["test"]} == record["test"]


def test_the_table_and_the_report_name_every_method(compared):
    folder, ended = compared
    report = (folder / "report.html").read_text(encoding="utf-8")
    for label in LABELS.values():
        assert label in report
    assert sum(line.split()[:2] == ["2", "runs"] for line in ended.out.splitlines()) == len(METHODS)
    assert str(folder / "report.html") in ended.out
    assert ended.err.count("seed 0: test accuracy") == len(METHODS)


def test_a_run_that_was_lost_is_all_that_resume_does_again(arguments, folder):
    before = when_written(folder)
    records = results_of(folder)["records"]
    shutil.rmtree(folder / "lora-qv-seed1")
    (folder / "results.json").unlink()
    worked(*arguments, "--out", folder, "--resume")
    after = when_written(folder)
    assert {name for name in RUNS if before[name] != after[name]} == {"lora-qv-seed1"}
    again = results_of(folder)["records"]
    assert [record["test"] for record in again] == [record["test"] for record in records]


def test_resume_does_again_what_was_run_with_other_settings(arguments, folder):
    before = when_written(folder)
    for name in RUNS:
        if name != "head-seed0":
            shutil.rmtree(folder / name)
    worked(
        *arguments,
        "--out",
        folder,
        "--resume",
        "--overwrite",
        "--methods",
        "head",
        "--seeds",
        1,
        "--precision",
        "bfloat16",
    )
    assert (folder / "head-seed0" / "results.json").stat().st_mtime_ns != before["head-seed0"]
    [record] = results_of(folder)["records"]
    assert record["config"]["precision"] == "bfloat16"


def test_a_folder_with_runs_is_left_alone_unless_told_otherwise(arguments, folder):
    before = contents(folder)
    ended = veneer(*arguments, "--out", folder)
    assert ended.code == 2
    assert f"{folder} already holds a run" in ended.err
    assert "--overwrite to replace it or --resume to finish it" in ended.err
    assert contents(folder) == before


def test_overwrite_replaces_the_runs_and_keeps_what_is_not_veneers(arguments, folder):
    (folder / "notes.txt").write_text("mine")
    worked(*arguments, "--out", folder, "--overwrite", "--methods", "head", "--seeds", 1)
    names = {"results.json", "report.html", "notes.txt", "head-seed0"}
    assert {path.name for path in folder.iterdir()} == names
    assert len(results_of(folder)["records"]) == 1


def test_a_run_that_collapsed_is_marked(tiny, tmp_path):
    """Texts of unknown words only look all the same to the model, so every answer is the same class."""
    rows = [(f"zzz{number}", "", label) for number, (_, _, label) in enumerate(make_rows(60, seed=1))]
    data = write_csv(tmp_path / "alike.csv", rows)
    settings = ("--methods", "head", "--epochs", 1, "--max-tokens", 24, "--out", tmp_path / "run")
    ended = worked("compare", "--model", tiny, "--data", data, *COLUMNS, *settings)
    [record] = results_of(tmp_path / "run")["records"]
    assert record["collapsed"]
    assert "collapsed to one answer" in ended.err
    assert "1 collapsed" in ended.out
    assert "collapsed" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_quick_run_is_labelled_wherever_its_figures_stand(tiny, tables, tmp_path):
    data = ("--data", tables / "train.csv", *COLUMNS)
    ended = worked("compare", "--model", tiny, *data, "--methods", "head", "--quick", "--out", tmp_path / "run")
    results = results_of(tmp_path / "run")
    assert results["records"][0]["config"]["quick"]
    assert any("QUICK RUN" in note for note in results["notes"])
    assert "QUICK RUN" in ended.err
    assert "QUICK RUN" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
