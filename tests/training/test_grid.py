"""A grid of runs: what is there is not done again, and no run is half there."""

import json
import signal
import threading
from contextlib import contextmanager
from dataclasses import replace
from errno import ENOSPC
from itertools import pairwise

import pytest

from tests.report.records import of_config, results
from veneer.errors import ConfigError, DataError, DownloadError, VeneerError
from veneer.results import RESULTS_FILE, write_results
from veneer.training import config as config_module
from veneer.training import grid as module
from veneer.training.config import RunConfig
from veneer.training.grid import Grid
from veneer.training.output import new_folder

CONFIGS = [RunConfig(model="minilm", data="trec", method="head", precision="float32", seed=seed) for seed in range(3)]


class Silent:
    """Notes which runs began, and what else was said."""

    def __init__(self):
        self.began, self.lines = [], []

    def run_started(self, config, number, num_runs):
        self.began.append(config.seed)

    def run_ended(self, record):
        pass

    def notify(self, line):
        self.lines.append(line)


@pytest.mark.parametrize("workers", [1, 2])
def test_runs_that_are_there_are_found_and_not_done_again(tmp_path, monkeypatch, workers):
    def run(config, folder, watcher, *, threads, stopped):
        if config.seed == 2 and failing:
            raise VeneerError("it cannot be done")
        done = of_config(config)
        folder.mkdir()
        write_results(folder, results(done))
        (folder / "adapter").mkdir()
        return done

    monkeypatch.setattr(module, "run_in_process", run)
    grid, first, second, failing = Grid(folder=tmp_path / "runs"), Silent(), Silent(), True
    with pytest.raises(VeneerError, match=rf"^{grid.place(CONFIGS[2]).name}: it cannot be done"):
        list(grid.fill(lambda: CONFIGS, first, workers=workers))
    assert grid.missing(CONFIGS) == CONFIGS[2:]
    failing = False
    assert [each.seed for each in grid.fill(lambda: CONFIGS, second, workers=workers)] == second.began == [2]
    assert [grid.find(config).seed for config in CONFIGS] == [0, 1, 2]
    for folder in (tmp_path / "runs").iterdir():
        assert [file.name for file in folder.iterdir()] == [RESULTS_FILE]


@pytest.mark.parametrize("workers", [1, 2])
def test_runs_that_cannot_be_done_keep_no_other_from_being_done_and_are_named_together(tmp_path, workers):
    configs = [replace(CONFIGS[0], seed=seed) for seed in range(6)]

    def runner(config, watcher, workers, stopped):
        if config.seed in broken:
            raise broken[config.seed]("the model is no model")
        return results(of_config(config))

    grid, watcher = Grid(folder=tmp_path), Silent()
    broken = {0: ConfigError, 3: DataError}
    with pytest.raises(VeneerError, match=r"^2 runs could not be done") as raised:
        list(grid.fill(lambda: configs, watcher, runner=runner, workers=workers))
    assert type(raised.value) is VeneerError
    places = [grid.place(configs[seed]).name for seed in broken]
    assert all(f"{name}: the model is no model" in str(raised.value) for name in places)
    assert sorted(watcher.lines) == sorted(f"not done: {name}: the model is no model" for name in places)
    assert grid.missing(configs) == [configs[0], configs[3]]
    broken = dict.fromkeys(broken, DownloadError)
    with pytest.raises(DownloadError):
        list(grid.fill(lambda: configs, Silent(), runner=runner, workers=workers))


def test_a_run_that_another_process_did_meanwhile_counts_once(tmp_path):
    def runner(config, watcher, workers, stopped):
        keep(grid, config)
        return results(of_config(config, train_seconds=1e6))

    grid = Grid(folder=tmp_path)
    assert list(grid.fill(lambda: CONFIGS[:1], Silent(), runner=runner)) == [grid.find(CONFIGS[0])]
    assert grid.find(CONFIGS[0]).train_seconds < 1e6


