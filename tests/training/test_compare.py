"""Laws of many runs: a run that dies is named with its cause, takes nothing else with it and leaves nothing behind."""

import multiprocessing
import os
import signal
import threading
from dataclasses import replace

import pytest

from tests.cli.tiny import contents, make_rows, write_csv
from tests.report.records import record as made_record
from veneer.errors import OutputExistsError, VeneerError
from veneer.results import Results, read_results, write_results
from veneer.training import compare as module
from veneer.training.compare import compare, run_in_process
from veneer.training.config import RunConfig


class Watcher:
    """Notes what it is told; `on_progress` may do harm."""

    def __init__(self, on_progress=lambda config: None):
        self.on_progress = on_progress
        self.lines = []
        self.config = None

    def run_started(self, config, number, num_runs):
        self.config = config
        self.lines.append(f"{config.method} {number}/{num_runs}")

    def run_progressed(self, progress):
        self.on_progress(self.config)

    def run_ended(self, record):
        self.lines.append(f"{record.method} ended")

    def notify(self, line):
        self.lines.append(line)


@pytest.fixture
def configs(tiny, tmp_path_factory):
    data = write_csv(tmp_path_factory.mktemp("data") / "data.csv", make_rows(40, seed=1))
    shared = {"text": "text", "label": "label", "batch_size": 4, "max_tokens": 24, "precision": "float32"}
    first = RunConfig(model=str(tiny), data=str(data), method="head", epochs=1, **shared)
    return [first, replace(first, method="lora-qv", epochs=50)]


def kill(config):
    if config.method == "lora-qv":
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)


def interrupt(config):
    if config.method == "lora-qv":
        raise KeyboardInterrupt


def test_a_run_that_is_killed_gives_one_message_and_the_runs_before_it_stay(configs, tmp_path):
    watcher = Watcher(kill)
    with pytest.raises(
        VeneerError, match=r"the run lora-qv-seed0 ended without a result: .*SIGKILL.*lower --batch-size"
    ):
        compare(configs, tmp_path / "run", watcher)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"results.json", "head-seed0"}
    [record] = read_results(tmp_path / "run").records
    assert record.method == "head"
    assert multiprocessing.active_children() == []


def test_an_interrupt_ends_the_runs_process_and_leaves_nothing_behind(configs, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compare(configs[1:], tmp_path / "deep" / "run", Watcher(interrupt))
    assert contents(tmp_path) == {}
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("interruptible")
def test_of_two_interrupts_at_the_same_time_the_first_is_heard_and_nothing_is_printed(capfd):
    before = signal.getsignal(signal.SIGTERM)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, module._interrupt_once)
        both = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, both)
        for number in both:
            signal.pthread_kill(threading.get_ident(), number)
        with pytest.raises(KeyboardInterrupt):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("hears", [True, False])
def test_a_run_that_is_stopped_ends_and_leaves_nothing_behind(configs, tmp_path, monkeypatch, hears):
    """Also one that cannot end itself, as where an interrupt is lost in somebody else's code."""

    def stop(config):
        if not hears:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGSTOP)
        stopped.set()

    stopped = threading.Event()
    monkeypatch.setattr(module, "GRACE_SECONDS", 60 if hears else 0.5)
    with pytest.raises(VeneerError, match=r"^the run run was stopped$"):
        run_in_process(configs[1], tmp_path / "run", Watcher(stop), stopped=stopped)
    assert contents(tmp_path) == {}
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("exit_code", "cause"),
    [(-9, "SIGKILL; probably memory ran out"), (-11, "ended by SIGSEGV"), (3, "exit code 3"), (None, "exit code None")],
)
def test_the_cause_of_a_death_is_named(exit_code, cause):
    assert cause in module._cause(exit_code)


