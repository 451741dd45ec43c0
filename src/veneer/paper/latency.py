"""`latency`: what adapters add to one forward pass of GPT-2 medium (the paper's Table 1 and Figure 5).

Medians with quartiles: on a shared machine a mean says more about the neighbours.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median, quantiles
from typing import Any

from scipy.stats import binom  # type: ignore[import-untyped]  # scipy ships no types

from veneer.paper.exhibit import (
    Cell,
    Contents,
    Curves,
    Exhibit,
    Measurement,
    Number,
    Outcome,
    Table,
    Verdict,
)
from veneer.paper.latency_measurement import PLAIN, measure
from veneer.paper.tabulation import CONFIDENCE, line_of
from veneer.paper.verdicts import not_measured
from veneer.training.grid import Grid
from veneer.training.machine import processor

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
    settings, sweep = (list(measurement[part]) if measurement else [] for part in ("settings", "sweep"))
    where = _machine(measurement) if measurement else ()
    tables = [_table(setting["batch"], setting["tokens"], setting["ms"], where) for setting in settings]
    if not settings:
        tables = [_table(batch, tokens, {}) for batch, tokens in PAPER]
    return Contents(
        tables=tuple(tables),
        figures=_figure_5(sweep) if sweep else (),
        verdicts=_verdicts(settings, sweep, quick=bool(measurement and measurement["quick"])),
    )


def _figure_5(sweep: Sequence[Mapping[str, Any]]) -> tuple[Curves, ...]:
    return tuple(_slower(name, sweep) for name in ADAPTERS)


def _slower(name: str, sweep: Sequence[Mapping[str, Any]]) -> Curves:
    lines: dict[str, dict[float, Number]] = {}
    for setting in sweep:
        line = lines.setdefault(f"r = {setting[name]}, batch {setting['batch']}", {})
        line[float(setting["tokens"])] = slow_down(setting["ms"], name)
    return Curves(
        name=f"latency-figure5-{name}",
        title=f"Figure 5: how much slower {LABELS[name]} makes a pass",
        x_label="Tokens (logarithmic)",
        y_label="Slower, %",
        series=tuple(line_of(label, line) for label, line in lines.items()),
        log_x=True,
        spans_are="the 95 % interval of the median",
        caption="Medians over interleaved trials. The paper draws heat maps over batch, length and bottleneck; its "
        "largest slow-down, above 30 %, is at batch 1 and short sequences.",
    )


def _machine(measurement: Measurement) -> tuple[str, ...]:
    machine, torch = measurement["machine"], measurement["versions"]["torch"]
    return (f"Measured on {processor(machine)}, {machine['cores']} cores, torch {torch}.",)


def _table(batch: int, tokens: int, times: Times, where: tuple[str, ...] = ()) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            label,
            _time(times[method]) if method in times else None,
            slow_down(times, method) if method in times and method != PLAIN else None,
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
            "model in the same trial, with its 95 % interval from six trials on, so that its order need not be that "
            "of the medians.",
            *where,
        ),
    )


def _time(times: Sequence[float]) -> Number:
    low, _, high = quantiles(times, n=4, method="inclusive")
    return Number(value=median(times), low=low, high=high, num_runs=len(times), digits=1)


def slow_down(times: Times, method: str, than: str = PLAIN) -> Number:
    """Return by how many per cent a method is slower: the median of the trials' own ratios, with its 95 % interval.

    The interval lies between two of the ratios themselves, so far from either end as fair coins leave it
    (the sign test; Conover 1999, section 3.2); below six trials there is none.
    """
    shares = sorted(100 * (mine / other - 1) for mine, other in zip(times[method], times[than], strict=True))
    left_out = int(binom.ppf((1 - CONFIDENCE) / 2, len(shares), 0.5))
    low, high = (shares[left_out - 1], shares[-left_out]) if left_out else (None, None)
    return Number(value=median(shares), low=low, high=high, num_runs=len(shares), digits=1, signed=True)


def _verdicts(
    settings: Sequence[Mapping[str, Any]], sweep: Sequence[Mapping[str, Any]], *, quick: bool
) -> tuple[Verdict, ...]:
    claims = (
        ("Adapters make inference slower, and LoRA, once merged, does not", "Table 1, section 3"),
        ("The smaller batch and sequence, the more adapters slow down", "Table 1 and Figure 5"),
        ("Adapter^H is slower than Adapter^L", "Table 1"),
    )
    if quick or not settings:
        return tuple(not_measured(claim, source, quick=quick) for claim, source in claims)
    by_batch = {setting["batch"]: setting["ms"] for setting in settings}
    slower = {(batch, name): slow_down(ms, name) for batch, ms in by_batch.items() for name in ADAPTERS}
    apart = {batch: slow_down(ms, "houlsby", than="lin") for batch, ms in by_batch.items()}
    ends = list(_ends(sweep))
    outcomes: tuple[Outcome, ...] = (
        _outcome(slower.values()),
        _outcome(_less(small, large) for _, small, large in ends) if ends else "not run yet",
        _outcome(apart.values()),
    )
    in_table_1 = "; ".join(f"batch {batch}, {LABELS[name]} {_told(number)}" for (batch, name), number in slower.items())
    in_figure_5 = "; ".join(f"{label} {_told(small)} against {_told(large)}" for label, small, large in ends)
    beside = "; ".join(f"batch {batch} {_told(number)}" for batch, number in apart.items())
    becauses = (
        f"Merged LoRA is the plain model; {in_table_1}.",
        "Table 1 changes the bottleneck with the batch, so this is judged by Figure 5's corners, least batch and "
        f"fewest tokens against most: {in_figure_5}.",
        f"Adapter^H is slower than Adapter^L, trial by trial, by: {beside}. All three settings must agree.",
    )
    return tuple(
        Verdict(claim=claim, source=source, outcome=outcome, because=because)
        for (claim, source), outcome, because in zip(claims, outcomes, becauses, strict=True)
    )


def _ends(sweep: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Number, Number]]:
    """Yield each adapter at each bottleneck with its slow-down at the least batch and length and at the most."""
    for name in ADAPTERS:
        for r in sorted({setting[name] for setting in sweep}):
            alike = sorted((s for s in sweep if s[name] == r), key=lambda of: (of["batch"], of["tokens"]))
            yield f"{LABELS[name]}, r = {r}", slow_down(alike[0]["ms"], name), slow_down(alike[-1]["ms"], name)


def _less(first: Number, second: Number) -> Number:
    """Return first - second, as far apart as their intervals allow."""
    ends = (first.low, first.high, second.low, second.high)
    low, high = (None, None) if None in ends else (ends[0] - ends[3], ends[1] - ends[2])  # type: ignore[operator]
    return Number(value=first.value - second.value, low=low, high=high)


def _outcome(differences: Iterable[Number]) -> Outcome:
    """Return whether every interval lies above 0, one below, or neither can be told."""
    ends = [(number.low, number.high) for number in differences]
    if all(low is not None and low > 0 for low, _ in ends):
        return "held"
    return "not held" if any(high is not None and high < 0 for _, high in ends) else "undecided"


def _told(number: Number) -> str:
    ends = "" if number.low is None else f" [{number.low:+.1f}, {number.high:+.1f}]"
    return f"{number.value:+.1f} %{ends}"


EXHIBIT = Exhibit(
    name="latency",
    title="What adapters cost at inference",
    shows="Table 1 and Figure 5 (section 3, appendix B): GPT-2 medium on a GPU; adapters add 2 to 30 % to a forward "
    "pass, merged LoRA nothing.",
    contents=contents,
    decided_by="Intervals are over trials on one machine, in which all models take turns.",
    measure=measure,
    scaled_down=(
        "Machine: whatever this runs on, in bfloat16 where it has that; 100 trials or as many as five minutes hold, "
        "but six at least; random weights and no output layer.",
        "Figure 5: two batches, three lengths and two bottlenecks, nine trials each.",
        "Bottlenecks: the widths that give the printed parameters; the paper does not state them.",
    ),
)
