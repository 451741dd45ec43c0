"""The bars: what has been done, of this run and of all."""

from dataclasses import replace

import pytest

from tests.report.records import record
from veneer.cli.console import progress_bars
from veneer.training.config import RunConfig
from veneer.training.run import Progress

CONFIG = RunConfig(model="minilm", data="rotten-tomatoes", method="head")


def completed(bars):
    return {task.description: task.completed for task in bars.bars.tasks}


def test_the_bar_of_all_runs_moves_with_every_step_so_that_its_time_left_is_known():
    with progress_bars() as bars:
        bars.run_started(CONFIG, 1, 2)
        bars.run_progressed(Progress(step=5, num_steps=10, note=""))
        assert completed(bars) == {"all runs": pytest.approx(0.5), "head, seed 0": 5}
        bars.run_ended(record("head"))
        bars.run_started(CONFIG, 2, 2)
        assert completed(bars)["all runs"] == pytest.approx(0.5)
        bars.run_progressed(Progress(step=1, num_steps=10, note=""))
        assert completed(bars)["all runs"] == pytest.approx(1.1)


def test_one_run_alone_has_one_bar():
    with progress_bars() as bars:
        bars.run_started(CONFIG, 1, 1)
        assert list(completed(bars)) == ["head, seed 0"]


def test_the_bar_of_a_run_that_could_not_be_done_goes_when_the_next_begins():
    with progress_bars() as bars:
        bars.run_started(CONFIG, 1, 2)
        bars.run_started(replace(CONFIG, seed=1), 2, 2)
        assert list(completed(bars)) == ["all runs", "head, seed 1"]
