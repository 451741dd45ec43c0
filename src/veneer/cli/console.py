"""What the terminal shows: progress with a time left, notes, tables. Figures go to stdout, the rest to stderr."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from veneer.results import RunRecord
    from veneer.training.config import RunConfig
    from veneer.training.run import Progress as RunProgress

HOUR = 3600.0
"""Seconds over which the speed is averaged: longer than one run, so that the time left for all runs is known."""

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


def note(line: str) -> None:
    """Show one line beside the results, as it is."""
    stderr.print(line, markup=False, style="dim", soft_wrap=True)


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON document to stdout, never wrapped or coloured."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def run_label(config: "RunConfig") -> str:
    """Return by what a run is known among others."""
    return f"{config.data}, {config.method}, seed {config.seed}, rate {config.peak_learning_rate():g}"


class ProgressBars:
    """Shows one bar for the current run and one for all; off a terminal, one line a run."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.all_runs: TaskID | None = None
        self.num_finished = 0
        self.current: TaskID | None = None

    def run_started(self, config: "RunConfig", number: int, num_runs: int) -> None:
        """Show that run `number` of `num_runs` begins."""
        if num_runs > 1 and self.all_runs is None:
            self.all_runs = self.bars.add_task("all runs", total=num_runs, note="")
        self.num_finished = number - 1
        if self.current is not None:  # the bar of a run that could not be done
            self.bars.remove_task(self.current)
        self.current = self.bars.add_task(f"{config.method}, seed {config.seed}", total=None, note="loading")
        if not stderr.is_terminal:
            note(f"[{number}/{num_runs}] {run_label(config)} ...")

    def run_progressed(self, progress: "RunProgress") -> None:
        """Show a step of the current run."""
        assert self.current is not None
        self.bars.update(self.current, completed=progress.step, total=progress.num_steps, note=progress.note)
        if self.all_runs is not None:
            self.bars.update(self.all_runs, completed=self.num_finished + progress.step / progress.num_steps)

    def run_ended(self, record: "RunRecord") -> None:
        """Show that the current run is done."""
        from veneer.training.run import summary_line

        assert self.current is not None
        self.bars.remove_task(self.current)
        self.current = None
        self.notify(summary_line(record))

    def notify(self, line: str) -> None:
        """Show one line above the bars."""
        self.bars.console.print(line, markup=False, style="dim", soft_wrap=True)


@contextmanager
def progress_bars() -> Iterator[ProgressBars]:
    """Show bars on stderr for the length of the block."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    hidden = not stderr.is_terminal
    with Progress(*columns, console=stderr, transient=True, disable=hidden, speed_estimate_period=HOUR) as bars:
        yield ProgressBars(bars)
