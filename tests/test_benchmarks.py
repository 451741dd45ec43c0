"""The harness of the benchmarks: its arithmetic, its turns and its files. Nothing is timed here."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmarks import recipe, runs
from benchmarks.harness import (
    Bar,
    Comparison,
    Conditions,
    Options,
    Report,
    figure,
    format_seconds,
    interleave,
    interval,
    markdown,
    read_report,
    rotated,
    row,
    seconds,
    to_json,
    verdict,
    watched,
    write_report,
)
from benchmarks.saved import saved_bytes
from torch import nn

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


class Clock:
    """Stands still but for what is done."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, duration: float) -> None:
        self.now += duration


def comparison(ours, theirs, *, bar=None, unit="seconds"):
    return Comparison(benchmark="walk", unit=unit, ours="A", our_values=ours, theirs="B", their_values=theirs, bar=bar)


def report(*comparisons, others=0.0):
    return Report(
        name="walk",
        command="python -m benchmarks walk",
        machine={"cpu": "abacus", "cores": 3, "threads": 1, "accelerator": None},
        versions={"torch": "9.9"},
        conditions=Conditions(load_average_before=0.25, load_average_after=1.5, share_of_others=others),
        comparisons=list(comparisons),
        notes=["Downhill."],
    )


def test_the_time_of_a_call_is_the_mean_of_all_calls():
    clock = Clock()
    durations = iter([3.0, 5.0, 7.0])
    assert seconds(lambda: clock.work(next(durations)), calls=3, clock=clock) == 5.0


def test_contenders_take_turns_each_first_equally_often_and_warm_up_rounds_are_forgotten():
    calls = []

    def measure(name):
        calls.append(name)
        return float(len(calls))

    values = interleave({name: lambda name=name: measure(name) for name in "abc"}, rounds=3, warm_up=1)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, 12, 3)]
    assert [sorted(r) for r in rounds] == [["a", "b", "c"]] * 4
    assert {r[0] for r in rounds[1:]} == {"a", "b", "c"}
    assert {name: len(found) for name, found in values.items()} == {"a": 3, "b": 3, "c": 3}
    assert min(min(found) for found in values.values()) == 4.0  # the fourth call is the first that counts


def test_rotation_keeps_the_cyclic_order():
    assert [rotated("abc", n) for n in (-1, 0, 1, 3)] == [list("cab"), list("abc"), list("bca"), list("abc")]


@pytest.mark.parametrize(("kind", "expected"), [("ratio", 0.25), ("difference", -6.0), ("value", 2.0)])
def test_figures_are_made_of_medians_so_one_slow_moment_changes_nothing(kind, expected):
    bar = Bar(of=kind, at_most=1)
    assert figure(comparison([2.0, 1.0, 3.0], [8.0, 9.0, 7.0], bar=bar)) == expected
    assert figure(comparison([2.0, 1.0, 3000.0], [8.0, 9000.0, 7.0], bar=bar)) == expected


def test_without_a_bar_the_figure_is_the_ratio():
    assert figure(comparison([3.0], [2.0])) == 1.5


def test_rounds_are_resampled_whole():
    speeds = [1.0, 5.0, 2.0, 9.0, 4.0, 3.0, 8.0]  # the machine's, the same for both within a round
    assert interval(comparison([2 * s for s in speeds], [4 * s for s in speeds])) == (0.5, 0.5)


def test_the_interval_holds_the_figure_and_widens_with_the_spread():
    near = comparison([1.0, 1.1, 0.9, 1.05, 0.95], [2.0] * 5)
    far = comparison([1.0, 1.9, 0.1, 1.5, 0.5], [2.0] * 5)
    (a, b), (c, d) = interval(near), interval(far)
    assert c < a <= figure(near) <= b < d


def test_one_measurement_has_no_interval():
    assert interval(comparison([1.0], [2.0])) is None


@pytest.mark.parametrize(
    ("ours", "word"),
    [
        ([1.0, 1.0, 1.0], "met"),
        ([2.0, 2.0, 2.0], "met"),  # at most, not below
        ([3.0, 3.0, 3.0], "missed"),
        ([1.0, 1.9, 9.0], "met, within noise"),
        ([0.1, 2.1, 9.0], "missed, within noise"),
    ],
)
def test_the_verdict_says_where_the_interval_leaves_it_open(ours, word):
    assert verdict(comparison(ours, [1.0, 1.0, 1.0], bar=Bar(of="ratio", at_most=2.0))) == word


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ([0.80, 0.82, 0.84], 0.0),
        ([0.79, 0.80, 0.81], math.sqrt(3) * 2),  # 0.01, 0.02, 0.03 below: mean 0.02, standard deviation 0.01
        ([0.81, 0.84, 0.87], -math.sqrt(3) * 2),
        ([0.5, 0.5, 0.5], math.inf),
    ],
)
def test_a_shortfall_is_counted_in_standard_errors_of_the_paired_difference(ours, expected):
    theirs = [0.80, 0.82, 0.84] if expected < math.inf else [0.75] * 3
    held = comparison(ours, theirs, unit="share", bar=Bar(of="shortfall", at_most=1.0))
    assert figure(held) == pytest.approx(expected)
    assert verdict(held) == ("met" if expected <= 1 else "missed")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.5, "1.5 s"), (0.0615, "61.5 ms"), (2.5e-5, "25 µs"), (-0.012, "-12 ms"), (1234.0, "1234 s"), (0.0, "0 µs")],
)
def test_durations_are_written_in_the_unit_that_fits(value, text):
    assert format_seconds(value) == text


