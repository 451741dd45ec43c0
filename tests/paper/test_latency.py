"""What is timed is what the paper timed, trials are interleaved, and the verdicts turn with the times."""

from dataclasses import asdict
from typing import Any

import pytest
import torch

from veneer.paper import latency
from veneer.paper.architectures import counted
from veneer.paper.formulas import shown_as
from veneer.paper.latency_measurement import (
    PLAIN,
    QUICK_SETTINGS,
    SETTINGS,
    SWEEP,
    Setting,
    interleaved,
    methods,
    model_with,
)
from veneer.training.grid import Grid
from veneer.training.machine import describe_machine, describe_versions

WHERE = {"quick": False, "machine": describe_machine(), "versions": describe_versions()}


def test_the_settings_are_the_papers_and_the_adapters_as_large_as_it_prints():
    assert {(setting.batch, setting.tokens) for setting in SETTINGS} == set(latency.PAPER)
    for setting in SETTINGS:
        for name in ("lin", "houlsby"):
            attachment = methods(setting)[name]
            assert attachment is not None
            assert shown_as(counted("GPT-2 medium", attachment), setting.adapters)


def test_every_model_starts_as_the_plain_one_and_is_timed_as_often():
    setting = QUICK_SETTINGS[0]
    models = {name: model_with(setting, attachment, quick=True) for name, attachment in methods(setting).items()}
    ids = torch.arange(12).view(1, 12)
    with torch.inference_mode():
        outputs = {name: model(ids).last_hidden_state for name, model in models.items()}
    for output in outputs.values():
        torch.testing.assert_close(output, outputs[PLAIN])  # bfloat16 or float32, as the machine has it
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert all(size > sizes[PLAIN] for name, size in sizes.items() if name != PLAIN)
    times = interleaved(models, setting, 3)
    assert {name: len(of) for name, of in times.items()} == dict.fromkeys(models, 3)
    assert all(ms > 0 for of in times.values() for ms in of)


def test_a_slow_down_is_the_median_of_each_trials_own_ratio():
    times = {PLAIN: [10.0, 100.0, 10.0], "lin": [11.0, 110.0, 30.0]}  # the machine was busy in the second trial
    number = latency.slow_down(times, "lin")
    assert number.value == pytest.approx(10)
    assert number.low is None  # three trials could lie anywhere


@pytest.mark.parametrize(("trials", "left_out"), [(6, 1), (8, 1), (9, 2), (20, 6)])
def test_the_interval_of_a_slow_down_is_that_of_the_sign_test(trials, left_out):
    """The k-th smallest and the k-th largest ratio, k as in Conover's table of the binomial with p = 1/2."""
    shares = [1 + place for place in range(trials)]
    number = latency.slow_down({PLAIN: [100.0] * trials, "lin": [100.0 + share for share in shares]}, "lin")
    assert (number.low, number.high) == (pytest.approx(shares[left_out - 1]), pytest.approx(shares[-left_out]))


def measured(lin: float, houlsby: float, growth: float) -> dict[str, Any]:
    """Times of six trials in all settings; `growth` multiplies the slow-down at the smallest batch."""

    def times(setting: Setting) -> dict[str, Any]:
        extra = growth if setting.batch == 1 else 1.0
        plain = [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]
        slower = {PLAIN: 0.0, "lora": 0.02, "lin": lin, "houlsby": houlsby}
        return {
            **asdict(setting),
            "ms": {name: [ms * (1 + share * extra) for ms in plain] for name, share in slower.items()},
        }

    settings, sweep = ([times(setting) for setting in of] for of in (SETTINGS, SWEEP))
    return {**WHERE, "settings": settings, "sweep": sweep}


@pytest.mark.parametrize(
    ("lin", "houlsby", "growth", "outcomes"),
    [
        (0.02, 0.03, 10, ["held", "held", "held"]),
        (-0.02, 0.03, 10, ["not held", "not held", "held"]),
        (0.04, 0.03, 10, ["held", "held", "not held"]),
        (0.02, 0.03, 0.5, ["held", "not held", "held"]),
    ],
)
def test_the_verdicts_turn_with_the_times(tmp_path, lin, houlsby, growth, outcomes):
    sheet = latency.EXHIBIT.sheet(Grid(folder=tmp_path), measured(lin, houlsby, growth))
    assert [verdict.outcome for verdict in sheet.verdicts] == outcomes
    assert len(sheet.tables) == 3


def test_each_verdict_shows_the_figures_that_decide_it(tmp_path):
    """Of the third these are one adapter over the other, not either over the plain model."""
    *_, third = latency.EXHIBIT.sheet(Grid(folder=tmp_path), measured(0.02, 0.05, 10)).verdicts
    over = 100 * (1.5 / 1.2 - 1), 100 * (1.05 / 1.02 - 1)
    assert all(f"{share:+.1f} % [{share:+.1f}, {share:+.1f}]" in third.because for share in over)


def test_where_intervals_overlap_nothing_is_decided(tmp_path):
    """Either is the faster one in half of the trials."""
    times = {PLAIN: [12.0, 10.0] * 3, "lora": [11.0] * 6, "lin": [11.0] * 6, "houlsby": [13.0, 9.0, 9.0] * 2}
    of = [{**asdict(Setting(batch=b, tokens=8, lin=4, houlsby=4)), "ms": times} for b in (1, 16)]
    value = {**WHERE, "sweep": of, "settings": of}
    outcomes = {verdict.outcome for verdict in latency.EXHIBIT.sheet(Grid(folder=tmp_path), value).verdicts}
    assert outcomes == {"undecided"}


def test_without_figure_5_nothing_is_said_of_batch_and_length(tmp_path):
    sheet = latency.EXHIBIT.sheet(Grid(folder=tmp_path), {**measured(0.02, 0.03, 10), "sweep": []})
    assert [verdict.outcome for verdict in sheet.verdicts] == ["held", "not run yet", "held"]


def test_a_quick_measurement_decides_nothing(tmp_path):
    sheet = latency.EXHIBIT.sheet(Grid(folder=tmp_path), {**measured(0.02, 0.03, 10), "quick": True})
    assert {verdict.outcome for verdict in sheet.verdicts} == {"not run yet"}


def test_figure_5_has_a_line_for_each_adapter_width_and_batch(tmp_path):
    sweep = [
        {**asdict(setting), "ms": {PLAIN: [10.0, 10.0], "lin": [10.0 + setting.batch] * 2, "houlsby": [13.0, 13.0]}}
        for setting in SWEEP
    ]
    figures = latency.EXHIBIT.sheet(Grid(folder=tmp_path), {**measured(0.02, 0.03, 10), "sweep": sweep}).figures
    assert [figure.name for figure in figures] == ["latency-figure5-lin", "latency-figure5-houlsby"]
    for figure in figures:
        heights = {series.name: {round(y, 6) for _, y in series.points} for series in figure.series}
        assert len(heights) == 4
        for name, of in heights.items():
            expected = 30 if figure.name.endswith("houlsby") else 10 * int(name.rsplit(" ", 1)[1])
            assert list(of) == [pytest.approx(expected)]
        assert all(len(series.points) == 3 for series in figure.series)
