"""Many runs as data: each has a folder named by its configuration, and what is there is not done again.

    <folder>/<data>-<method>-seed<seed>-<hash>/results.json     the record of one run, without its weights

A grid that was cut off goes on where it stopped: a folder appears whole or not at all, so no run is half counted.
A run whose precision is "auto" counts in whichever it was done: what is missing is done in this machine's, and records
from another machine are as good. A run that names its precision counts in no other.
Several runs at once share the machine's threads evenly; their times then say nothing and their accuracies all the same.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from threading import Event
from typing import Any

import torch

from veneer.errors import ConfigError, VeneerError, first_line, together
from veneer.results import RESULTS_FILE, Results, RunRecord, read_results, write_results
from veneer.training.compare import Watcher, run_in_process
from veneer.training.config import FOUND_OUT, Precision, RunConfig, resolve_precision
from veneer.training.output import new_folder
from veneer.training.workers import Workers

COMPUTED: tuple[Precision, ...] = ("bfloat16", "float32")
"""What a run whose precision is "auto" may have been done in. Where both are there, the first counts on any machine."""
Runner = Callable[[RunConfig, Watcher, int, Event], Results]
"""Does one run, here or elsewhere, where so many run at once, and returns its results; raises what a run raises. Where
the event is set, it ends the run soon and raises."""


def run_here(config: RunConfig, watcher: Watcher, workers: int, stopped: Event) -> Results:
    """Do one run on this machine, with its share of the threads."""
    return results_of(config, watcher, threads=max(1, torch.get_num_threads() // workers), stopped=stopped)


def results_of(config: RunConfig, watcher: Watcher, *, threads: int, stopped: Event | None = None) -> Results:
    """Do one run in a process of its own and return its results; its weights are not kept.

    Raises:
        VeneerError: the run cannot be done, or was stopped.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        run_in_process(config, folder, watcher, threads=threads, stopped=stopped)
        return read_results(folder)


