"""Every exhibit renders from nothing, names what is missing, and turns with its records."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.paper.kept import keep, keep_all, keep_sweeps
from tests.report.records import scores
from veneer.errors import ConfigError, UnknownNameError, VeneerError
from veneer.paper import data, figure2, modern, ranks, table2, table18
from veneer.paper.measurements import place, read_measurement, write_measurement
from veneer.paper.protocol import by_seed
from veneer.paper.table_of_contents import ALSO_CALLED, EXHIBITS, find_exhibits
from veneer.results import read_results, write_results
from veneer.training import config as config_module
from veneer.training.config import RunConfig
from veneer.training.grid import Grid


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return Grid(folder=tmp_path / "runs")


@pytest.mark.parametrize("exhibit", EXHIBITS.values(), ids=EXHIBITS)
def test_without_a_record_every_run_is_named_and_no_experiment_is_judged(exhibit, grid):
    sheet = exhibit.sheet(grid)
    expected = {grid.places(config)[0].name for config in [*exhibit.sweep(grid), *exhibit.runs(grid)]}
    folders = {name.rpartition("(")[2].removesuffix(")") for name in sheet.missing}
    assert folders == expected | ({"the measurement itself"} if exhibit.measure else set())
    assert len(sheet.missing) == len(set(sheet.missing))
    assert sheet.tables
    assert sheet.verdicts
    if sheet.missing:
        assert "not run yet" in {verdict.outcome for verdict in sheet.verdicts}
        assert {verdict.outcome for verdict in sheet.verdicts} <= {"not run yet", "not tested at this scale"}


@pytest.mark.parametrize("exhibit", EXHIBITS.values(), ids=EXHIBITS)
def test_what_follows_a_sweep_is_told_before_it_is_done_and_then_named(exhibit, grid):
    before = exhibit.sheet(grid)
    keep_sweeps(grid, exhibit, lambda config: 0.8)
    after = exhibit.sheet(grid)
    assert not after.following
    empty = Grid(folder=grid.folder / "empty")
    known = len(empty.missing(exhibit.wanted(empty))) - len(empty.missing(exhibit.sweep(empty)))
    told = sum(int(line.rpartition(": ")[2]) for line in before.following)
    came = len(grid.missing(exhibit.runs(grid))) - known
    assert told == came or (exhibit is modern.EXHIBIT and told > came)  # a chosen rate may be one that is wide-swept


@pytest.mark.parametrize("exhibit", EXHIBITS.values(), ids=EXHIBITS)
def test_the_runs_are_distinct_and_one_seed_comes_first(exhibit, grid):
    keep_sweeps(grid, exhibit, lambda config: 0.8)
    runs = exhibit.runs(grid)
    assert runs or exhibit.sweep(grid) == []
    assert runs == by_seed(runs)
    assert [config.seed for config in runs] == sorted(config.seed for config in runs)
    assert len({grid.place(config) for config in runs}) == len(runs)


@pytest.mark.parametrize("exhibit", EXHIBITS.values(), ids=EXHIBITS)
def test_only_the_precision_of_a_run_is_left_to_the_machine_and_no_sheet_shows_which(exhibit, grid, monkeypatch):
    keep_sweeps(grid, exhibit, lambda config: 0.8)
    runs, sheets = [*exhibit.sweep(grid), *exhibit.runs(grid)], []
    for precision in ("float32", "bfloat16"):
        machine = {"auto": precision, "float32": "float32", "bfloat16": "bfloat16"}
        monkeypatch.setattr(config_module, "resolve_precision", machine.get)
        sheets.append(exhibit.sheet(grid))
        for config in runs:
            assert config.resolved().attention == config.attention
    assert sheets[0] == sheets[1]


def test_a_sheet_counts_its_runs_on_each_machine_where_there_are_two(grid):
    assert not [line for line in table2.EXHIBIT.sheet(grid).scaled_down if line.startswith("Machines")]
    keep_all(grid, table2.EXHIBIT, accuracies(0.85, 0.84, 0.80))
    one, other_one = table2.runs_of(grid, "trec", "full")[3:]
    own = grid.find(one).config["precision"]
    other = {"bfloat16": "float32", "float32": "bfloat16"}[own]
    shutil.rmtree(grid.place(one))
    keep(grid, [replace(one, precision=other)], lambda config: 0.8)
    another = grid.place(other_one)
    elsewhere = read_results(another)
    write_results(another, replace(elsewhere, machine={**elsewhere.machine, "cpu": "Intel Xeon"}))
    (line,) = [line for line in table2.EXHIBIT.sheet(grid).scaled_down if line.startswith("Machines")]
    cpu, total = elsewhere.machine["cpu"], len(list(grid.folder.iterdir()))
    assert f"{total - 2} in {own} on an {cpu}" in line
    assert f"1 in {other} on an {cpu}" in line
    (told,) = [note for note in table2.EXHIBIT.sheet(grid).tables[0].notes if note.startswith("Done in")]
    assert f"Done in {other}: Full fine-tuning." in told
    assert "Full fine-tuning; Head only; " in told.partition(f"Done in {own}: ")[2]
    assert f"1 in {own} on an Intel Xeon" in line
    write_results(another, replace(elsewhere, machine={**elsewhere.machine, "accelerator": "NVIDIA H200"}))
    (line,) = [line for line in table2.EXHIBIT.sheet(grid).scaled_down if line.startswith("Machines")]
    assert f"1 in {own} on an NVIDIA H200" in line


def accuracies(lora: float, full: float, others: float) -> Callable[[RunConfig], float]:
    """An accuracy for each method, moved a little by the seed."""
    of = {"lora-qv": lora, "full": full}
    return lambda config: of.get(config.method, others) + 0.0002 * config.seed * (1 + (config.method == "full"))


def test_the_main_verdict_turns_with_the_numbers(tmp_path):
    outcomes = {}
    for name, lora in (("good", 0.85), ("bad", 0.75)):
        grid = Grid(folder=tmp_path / name)
        keep_all(grid, table2.EXHIBIT, accuracies(lora, 0.85, 0.80))
        sheet = table2.EXHIBIT.sheet(grid)
        assert sheet.missing == ()
        outcomes[name] = [verdict.outcome for verdict in sheet.verdicts]
    untestable = ["not tested at this scale"] * 2
    assert outcomes == {"good": ["held"] * 5 + untestable, "bad": ["not held"] * 5 + untestable}


def test_our_row_stands_beside_the_papers(grid):
    keep_all(grid, table2.EXHIBIT, accuracies(0.85, 0.84, 0.80))
    sheet = table2.EXHIBIT.sheet(grid)
    by_name = {table.name: table for table in sheet.tables}
    row = next(row for row in by_name["table2-rotten-tomatoes"].rows if row[0] == "LoRA, query + value")
    assert row[1] == 73_728  # without the head
    assert row[-4:] == ("RoBERTa base, LoRA", "0.3M", "95.1 ± .2", "87.2")
    assert len(by_name["table2-paper"].rows) == 14
    assert {figure.name for figure in sheet.figures} == {"table2-trec", "table2-rotten-tomatoes"}


def test_half_a_grid_gives_half_a_table_and_names_the_rest(grid):
    while missing := grid.missing(table2.sweep(grid)):
        keep(grid, missing, accuracies(0.85, 0.84, 0.80))
    first_seed = [config for config in table2.runs(grid) if config.seed == 0]
    keep(grid, grid.missing(first_seed), accuracies(0.85, 0.84, 0.80))
    sheet = table2.EXHIBIT.sheet(grid)
    assert len(sheet.missing) == len(table2.runs(grid)) - len(first_seed)
    assert not any("seed0" in name for name in sheet.missing)
    assert not {"held", "not held"} & {verdict.outcome for verdict in sheet.verdicts}


def test_the_ranks_verdicts_turn_with_the_numbers(tmp_path):
    def paper_like(config: RunConfig) -> float:
        alone = len(config.weights) == 1  # none are named where they are the method's own, query and value
        return (
            0.80
            + 0.05 * (not alone)
            + (0.02 * (config.r > 1) if alone else 0)
            + 0.0002 * config.seed * (1 + (config.r > 1))
        )

    outcomes = {}
    for name, accuracy in (("paper", paper_like), ("opposite", lambda config: 1.5 - paper_like(config))):
        grid = Grid(folder=tmp_path / name)
        keep_all(grid, ranks.EXHIBIT, accuracy)
        outcomes[name] = [verdict.outcome for verdict in ranks.EXHIBIT.sheet(grid).verdicts]
    assert outcomes["paper"] == ["held"] * 7
    no_worse = (4, 5)  # by no more than the margin: alike in both
    assert {outcome for place, outcome in enumerate(outcomes["opposite"]) if place not in no_worse} == {"not held"}


def test_one_budget_is_spent_in_every_row_of_table_5():
    assert {len(choice.weights) * choice.r for choice in ranks.TABLE_5} == {8}


def test_an_unknown_exhibit_lists_the_known():
    with pytest.raises(UnknownNameError, match=r"table2.*all"):
        find_exhibits(["table2", "table22"])
    with pytest.raises(ConfigError, match="name one or more exhibits: table2, glue"):
        find_exhibits([])
    assert find_exhibits(["all"]) == find_exhibits(["glue", "all"]) == list(EXHIBITS.values())
    assert [exhibit.name for exhibit in find_exhibits(["ranks,", "table2", "ranks"])] == ["table2", "ranks"]


@pytest.mark.parametrize(
    ("best", "outcomes"), [("lora-prefix-embed", ["held", "held"]), ("lora-prefix-layer", ["not held", "not held"])]
)
def test_what_prefixes_add_to_lora_turns_with_the_numbers(grid, best, outcomes):
    """Both beside LoRA of r = 8 on query and value, which lies between."""
    other = {"lora-prefix-embed": "lora-prefix-layer", "lora-prefix-layer": "lora-prefix-embed"}[best]
    of = {best: 0.9, other: 0.7}
    keep_all(grid, figure2.EXHIBIT, lambda config: of.get(config.method, 0.8) + 1e-4 * config.seed * (config.r == 8))
    told = figure2.EXHIBIT.sheet(grid).verdicts
    (added,), (taken,) = (
        [one for one in told if one.claim.startswith(f"Prefix {kind}")] for kind in ("embed", "layer")
    )
    assert [added.outcome, taken.outcome] == outcomes
    assert "+10.0" in added.because if outcomes[0] == "held" else "-10.0" in added.because


def test_a_best_size_at_the_edge_of_those_that_were_run_is_told(grid):
    keep_all(grid, figure2.EXHIBIT, lambda config: 0.85 if dict(config.sizes).get("prefix_tokens") == 2 else 0.8)
    told = {verdict.claim: verdict.because for verdict in figure2.EXHIBIT.sheet(grid).verdicts}
    layer, embed = (
        told[f"LoRA, r_q = r_v = 8, does better than Prefix{kind} at the best size run"] for kind in ("Layer", "Embed")
    )
    assert "Of 4 sizes that one has the best mean on validation rows, and is the smallest." in layer
    assert "Of 2 sizes" in embed


def test_a_table_or_figure_of_the_paper_is_found_by_its_own_name():
    """Each stands in its exhibit's own words."""
    for name, own in ALSO_CALLED.items():
        (exhibit,) = find_exhibits([name.capitalize()])
        number = name.removeprefix("table").removeprefix("figure")
        kind = "Table" if name.startswith("table") else "Figure"
        assert exhibit.name == own
        assert re.search(rf"{kind}s? (\d+(, | and ))*{number}\b", exhibit.shows), name


