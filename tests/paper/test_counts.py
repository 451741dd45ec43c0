"""The counts are those of the formulas, and every printed count that differs is named."""

import pytest

from veneer.methods.settings import MethodSettings
from veneer.paper.architectures import counted
from veneer.paper.counts import EXHIBIT, ROWS
from veneer.paper.formulas import bottlenecks, last_blocks, lora, prefix_embedding, prefix_layers, shown_as
from veneer.training.grid import Grid

D, L = 12_288, 96


def sized(method, **sizes):
    return MethodSettings(method=method, sizes=tuple(sizes.items()))


@pytest.mark.parametrize(
    ("model", "method", "formula", "exact"),
    [
        ("RoBERTa base", MethodSettings(method="lora-qv", r=8), lora(2 * 12, 768, 8), 294_912),
        ("RoBERTa large", MethodSettings(method="lora-qv", r=8), lora(2 * 24, 1024, 8), 786_432),
        ("DeBERTa XXL", MethodSettings(method="lora-qv", r=16), lora(2 * 48, 1536, 16), 4_718_592),
        ("DeBERTa XXL", MethodSettings(method="lora-qv", r=8), lora(2 * 48, 1536, 8), 2_359_296),
        ("GPT-2 medium", MethodSettings(method="lora-qv", r=4), lora(2 * 24, 1024, 4), 393_216),
        ("GPT-2 large", MethodSettings(method="lora-qv", r=4), lora(2 * 36, 1280, 4), 737_280),
        ("GPT-2 medium", sized("lin", r=6), bottlenecks(24, 1024, 6, norms=24), 368_784),
        (
            "GPT-2 medium",
            sized("lin", r=224),
            bottlenecks(24, 1024, 224, norms=24),
            11_089_152,
        ),
        ("GPT-2 large", sized("lin", r=8), bottlenecks(36, 1280, 8, norms=36), 875_808),
        (
            "GPT-2 large",
            sized("lin", r=248),
            bottlenecks(36, 1280, 248, norms=36),
            23_002_848,
        ),
        ("RoBERTa large", sized("pfeiffer", r=16), bottlenecks(24, 1024, 16), 811_392),
        ("RoBERTa large", sized("houlsby", r=8), bottlenecks(48, 1024, 8), 835_968),
        ("GPT-2 medium", sized("houlsby", r=112), bottlenecks(48, 1024, 112), 11_064_576),
        ("GPT-2 medium", MethodSettings(method="top2"), last_blocks(2, 1024), 25_192_448),
        ("RoBERTa base", MethodSettings(method="bitfit"), 12 * 11 * 768 + 768, 102_144),
    ],
)
def test_what_our_methods_train_is_what_the_formulas_say(model, method, formula, exact):
    assert counted(model, method) == formula == exact


@pytest.mark.parametrize(
    ("model", "exact"),
    [("RoBERTa base", 124_055_040), ("RoBERTa large", 354_310_144), ("GPT-2 medium", 354_823_168),
     ("GPT-2 large", 774_030_080)],
)  # fmt: skip
def test_the_shapes_are_the_published_ones(model, exact):
    assert counted(model, MethodSettings(method="full")) == exact


def test_the_budgets_of_gpt3_are_equal_however_they_are_spent():
    assert lora(L, D, 2) == lora(2 * L, D, 1) == 4_718_592
    assert lora(2 * L, D, 2) == lora(4 * L, D, 1) == 9_437_184
    assert lora(L, D, 8) == lora(2 * L, D, 4) == lora(4 * L, D, 2) == 18_874_368
    assert lora(2 * L, D, 8) == lora(4 * L, D, 4) == 37_748_736
    assert (lora(2 * L, D, 64), lora(4 * L, D, 64)) == (301_989_888, 603_979_776)
    assert prefix_embedding(D, 256, 8) == 3_244_032
    assert prefix_layers(L, D, 8, 8) == 18_874_368
    assert [bottlenecks(2 * L, D, r) for r in (1, 4, 8, 16, 64)] == [
        7_078_080, 21_234_432, 40_109_568, 77_859_840, 304_361_472,
    ]  # fmt: skip
    assert lora(2 * L, D, 8) + prefix_embedding(D, 8, 4) == 37_896_192
    assert lora(2 * L, D, 64) + prefix_embedding(D, 8, 4) == 302_137_344


@pytest.mark.parametrize(
    ("number", "printed", "same"),
    [
        (294_912, "0.3M", True),  # rounded up
        (18_874_368, "18.8M", True),  # cut
        (18_874_368, "18.9M", True),  # rounded
        (18_874_368, "18.7M", False),
        (393_216, "0.35M", False),
        (3_171_840, "3.0M", False),
        (774_030_080, "774.03M", True),
        (1_234_567_890, "1,234.6M", True),
    ],
)
def test_a_printed_count_is_rounded_or_cut_and_nothing_else(number, printed, same):
    assert shown_as(number, printed, cut=True) is same


def test_only_counts_that_are_cut_may_be_cut():
    assert shown_as(18_874_368, "18.8M", cut=True)
    assert not shown_as(18_874_368, "18.8M")


def test_each_printed_count_that_its_setting_does_not_give_is_explained():
    for row in ROWS:
        assert bool(row.note) is not row.matches, f"{row.table}, {row.row} {row.printed}"


def test_the_named_slips_are_those_of_the_paper():
    slips = {(row.row, row.printed) for row in ROWS if row.note.startswith("a slip")}
    assert {("DeBERTa XXL, LoRA", "4.7M"), ("GPT-2 M, LoRA", "0.35M"), ("GPT-2 L, LoRA", "0.77M")} <= slips
    assert {("LoRA", "603.8M"), ("PreLayer", "20.2M"), ("LoRA+PL", "52.8M"), ("PrefixEmbed", "0.4M")} <= slips
    assert ("RoBERTa base, LoRA", "0.3M") not in slips


def test_the_sheet_needs_nothing_that_is_not_there(tmp_path):
    sheet = EXHIBIT.sheet(Grid(folder=tmp_path))
    assert sheet.missing == ()
    assert [len(table.rows) for table in sheet.tables] == [14, 12, 8, 29]
    assert {verdict.outcome for verdict in sheet.verdicts} == {"held", "not held"}