@pytest.mark.parametrize("workers", [1, 2])
def test_two_processes_that_fill_one_grid_at_the_same_time_end_with_the_same_records(tmp_path, monkeypatch, workers):
    """Both find the folder free; the record of the one that is first stays, and the other is told of no failure."""

    @contextmanager
    def late(folder):
        with new_folder(folder) as partial:
            yield partial
            keep(grid, CONFIGS[0])

    monkeypatch.setattr(module, "new_folder", late)
    grid = Grid(folder=tmp_path)
    done = grid.fill(
        lambda: CONFIGS[:1],
        Silent(),
        runner=lambda config, *_: results(of_config(config, train_seconds=1e6)),
        workers=workers,
    )
    assert list(done) == [grid.find(CONFIGS[0])]
    assert grid.find(CONFIGS[0]).train_seconds < 1e6
    assert [folder.name for folder in tmp_path.iterdir()] == [grid.place(CONFIGS[0]).name]


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("interrupted", [False, True])
def test_on_a_disk_that_is_full_runs_under_way_are_finished_or_ended_by_an_interrupt(tmp_path, interrupted):
    class Told(Silent):
        def notify(self, line):
            super().notify(line)
            told.set()

    def runner(config, watcher, workers, stopped):
        if config.seed == 0:
            raise OSError(ENOSPC, "No space left on device")
        assert told.wait(60)
        if interrupted:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert stopped.wait(60)
            raise VeneerError("ended")
        return results(of_config(config))

    grid, told, watcher = Grid(folder=tmp_path), threading.Event(), Told()
    with pytest.raises(KeyboardInterrupt) if interrupted else pytest.raises(OSError, match="No space left"):
        list(grid.fill(lambda: CONFIGS, watcher, runner=runner, workers=2))
    assert watcher.lines == ["not done: [Errno 28] No space left on device"]
    assert watcher.began == [0, 1]
    assert [config.seed for config in CONFIGS if grid.find(config)] == ([] if interrupted else [1])


def test_runs_on_other_rows_than_their_like_are_refused(tmp_path):
    grid = Grid(folder=tmp_path)
    keep(grid, CONFIGS[0])
    keep(grid, replace(CONFIGS[1], max_train_rows=100), "of fewer")
    grid.require_same_rows([*CONFIGS, replace(CONFIGS[1], max_train_rows=100)])
    keep(grid, CONFIGS[2], "of another copy")
    with pytest.raises(ConfigError, match=rf"^{grid.place(CONFIGS[0])} and {grid.place(CONFIGS[2])} were done on diff"):
        grid.require_same_rows(CONFIGS)


def test_a_record_that_cannot_be_read_is_named_with_what_to_do(tmp_path):
    grid = Grid(folder=tmp_path)
    keep(grid, CONFIGS[0])
    place = grid.place(CONFIGS[0])
    (place / RESULTS_FILE).write_text("{")
    with pytest.raises(
        ConfigError, match=rf"not a results file.*\nDelete the folder {place}, and the run is done again"
    ):
        grid.find(CONFIGS[0])


def changed(**fields):
    return lambda value: value["records"][0].update(fields)


def setting(**settings):
    return lambda value: value["records"][0]["config"].update(settings)


