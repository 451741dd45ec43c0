"""The sentence in each case, and the noise it is weighed against."""

import math
from dataclasses import replace

import pytest

from tests.report.records import collapsed, numbers, record, regression, scores
from veneer.report.summary import summarize
from veneer.report.verdict import headline, noise, verdict, within_noise


def said(*records):
    return headline(summarize(records))


def test_slightly_behind_within_the_noise():
    text = said(record("lora-all", 0.803), record("full", 0.814))
    assert text.startswith(
        "LoRA on all linear layers reached 98.6 % of full fine-tuning's test accuracy (0.803 against 0.814, one run "
        "each) while training 1.29 % of the parameters. The difference of 0.011 is within the noise: another 1,000 "
        "test rows might move it by about"
    )


def test_behind_beyond_the_noise_is_not_excused():
    text = said(record("lora-all", 0.70), record("full", 0.80))
    assert "reached 87.5 % of" in text
    assert "noise" not in text


def test_a_win_within_the_noise_is_slight_and_one_beyond_it_is_not():
    assert "was slightly above full fine-tuning in test accuracy" in said(record("lora-qv", 0.82), record("full", 0.81))
    clear = said(record("lora-qv", 0.90), record("full", 0.80))
    assert "LoRA on query and value was above full fine-tuning" in clear
    assert "slightly" not in clear


def test_a_tie_and_a_near_tie():
    assert "matched full fine-tuning's test accuracy (0.814 against 0.814" in said(
        record("lora-all", 0.8141), record("full", 0.8139)
    )
    near = said(
        record("lora-all", 0.99849, test=scores(0.99849, 10**6)), record("full", 0.9986, test=scores(0.9986, 10**6))
    )
    assert "reached 99.9 % of" in near  # never rounded up to the whole


def test_seeds_bring_the_spread():
    runs = [record("lora-all", a, s) for s, a in enumerate((0.80, 0.81, 0.82))]
    runs += [record("full", a, s) for s, a in enumerate((0.82, 0.83, 0.84))]
    assert "(0.810 ± 0.010 against 0.830 ± 0.010, mean ± standard deviation of 3 runs each)" in said(*runs)
    assert "(0.810 ± 0.010 against 0.825 ± 0.007, mean ± standard deviation of 3 and 2 runs)" in said(*runs[:-1])


def test_the_lora_of_the_sentence_is_the_one_validation_prefers():
    liked = record("lora-qv", 0.78, validation=scores(0.9))
    assert said(liked, record("lora-all", 0.80), record("full", 0.81)).startswith("LoRA on query and value reached")


def test_without_full_fine_tuning():
    text = said(record("lora-all", 0.85), record("head", 0.70))
    assert text.startswith("LoRA on all linear layers reached a test accuracy of 0.850, the head alone 0.700, one run")
    assert text.endswith("Full fine-tuning was not run.")
    assert "reached a test accuracy of 0.850 (one run) while training" in said(record("lora-all", 0.85))


def test_without_lora():
    text = said(record("head", 0.70), record("full", 0.80))
    assert text == (
        "Full fine-tuning reached a test accuracy of 0.800 (one run) while training all parameters. "
        "No LoRA method was run to compare with."
    )


def test_nothing_at_all():
    assert headline([]) == "No run has finished."


def test_collapses_are_told():
    some = said(record("lora-all", 0.8), record("full", 0.9, 0), record("full", 0.9, 1), collapsed("full", 2))
    assert "1 of 3 runs of full fine-tuning collapsed onto one answer and is left out (0.767 ± 0.231 with it)." in some
    assert "no yardstick" in said(record("lora-all", 0.8), collapsed("full"))
    assert "nothing to compare" in said(collapsed("lora-all"), record("full", 0.8))
    assert said(collapsed("head")).startswith("Training the head alone collapsed onto one answer in every run.")
    diverged = replace(collapsed("head"), best_epoch=0)
    assert said(diverged).startswith("Training the head alone diverged in every run.")
    both = said(diverged, collapsed("head", 1))
    assert both.startswith("Training the head alone collapsed or diverged in every run.")


def test_validation_in_place_of_test_is_said():
    text = said(record("lora-all", 0.8, test=None), record("full", 0.81, test=None))
    assert "full fine-tuning's validation accuracy" in text
    assert "No test rows were given" in text


def test_a_method_of_its_own_name_is_the_subject():
    assert said(record("<b>mine</b>", 0.8)).startswith("<b>mine</b> reached a test accuracy of 0.800")


def test_noise_is_two_standard_errors_with_the_spread_over_runs():
    one, other = summarize([record("lora-all", 0.5, 0), record("full", 0.5, 0)])
    expected = 2 * math.sqrt(2 * 0.25 / 1002)
    assert noise(one, other) == pytest.approx(expected)
    spread, other = summarize([record("lora-all", 0.4, 0), record("lora-all", 0.6, 1), record("full", 0.5)])
    assert noise(spread, other) == pytest.approx(2 * math.sqrt(2 * 0.25 / 1002 + 0.02 / 2))  # variance .02 over 2 runs


def test_a_perfect_score_on_few_rows_is_no_proof():
    perfect, good = summarize(
        [record("lora-all", 1.0, test=scores(1.0, 20)), record("full", 0.8, test=scores(0.8, 20))]
    )
    assert within_noise(perfect, good)


def test_the_claim_is_one_sentence():
    claim = verdict(summarize([record("lora-all", 0.803), record("full", 0.814)])).claim
    assert claim.count(". ") == 0
    assert claim.endswith(".")


def test_the_metric_of_the_task_is_named_throughout():
    text = said(regression("lora-all", 0.883), regression("full", 0.891))
    assert text.startswith(
        "LoRA on all linear layers reached 99.1 % of full fine-tuning's test Pearson correlation (0.883 against 0.891"
    )
    assert "within the noise" in text
    assert "accuracy" not in text
    cola = [record(method, 0.9, data="glue/cola") for method in ("lora-all", "head")]
    assert "reached a test Matthews correlation of 0.800, the head alone 0.800" in said(*cola)


@pytest.mark.parametrize(("ours", "theirs"), [(-0.2, 0.5), (-0.3, -0.1)])
def test_no_share_is_taken_of_a_negative_correlation(ours, theirs):
    text = said(regression("lora-all", ours), regression("full", theirs))
    assert "LoRA on all linear layers was below full fine-tuning in test Pearson correlation (-0." in text
    assert "%" not in text.partition("(")[0]


def test_the_noise_of_a_correlation_is_that_of_its_own_formula():
    one, other = summarize([regression("lora-all", 0.9), regression("full", 0.9)])
    padded = 0.9 * 1000 / 1002
    assert noise(one, other) == pytest.approx(2 * math.sqrt(2 * (1 - padded**2) ** 2 / 1002))
    perfect, good = summarize(
        [regression("lora-all", 1.0, test=numbers(1.0, 20)), regression("full", 0.8, test=numbers(0.8, 20))]
    )
    assert within_noise(perfect, good)
