"""`figure2`: accuracy against what is trained, each method over its sizes (the paper's Figure 2 and Table 15)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from veneer.paper.exhibit import Cell, Contents, Exhibit, Measurement, Scatter, Series, Table, Verdict
from veneer.paper.protocol import ON_TREC, by_seed
from veneer.paper.ranks import ALL_FOUR, QUERY_VALUE, Choice, changes_of
from veneer.paper.rates import Swept, rates_table, sweep_of, tuned_runs
from veneer.paper.tabulation import (
    accuracy_on_test,
    beyond_head,
    difference,
    found,
    mean,
    of_other_rows,
    own_score_on_validation,
)
from veneer.paper.verdicts import MARGIN, judge, not_run, untested
from veneer.results import RunRecord
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

TASK = "trec"
SEEDS = range(3)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One method at one size, a row of Table 15."""

    series: str
    size: str
    """In the paper's symbols."""
    method: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What the size changes in the run's settings."""
    paper: tuple[str, str, str] | None = None
    """# trained, WikiSQL and MNLI-m accuracy in per cent; None where the paper has no such row."""


def _low_rank(weights: tuple[str, ...], r: int, size: str, paper: tuple[str, str, str]) -> Point:
    return Point(series="LoRA", size=size, method="lora-qv", changes=changes_of(Choice(weights, r)), paper=paper)


def _tokens(series: str, method: str, prefix: int, infix: int, paper: tuple[str, str, str]) -> Point:
    sizes = (("prefix_tokens", prefix), ("infix_tokens", infix))
    size = f"l_p = {prefix}, l_i = {infix}"
    return Point(series=series, size=size, method=method, changes={"sizes": sizes}, paper=paper)


def _houlsby(r: int, paper: tuple[str, str, str]) -> Point:
    return Point(series="Adapter^H", size=f"r = {r}", method="houlsby", changes={"sizes": (("r", r),)}, paper=paper)


POINTS = (
    Point(series="Full fine-tuning", size="", method="full", paper=("175,255.8M", "73.8", "89.5")),
    Point(series="BitFit", size="", method="bitfit", paper=("14.2M", "71.3", "91.0")),
    _tokens("PrefixEmbed", "prefix-embed", 32, 8, ("0.4M", "55.9", "84.9")),
    _tokens("PrefixEmbed", "prefix-embed", 64, 8, ("0.9M", "58.7", "88.1")),
    _tokens("PrefixLayer", "prefix-layer", 2, 2, ("5.1M", "68.5", "89.2")),
    _tokens("PrefixLayer", "prefix-layer", 8, 0, ("10.1M", "69.8", "88.2")),
    _tokens("PrefixLayer", "prefix-layer", 8, 8, ("20.2M", "70.1", "89.5")),
    _tokens("PrefixLayer", "prefix-layer", 32, 4, ("44.1M", "66.4", "89.6")),
    _houlsby(1, ("7.1M", "71.9", "89.8")),
    _houlsby(4, ("21.2M", "73.2", "91.0")),
    _houlsby(8, ("40.1M", "73.2", "91.5")),
    _houlsby(16, ("77.9M", "73.2", "91.5")),
    _houlsby(64, ("304.4M", "72.6", "91.5")),
    _low_rank(("value",), 2, "r_v = 2", ("4.7M", "73.4", "91.7")),
    _low_rank(QUERY_VALUE, 1, "r_q = r_v = 1", ("4.7M", "73.4", "91.3")),
    _low_rank(QUERY_VALUE, 2, "r_q = r_v = 2", ("9.4M", "73.3", "91.4")),
    _low_rank(ALL_FOUR, 1, "all four 1", ("9.4M", "74.1", "91.2")),
    _low_rank(QUERY_VALUE, 4, "r_q = r_v = 4", ("18.8M", "73.7", "91.3")),
    _low_rank(ALL_FOUR, 2, "all four 2", ("18.8M", "73.7", "91.7")),
    _low_rank(QUERY_VALUE, 8, "r_q = r_v = 8", ("37.7M", "73.8", "91.6")),
    _low_rank(ALL_FOUR, 4, "all four 4", ("37.7M", "74.0", "91.7")),
    _low_rank(QUERY_VALUE, 64, "r_q = r_v = 64", ("301.9M", "73.6", "91.4")),
    _low_rank(ALL_FOUR, 64, "all four 64", ("603.8M", "73.9", "91.4")),
    Point(series="LoRA + PreEmbed", size="r = 8, 8 and 4 tokens", method="lora-prefix-embed",
          paper=("37.8M", "75.0", "91.4")),
    Point(series="LoRA + PreLayer", size="r = 8, 8 and 4 tokens", method="lora-prefix-layer",
          paper=("52.8M", "72.9", "90.2")),
)  # fmt: skip
SWEPT: Mapping[str, str] = {point.method: point.series for point in POINTS}
"""Each method to its name."""
Records = Mapping[int, Sequence[RunRecord]]
"""Place in `POINTS` to the runs."""


