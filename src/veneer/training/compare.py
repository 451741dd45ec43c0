"""Many runs, one after the other, each in a process of its own.

A process of its own gives each run an honest peak of memory and the same start, and a run that is killed takes nothing
else with it. The processes are forked from a server that has imported what they need and done nothing else. Each
finished run is a folder; the results file is written anew after each, so nothing is lost.

    <folder>/results.json              the records of all finished runs
    <folder>/<method>-seed<seed>/      one run folder each, see `run.py`
"""

import multiprocessing
import signal
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event
from typing import Protocol

import torch

from veneer.data.sources import find_model
from veneer.errors import OutputExistsError, VeneerError, gathered
from veneer.methods.table import find_method
from veneer.results import RESULTS_FILE, Results, RunRecord, read_results, write_results
from veneer.training.config import RunConfig
from veneer.training.inspection import describe_plan
from veneer.training.machine import describe_machine, describe_versions
from veneer.training.output import (
    clear_checkpoints,
    clear_partials,
    clear_report,
    clear_run,
    made_folder,
    own_checkpoints,
    own_runs,
    require_free,
    run_name,
)
from veneer.training.run import Progress, divergence, prepare_data, rows_sha256, run
from veneer.training.workers import LOOK_SECONDS

GRACE_SECONDS = 10.0
"""How long a run that is ended may take to clean up after itself."""


class Watcher(Protocol):
    """Whoever shows the progress."""

    def run_started(self, config: RunConfig, number: int, num_runs: int) -> None:
        """Show that run `number` of `num_runs` begins."""

    def run_progressed(self, progress: Progress) -> None:
        """Show a step of the current run."""

    def run_ended(self, record: RunRecord) -> None:
        """Show that the current run is done."""

    def notify(self, line: str) -> None:
        """Show one line."""


def compare(
    configs: Sequence[RunConfig],
    folder: Path,
    watcher: Watcher,
    *,
    notes: Sequence[str] = (),
    overwrite: bool = False,
    resume: bool = False,
) -> Results:
    """Do all runs and return their results, which are also in `folder`.

    Args:
        configs: the runs, in order, all on the same rows; method and seed tell them apart.
        folder: where the results go.
        watcher: is told of everything.
        notes: what a reader must know, kept with the results.
        overwrite: whether earlier results in `folder` may be replaced: each run by its successor when that is done, the
            others at the end.
        resume: whether runs that are complete in `folder`, with the same configuration and rows, are kept. Those that
            are complete with another are done again only with `overwrite`.

    Raises:
        OutputExistsError: `folder` holds what may not be replaced; nothing has changed.
        VeneerError: a run cannot be done. The runs that were finished before stay.
    """
    require_startable(folder, overwrite=overwrite, resume=resume)
    for config in {config.method: config for config in configs}.values():
        _require_fit(config, watcher)
    earlier = [] if resume else own_runs(folder)
    kept: dict[str, RunRecord] = {}
    if resume:
        digest = rows_sha256(prepare_data(configs[0], watcher.notify))
        kept = _kept(configs, folder, digest, overwrite=overwrite)
    results = Results(machine=describe_machine(), versions=describe_versions(), notes=list(notes))
    with made_folder(folder):
        for number, config in enumerate(configs, start=1):
            name = run_name(config.method, config.seed)
            record = kept.get(name)
            if record is None:
                watcher.run_started(config, number, len(configs))
                record = run_in_process(config, folder / name, watcher, overwrite=overwrite)
                watcher.run_ended(record)
            results.records.append(replace(record, checkpoint=f"{name}/{record.checkpoint}"))
            if line := divergence(record):
                results.notes.append(f"{name}: {line}")
            clear_report(folder)  # it would be an earlier comparison's
            clear_checkpoints(folder)  # or those of a run that was there before
            write_results(folder, results)
        for name in set(earlier) - {run_name(config.method, config.seed) for config in configs}:
            clear_run(folder / name)
    return results


def require_startable(folder: Path, *, overwrite: bool, resume: bool) -> None:
    """Raise an `OutputExistsError` if a comparison may not write to `folder`."""
    resumable = " or --resume to finish it" if any(folder.glob(f"*/{RESULTS_FILE}")) else ""
    is_single = bool(own_checkpoints(folder))  # nothing of which could be resumed
    may_add = overwrite or (resume and not is_single)
    require_free(folder, overwrite=may_add, advice=resumable, written=(RESULTS_FILE,))


def _require_fit(config: RunConfig, watcher: Watcher) -> None:
    """Raise what a run would raise for its model and method, before anything is deleted or trained."""
    if find_method(config.method).trains_every_weight:
        find_model(config.model, watcher.notify)
    else:
        describe_plan(config.model, config.settings(), notify=watcher.notify)


