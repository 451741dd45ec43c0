"""A grid of runs: what is there is not done again, and no run is half there."""

from dataclasses import replace

import pytest

from tests.report.records import record
from veneer.errors import VeneerError
from veneer.results import RESULTS_FILE, Results, write_results
from veneer.training import grid as module
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

CONFIGS = [RunConfig(model="minilm", data="trec", method="head", precision="float32", seed=seed) for seed in range(3)]


class Silent:
    """Notes which runs began."""

    def __init__(self):
        self.began = []

    def run_started(self, config, number, num_runs):
        self.began.append(config.seed)

    def run_ended(self, record):
        pass


@pytest.mark.parametrize("workers", [1, 2])
def test_runs_that_are_there_are_found_and_not_done_again(tmp_path, monkeypatch, workers):
    def run(config, folder, watcher, *, threads):
        if config.seed == 2 and failing:
            raise VeneerError("it cannot be done")
        done = replace(record("head"), seed=config.seed)
        folder.mkdir()
        write_results(folder, Results(machine={}, versions={}, records=[done]))
        (folder / "adapter").mkdir()
        return done

    monkeypatch.setattr(module, "run_in_process", run)
    grid, first, second, failing = Grid(folder=tmp_path / "runs"), Silent(), Silent(), True
    with pytest.raises(VeneerError):
        list(grid.fill(CONFIGS, first, workers=workers))
    assert grid.missing(CONFIGS) == CONFIGS[2:]
    failing = False
    assert [each.seed for each in grid.fill(CONFIGS, second, workers=workers)] == second.began == [2]
    assert [grid.find(config).seed for config in CONFIGS] == [0, 1, 2]
    for folder in (tmp_path / "runs").iterdir():
        assert [file.name for file in folder.iterdir()] == [RESULTS_FILE]


def test_two_spellings_of_one_run_are_done_once(tmp_path):
    named = replace(CONFIGS[0], method="houlsby", sizes=(("r", 8),))
    unnamed = replace(CONFIGS[0], method="houlsby")
    assert named != unnamed
    assert Grid(folder=tmp_path).missing([named, CONFIGS[1], unnamed]) == [named, CONFIGS[1]]