def test_a_measurement_comes_back_as_it_was_written(tmp_path):
    assert read_measurement(tmp_path, "latency") is None
    value = {"quick": True, "machine": {"cores": 2}, "versions": {}, "layers": [{"a": [0.5, 1.0]}]}
    write_measurement(tmp_path, "latency", value)
    assert read_measurement(tmp_path, "latency") == value


def test_a_measurement_with_a_number_that_is_not_finite_is_not_kept(tmp_path):
    with pytest.raises(VeneerError, match="measured for latency has a number that is not finite"):
        write_measurement(tmp_path, "latency", {"quick": True, "layers": [{"a": [0.5, float("nan")]}]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"schema": 99}', '{"schema": 1, "quick": true, "machine": null, "versions": {}}']
)
def test_what_is_no_measurement_is_refused_by_name(tmp_path, text):
    file = place(tmp_path, "latency")
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(ConfigError, match="latency"):
        read_measurement(tmp_path, "latency")


def test_the_verdicts_on_few_rows_turn_with_the_numbers(tmp_path):
    of = {"lora-qv": 0.85, "full": 0.80, "prefix-embed": 0.70, "prefix-layer": 0.72}
    noise = {"lora-qv": 1, "full": 2, "prefix-embed": 3, "prefix-layer": 4}
    outcomes = {}
    for name, sign in (("paper", 1), ("opposite", -1)):
        grid = Grid(folder=tmp_path / name)
        keep_all(
            grid,
            data.EXHIBIT,
            lambda run, sign=sign: 0.5 + sign * (of[run.method] - 0.5) + 3e-4 * run.seed * noise[run.method],
        )
        outcomes[name] = [verdict.outcome for verdict in data.EXHIBIT.sheet(grid).verdicts]
    others = ["not run yet", "not tested at this scale"]
    assert outcomes["paper"] == ["held"] * 4 + others
    assert outcomes["opposite"] == ["not held"] * 4 + others