def _differences(record: RunRecord, config: RunConfig, digest: str) -> list[str]:
    """Return in what a record's run differs from the one that `config` defines on rows of this digest."""
    wanted = config.resolved().to_json()
    found = [
        f"{key} {record.config.get(key)!r}, now {value!r}"
        for key, value in wanted.items()
        if record.config.get(key) != value
    ]
    return found + ["other rows"] * (record.config.get("rows_sha256") != digest)


def _kept(configs: Sequence[RunConfig], folder: Path, digest: str, *, overwrite: bool) -> dict[str, RunRecord]:
    """Return the records of the complete runs that stay, by name.

    Raises:
        OutputExistsError: complete runs would have to be done again and may not be; each is named, and why. Or the
            folder of one that is not complete is not free.
    """
    kept, problems = {}, []
    for config in configs:
        name = run_name(config.method, config.seed)
        if not (folder / name / RESULTS_FILE).is_file():
            require_free(folder / name, overwrite=overwrite)
            continue
        [record] = read_results(folder / name).records
        if not (differences := _differences(record, config, digest)):
            kept[name] = record
        elif not overwrite:
            problems.append(f"{name}: {', '.join(differences)}")
    if problems:
        headline = (
            f"{folder} holds runs that were done otherwise; give the same settings and rows again, choose another "
            "--out, or add --overwrite to do these again:"
        )
        raise OutputExistsError(gathered(headline, problems))
    return kept


def run_in_process(
    config: RunConfig,
    folder: Path,
    watcher: Watcher,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    stopped: Event | None = None,
) -> RunRecord:
    """Do one run in a process of its own and return its record, also where it diverged.

    Args:
        config: what to run.
        folder: the run folder.
        watcher: is told of its progress.
        overwrite: whether a folder that exists may be replaced.
        threads: how many the process may compute with; None leaves that to torch.
        stopped: ends the run where it is set.

    Raises:
        VeneerError: the run cannot be done or was stopped, or its process ended without a result.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["veneer.training.run"])
    _start_server()
    receiver, sender = context.Pipe(duplex=False)
    arguments = (config, folder, sender, overwrite, threads)
    process = context.Process(target=_child, args=arguments, daemon=True)
    process.start()
    sender.close()
    outcome: RunRecord | VeneerError | OSError | None = None
    try:
        while outcome is None:
            if stopped is not None and stopped.is_set():
                raise VeneerError(f"the run {folder.name} was stopped")
            if not receiver.poll(LOOK_SECONDS):
                continue
            message = receiver.recv()
            if isinstance(message, Progress):
                watcher.run_progressed(message)
            elif isinstance(message, str):
                watcher.notify(message)
            else:
                outcome = message
    except EOFError:
        process.join()
        raise VeneerError(f"the run {folder.name} ended without a result: {_cause(process.exitcode)}") from None
    finally:
        if outcome is None and process.is_alive():
            process.terminate()
            process.join(GRACE_SECONDS)
            process.kill()
        process.join()
        clear_partials(folder)
    if isinstance(outcome, VeneerError | OSError):
        raise outcome
    return outcome


def _start_server() -> None:
    """Start the server of processes, if it is not running, with interrupts blocked in it and in what it forks.

    Ctrl-C goes to every process of a terminal; one that is still importing could only print where it was.
    """
    resource_tracker.ensure_running()  # else started by the server's start, which would unblock interrupts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cause(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; probably memory ran out, so lower --batch-size" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process failed with exit code {exit_code}; its own message is above"


def _child(config: RunConfig, folder: Path, sender: Connection, overwrite: bool, threads: int | None) -> None:
    try:
        signal.signal(signal.SIGINT, _interrupt_once)
        signal.signal(signal.SIGTERM, _interrupt_once)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if threads is not None:
            torch.set_num_threads(threads)
        sender.send(_outcome(config, folder, sender, overwrite))
    except (KeyboardInterrupt, BrokenPipeError):  # told to end, or whoever asked is gone
        pass
    finally:
        _ignore_interrupts()


def _outcome(config: RunConfig, folder: Path, sender: Connection, overwrite: bool) -> RunRecord | VeneerError | OSError:
    try:
        return run(config, folder, on_progress=sender.send, notify=sender.send, overwrite=overwrite, keep_diverged=True)
    except (VeneerError, OSError) as error:
        return error


def _interrupt_once(number: int, frame: object) -> None:
    """End the run so that it cleans up after itself, which nothing more interrupts."""
    _ignore_interrupts()
    raise KeyboardInterrupt


def _ignore_interrupts() -> None:
    """Hear interrupts and do nothing: of one that has come and is ignored only then, Python prints a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)