def test_a_row_names_what_was_compared_and_its_figure_in_its_own_unit():
    cells = row(comparison([200.0, 400.0], [800.0, 1600.0], unit="bytes", bar=Bar(of="ratio", at_most=0.3)))
    assert cells[:5] == ["walk", "A", "B", "300 B", "1.20 kB"]
    assert cells[5].startswith("0.25x [")
    assert cells[6:] == ["at most 0.30x", "met"]


def test_the_table_warns_of_others_only_where_they_took_a_noticeable_share():
    quiet, busy = (markdown(report(comparison([1.0], [2.0]), others=share)) for share in (0.01, 0.4))
    assert "Other processes" not in quiet
    assert "Other processes took 40%" in busy
    assert "load average 0.2 before, 1.5 after" in quiet


def test_the_share_of_others_is_a_share():
    with watched() as conditions:
        sum(range(1000))
    assert 0.0 <= conditions().share_of_others <= 1.0


def test_a_report_comes_back_from_its_file_and_gives_the_table_beside_it(tmp_path):
    written = report(
        comparison([1.0, 2.0], [3.0, 4.0], bar=Bar(of="difference", at_most=0.15)),
        comparison([0.0], [7.0], unit="elements"),
    )
    write_report(written, tmp_path)
    assert read_report(tmp_path / "walk.json") == written
    assert problems(tmp_path) == []


def test_the_check_of_committed_files_can_fail(tmp_path):
    slow = report(comparison([5.0], [2.0]))
    write_report(slow, tmp_path)
    (tmp_path / "walk.md").write_text(markdown(replace(slow, comparisons=[comparison([1.0], [2.0])])))
    assert problems(tmp_path) == ["walk.md is not what walk.json gives"]
    (tmp_path / "walk.md").unlink()
    assert problems(tmp_path) == ["walk.md is missing"]


@pytest.mark.parametrize("folder", [RESULTS, *(path for path in RESULTS.iterdir() if path.is_dir())])
def test_committed_results_are_whole(folder):
    assert problems(folder) == []


def test_the_table_of_the_recipe_is_made_from_the_committed_records():
    assert recipe.TABLE.read_text() == recipe.table()


def problems(folder):
    """Return what is wrong with the JSON files of a folder and the tables beside them."""
    found = []
    names = {path.stem for path in folder.glob("*.json")} | {path.stem for path in folder.glob("*.md")}
    for name in sorted(names):
        files = [folder / f"{name}.json", folder / f"{name}.md"]
        if missing := [file.name for file in files if not file.is_file()]:
            found.append(f"{missing[0]} is missing")
            continue
        again = read_report(files[0])
        if json.loads(files[0].read_text()) != json.loads(json.dumps(to_json(again))):
            found.append(f"{name}.json disagrees with itself")
        if files[1].read_text() != markdown(again):
            found.append(f"{name}.md is not what {name}.json gives")
        if re.search(r"(?<![\w.])/(?:home|root|tmp|Users|work)\b", files[0].read_text()):
            found.append(f"{name}.json names a path")
    return found


def test_saved_bytes_count_each_storage_once_and_no_parameter():
    weight, other = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
    x = torch.randn(7, 5, requires_grad=True)
    assert saved_bytes(lambda: weight(x), weight) == x.nbytes
    assert saved_bytes(lambda: weight(x), nn.Linear(5, 5)) == x.nbytes + weight.weight.nbytes
    assert saved_bytes(lambda: [weight(x), other(x[:3])], nn.ModuleList([weight, other])) == x.nbytes
    assert saved_bytes(lambda: x.exp().exp(), weight) == 2 * x.nbytes  # exp saves its result


def test_a_whole_run_is_measured_once_on_machines_that_are_alike(tmp_path, monkeypatch):
    began = []

    def process(command, **_):
        began.append(tuple(command[-2:]))
        return SimpleNamespace(stdout='{"seconds": 2.0, "accuracy": 0.5}')

    monkeypatch.setattr(runs, "NOTED", tmp_path / "noted.jsonl")
    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(run=process))
    monkeypatch.setattr(runs, "has_bfloat16", lambda: True)
    first, *_ = runs.whole_run(Options(rounds=2))
    assert first.our_values == first.their_values == [2.0, 2.0]
    assert len(began) == len(set(began)) == 6
    runs.whole_run(Options(rounds=3))
    assert began[6:] == [(name, "2") for name in rotated(list(runs.RUNS), 2)]
    monkeypatch.setattr(runs, "_machine", lambda: {"cpu": "another"})
    runs.whole_run(Options(rounds=1))
    assert len(began) == 12
