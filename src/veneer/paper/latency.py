"""`latency`: what adapters add to one forward pass of GPT-2 medium (the paper's Table 1 and Figure 5).

Medians with quartiles: on a shared machine a mean says more about the neighbours.
"""

from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import Any

from veneer.paper.exhibit import (
    Cell,
    Contents,
    Curves,
    Exhibit,
    Measurement,
    Number,
    Outcome,
    Series,
    Table,
    Verdict,
)
from veneer.paper.latency_measurement import PLAIN, measure
from veneer.paper.tabulation import untested
from veneer.training.grid import Grid

LABELS: Mapping[str, str] = {
    PLAIN: "Full fine-tuning, LoRA merged",
    "lora": "LoRA unmerged, r = 4",
    "lin": "Adapter^L",
    "houlsby": "Adapter^H",
}
ADAPTERS = ("lin", "houlsby")
PAPER: Mapping[tuple[int, int], Mapping[str, str]] = {
    (32, 512): {PLAIN: "1449.4 ± 0.8", "lin": "1482.0 ± 1.0 (+2.2 %)", "houlsby": "1492.2 ± 1.0 (+3.0 %)"},
    (16, 256): {PLAIN: "338.0 ± 0.6", "lin": "354.8 ± 0.5 (+5.0 %)", "houlsby": "366.3 ± 0.5 (+8.4 %)"},
    (1, 128): {PLAIN: "19.8 ± 2.7", "lin": "23.9 ± 2.1 (+20.7 %)", "houlsby": "25.8 ± 2.2 (+30.3 %)"},
}
"""(batch, tokens) to the paper's milliseconds on a Quadro RTX 8000."""
Times = Mapping[str, Sequence[float]]


def contents(grid: Grid, measurement: Measurement | None) -> Contents:
    """Return a table for each setting, and the verdicts."""
    settings: list[Mapping[str, Any]] = list(measurement["settings"]) if measurement else []
    tables = [_table(setting["batch"], setting["tokens"], setting["ms"]) for setting in settings]
    if not settings:
        tables = [_table(batch, tokens, {}) for batch, tokens in PAPER]
    return Contents(
        tables=tuple(tables),
        figures=_figure_5(measurement["sweep"]) if measurement and measurement["sweep"] else (),
        verdicts=_verdicts(settings, quick=bool(measurement and measurement["quick"])),
    )


def _figure_5(sweep: Sequence[Mapping[str, Any]]) -> tuple[Curves, ...]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for setting in sweep:
        for name in ADAPTERS:
            line = lines.setdefault(f"{LABELS[name]}, r = {setting[name]}, batch {setting['batch']}", [])
            line.append((float(setting["tokens"]), 100 * slow_down(setting["ms"], name)))
    figure = Curves(
        name="latency-figure5",
        title="Figure 5: how much slower adapters make a pass",
        x_label="Tokens (logarithmic)",
        y_label="Slower, %",
        series=tuple(Series(name=name, points=tuple(points)) for name, points in lines.items()),
        log_x=True,
        caption="Medians over interleaved trials. The paper draws heat maps over batch, length and bottleneck; its "
        "largest slow-down, above 30 %, is at batch 1 and short sequences.",
    )
    return (figure,)


def _table(batch: int, tokens: int, times: Times) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            label,
            _time(times[method]) if method in times else None,
            Number(value=100 * slow_down(times, method), digits=1, signed=True)
            if method in times and method != PLAIN
            else None,
            PAPER.get((batch, tokens), {}).get(method),
        )
        for method, label in LABELS.items()
    ]
    return Table(
        name=f"latency-{batch}x{tokens}",
        title=f"Table 1, batch {batch}, {tokens} tokens",
        columns=("Model", "Milliseconds", "Slower, %", "Paper, milliseconds"),
        rows=tuple(rows),
        notes=(
            "Median with quartiles over interleaved trials; slower is the median over trials of the ratio to the plain "
            "model in the same trial.",
        ),
    )


def _time(times: Sequence[float]) -> Number:
    low, _, high = quantiles(times, n=4, method="inclusive")
    return Number(value=median(times), low=low, high=high, num_runs=len(times), digits=1)


def slow_down(times: Times, method: str) -> float:
    """Return by what share a method is slower than the plain model: the median of the trials' own ratios."""
    return median(mine / plain for mine, plain in zip(times[method], times[PLAIN], strict=True)) - 1


def _verdicts(settings: Sequence[Mapping[str, Any]], *, quick: bool) -> tuple[Verdict, ...]:
    claims = (
        ("Adapters make inference slower, and LoRA, once merged, does not", "Table 1, section 3"),
        ("The smaller batch and sequence, the more adapters slow down (3 % to 30 %)", "Table 1 and Figure 5"),
        ("Adapter^H is slower than Adapter^L", "Table 1"),
    )
    if quick or not settings:
        because = "Only a quick measurement was made." if quick else "Not measured yet."
        return tuple(untested(claim, source, because) for claim, source in claims)
    slower = {(setting["batch"], name): slow_down(setting["ms"], name) for setting in settings for name in ADAPTERS}
    small, large = (pick(setting["batch"] for setting in settings) for pick in (min, max))
    decided = (
        all(share > 0 for share in slower.values()),
        all(slower[small, name] > slower[large, name] for name in ADAPTERS),
        all(slower[batch, "houlsby"] > slower[batch, "lin"] for batch, name in slower if name == "lin"),
    )
    because = "; ".join(
        f"batch {batch}, {LABELS[name]} {100 * share:+.1f} %" for (batch, name), share in slower.items()
    )
    outcomes: list[Outcome] = ["held" if good else "not held" for good in decided]
    because = f"Merged LoRA is the plain model; {because}."
    return tuple(
        Verdict(claim=claim, source=source, outcome=outcome, because=because)
        for (claim, source), outcome in zip(claims, outcomes, strict=True)
    )


EXHIBIT = Exhibit(
    name="latency",
    title="What adapters cost at inference",
    shows="Table 1 and Figure 5 (section 3, appendix B): GPT-2 medium on a GPU; adapters add 2 to 30 % to a forward "
    "pass, merged LoRA nothing.",
    contents=contents,
    measure=measure,
    scaled_down=(
        "Machine: whatever this runs on, in bfloat16 where it has that; 100 trials or as many as five minutes hold, "
        "but three at least; random weights and no output layer.",
        "Figure 5: two batches, three lengths and two bottlenecks, nine trials each.",
        "Bottlenecks: the widths that give the printed parameters; the paper does not state them.",
    ),
)
