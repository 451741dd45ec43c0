"""`veneer reproduce`: fills what is missing, once; renders what is there; measures where it is asked to."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tests.cli.tiny import veneer, worked
from tests.glue_files import made_rows, write_archive
from veneer.cli.reproduce import parse_seconds
from veneer.errors import ConfigError, DataError, DownloadError
from veneer.paper import table_of_contents
from veneer.paper.exhibit import Contents, Exhibit, Table
from veneer.paper.tabulation import found, mean
from veneer.training import grid
from veneer.training.config import RunConfig

PARTS = ("train", "dev")
"""What GLUE's archive has of a task."""


@pytest.fixture
def exhibits(monkeypatch, tiny, tables):
    """One exhibit of two tiny runs, and one that measures; returns how often it did."""
    data = str(tables / "train.csv")
    runs = [
        RunConfig(
            model=str(tiny), data=data, text="text", label="label", method="head", seed=seed, epochs=1, max_tokens=24,
            precision="float32", attention="eager",
        )
        for seed in (0, 1)
    ]  # fmt: skip
    measured: list[bool] = []

    def measure(watcher, grid, quick):
        measured.append(quick)
        return {"quick": quick, "machine": {}, "versions": {}}

    def contents(grid, measurement):
        row = (mean(found(grid, runs)), "measured" if measurement else "not measured")
        return Contents(tables=(Table(name="t", title="T", columns=("Accuracy", "Measured"), rows=(row,)),))

    small = Exhibit(name="small", title="Small", shows="Nothing.", contents=contents, runs=lambda grid: list(runs))
    timed = Exhibit(name="timed", title="Timed", shows="Nothing.", contents=contents, measure=measure)
    monkeypatch.setattr(table_of_contents, "EXHIBITS", {"small": small, "timed": timed})
    return measured


def test_the_help_names_every_exhibit():
    shown = worked("reproduce", "--help").out
    assert all(name in shown for name in [*table_of_contents.EXHIBITS, table_of_contents.ALL])


def test_rendering_alone_runs_nothing_and_names_what_is_missing(scratch, exhibits):
    ended = worked("reproduce", "small", "--render-only")
    missing = " ".join(ended.out.split())
    assert "Missing, 2: train, head, seed 0, " in missing
    assert "(train-head-seed0-" in missing
    assert not (scratch / "results/runs").exists()
    assert "without effect" not in ended.err
    told = worked("reproduce", "small", "--render-only", "--workers", 2, "--budget", "1h", "--out", "other").err
    assert "without effect: --budget, --workers" in " ".join(told.split())
    page = (scratch / "results/paper/index.html").read_text()
    assert "Small" in page
    assert "Timed" in page  # the page holds every exhibit, whichever was asked for


def test_missing_runs_are_done_once(scratch, exhibits):
    ended = worked("reproduce", "small")
    records = sorted((scratch / "results/runs").rglob("results.json"))
    assert len(records) == 2
    assert "Missing" not in ended.out
    assert "n = 2" in ended.out
    before = [record.stat().st_mtime_ns for record in records]
    assert "missing" not in worked("reproduce", "small", "--workers", 2).err
    assert [record.stat().st_mtime_ns for record in records] == before


def test_where_a_run_cannot_be_done_all_else_is_and_the_failure_is_the_last_word(scratch, exhibits, monkeypatch):
    done = grid.run_in_process

    def run(config, *args, **options):
        if config.seed == 0:
            raise DataError("no such rows")
        return done(config, *args, **options)

    monkeypatch.setattr(grid, "run_in_process", run)
    ended = veneer("reproduce", "all")
    assert ended.code == 2
    assert "Missing, 1: train, head, seed 0, " in " ".join(ended.out.split())
    assert "n = 1" in ended.out
    assert exhibits == [False]
    assert (scratch / "results/paper/index.html").is_file()
    assert re.search(r"train-head-seed0-\w+: no such rows\s*$", ended.err)