def score(name, *, to, of="validation"):
    return lambda value: value["records"][0][of].update({name: to})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (changed(seed=1), "contradicts its own configuration"),
        (changed(data=None), "data is None, not a str"),
        (changed(model="another"), "contradicts its own configuration"),
        (changed(validation=None), "not a results file"),
        (setting(epochs=7), r"another run, whose folder is called trec-head-seed0-\w+"),
        (setting(data=5), "contradicts its own configuration"),
        (lambda value: value["records"][0]["config"].pop("rows_sha256"), "not tell which rows"),
        (lambda value: value["records"][0]["config"].pop("seed"), "contradicts its own configuration"),
        (lambda value: value["records"][0]["config"].pop("epochs"), "another run"),
        (lambda value: value["records"].clear(), "holds 0 records"),
        (lambda value: value["records"].extend(value["records"]), "holds 2 records"),
        (lambda value: value["records"][0].pop("test"), "missing: test, unknown: none"),
        (changed(more=1), "missing: none, unknown: more"),
        (changed(seed=True), "seed is True, not a int"),
        (changed(labels="ab"), "labels is 'ab', not a list"),
        (changed(train_seconds=None), "train_seconds is None, not a finite float"),
        (score("accuracy", to="high"), "accuracy is 'high', not a finite float"),
        (score("accuracy", of="test", to=float("nan")), "accuracy is nan"),
        (score("accuracy", of="test", to=0.5), "an accuracy of 0.5 on 1000 rows contradicts its confusion matrix"),
        (score("accuracy", to=0.8085), "an accuracy of 0.8085 on 1000 rows contradicts its confusion matrix"),
        (score("num_examples", to=999), "on 999 rows contradicts its confusion matrix, which has 810 hits on 1000"),
        (score("confusion", to=[[1], [2], [3]]), "is not square"),
        (lambda value: value.update(machine=None), "machine is None and versions"),
        (lambda value: value.update(schema=9), "has schema 9"),
    ],
)
def test_a_record_that_contradicts_itself_or_its_folder_is_refused(tmp_path, damage, told):
    grid = Grid(folder=tmp_path)
    keep(grid, CONFIGS[0])
    file = grid.place(CONFIGS[0]) / RESULTS_FILE
    value = json.loads(file.read_text())
    damage(value)
    file.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=told) as raised:
        grid.find(CONFIGS[0])
    assert f"Delete the folder {file.parent}" in str(raised.value)


def test_two_spellings_of_one_run_are_done_once(tmp_path):
    named = replace(CONFIGS[0], method="houlsby", sizes=(("r", 8),))
    unnamed = replace(CONFIGS[0], method="houlsby")
    assert named != unnamed
    assert Grid(folder=tmp_path).missing([named, CONFIGS[1], unnamed]) == [named, CONFIGS[1]]


def keep(grid, config, rows="of the rows"):
    done = of_config(config)
    place = grid.place(config)
    place.mkdir(parents=True)
    write_results(place, results(replace(done, config={**done.config, "rows_sha256": rows})))


@pytest.mark.parametrize("machine", ["bfloat16", "float32"])
@pytest.mark.parametrize("done", ["bfloat16", "float32"])
def test_a_run_of_any_precision_counts_in_either_on_any_machine_and_a_named_one_in_its_own(
    tmp_path, monkeypatch, machine, done
):
    grid = Grid(folder=tmp_path)
    other = {"bfloat16": "float32", "float32": "bfloat16"}[done]
    anything, named = replace(CONFIGS[0], precision="auto"), replace(CONFIGS[0], precision=other)
    keep(grid, replace(CONFIGS[0], precision=done))
    monkeypatch.setattr(config_module, "resolve_precision", lambda given: machine if given == "auto" else given)
    assert grid.find(anything).config["precision"] == done
    assert grid.missing([anything, named]) == [named]
    keep(grid, named)
    assert grid.find(anything).config["precision"] == "bfloat16"
    assert grid.missing([anything, named]) == []


def test_what_is_missing_is_done_in_the_precision_of_this_machine_wherever_it_is_done(tmp_path, monkeypatch):
    given = []

    def runner(config, watcher, workers, stopped):
        given.append(config.precision)
        return results(of_config(config))

    grid = Grid(folder=tmp_path)
    for machine in ("float32", "bfloat16"):
        monkeypatch.setattr(module, "resolve_precision", lambda precision, machine=machine: machine)
        missing = [replace(CONFIGS[0], precision="auto", seed=len(given))]
        list(grid.fill(lambda missing=missing: missing, Silent(), runner=runner))
    assert given == ["float32", "bfloat16"]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_run_found_may_call_for_others_and_nothing_is_done_twice(tmp_path, workers):
    grid, watcher = Grid(folder=tmp_path), Silent()

    def runner(config, watcher, workers, stopped):
        return results(of_config(config))

    def wanted():
        """The first, and of those after it each one whose forerunner is done."""
        return [CONFIGS[0], *(after for before, after in pairwise(CONFIGS) if grid.find(before) is not None)]

    done = list(grid.fill(wanted, watcher, runner=runner, workers=workers))
    assert [each.seed for each in done] == watcher.began == [0, 1, 2]
    assert list(grid.fill(wanted, watcher, runner=runner, workers=workers)) == []