def _name(settings: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    return f"{Path(settings['data']).stem}-{settings['method']}-seed{settings['seed']}-{digest}"


@cache
def _names(config: RunConfig) -> tuple[str, ...]:
    """Return what the run that `config` defines is called, in each precision that it may have been done in."""
    precisions = COMPUTED if config.precision == "auto" else (config.precision,)
    return tuple(_name(replace(config, precision=precision).resolved().to_json()) for precision in precisions)


@cache
def _results(folder: Path, modified_ns: int) -> Results:
    """Return what a folder holds as it was written at that time: exhibits ask for the same ones many times.

    Raises:
        ConfigError: it cannot be read, or holds something else than the record of the run that it is named by.
    """
    results = read_results(folder)
    if len(results.records) != 1:
        raise ConfigError(f"{folder / RESULTS_FILE} holds {len(results.records)} records, where a run has one")
    (record,) = results.records
    named = {"data": record.data, "model": record.model, "method": record.method, "seed": record.seed}
    settings = {key: value for key, value in record.config.items() if key not in FOUND_OUT}
    if {key: settings.get(key) for key in named} != named:
        raise ConfigError(f"{folder / RESULTS_FILE} contradicts its own configuration in data, model, method or seed")
    if not isinstance(record.config.get("rows_sha256"), str):
        raise ConfigError(f"{folder / RESULTS_FILE} does not tell which rows the run was done on")
    if (own := _name(settings)) != folder.name:
        raise ConfigError(f"{folder / RESULTS_FILE} is the record of another run, whose folder is called {own}")
    return results


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Runs by configuration, kept in one folder."""

    folder: Path

    def place(self, config: RunConfig) -> Path:
        """Return the folder of the run that `config` defines on this machine: equal configurations, equal folders."""
        return self.folder / _name(config.resolved().to_json())

    def places(self, config: RunConfig) -> list[Path]:
        """Return the folders in which the run that `config` defines may lie, the same on every machine."""
        return [self.folder / name for name in _names(config)]

    def find(self, config: RunConfig) -> RunRecord | None:
        """Return the record of the run that `config` defines, or None where it has not been done.

        Raises:
            ConfigError: the record cannot be read.
        """
        results = self._results(config)
        return None if results is None else results.records[0]

    def _done(self, config: RunConfig) -> Path | None:
        return next((place for place in self.places(config) if (place / RESULTS_FILE).is_file()), None)

    def _results(self, config: RunConfig) -> Results | None:
        done = self._done(config)
        if done is None:
            return None
        try:
            return _results(done, (done / RESULTS_FILE).stat().st_mtime_ns)
        except ConfigError as error:
            raise ConfigError(f"{error}\nDelete the folder {done}, and the run is done again") from None

    def done(self, configs: Sequence[RunConfig]) -> list[RunRecord]:
        """Return the records of those of `configs` that have been done, in order, each run once."""
        return [results.records[0] for results in self.results(configs)]

    def results(self, configs: Sequence[RunConfig]) -> list[Results]:
        """Return the same records, each together with what it was measured on."""
        once = {self.places(config)[0]: config for config in configs}
        return [results for config in once.values() if (results := self._results(config)) is not None]

    def require_same_rows(self, configs: Sequence[RunConfig]) -> None:
        """Raise a `ConfigError` if two of these runs asked for the same rows and had others."""
        known: dict[Any, tuple[str, RunConfig]] = {}
        for config in configs:
            if (record := self.find(config)) is None:
                continue
            asked = (replace(config.data_request(), glue=None), config.max_train_rows, config.max_eval_rows)
            digest, first = known.setdefault(asked, (record.config["rows_sha256"], config))
            if digest != record.config["rows_sha256"]:
                raise ConfigError(
                    f"{self._done(first)} and {self._done(config)} were done on different rows of {config.data}, so "
                    "they cannot be compared; keep them in folders of their own"
                )

    def missing(self, configs: Sequence[RunConfig]) -> list[RunConfig]:
        """Return those of `configs` that have not been done, in order; of several that define one run, the first."""
        places: dict[Path, RunConfig] = {}
        for config in configs:
            if self.find(config) is None:
                places.setdefault(self.place(config), config)
        return list(places.values())

    def fill(
        self,
        wanted: Callable[[], Sequence[RunConfig]],
        watcher: Watcher,
        *,
        runner: Runner = run_here,
        workers: int = 1,
        seconds: float | None = None,
    ) -> Iterator[RunRecord]:
        """Do the missing runs, in order, and yield the record of each as it ends.

        Args:
            wanted: returns the runs; asked before each begins, since what was done may call for others. Those that are
                done are skipped.
            watcher: is told of everything.
            runner: does each of them.
            workers: how many run at once.
            seconds: no run is begun after so many; None does all.

        Raises:
            VeneerError: runs could not be done; each is named, at the end, when the others are finished.
            OSError: nothing can be read or written, as on a full disk. Runs under way are finished, no more is begun.
            KeyboardInterrupt: as it came. Runs under way are ended, and leave nothing; so they are where whoever asks
                for the records stops asking.
        """
        started = time.monotonic()
        begun: set[Path] = set()
        failures: list[VeneerError] = []
        broken: BaseException | None = None

        with Workers[RunConfig, RunRecord](workers, partial(self._run, watcher, runner, workers)) as pool:
            while True:
                while not (broken or pool.are_busy) and (seconds is None or time.monotonic() - started < seconds):
                    waiting = [config for config in self.missing(wanted()) if self.place(config) not in begun]
                    if not waiting:
                        break
                    watcher.run_started(waiting[0], len(begun) + 1, len(begun) + len(waiting))
                    begun.add(self.place(waiting[0]))
                    pool.begin(waiting[0])
                if not pool.num_running:
                    break
                outcome = pool.wait()
                if isinstance(outcome, RunRecord):
                    watcher.run_ended(outcome)
                    yield outcome
                    continue
                watcher.notify(f"not done: {first_line(outcome)}")
                if isinstance(outcome, VeneerError):
                    failures.append(outcome)
                else:
                    broken = broken or outcome
        if broken:
            raise broken
        if failures:
            raise together(failures, f"{len(failures)} runs could not be done; those that were are kept:")

    def _run(self, watcher: Watcher, runner: Runner, workers: int, config: RunConfig, stopped: Event) -> RunRecord:
        config = replace(config, precision=resolve_precision(config.precision))  # the runner's machine may have others
        try:
            results = runner(config, watcher, workers, stopped)
        except VeneerError as error:
            raise type(error)(f"{self.place(config).name}: {error}") from None
        try:
            with new_folder(self.place(config)) as partial:
                write_results(partial, results)
        except OSError:  # among them that something lies there
            if (other := self.find(config)) is None:
                raise
            return other  # of another process that fills the same grid
        return results.records[0]