def sweep(grid: Grid) -> list[RunConfig]:
    """Return the runs that choose each method's learning rate, at its own size; other sizes share it."""
    return [config for method in SWEPT for config in sweep_of(grid, TASK, method)]


def runs_of(grid: Grid, point: Point) -> list[RunConfig]:
    """Return the runs of a point, by seed."""
    return tuned_runs(grid, TASK, point.method, SEEDS, point.changes)


def runs(grid: Grid) -> list[RunConfig]:
    """Return every run, one seed of everything first."""
    return by_seed([config for point in POINTS for config in runs_of(grid, point)])


def contents(grid: Grid, measurement: Measurement | None) -> Contents:
    """Return the points as a table beside the paper's, the figure, and the verdicts."""
    records = {place: found(grid, runs_of(grid, point)) for place, point in enumerate(POINTS)}
    figure = _figure(records)
    swept = [Swept(task=TASK, method=method, label=label) for method, label in SWEPT.items()]
    return Contents(
        tables=(_table(records), rates_table(grid, "figure2-rates", swept)),
        figures=(figure,) if figure.series else (),
        verdicts=_verdicts(records),
    )


def _table(records: Records) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for place, point in enumerate(POINTS):
        mine = records[place]
        trained = beyond_head(mine[0]) if mine else None
        rows.append((point.series, point.size, trained, mean(mine), *(point.paper or (None, None, None))))
    return Table(
        name="figure2-table15",
        title=f"Table 15 on {TASK}: the points of Figure 2",
        columns=(
            "Method", "Size", "# trained", "Test accuracy", "# trained there", "WikiSQL there, %", "MNLI-m there, %",
        ),
        rows=tuple(rows),
        notes=(
            "The count leaves the head out. Test accuracy: mean ± sample standard deviation over seeds.",
            "There, what full fine-tuning trains is Table 4's count, and all of BitFit's row is Table 4's. The paper "
            "prints r_q = r_v = 64 on WikiSQL as 73.6 here and as 73.5 in Table 6.",
            *of_other_rows(records.values()),
        ),
    )  # fmt: skip


def _figure(records: Records) -> Scatter:
    clouds: dict[str, list[tuple[float, float]]] = {}
    for place, point in enumerate(POINTS):
        good = [record for record in records[place] if not record.collapsed]
        clouds.setdefault(point.series, []).extend(
            (float(beyond_head(record)), accuracy_on_test(record)) for record in good
        )
    return Scatter(
        name="figure2",
        title=f"Figure 2 on {TASK}: accuracy against size",
        x_label="Trainable parameters without the head (logarithmic)",
        y_label="Test accuracy",
        series=tuple(Series(name=name, points=tuple(points)) for name, points in clouds.items() if points),
        log_x=True,
        caption="One mark a run; collapsed runs are not drawn.",
    )