def test_the_runs_on_all_rows_are_those_of_table_2(grid):
    for exhibit in (data.EXHIBIT, table2.EXHIBIT):
        keep_sweeps(grid, exhibit, lambda config: 0.8)
    shared = set(data.runs(grid)) & set(table2.runs(grid))
    assert {(config.method, config.seed) for config in shared} == {
        (method, seed) for method in ("full", "lora-qv") for seed in table2.SEEDS
    }


def test_rank_8_of_both_methods_is_run_once_for_both_tables(grid):
    for exhibit in (ranks.EXHIBIT, table2.EXHIBIT):
        keep_sweeps(grid, exhibit, lambda config: 0.8)
    shared = set(ranks.runs(grid)) & set(table2.runs(grid))
    assert {(config.method, config.r, config.seed) for config in shared} == {
        (method, 8, seed) for method in ("lora-qv", "lora-all") for seed in ranks.SEEDS
    }


def test_the_verdicts_of_figure_2_turn_with_the_numbers(tmp_path):
    def paper_like(config: RunConfig) -> float:
        tokens = dict(config.sizes).get("prefix_tokens", 0)
        return 0.7 + 0.1 * (config.method == "lora-qv") - 0.05 * (tokens == 32) + 2e-4 * config.seed * config.r

    outcomes = {}
    for name, accuracy in (("paper", paper_like), ("opposite", lambda config: 1.5 - paper_like(config))):
        grid = Grid(folder=tmp_path / name)
        keep_all(grid, figure2.EXHIBIT, lambda config, of=accuracy: of(config) + 1e-4 * config.seed * (config.r == 1))
        outcomes[name] = [verdict.outcome for verdict in figure2.EXHIBIT.sheet(grid).verdicts]
    assert outcomes["paper"][1:5] == ["held"] * 4
    assert outcomes["opposite"][1:5] == ["not held"] * 4