@pytest.fixture
def without_processes(monkeypatch):
    """Runs are made up at once, and recorded in the list that is returned."""
    done = []

    def fake(config, folder, watcher, *, overwrite):
        done.append(folder.name)
        rows = module.rows_sha256(module.prepare_data(config))
        resolved = {**config.resolved().to_json(), "base_model": config.model, "rows_sha256": rows}
        record = made_record(config.method, seed=config.seed, config=resolved, checkpoint="adapter")
        folder.mkdir(parents=True, exist_ok=True)
        write_results(folder, Results(machine={}, versions={}, records=[record]))
        return record

    monkeypatch.setattr(module, "run_in_process", fake)
    return done


GIVEN = RunConfig(model="minilm", data="rotten-tomatoes", method="head")
BOTH = [GIVEN, replace(GIVEN, seed=1)]
CHANGES = {
    "epochs": {"epochs": 7},
    "learning_rate": {"learning_rate": 0.123},
    "precision": {"precision": "bfloat16"},
    "targets": {"targets": ("query",)},
}


def test_resume_takes_every_run_that_is_complete(without_processes, tmp_path):
    first = compare(BOTH, tmp_path, Watcher())
    assert without_processes == ["head-seed0", "head-seed1"]
    again = compare(BOTH, tmp_path, Watcher(), resume=True)
    assert len(without_processes) == 2
    assert again.records == first.records == read_results(tmp_path).records


def test_resume_does_what_is_missing(without_processes, tmp_path):
    compare(BOTH[:1], tmp_path, Watcher())
    compare(BOTH, tmp_path, Watcher(), resume=True)
    assert without_processes == ["head-seed0", "head-seed1"]


@pytest.mark.parametrize("change", CHANGES)
def test_resume_names_runs_with_other_settings_and_does_them_again_only_if_it_may(without_processes, tmp_path, change):
    given = [replace(config, method="lora-qv", precision="float32") for config in BOTH]
    compare(given, tmp_path, Watcher())
    changed = [replace(given[0], **CHANGES[change]), given[1]]
    before = contents(tmp_path)
    with pytest.raises(
        OutputExistsError, match=rf"done otherwise.*--overwrite(.|\n)*lora-qv-seed0: {change} "
    ) as caught:
        compare(changed, tmp_path, Watcher(), resume=True)
    assert "lora-qv-seed1" not in str(caught.value)
    assert contents(tmp_path) == before
    assert len(without_processes) == 2
    compare(changed, tmp_path, Watcher(), resume=True, overwrite=True)
    assert without_processes[2:] == ["lora-qv-seed0"]


def test_resume_names_runs_on_other_rows_and_does_them_again_only_if_it_may(without_processes, tmp_path, monkeypatch):
    compare(BOTH, tmp_path, Watcher())
    changed = module.prepare_data(GIVEN)
    changed = replace(changed, train=replace(changed.train, labels=changed.train.labels[::-1]))
    monkeypatch.setattr(module, "prepare_data", lambda config, notify=None: changed)
    with pytest.raises(OutputExistsError, match=r"head-seed0: other rows\n.*head-seed1: other rows"):
        compare(BOTH, tmp_path, Watcher(), resume=True)
    compare(BOTH, tmp_path, Watcher(), resume=True, overwrite=True)
    assert without_processes == ["head-seed0", "head-seed1"] * 2


def test_resume_tells_what_is_in_the_way_before_anything_is_run(without_processes, tmp_path):
    (tmp_path / "head-seed1").mkdir()
    (tmp_path / "head-seed1" / "notes.txt").touch()
    before = contents(tmp_path)
    with pytest.raises(OutputExistsError, match=r"head-seed1 is not empty"):
        compare(BOTH, tmp_path, Watcher(), resume=True, overwrite=False)
    assert contents(tmp_path) == before
    assert without_processes == []


