"""The SVGs: well formed, of one colour per method, the same each time, and unharmed by hostile names."""

from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from tests.report.records import collapsed, record, regression, scores
from veneer.report.confusion import confused_pairs, confusion_plot, summed_confusion
from veneer.report.plots import METHOD_LOOKS, looks, loss_plot, mean_curve, score_plot, spread_out, validation_plot
from veneer.report.summary import summarize

HOSTILE = ['<script>alert("1")</script> & more', "$x^2$ \\frac", "中文 🙂 \u202e", "a\x00\x0b\ud800b", "w" * 60]


def four_methods():
    return summarize([record(m, a) for m, a in zip(METHOD_LOOKS, (0.70, 0.79, 0.80, 0.81), strict=True)])


def texts(svg):
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("text")]


@pytest.mark.parametrize("plot", [score_plot, validation_plot, loss_plot])
def test_each_method_is_named_and_drawn_in_its_colour(plot):
    svg = plot(four_methods())
    for summary in four_methods():
        assert summary.label in texts(svg)
        assert METHOD_LOOKS[summary.method].colour.lower() in svg


@pytest.mark.parametrize("plot", [score_plot, validation_plot, loss_plot])
@pytest.mark.parametrize("method", HOSTILE[:4])
def test_hostile_names_stay_text(plot, method):
    svg = plot(summarize([record(method, 0.8, 0), record(method, 0.7, 1), record("full", 0.9)]))
    ElementTree.fromstring(svg)
    svg.encode("utf-8")
    assert "<script" not in svg


def test_plots_are_the_same_each_time_and_leave_no_setting_behind():
    before = dict(mpl.rcParams)
    summaries = four_methods()
    for plot in (score_plot, validation_plot, loss_plot):
        assert plot(summaries) == plot(summaries)
    assert confusion_plot(summaries[0], name="x") == confusion_plot(summaries[0], name="x")
    assert dict(mpl.rcParams) == before


def test_the_users_matplotlib_settings_do_not_show():
    plain = score_plot(four_methods())
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red", "svg.hashsalt": "other"}):
        assert score_plot(four_methods()) == plain


def test_a_point_per_run_and_a_mean():
    one = score_plot(summarize([record("full", 0.8)]))
    three = score_plot(summarize([record("full", a, s) for s, a in enumerate((0.80, 0.81, 0.83))]))
    assert "opacity: 0.4" in three
    assert "opacity: 0.4" not in one


@pytest.mark.parametrize(
    "runs",
    [
        [record("full", 0.8)],
        [record("full", 1.0), record("head", 1.0)],
        [record("full", 0.8, 0), collapsed("full", 1)],
        [collapsed("full", 0), collapsed("full", 1)],
        [record("full", 0.8, validation_curve=[{"epoch": 1, "loss": 0.4, "accuracy": 0.8, "macro_f1": 0.8}])],
        [record("full", 0.8, train_curve=[{"epoch": 1, "loss": 0.0}]), record("head", 0.7, train_curve=[])],
        [record(f"m{i}", 0.8 + i / 1000) for i in range(12)],
    ],
)
def test_odd_sets_of_runs_can_be_drawn(runs):
    summaries = summarize(runs)
    for plot in (score_plot, validation_plot, loss_plot):
        ElementTree.fromstring(plot(summaries))
    for summary in summaries:
        ElementTree.fromstring(confusion_plot(summary, name="x"))


def test_a_collapsed_run_below_the_frame_is_told_with_its_value():
    svg = score_plot(summarize([record("full", 0.90, 0), collapsed("full", 1), record("head", 0.88)]))
    assert "0.500 ↓" in texts(svg)


def test_methods_without_a_look_take_the_remaining_ones():
    found = looks(summarize([record(m) for m in ("full", "bitfit", "prefix")]))
    assert len({look.colour for look in found.values()}) == 3


def test_the_mean_curve_is_over_shared_epochs():
    assert mean_curve([[(1, 0.5), (2, 0.7), (3, 0.9)], [(1, 0.7), (2, 0.8)]]) == [
        (1, pytest.approx(0.6)), (2, pytest.approx(0.75)),
    ]  # fmt: skip
    assert mean_curve([[(1, 0.5)], [(2, 0.5)]]) == []


def test_names_are_spread_out_within_the_frame():
    assert spread_out([10, 50], 15, 0, 100) == [10, 50]
    assert spread_out([10, 12, 50], 15, 0, 100) == [10, 25, 50]
    assert spread_out([95, 96, 97], 15, 0, 100) == [70, 85, 100]
    assert spread_out([], 15, 0, 100) == []


def test_confusion_adds_up_the_scored_runs():
    runs = [record("full", 0.8, 0), record("full", 0.9, 1), collapsed("full", 2)]
    (summary,) = summarize(runs)
    assert summed_confusion(summary) == [[400 + 450, 100 + 50], [100 + 50, 400 + 450]]
    assert {"850", "150", "negative", "positive"} <= set(texts(confusion_plot(summary, name="x")))


def test_a_true_class_without_rows_divides_by_nothing():
    made = scores(0.8)
    made.confusion[1][:] = [0, 0]
    (summary,) = summarize([record("full", 0.8, test=made)])
    ElementTree.fromstring(confusion_plot(summary, name="x"))


def test_confused_pairs_are_ordered_by_count():
    made = scores(0.5, 30, num_labels=3)
    made.confusion[:] = [[5, 3, 2], [0, 10, 0], [7, 0, 3]]
    (summary,) = summarize([record("full", 0.6, labels=["a", "b", "c"], test=made)])
    pairs = confused_pairs(summary)
    assert [(p.true, p.predicted, p.count, p.share) for p in pairs] == [
        ("c", "a", 7, 0.7), ("a", "b", 3, 0.3), ("a", "c", 2, 0.2),
    ]  # fmt: skip
    assert len(confused_pairs(summary, most=1)) == 1


def test_hostile_class_names_on_the_axes():
    (summary,) = summarize([record("full", 0.8, labels=HOSTILE, test=scores(0.8, num_labels=len(HOSTILE)))])
    svg = confusion_plot(summary, name="x")
    svg.encode("utf-8")
    shown = texts(svg)
    assert "$x^2$ \\frac" in shown
    assert max(len(text) for text in shown) <= 18


def test_the_axes_name_what_the_task_is_judged_by_and_end_where_it_does():
    summaries = summarize([regression("full", -0.2), regression("head", -0.99), regression("lora-qv", 1.0)])
    for plot, label in (
        (score_plot, "Test Pearson correlation"),
        (validation_plot, "Validation Pearson correlation"),
        (loss_plot, "Training loss (mean squared error)"),
    ):
        assert label in texts(plot(summaries))
    ticks = [float(text) for text in texts(score_plot(summaries)) if text.removeprefix("-").replace(".", "").isdigit()]
    assert -1 <= min(ticks) < 0 < max(ticks) <= 1
