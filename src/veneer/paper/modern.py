"""`modern`: what later work says of LoRA: its learning rate, its layers, its scaling, what it forgets."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from veneer.paper import table2
from veneer.paper.exhibit import Cell, Contents, Curves, Exhibit, Measurement, Number, Outcome, Table, Verdict
from veneer.paper.forgetting_measurement import METHODS as FORGETTING
from veneer.paper.forgetting_measurement import NEIGHBOURS, ROWS, measure
from veneer.paper.protocol import ON_TREC, by_seed
from veneer.paper.rates import chosen_rate, runs_at, sweep_of, tuned_runs
from veneer.paper.tabulation import (
    difference,
    found,
    mean,
    mean_curves,
    mean_difference,
    of_other_rows,
    own_score_on_validation,
)
from veneer.paper.verdicts import judge, not_measured, not_run
from veneer.results import RunRecord
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

TASK = "trec"
SEEDS = range(3)
WIDE = range(-2, 3)
"""Steps from a method's own rate: a tenth of it to ten times."""
WIDE_METHODS = ("full", "lora-qv", "lora-all")
TEN_TIMES = (10**0.5, 10**1.5)
"""Ratios that are nearer to ten than to one or a hundred, on the scale of their logarithms."""
WITHOUT_REGRET = "LoRA Without Regret (Thinking Machines, 2025)"
LEARNS_LESS = "LoRA Learns Less and Forgets Less (arXiv 2405.09673)"


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a comparison."""

    label: str
    method: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two settings of LoRA, of which later work says that the first is better."""

    claim: str
    source: str
    first: Side
    second: Side


_QUERY_VALUE = Side(label="query + value, r = 8", method="lora-qv")
COMPARISONS = (
    Comparison(
        claim="At the same rank, updates of every linear layer do better than those of query and value alone",
        source=WITHOUT_REGRET,
        first=Side(label="all linear, r = 8", method="lora-all"),
        second=_QUERY_VALUE,
    ),
    Comparison(
        claim="With about as many parameters, too, updates of every linear layer do better than those of query and "
        "value",
        source=WITHOUT_REGRET,
        first=Side(label="all linear, r = 2", method="lora-all", changes={"r": 2}),
        second=_QUERY_VALUE,
    ),
    Comparison(
        claim="At r = 64 a scale of 2, whether alpha / sqrt(r) or alpha = 2 r gives it, does better than 16 / 64",
        source=f"rsLoRA (arXiv 2312.03732); {LEARNS_LESS}",
        first=Side(label="r = 64, 16 / sqrt(64)", method="lora-qv", changes={"r": 64, "scaling": "rslora"}),
        second=Side(label="r = 64, 16 / 64", method="lora-qv", changes={"r": 64}),
    ),
)


def sweep(grid: Grid) -> list[RunConfig]:
    """Return the runs that choose the learning rate of each side, and of what forgets."""
    swept = [(side.method, side.changes) for one in COMPARISONS for side in (one.first, one.second)]
    swept += [(method, {}) for method in FORGETTING]
    return [config for method, changes in swept for config in sweep_of(grid, TASK, method, changes)]


def runs_of(grid: Grid, side: Side) -> list[RunConfig]:
    """Return the runs of one side, by seed."""
    return tuned_runs(grid, TASK, side.method, SEEDS, swept=side.changes)


def wide_sweep(method: str) -> Mapping[float, list[RunConfig]]:
    """Return each rate's runs, by seed."""
    runs = [config for seed in SEEDS for config in runs_at(TASK, method, WIDE, seed=seed)]
    rates = dict.fromkeys(config.peak_learning_rate() for config in runs)
    return {rate: [config for config in runs if config.peak_learning_rate() == rate] for rate in rates}


def runs(grid: Grid) -> list[RunConfig]:
    """Return every run, one seed of everything first."""
    compared = [config for one in COMPARISONS for side in (one.first, one.second) for config in runs_of(grid, side)]
    wide = [config for method in WIDE_METHODS for of in wide_sweep(method).values() for config in of]
    return by_seed([*compared, *wide])


def contents(grid: Grid, measurement: Measurement | None) -> Contents:
    """Return the comparisons, what was forgotten, accuracy along the rates, and the verdicts."""
    wide = {
        method: {rate: found(grid, of) for rate, of in wide_sweep(method).items()}
        for method in WIDE_METHODS
    }  # fmt: skip
    sides = [tuple(found(grid, runs_of(grid, side)) for side in (one.first, one.second)) for one in COMPARISONS]
    runs_kept: list[Mapping[str, Any]] = [
        {"collapsed": False, **run}
        for run in (measurement["runs"] if measurement else ())  # once it was not told
    ]
    return Contents(
        tables=(_compared(sides), *([_forgotten(grid, runs_kept)] if runs_kept else [])),
        figures=_rates_figure(wide),
        verdicts=(
            *_ten_times(wide),
            *(
                judge(claim=one.claim, source=one.source, differences={TASK: difference(first, second)})
                for one, (first, second) in zip(COMPARISONS, sides, strict=True)
            ),
            *_forget_less(grid, runs_kept, quick=bool(measurement and measurement["quick"])),
        ),
    )


