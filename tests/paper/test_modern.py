"""The modern checks: verdicts turn with the numbers, and what is forgotten is counted as it is defined."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.paper.kept import keep_all
from tests.report.records import results
from veneer.errors import ConfigError
from veneer.paper import forgetting_measurement, modern
from veneer.paper.forgetting_measurement import METHODS, neighbours_kept
from veneer.results import read_results, write_results
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

OWN = {"full": 5e-5, "lora-qv": 1e-3, "lora-all": 5e-4}


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return Grid(folder=tmp_path / "runs")


def peaked(peaks: dict[str, float]) -> Callable[[RunConfig], float]:
    """An accuracy that is best where the rate is this multiple of the method's own."""

    def accuracy(config: RunConfig) -> float:
        distance = abs(
            torch.log10(torch.tensor(config.peak_learning_rate() / OWN[config.method] / peaks[config.method]))
        )
        return 0.9 - 0.05 * float(distance) + 0.0002 * config.seed

    return accuracy


@pytest.mark.parametrize(
    ("peaks", "outcomes"),
    [
        ({"full": 1, "lora-qv": 1, "lora-all": 1}, ["held", "held"]),  # 20 and 10 times
        ({"full": 10, "lora-qv": 0.3, "lora-all": 0.3}, ["not held", "not held"]),
        ({"full": 1, "lora-qv": 10, "lora-all": 1}, ["not held", "held"]),  # 200 or more, and 10 times
        ({"full": 10, "lora-qv": 10, "lora-all": 10}, ["undecided", "undecided"]),  # 20 and 10, at the edge of both
        ({"full": 0.3, "lora-qv": 0.1, "lora-all": 1}, ["undecided", "not held"]),  # 7 or less, and 33
        ({"full": 10, "lora-qv": 3, "lora-all": 3}, ["undecided", "not held"]),  # 6 or less, and 3 or less
        ({"full": 0.1, "lora-qv": 1, "lora-all": 0.3}, ["not held", "undecided"]),  # 200 or more, and 30 or more
    ],
)
def test_ten_times_is_judged_by_the_best_rates_of_the_sweep(grid, peaks, outcomes):
    keep_all(grid, modern.EXHIBIT, peaked(peaks))
    verdicts = modern.EXHIBIT.sheet(grid).verdicts[:2]
    assert [verdict.outcome for verdict in verdicts] == outcomes
    for verdict, method in zip(verdicts, ("lora-qv", "lora-all"), strict=True):
        ends = {OWN[side] * peaks[side] for side in (method, "full") if peaks[side] in (0.1, 10)}
        assert all(f" Beyond {end:g} nothing was tried." in verdict.because for end in ends)
        assert verdict.because.count("Beyond") == len(ends)


def test_ten_times_is_undecided_where_seeds_do_not_tell_rates_apart(grid):
    """With one seed whose best rate is another, either may be the best: 20 or 200 times, and 10 or 100."""
    one, others = (peaked({"full": 1, "lora-qv": peak, "lora-all": peak}) for peak in (10, 1))
    keep_all(grid, modern.EXHIBIT, lambda config: (one if config.seed == 1 else others)(config))
    verdicts = modern.EXHIBIT.sheet(grid).verdicts[:2]
    assert [verdict.outcome for verdict in verdicts] == ["undecided"] * 2
    assert "is 0.001 against 5e-05, 20 times" in verdicts[0].because
    assert "are 20 to 200;" in verdicts[0].because


def test_a_rate_at_which_a_run_collapsed_is_not_the_best(grid):
    keep_all(grid, modern.EXHIBIT, peaked({"full": 1, "lora-qv": 10, "lora-all": 1}))
    (config, *_) = list(modern.wide_sweep("lora-qv").values())[-1]
    (kept,) = read_results(grid.place(config)).records
    write_results(grid.place(config), results(replace(kept, collapsed=True)))
    assert "is 0.003 against 5e-05, 60 times" in modern.EXHIBIT.sheet(grid).verdicts[0].because


def test_where_every_rate_has_a_run_that_collapsed_all_of_them_count(grid):
    keep_all(grid, modern.EXHIBIT, peaked({"full": 1, "lora-qv": 1, "lora-all": 1}))
    for config in (of[0] for of in modern.wide_sweep("full").values()):
        (kept,) = read_results(grid.place(config)).records
        write_results(grid.place(config), results(replace(kept, collapsed=True)))
    assert "is 0.001 against 5e-05, 20 times" in modern.EXHIBIT.sheet(grid).verdicts[0].because


def test_the_wide_sweep_goes_from_a_tenth_to_ten_times():
    for method in modern.WIDE_METHODS:
        multiples = [rate / OWN[method] for rate in modern.wide_sweep(method)]
        assert multiples == pytest.approx([0.1, 0.3, 1, 3, 10])


@pytest.mark.parametrize(("sign", "outcome"), [(1, "held"), (-1, "not held")])
def test_the_comparisons_turn_with_the_numbers(grid, sign, outcome):

    def accuracy(config: RunConfig) -> float:
        first = config.method == "lora-all" or config.scaling == "rslora"
        return 0.8 + sign * 0.02 * first + 0.0002 * config.seed * (1 + first)

    keep_all(grid, modern.EXHIBIT, accuracy)
    firsts = [runs for one in modern.COMPARISONS for runs in modern.runs_of(grid, one.first)]
    seconds = [runs for one in modern.COMPARISONS for runs in modern.runs_of(grid, one.second)]
    assert not set(firsts) & set(seconds)
    verdicts = modern.EXHIBIT.sheet(grid).verdicts[2 : 2 + len(modern.COMPARISONS)]
    assert [verdict.outcome for verdict in verdicts] == [outcome] * len(modern.COMPARISONS)


