"""Means, spreads and order against hand-computed values and the statistics module."""

import statistics

import pytest

from tests.report.records import BASE_PARAMETERS, collapsed, record, scores
from veneer.errors import ConfigError
from veneer.report.formatting import compact_count, duration, number, percent, plain, score, short_names, size
from veneer.report.summary import best_by_validation, split_scores, summarize
from veneer.report.terminal import markdown_table


def test_methods_come_in_the_table_order_then_alphabetically():
    methods = ["zeta", "full", "adapter", "lora-all", "head", "lora-qv"]
    summaries = summarize([record(method) for method in methods])
    assert [s.method for s in summaries] == ["head", "lora-qv", "lora-all", "full", "adapter", "zeta"]
    assert [s.label for s in summaries] == [
        "Head only", "LoRA r=8, query + value", "LoRA r=8, all linear", "Full fine-tuning", "adapter", "zeta",
    ]  # fmt: skip


def test_a_label_without_a_rank_in_the_configuration_names_none():
    (summary,) = summarize([record("lora-qv", config={})])
    assert summary.label == "LoRA, query + value"


def test_mean_and_sample_standard_deviation_over_seeds():
    values = [0.70, 0.74, 0.75]
    seconds = [10.0, 20.0, 60.0]
    runs = [record("full", v, seed, train_seconds=t) for seed, (v, t) in enumerate(zip(values, seconds, strict=True))]
    (summary,) = summarize(runs)
    assert summary.score.mean == pytest.approx(0.73)
    assert summary.score.sd == pytest.approx((0.0014 / 2) ** 0.5)  # squares .0009 + .0001 + .0004, over n - 1
    assert summary.score.sd == pytest.approx(statistics.stdev(values))
    assert summary.second_score.mean == pytest.approx(0.728)
    assert summary.validation_choice == pytest.approx(0.738)
    assert summary.train_seconds == pytest.approx(30)
    assert (summary.num_runs, summary.num_collapsed, summary.all_collapsed) == (3, 0, False)


def test_one_run_has_no_standard_deviation():
    (summary,) = summarize([record("head", 0.7)])
    assert summary.score.mean == 0.7
    assert summary.score.sd is None
    assert score(summary.score.mean, summary.score.sd) == "0.700"


def test_a_collapsed_run_is_left_out_and_reported():
    runs = [record("full", 0.8, 0), collapsed("full", 1, train_seconds=1e6), record("full", 0.9, 2)]
    (summary,) = summarize(runs)
    assert summary.score.mean == pytest.approx(0.85)
    assert summary.score.sd == pytest.approx(0.05 * 2**0.5)
    assert summary.score_with_collapsed.mean == pytest.approx(2.2 / 3)
    assert summary.second_score_with_collapsed.mean == pytest.approx(2.2 / 3 - 0.002)
    assert summary.train_seconds < 1000
    assert (summary.num_runs, summary.num_collapsed, summary.all_collapsed) == (3, 1, False)
    assert [run.seed for run in summary.scored] == [0, 2]


def test_where_all_collapsed_the_mean_is_over_all_and_marked():
    (summary,) = summarize([collapsed("full", 0), collapsed("full", 1)])
    assert summary.all_collapsed
    assert summary.score.mean == summary.score_with_collapsed.mean == 0.5
    assert len(summary.scored) == 2


def test_one_record_without_test_rows_moves_all_to_validation():
    summaries = summarize([record("head", 0.7), record("full", 0.8, test=None)])
    assert {s.split for s in summaries} == {"validation"}
    assert [s.score.mean for s in summaries] == [pytest.approx(0.71), pytest.approx(0.81)]
    run = record("full", 0.8, test=None)
    assert split_scores(run, "test") is run.validation


def test_parameters_and_their_share():
    (summary,) = summarize([record("lora-qv")])
    assert summary.trainable_parameters == 73_728 + 770
    assert summary.trainable_share == (73_728 + 770) / (BASE_PARAMETERS + 73_728 + 770)