def _verdicts(records: Records) -> tuple[Verdict, ...]:
    place = {(point.series, point.size): number for number, point in enumerate(POINTS)}
    small, large = (records[place["LoRA", f"r_q = r_v = {r}"]] for r in (1, 64))
    lora = records[place["LoRA", "r_q = r_v = 8"]]
    with_embed, with_layer = (
        records[place[f"LoRA + {prefix}", "r = 8, 8 and 4 tokens"]] for prefix in ("PreEmbed", "PreLayer")
    )
    few, many = (records[place["PrefixLayer", size]] for size in ("l_p = 8, l_i = 8", "l_p = 32, l_i = 4"))
    return (
        judge(
            claim="LoRA does not fall off as it grows: r = 64 does no worse than r = 1",
            source="Figure 2, section 5.5",
            differences={TASK: difference(large, small)},
            margin=MARGIN,
        ),
        judge(
            claim="PrefixLayer falls off beyond its best size: 8 + 8 tokens do better than 32 + 4 (WikiSQL 70.1 "
            "against 66.4, but MNLI 89.5 against 89.6)",
            source="Figure 2, section 5.5",
            differences={TASK: difference(few, many)},
        ),
        *(_better_than(series, lora, records) for series in ("PrefixEmbed", "PrefixLayer", "Adapter^H")),
        judge(
            claim="Prefix embeddings add to LoRA: with both, r_q = r_v = 8 does better than LoRA alone (WikiSQL 75.0 "
            "against 73.8, but MNLI 91.4 against 91.6)",
            source="Table 15, appendix E",
            differences={TASK: difference(with_embed, lora)},
        ),
        judge(
            claim="Prefix layers take from LoRA: LoRA alone, r_q = r_v = 8, does better than with both (WikiSQL 73.8 "
            "against 72.9, MNLI 91.6 against 90.2)",
            source="Table 15, appendix E",
            differences={TASK: difference(lora, with_layer)},
        ),
        untested(
            "PrefixEmbed falls off beyond 256 special tokens (WikiSQL 63.1 to 55.9)",
            "Figure 2, section 5.5",
            "The paper's point has 512 + 8 tokens, more than MiniLM's 512 positions; sizes between were not run.",
        ),
    )


def _better_than(series: str, lora: Sequence[RunRecord], records: Records) -> Verdict:
    """Return the verdict on LoRA against the size of another method that is the best one on validation rows."""
    claim, source = f"LoRA, r_q = r_v = 8, does better than {series} at the best size run", "Figure 2, Table 15"
    sizes = {point.size: records[place] for place, point in enumerate(POINTS) if point.series == series}
    if not all(sizes.values()):
        return not_run(claim, source)
    reached = {size: number.value for size, mine in sizes.items() if (number := mean(mine, own_score_on_validation))}
    best = max(reached, key=reached.__getitem__)
    verdict = judge(claim=claim, source=source, differences={f"{TASK}, {best}": difference(lora, sizes[best])})
    edge = {next(iter(sizes)): ", and is the smallest", list(sizes)[-1]: ", and is the largest"}.get(best, "")
    told = f"Of {len(sizes)} sizes that one has the best mean on validation rows{edge}."
    return replace(verdict, because=f"{verdict.because} {told}")


EXHIBIT = Exhibit(
    name="figure2",
    title="Accuracy against the number of trained parameters",
    shows="Figure 2 and Table 15 (section 5.5, appendix F): GPT-3 by each method at several sizes; not every method "
    "gains from more parameters.",
    contents=contents,
    sweep=sweep,
    runs=runs,
    scaled_down=(
        *ON_TREC,
        "Seeds: three; one learning rate for all sizes of a method. Left out: PrefixEmbed of 128 "
        "tokens and more, PrefixLayer of 64, LoRA with PreEmbed at r = 32 and 64, and methods that Figure 2 does not "
        "have either (Adapter^L, Adapter^P, Adapter^D, top layers, head only).",
    ),
)
