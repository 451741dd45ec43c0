"""Many runs as data: each has a folder named by its configuration, and what is there is not done again.

    <folder>/<data>-<method>-seed<seed>-<hash>/results.json     the record of one run, without its weights

A grid that was cut off goes on where it stopped: a folder appears whole or not at all, so no run is half counted.
A run whose precision is "auto" counts in whichever it was done: what is missing is done in this machine's, and records
from another machine are as good. A run that names its precision counts in no other.
Several runs at once share the machine's threads evenly; their times then say nothing and their accuracies all the same.
"""

import hashlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from veneer.errors import ConfigError, VeneerError, first_line, together
from veneer.results import RESULTS_FILE, Results, RunRecord, read_results, write_results
from veneer.training.compare import PROCESS_NAME, Watcher, run_in_process
from veneer.training.config import FOUND_OUT, Precision, RunConfig, resolve_precision
from veneer.training.output import new_folder

COMPUTED: tuple[Precision, ...] = ("bfloat16", "float32")
"""What a run whose precision is "auto" may have been done in. Where both are there, the first counts on any machine."""
LOOK_SECONDS = 0.2
"""How long at most until an interrupt is noticed, and how often runs that it ends are told so."""
Runner = Callable[[RunConfig, Watcher, int], Results]
"""Does one run, here or elsewhere, where so many run at once, and returns its results; raises what a run raises."""


def run_here(config: RunConfig, watcher: Watcher, workers: int) -> Results:
    """Do one run on this machine, with its share of the threads."""
    return results_of(config, watcher, threads=max(1, torch.get_num_threads() // workers))


def end_here() -> None:
    """End the runs that are under way on this machine."""
    for process in multiprocessing.active_children():
        if process.name == PROCESS_NAME:
            process.terminate()


def results_of(config: RunConfig, watcher: Watcher, *, threads: int) -> Results:
    """Do one run in a process of its own and return its results; its weights are not kept.

    Raises:
        VeneerError: the run cannot be done.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        run_in_process(config, folder, watcher, threads=threads)
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
        end: Callable[[], None] = end_here,
        workers: int = 1,
        seconds: float | None = None,
    ) -> Iterator[RunRecord]:
        """Do the missing runs, in order, and yield the record of each as it ends.

        Args:
            wanted: returns the runs; asked before each begins, since what was done may call for others. Those that are
                done are skipped.
            watcher: is told of everything.
            runner: does each of them.
            end: ends the runs that the runner has under way, and may be called again.
            workers: how many run at once.
            seconds: no run is begun after so many; None does all.

        Raises:
            VeneerError: runs could not be done; each is named, at the end, when the others are finished.
            OSError: nothing can be read or written, as on a full disk. Runs under way are finished first.
            KeyboardInterrupt: as it came. Runs under way are ended, and leave nothing.
        """
        started = time.monotonic()
        begun: set[Path] = set()
        failures: list[VeneerError] = []
        running: set[Future[RunRecord]] = set()
        under_way = _UnderWay(end)

        def may_begin() -> bool:
            in_time = seconds is None or time.monotonic() - started < seconds
            return in_time and len(running) < workers

        with ThreadPoolExecutor(workers) as pool, under_way.ended_on_interrupt(running):
            while True:
                while may_begin():
                    waiting = [config for config in self.missing(wanted()) if self.place(config) not in begun]
                    if not waiting:
                        break
                    watcher.run_started(waiting[0], len(begun) + 1, len(begun) + len(waiting))
                    begun.add(self.place(waiting[0]))
                    running.add(pool.submit(under_way.do, partial(self._run, waiting[0], watcher, runner, workers)))
                if not running:
                    break
                done = _wait(running, FIRST_COMPLETED)
                running -= done
                for future in done:
                    try:
                        record = future.result()
                    except VeneerError as error:
                        watcher.notify(f"not done: {first_line(error)}")
                        failures.append(error)
                        continue
                    watcher.run_ended(record)
                    yield record
        if failures:
            raise together(failures, f"{len(failures)} runs could not be done; those that were are kept:")

    def _run(self, config: RunConfig, watcher: Watcher, runner: Runner, workers: int) -> RunRecord:
        config = replace(config, precision=resolve_precision(config.precision))  # the runner's machine may have others
        try:
            results = runner(config, watcher, workers)
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


class _UnderWay:
    """Which runs are under way. Each notes it itself, as an interrupt may come while a run is being handed over."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end
        self._runs: set[object] = set()
        self._stopped = False

    def do(self, run: Callable[[], RunRecord]) -> RunRecord:
        """Do a run, unless it comes too late."""
        mark = object()
        self._runs.add(mark)  # before it asks: whoever stops it says so before looking here
        try:
            if self._stopped:
                raise CancelledError
            return run()
        finally:
            self._runs.remove(mark)

    @contextmanager
    def ended_on_interrupt(self, running: Collection[Future[RunRecord]]) -> Iterator[None]:
        """End all runs where the block is interrupted; after an error wait for those that are running."""
        try:
            try:
                yield
            except Exception:
                _wait(running, ALL_COMPLETED)  # here, where an interrupt still ends them
                raise
        except (KeyboardInterrupt, GeneratorExit):
            self._stopped = True
            while self._runs:
                self._end()
                time.sleep(LOOK_SECONDS)
            raise


def _wait(running: Collection[Future[RunRecord]], return_when: str) -> set[Future[RunRecord]]:
    """Return those that are done, as `wait` does, and notice an interrupt that came just before it slept."""
    while True:
        done, waiting = wait(running, timeout=LOOK_SECONDS, return_when=return_when)
        if not waiting or (done and return_when == FIRST_COMPLETED):
            return done