def measured(lora: float, full: float, *, quick: bool = False) -> dict[str, Any]:
    runs = [
        {
            "method": method, "seed": seed, "learning_rate": OWN[method], "accuracy": 0.9, "cosine": 0.5,
            "collapsed": False,
            "neighbours_kept": (full if method == "full" else lora) + 0.01 * seed * (method == "full"),
        }
        for method in METHODS for seed in range(3)
    ]  # fmt: skip
    return {"quick": quick, "runs": runs}


@pytest.mark.parametrize(
    ("measurement", "outcome"),
    [
        (measured(0.6, 0.3), "held"),
        (measured(0.3, 0.6), "not held"),
        (measured(0.6, 0.3, quick=True), "not run yet"),
        (None, "not run yet"),
    ],
)
def test_forgetting_is_judged_by_the_neighbours_that_are_left(grid, measurement, outcome):
    keep_all(grid, modern.EXHIBIT, peaked({"full": 1, "lora-qv": 1, "lora-all": 1}))
    assert modern.EXHIBIT.sheet(grid, measurement).verdicts[-1].outcome == outcome


def test_what_a_collapsed_training_kept_is_no_evidence(grid):
    keep_all(grid, modern.EXHIBIT, peaked({"full": 1, "lora-qv": 1, "lora-all": 1}))
    measurement = measured(0.3, 0.6)
    for run in measurement["runs"]:
        if run["method"] != "full" and run["seed"] == 2:
            run |= {"collapsed": True, "neighbours_kept": 1.0}
    sheet = modern.EXHIBIT.sheet(grid, measurement)
    assert "-30.5 points" in sheet.verdicts[-1].because  # and not +13 over three
    assert sheet.verdicts[-1].outcome == "undecided"  # two pairs are too few
    kept = {row[0]: row[4] for row in sheet.tables[1].rows}
    assert [number.value for number in kept.values()] == pytest.approx([0.61, 0.3, 0.3])
    assert [number.num_runs for number in kept.values()] == [3, 2, 2]
    for run in measurement["runs"]:
        run["collapsed"] = run["method"] != "full"
    sheet = modern.EXHIBIT.sheet(grid, measurement)
    assert "Every pair has a collapsed run" in sheet.verdicts[-1].because
    assert [row[4] for row in sheet.tables[1].rows][1:] == [None, None]


def test_what_was_measured_at_other_rates_than_are_chosen_decides_nothing(grid):
    measurement = measured(0.6, 0.3)
    verdict = modern.EXHIBIT.sheet(grid, measurement).verdicts[-1]
    assert (verdict.outcome, verdict.because) == ("not run yet", "No rate is chosen yet.")
    keep_all(grid, modern.EXHIBIT, peaked({"full": 1, "lora-qv": 1, "lora-all": 3}))
    verdict = modern.EXHIBIT.sheet(grid, measurement).verdicts[-1]
    assert verdict.outcome == "not run yet"
    assert "at other rates than are chosen now; delete measurements/modern.json" in verdict.because


def test_a_measurement_that_does_not_tell_of_collapse_is_read(grid):
    keep_all(grid, modern.EXHIBIT, peaked({"full": 1, "lora-qv": 1, "lora-all": 1}))
    measurement = measured(0.6, 0.3)
    for run in measurement["runs"]:
        del run["collapsed"]
    assert modern.EXHIBIT.sheet(grid, measurement).verdicts[-1].outcome == "held"


def test_what_is_forgotten_is_measured_at_the_chosen_rates(grid):
    with pytest.raises(ConfigError, match="at the rate that its sweep on trec chooses"):
        forgetting_measurement.config_of(grid, "full", 1, quick=False)
    assert forgetting_measurement.config_of(grid, "full", 1, quick=True).learning_rate is None
    wanted = {(run.method, run.peak_learning_rate()) for run in modern.sweep(grid)}
    assert {(method, rate) for method in METHODS for rate in (OWN[method],)} <= wanted
    keep_all(grid, modern.EXHIBIT, peaked({"full": 3, "lora-qv": 0.3, "lora-all": 1}))
    rates = {method: forgetting_measurement.config_of(grid, method, 1, quick=False).learning_rate for method in METHODS}
    assert rates == pytest.approx({"full": 1.5e-4, "lora-qv": 3e-4, "lora-all": 5e-4})


def unit(rows: int, d: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_a_rotation_forgets_nothing():
    before = unit(50, 16, 0)
    rotation, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))
    assert neighbours_kept(before, before, 5) == 1.0
    assert neighbours_kept(before, before @ rotation, 5) == 1.0


def test_unrelated_embeddings_keep_what_chance_keeps():
    rows, k = 400, 40
    kept = neighbours_kept(unit(rows, 64, 0), unit(rows, 64, 1), k)
    assert kept == pytest.approx(k / (rows - 1), abs=0.01)


def test_neighbours_are_counted_as_one_would_by_hand():
    """Four points on a circle; in the second layout the first two have swapped partners."""

    def circle(*degrees: float) -> torch.Tensor:
        angles = torch.deg2rad(torch.tensor(degrees))
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    before, after = circle(0, 10, 100, 115), circle(0, 100, 10, 115)
    # nearest before: 1, 0, 3, 2; nearest after: 2, 3, 0, 1
    assert neighbours_kept(before, after, 1) == 0.0
    assert neighbours_kept(before, circle(0, 10, 100, 25), 1) == 0.75  # after: 1, 0, 3, and for the last now 1