def test_a_run_that_diverged_is_told_above_the_tables(without_processes, tmp_path):
    """The made up runs went through five epochs."""
    results = compare([replace(GIVEN, epochs=9)], tmp_path, Watcher(), notes=["a note"])
    note, line = results.notes
    assert note == "a note"
    assert line.startswith("head-seed0: training ended in epoch 6, whose loss is not a finite number; epoch 3 is kept")
    assert read_results(tmp_path).notes == results.notes
    assert compare([replace(GIVEN, epochs=5)], tmp_path, Watcher(), overwrite=True).notes == []


def test_a_single_run_is_neither_resumed_nor_half_replaced(without_processes, tmp_path):
    """Its weights go with its results: else they would be taken for those of what is there now."""
    write_results(tmp_path, Results(machine={}, versions={}, records=[made_record("lora-qv", checkpoint="adapter")]))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").touch()
    with pytest.raises(OutputExistsError, match="already holds a run"):
        compare(BOTH, tmp_path, Watcher(), resume=True)
    assert (tmp_path / "adapter" / "weights").exists()
    compare(BOTH, tmp_path, Watcher(), overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "head-seed0", "head-seed1"}


def test_a_learning_rate_given_as_the_methods_own_is_the_same_setting(without_processes, tmp_path):
    compare(BOTH, tmp_path, Watcher())
    compare(
        [replace(config, learning_rate=config.peak_learning_rate()) for config in BOTH],
        tmp_path,
        Watcher(),
        resume=True,
    )
    assert len(without_processes) == 2


def test_the_results_are_written_after_each_run(without_processes, tmp_path, monkeypatch):
    seen = []
    ended = Watcher.run_ended

    def run_ended(self, record):
        seen.append(len(read_results(tmp_path).records) if (tmp_path / "results.json").exists() else 0)
        ended(self, record)

    monkeypatch.setattr(Watcher, "run_ended", run_ended)
    compare(BOTH, tmp_path, Watcher())
    assert seen == [0, 1]
    assert len(read_results(tmp_path).records) == 2


def test_the_checkpoint_of_a_record_is_relative_to_the_results_file_it_stands_in(without_processes, tmp_path):
    results = compare(BOTH, tmp_path, Watcher(), notes=["a note"])
    assert [record.checkpoint for record in results.records] == ["head-seed0/adapter", "head-seed1/adapter"]
    assert read_results(tmp_path).notes == ["a note"]


def written(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_what_an_interrupted_overwrite_was_to_replace_is_still_there(without_processes, tmp_path, monkeypatch):
    compare(BOTH, tmp_path, Watcher())
    (tmp_path / "report.html").write_text("the page")
    before = {path: (tmp_path / path).read_bytes() for path in written(tmp_path)}

    def interrupted(config, folder, watcher, *, overwrite):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_in_process", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(BOTH, tmp_path, Watcher(), overwrite=True)
    assert {path: (tmp_path / path).read_bytes() for path in written(tmp_path)} == before


def test_a_page_of_an_earlier_comparison_does_not_outlive_its_runs(without_processes, tmp_path):
    compare(BOTH, tmp_path, Watcher())
    (tmp_path / "report.html").write_text("the page")
    compare([replace(GIVEN, seed=5)], tmp_path, Watcher(), resume=True)
    assert not (tmp_path / "report.html").exists()


def test_overwriting_takes_away_runs_that_no_comparison_names_any_more(without_processes, tmp_path):
    compare(BOTH, tmp_path, Watcher())
    compare(BOTH[:1], tmp_path, Watcher(), resume=True)
    compare([replace(GIVEN, seed=5)], tmp_path, Watcher(), overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "head-seed5"}


def test_a_run_that_lies_beside_those_of_the_comparison_is_nobodys_to_take_away(without_processes, tmp_path):
    """As one does whose place was filled while it was under way."""
    compare(BOTH, tmp_path, Watcher())
    (tmp_path / "head-seed1").rename(tmp_path / "head-seed1-abc")
    compare(BOTH[:1], tmp_path, Watcher(), overwrite=True)
    assert (tmp_path / "head-seed1-abc" / "results.json").is_file()