def test_where_a_measurement_cannot_be_made_all_else_is_and_every_failure_is_told(scratch, exhibits, monkeypatch):
    def run(*args, **options):
        raise DataError("no such rows")

    def measure(watcher, grid, quick):
        raise DownloadError("no such wheel")

    timed = replace(table_of_contents.EXHIBITS["timed"], measure=measure)
    monkeypatch.setitem(table_of_contents.EXHIBITS, "timed", timed)
    ended = veneer("reproduce", "timed")
    assert ended.code
    assert "not measured: no such wheel" in ended.err
    assert ended.err.rstrip().endswith("error: no such wheel")
    assert "the measurement itself" in ended.out
    monkeypatch.setattr(grid, "run_in_process", run)
    ended = veneer("reproduce", "all")
    told = " ".join(ended.err.split())
    assert "not everything could be done" in told
    assert told.count("no such rows") == 4  # of two runs: at once, and at the end
    assert told.endswith("- no such wheel")
    assert (scratch / "results/paper/index.html").is_file()


def test_runs_on_another_copy_of_the_rows_are_refused_before_anything_is_run(scratch, exhibits, monkeypatch, tiny):
    copies = [
        write_archive(scratch / f"copy-{seed}", "rte", {part: made_rows("rte", 24, seed=seed) for part in PARTS})
        for seed in range(2)
    ]

    def runs(grid):
        shared = {"model": str(tiny), "data": "glue/rte", "method": "head", "epochs": 1, "precision": "float32"}
        return others + [RunConfig(**shared, seed=seed, max_train_rows=rows if seed else None) for seed in seeds]

    exhibits_own = table_of_contents.EXHIBITS["small"].runs
    small = replace(table_of_contents.EXHIBITS["small"], runs=runs)
    monkeypatch.setitem(table_of_contents.EXHIBITS, "small", small)
    seeds, rows, others = [0], None, []
    assert "GLUE" in worked("reproduce", "small", "--glue", copies[0]).err  # which has other numbers of rows
    seeds, rows, others = [0, 1], 10, exhibits_own(grid)
    ended = veneer("reproduce", "small", "--glue", copies[1])  # of whose ten rows there is no run yet
    assert ended.code == 2
    assert "glue/rte has other rows here than the runs in results/runs were done on" in " ".join(ended.err.split())
    assert "Missing, 1: rte, head, seed 1" in " ".join(ended.out.split())
    assert "n = 2" in ended.out  # other data's runs are done all the same
    worked("reproduce", "small", "--glue", copies[0])


def test_a_page_puts_no_runs_on_different_rows_together(scratch, exhibits):
    worked("reproduce", "small")
    (_, second) = (scratch / "results/runs").rglob("results.json")
    kept = json.loads(second.read_text())
    kept["records"][0]["config"]["rows_sha256"] = "of another copy"
    second.write_text(json.dumps(kept))
    ended = veneer("reproduce", "small", "--render-only")
    assert ended.code == 2
    assert "were done on different rows of" in ended.err


def test_no_run_begins_after_the_budget(scratch, exhibits):
    ended = worked("reproduce", "all", "--budget", "0s")
    assert "Missing, 2" in ended.out
    assert exhibits == []
    assert "the budget is spent" in ended.err


def test_the_budget_counts_from_the_start(scratch, exhibits, monkeypatch):
    """Looking for what is missing takes of it too."""
    small = table_of_contents.EXHIBITS["small"]

    def slow(grid):
        time.sleep(0.2)
        return small.runs(grid)

    monkeypatch.setitem(table_of_contents.EXHIBITS, "small", replace(small, runs=slow))
    ended = worked("reproduce", "small", "--budget", "0.1s")
    assert "2 runs are missing" in ended.err
    assert "[1/2]" not in ended.err


def test_what_cannot_be_written_or_found_is_told_before_anything_is_run(scratch, exhibits, monkeypatch):
    (scratch / "a-file").write_text("")
    before = sorted(scratch.iterdir())
    for option in ("--out", "--runs"):
        ended = veneer("reproduce", "small", option, "a-file/inside")
        assert ended.code == 2
        assert "a-file is a file; a folder is needed there" in ended.err
        ended = veneer("reproduce", "small", option, "/proc/nobody/writes/here")
        assert ended.code == 2
        told = " ".join(ended.err.split())
        assert f"cannot be written to: No such file or directory; name another folder by {option}" in told
    small = table_of_contents.EXHIBITS["small"]
    rte = replace(
        small, runs=lambda grid: [*small.runs(grid), RunConfig(model="m", data="glue/rte", method="head", seed=7)]
    )
    monkeypatch.setitem(table_of_contents.EXHIBITS, "small", rte)
    ended = veneer("reproduce", "small", "--glue", "nowhere")
    assert ended.code == 2
    assert "glue/rte is not in nowhere" in ended.err
    assert "[1/" not in ended.err
    assert sorted(scratch.iterdir()) == before