def _compared(sides: Sequence[tuple[list[RunRecord], ...]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one, (first, second) in zip(COMPARISONS, sides, strict=True):
        shown = [
            cell
            for side, mine in ((one.first, first), (one.second, second))
            for cell in (side.label, _setting(mine), mean(mine))
        ]
        rows.append((*shown, difference(first, second)))
    return Table(
        name="modern-comparisons",
        title=f"Two by two on {TASK}",
        columns=(
            "First", "First's rate, # trained, precision", "First's test accuracy",
            "Second", "Second's rate, # trained, precision", "Second's test accuracy", "First minus second",
        ),
        rows=tuple(rows),
        notes=(
            "Mean ± sample standard deviation over seeds; the difference is over common seeds, with its 95 % interval.",
            *of_other_rows(mine for both in sides for mine in both),
        ),
    )  # fmt: skip


def _setting(records: Sequence[RunRecord]) -> str | None:
    """Return at which rate, with how many parameters beyond the head's and in which precision these runs were done."""
    if not records:
        return None
    precisions = " and ".join(sorted({record.config["precision"] for record in records}))
    return f"{records[0].config['learning_rate']:g}, {records[0].lora_parameters:,}, {precisions}"


def _forgotten(grid: Grid, runs_kept: Sequence[Mapping[str, Any]]) -> Table:
    def number(method: str, figure: str) -> Number | None:
        values = [run[figure] for run in runs_kept if run["method"] == method and not run["collapsed"]]
        if not values:
            return None
        spread = mean_difference(values)
        return Number(value=fmean(values), low=spread.low, high=spread.high, num_runs=len(values))

    rates = _measured_rates(runs_kept)
    chosen = {method: chosen_rate(grid, TASK, method) for method in rates}
    rows: list[tuple[Cell, ...]] = [
        (
            table2.ENTRIES[method].label,
            f"{rates[method]:g}",
            None if chosen[method] is None else f"{chosen[method]:g}",
            *(number(method, figure) for figure in ("accuracy", "neighbours_kept", "cosine")),
        )
        for method in rates
    ]
    return Table(
        name="modern-forgetting",
        title=f"What is left of the pretrained sentence embeddings after {TASK}",
        columns=("Method", "Rate", "Chosen on validation", "Accuracy learnt", "Neighbours kept", "Cosine to before"),
        rows=tuple(rows),
        notes=(
            f"Of film reviews, which the training had none of: the share of a sentence's {NEIGHBOURS} nearest "
            "neighbours that are still among them, and the mean cosine of its embedding before and after. Without any "
            f"forgetting both are 1; by chance {NEIGHBOURS / (ROWS - 1):.3f} of the neighbours would be kept. Means "
            "over seeds with their 95 % interval; collapsed runs are left out.",
        ),
    )


def _rates_figure(wide: Mapping[str, Mapping[float, Sequence[RunRecord]]]) -> tuple[Curves, ...]:
    return mean_curves(
        name="modern-rates",
        title=f"Accuracy along the learning rates on {TASK}",
        x_label="Peak learning rate",
        y_label="Validation accuracy, mean",
        series={table2.ENTRIES[method].label: of for method, of in wide.items()},
        read=own_score_on_validation,
    )


def _ten_times(wide: Mapping[str, Mapping[float, Sequence[RunRecord]]]) -> Iterator[Verdict]:
    """Yield the verdict on each kind of LoRA."""
    for method in WIDE_METHODS:
        if method == "full":
            continue
        label = table2.ENTRIES[method].label
        claim = f"{label}: the best learning rate is about ten times that of full fine-tuning"
        if any(len(of) < len(SEEDS) for side in (method, "full") for of in wide[side].values()):
            yield not_run(claim, WITHOUT_REGRET, "Not all rates were run with every seed yet.")
            continue
        lora, full = (_best_rates(wide[side]) for side in (method, "full"))
        ratios = sorted(one / other for one in lora for other in full)
        tried = (min(wide[method]), max(wide[method]), min(wide["full"]), max(wide["full"]))
        lowest = 0.0 if tried[0] in lora or tried[3] in full else ratios[0]
        highest = math.inf if tried[1] in lora or tried[2] in full else ratios[-1]
        yield Verdict(
            claim=claim,
            source=WITHOUT_REGRET,
            outcome=_about_ten(lowest, highest),
            because="Of five rates, half a decade apart, the best by its mean on validation rows is "
            f"{lora[0]:g} against {full[0]:g}, {lora[0] / full[0]:.3g} times.{_not_told_apart('LoRA', lora)}"
            f"{_not_told_apart('full fine-tuning', full)} The ratios of all these are {ratios[0]:.3g} to "
            f"{ratios[-1]:.3g}; about ten means more than {TEN_TIMES[0]:.3g} and less than {TEN_TIMES[1]:.3g}. Rates "
            "at which a run collapsed are left out." + _beyond(lora, wide[method]) + _beyond(full, wide["full"]),
        )


def _about_ten(lowest: float, highest: float) -> Outcome:
    if lowest > TEN_TIMES[1] or highest < TEN_TIMES[0]:
        return "not held"
    return "held" if lowest >= TEN_TIMES[0] and highest <= TEN_TIMES[1] else "undecided"


def _beyond(rates: Sequence[float], tried: Collection[float]) -> str:
    """Return beyond which of the best rates nothing was tried, as a sentence; nothing where there is none."""
    ends = " and ".join(f"{rate:g}" for rate in sorted(rates) if rate in (min(tried), max(tried)))
    return f" Beyond {ends} nothing was tried." if ends else ""


def _not_told_apart(name: str, rates: Sequence[float]) -> str:
    """Return which rates may be the best as well as the first of these, as a sentence; nothing where there is none."""
    others = " and ".join(f"{rate:g}" for rate in rates[1:])
    return f" For {name} {len(SEEDS)} seeds do not tell it from {others}." if others else ""


def _best_rates(rates: Mapping[float, Sequence[RunRecord]]) -> list[float]:
    """Return the rate with the best mean over seeds, and then those that cannot be told from it by a 95 % interval.

    A rate at which a run collapsed is not among them, but where every rate has one.
    """
    good = {rate: of for rate, of in rates.items() if not any(record.collapsed for record in of)} or rates
    first = max(good, key=lambda rate: fmean(own_score_on_validation(record) for record in good[rate]))
    gaps = {rate: difference(good[first], of, own_score_on_validation) for rate, of in good.items() if rate != first}
    return [first, *(rate for rate, gap in gaps.items() if gap is not None and (gap.low is None or gap.low <= 0))]


def _measured_rates(runs_kept: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {run["method"]: run["learning_rate"] for run in runs_kept}


def _forget_less(grid: Grid, runs_kept: Sequence[Mapping[str, Any]], *, quick: bool) -> Iterator[Verdict]:
    """Yield the verdict on each kind of LoRA; the source speaks of all linear layers."""
    rates = _measured_rates(runs_kept)
    for method in (method for method in FORGETTING if method != "full"):
        claim = f"{table2.ENTRIES[method].label}, forgets less than full fine-tuning"
        if quick or not runs_kept:
            yield not_measured(claim, LEARNS_LESS, quick=quick)
            continue
        chosen = [chosen_rate(grid, TASK, name) for name in (method, "full")]
        if chosen != [rates[method], rates["full"]]:
            because = "Measured at other rates than are chosen now; delete measurements/modern.json to measure again."
            yield not_run(claim, LEARNS_LESS, "No rate is chosen yet." if None in chosen else because)
            continue
        kept, full = (
            {run["seed"]: run for run in runs_kept if run["method"] == name and not run["collapsed"]}
            for name in (method, "full")
        )
        pairs = [(kept[seed], full[seed]) for seed in kept if seed in full]
        if not pairs:
            yield not_run(claim, LEARNS_LESS, "Every pair has a collapsed run.")
            continue
        neighbours, cosine = (
            mean_difference([one[figure] - other[figure] for one, other in pairs])
            for figure in ("neighbours_kept", "cosine")
        )
        verdict = judge(claim=claim, source=LEARNS_LESS, differences={"neighbours kept": neighbours})
        ends = "" if cosine.low is None else f", 95 % interval {cosine.low:+.3f} to {cosine.high:+.3f}"
        beside = (
            f" The cosine to before, which does not decide: {cosine.value:+.3f}{ends}. Measured at the chosen rates, "
            f"{rates[method]:g} and {rates['full']:g}; others that learn as much may forget more, or less."
        )
        yield replace(verdict, because=verdict.because + beside)


EXHIBIT = Exhibit(
    name="modern",
    title="Modern checks",
    shows="Nothing of the paper: what later work says of LoRA's learning rate, layers, scaling and forgetting.",
    contents=contents,
    sweep=sweep,
    runs=runs,
    measure=measure,
    scaled_down=(
        *ON_TREC,
        "Seeds: three. Each side of a comparison has a rate of its own; what was forgotten, too, "
        "is measured at the rates that the sweeps chose with one seed, where the claims on rates look at three. MiniLM "
        "comes without the head that guesses masked "
        "words, so forgetting is measured in what it was pretrained for last: which sentences are alike.",
    ),
)