def test_runs_that_do_not_belong_together_are_refused_with_every_reason():
    with pytest.raises(ConfigError) as caught:
        summarize([record("head"), record("head", model="mpnet", data="trec", trainable_parameters=1)])
    for reason in ("model: 'minilm' and 'mpnet'", "data: ", "method 'head'"):
        assert reason in str(caught.value)


def test_no_records_have_no_summary():
    assert summarize([]) == []
    assert best_by_validation([]) is None


def test_the_best_method_is_chosen_on_validation_not_on_test():
    liked = record("lora-qv", 0.7, validation=scores(0.9))
    lucky = record("lora-all", 0.9, validation=scores(0.8))
    best = best_by_validation(summarize([liked, lucky]))
    assert best is not None
    assert best.method == "lora-qv"


def test_a_run_that_collapsed_on_test_rows_has_its_say_in_the_choice_by_validation():
    good = record("lora-qv", 0.7, 0, validation=scores(0.9))
    broken = record("lora-qv", 0.5, 1, validation=scores(0.5), collapsed=True)
    steady = record("lora-all", 0.7, validation=scores(0.8))
    best = best_by_validation(summarize([good, broken, steady]))
    assert best is not None
    assert best.method == "lora-all"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(1.0), "100 %"),
        (percent(0.99999), "> 99.9 %"),
        (percent(0.0053), "0.53 %"),
        (percent(0.000034), "0.0034 %"),
        (percent(0.25), "25.0 %"),
        (size(999), "999 B"),
        (size(1_182_728), "1.18 MB"),
        (size(912_400), "912 kB"),
        (size(999_900), "1.00 MB"),
        (size(90_855_944), "90.9 MB"),
        (compact_count(385), "385"),
        (compact_count(22_713_986), "22.7 M"),
        (duration(4.24), "4.24 s"),
        (duration(119), "119 s"),
        (duration(599), "599 s"),
        (duration(690), "11.5 min"),
        (duration(7200), "2.00 h"),
        (number(0.0005), "5e-4"),
        (number(2e-5), "2e-5"),
        (number(1.5e-5), "1.5e-5"),
        (number(0.06), "0.06"),
        (number(0.0), "0"),
        (plain("a\x00b\ud800c\nd"), "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c d"),
    ],
)
def test_figures_look_as_promised(shown, expected):
    assert shown == expected


def test_short_names_stay_apart():
    assert short_names(["alpha", "a very long name, one", "a very long name, two"], 10) == [
        "alpha", "2 a very…", "3 a very…",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "config", "label"),
    [
        ("lora-qv", {"r": 4, "weights": ["query"]}, "LoRA r=4, query"),
        ("lora-all", {"r": 4, "targets": ["a", "b"]}, "LoRA r=4, a + b"),
        ("lora-all", {"r": 4, "targets": list("abcde")}, "LoRA r=4, 5 layers by name"),
        ("houlsby", {"r": 8, "sizes": {"r": 16, "dropped_blocks": 0}}, "Houlsby adapters r=16"),
        ("prefix-embed", {"r": 8, "sizes": {"prefix_tokens": 32, "infix_tokens": 8}}, "Prefix-embedding 32 + 8"),
        ("lora-prefix-layer", {"r": 8, "sizes": {"infix_tokens": 8}}, "LoRA r=8, query + value, prefix-layer 8"),
        ("top2", {"sizes": {"num_blocks": 3}}, "Last 3 blocks"),
        ("bitfit", {}, "BitFit"),
    ],
)
def test_a_label_names_the_sizes_that_count(method, config, label):
    (summary,) = summarize([record(method, config=config)])
    assert summary.label == label


def test_what_is_trained_is_the_sum_of_its_parts():
    (bottlenecks, full) = summarize([record("houlsby", trainable_parameters=11_500), record("full")])
    assert bottlenecks.other_parameters == 11_500 - 10_000 - 770
    assert bottlenecks.has_own_part
    assert full.other_parameters == BASE_PARAMETERS
    assert not full.has_own_part
    assert "| 11,500 (10,000 + 770 + 730 of the method's own) |" in markdown_table([bottlenecks])