def test_a_page_with_results_never_gives_way_to_one_without(scratch, exhibits):
    assert "resluts does not exist (--runs" in worked("reproduce", "small", "--render-only", "--runs", "resluts").err
    worked("reproduce", "small", "--budget", "0s")  # in place of one that had none either
    worked("reproduce", "small")
    assert "--runs" not in worked("reproduce", "small", "--render-only").err
    page = (scratch / "results/paper/index.html").read_bytes()
    (scratch / "results/runs").rename(scratch / "results/elsewhere")
    for arguments in ((), ("--render-only",), ("--runs", "resluts"), ("--budget", "0s"), ("--quick",)):
        for name in ("small", "timed"):
            ended = veneer("reproduce", name, *arguments)
            assert ended.code == 2
            assert "does not exist, and the page in results/paper would give way" in ended.err
    ended = veneer("reproduce", "timed", "--runs", "results")
    assert ended.code == 2
    assert "results holds no record of a run, and the page in results/paper would give way" in " ".join(
        ended.err.split()
    )
    assert exhibits == []
    assert (scratch / "results/paper/index.html").read_bytes() == page
    worked("reproduce", "small", "--runs", "results/elsewhere", "--render-only")


def test_a_record_that_cannot_be_read_is_told_before_anything_is_run(scratch, exhibits):
    worked("reproduce", "small")
    for record in list((scratch / "results/runs").rglob("results.json"))[:1]:
        record.write_text("{")
    ended = veneer("reproduce", "timed")
    assert ended.code == 2
    assert "is done again" in ended.err
    assert exhibits == []


def test_two_runs_at_once_are_told_line_by_line(scratch, exhibits):
    ended = worked("reproduce", "small", "--workers", 2)
    assert "[1/2]" in ended.err
    assert "[2/2]" in ended.err
    assert len(list((scratch / "results/runs").rglob("results.json"))) == 2


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("workers", "training", "times"), [(1, False, 1), (2, False, 1), (1, False, 3), (2, True, 1), (2, True, 3)]
)
def test_an_interrupt_ends_everything_with_one_line_and_leaves_nothing(scratch, tables, tiny, workers, training, times):
    """As Ctrl-C on a terminal does, it reaches every process, whose runs are still importing or already training."""
    ours = f"""
import veneer.paper.table_of_contents as contents
from veneer.cli import main
from veneer.paper.exhibit import Contents, Exhibit
from veneer.training.config import RunConfig

def runs(grid):
    return [RunConfig(model={str(tiny)!r}, data={str(tables / "train.csv")!r}, text="text", label="label",
                      method="head", seed=seed, epochs=500, max_tokens=24) for seed in (0, 1)]

if __name__ == "__main__":
    contents.EXHIBITS = {{"small": Exhibit(name="small", title="T", shows="N.", runs=runs,
                                          contents=lambda grid, measurement: Contents(tables=()))}}
    main()
"""
    (scratch / "ours.py").write_text(ours)
    command = [sys.executable, "ours.py", "reproduce", "small", "--workers", str(workers)]
    temporary = scratch / "tmpdir"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment)
    assert process.stderr is not None
    lines = [process.stderr.readline() for _ in range(2 + workers)]
    assert "[1/2]" in "".join(lines)
    if training:
        await_(lambda: len(list(temporary.glob("*/.run*"))) == workers)
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert rest.splitlines()[-1].startswith("error: stopped")
    assert "Traceback" not in rest
    assert not list(scratch.rglob("results.json"))
    assert not list(temporary.iterdir())
    await_(lambda: not is_anybody_in(process.pid))