def test_lora_is_held_against_the_size_that_is_best_on_validation_whatever_test_says(grid):
    def accuracy(config: RunConfig) -> float:
        tokens = dict(config.sizes).get("prefix_tokens")
        return 0.9 if (config.method, tokens) == ("prefix-layer", 2) else 0.8 + 1e-4 * config.seed

    keep_all(grid, figure2.EXHIBIT, accuracy)
    for folder in grid.folder.glob("trec-prefix-layer-*"):
        of = read_results(folder)
        (record,) = of.records
        if record.validation.accuracy > 0.9:
            write_results(folder, replace(of, records=[replace(record, test=scores(0.5))]))
    told = {verdict.claim: verdict for verdict in figure2.EXHIBIT.sheet(grid).verdicts}
    verdict = told["LoRA, r_q = r_v = 8, does better than PrefixLayer at the best size run"]
    assert verdict.outcome == "held"
    assert verdict.because.startswith("trec, l_p = 2, l_i = 2: +30.0 points")


def test_figure_2_has_the_sizes_of_table_15_and_a_cloud_for_each_method(grid):
    keep_all(grid, figure2.EXHIBIT, lambda config: 0.8)
    sheet = figure2.EXHIBIT.sheet(grid)
    (figure,) = sheet.figures
    assert [series.name for series in figure.series] == list(dict.fromkeys(point.series for point in figure2.POINTS))
    assert sum(len(series.points) for series in figure.series) == len(figure2.SEEDS) * len(figure2.POINTS)


@pytest.mark.parametrize(("sign", "outcome"), [(1, "held"), (-1, "not held")])
def test_the_verdicts_on_high_ranks_turn_with_the_numbers(grid, sign, outcome):
    keep_all(
        grid,
        table18.EXHIBIT,
        lambda config: 0.8 + sign * 0.03 * (4 <= config.r <= 16) + 1e-4 * config.seed * (1 + (config.r == 16)),
    )
    assert [verdict.outcome for verdict in table18.EXHIBIT.sheet(grid).verdicts] == [outcome] * 2