def await_(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_anybody_in(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_cluster_needs_ray(scratch, exhibits, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = veneer("reproduce", "small", "--ray", "auto")
    assert ended.code == 2
    assert "pip install ray" in ended.err
    assert not (scratch / "results/runs").exists()


def test_a_quick_measurement_gives_way_to_a_whole_one_and_never_the_other_way(scratch, exhibits):
    for arguments in (("--quick",), ("--quick",), (), (), ("--quick",)):
        ended = worked("reproduce", "timed", *arguments)
    assert exhibits == [True, False]
    assert "timed was measured on another machine (unknown processor); to measure here delete" in ended.err
    ended = worked("reproduce", "small", "--quick", "--workers", 2)
    assert "--quick runs nothing; without effect: --workers" in ended.err
    assert "Missing, 2" in ended.out
    assert json.loads((scratch / "results/paper/measurements/timed.json").read_text())["quick"] is False


def test_rendering_elsewhere_takes_the_measurements_that_are_committed_unless_there_are_others(scratch, exhibits):
    worked("reproduce", "all")
    ended = worked("reproduce", "timed", "--render-only", "--out", "elsewhere")
    assert "the measurement itself" not in ended.out
    assert "those of results/paper are taken" in " ".join(ended.err.split())
    assert not (scratch / "elsewhere/measurements").exists()
    (scratch / "elsewhere/measurements").mkdir()
    ended = worked("reproduce", "timed", "--render-only", "--out", "elsewhere")
    assert "the measurement itself" in ended.out
    assert "are taken" not in ended.err


def test_an_unknown_exhibit_lists_the_known(scratch, exhibits):
    ended = veneer("reproduce", "timed", "smal")
    assert ended.code == 2
    assert "'small'" in ended.err
    assert "all" in ended.err
    none = veneer("reproduce")
    assert none.code == 2
    assert "name one or more exhibits: small, timed, all" in none.err


def test_several_exhibits_are_done_together(scratch, exhibits):
    ended = worked("reproduce", "timed", "small")
    assert "Missing" not in ended.out
    assert "n = 2" in ended.out
    assert exhibits == [False]


def test_files_that_are_not_of_an_earlier_page_are_never_overwritten(scratch, exhibits):
    for name in ("index.html", "small.md"):
        folder = scratch / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        ended = veneer("reproduce", "small", "--out", folder)
        assert ended.code == 2
        assert f"holds {name}, which Veneer did not write" in ended.err
        assert "[1/" not in ended.err
        assert [(file.name, file.read_text()) for file in folder.iterdir()] == [(name, "mine")]
    worked("reproduce", "small", "--out", "new")
    (scratch / "new/index.html").unlink()  # what is left is ours all the same
    worked("reproduce", "small", "--render-only", "--out", "new")


def test_how_long_the_missing_runs_take_is_told_by_those_that_are_there(scratch, exhibits):
    assert "would take" not in worked("reproduce", "small", "--budget", "0s").err
    worked("reproduce", "small")
    for folder in list((scratch / "results/runs").iterdir())[:1]:
        shutil.rmtree(folder)
    (kept,) = [json.loads(file.read_text()) for file in (scratch / "results/runs").rglob("results.json")]
    kept["records"][0]["train_seconds"] = 7200.0
    next((scratch / "results/runs").rglob("results.json")).write_text(json.dumps(kept))
    ended = worked("reproduce", "small", "--budget", "0s")
    assert "1 run is missing; runs like these took about 2.0 h in sum" in " ".join(ended.err.split())
    assert "the budget is spent: 1 run is still missing" in " ".join(ended.err.split())


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("0.5h", 1800), (" 2H ", 7200)]
)
def test_a_time_is_read_as_it_is_written(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 hours", "-1h", "2h2h"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ConfigError, match="such as 2h"):
        parse_seconds(text)


def test_all_leaves_out_what_has_to_be_asked_for_by_name(monkeypatch):
    from veneer.cli import reproduce
    from veneer.data.glue import VARIABLE

    exhibits = table_of_contents.EXHIBITS
    every = list(exhibits.values())

    def wanted(name, glue):
        chosen = every if name == "all" else [exhibits[name]]
        return {exhibit.name for exhibit in reproduce._with_data(chosen, [name], glue)}

    monkeypatch.delenv(VARIABLE, raising=False)
    assert wanted("all", None) == set(exhibits) - {"glue", "roberta"}
    named = reproduce._with_data(every, ["all", "Glue,"], None)
    assert {exhibit.name for exhibit in named} == set(exhibits) - {"roberta"}
    assert wanted("all", "folder") == set(exhibits) - {"roberta"}
    assert [wanted(name, None) for name in ("glue", "roberta", "table2")] == [{"glue"}, {"roberta"}, {"table2"}]
    monkeypatch.setenv(VARIABLE, "folder")
    assert wanted("all", None) == set(exhibits) - {"roberta"}
