"""Measuring side by side: contenders that take turns, their medians and ratios, and the files these end up in.

Within a round every contender is measured once, and the order rotates from round to round, so that a slow moment of
the machine falls on all of them alike. Contenders share one process, except where the process itself is measured.
A ratio is that of the medians; its interval is a percentile bootstrap over whole rounds, which keeps together what
was measured together (Efron and Tibshirani 1993, chapters 8 and 13).

A report is written as JSON, every single measurement in it, and as a Markdown table made from that JSON alone.
What is measured, and against which bar, is said in `steps.py`, `memory.py`, `saved.py` and `verbs.py`.
"""

import gc
import importlib.metadata
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median, quantiles, stdev
from typing import Any, Literal

import psutil
import torch

from veneer.files import write_text
from veneer.report.formatting import size
from veneer.training.machine import describe_machine

PACKAGES = ("veneer", "torch", "transformers", "peft")
RESAMPLES = 2000
"""Enough that the ends of a 95 % interval move by less than they are wide."""
NOTICEABLE_SHARE = 0.05
"""Share of the machine's processors taken by others from which the table warns."""

Measure = Callable[[], float]
"""Measures once: seconds, bytes or a count."""
Values = Sequence[float]


class UnequalWorkError(RuntimeError):
    """Two contenders do not do the same work, so their times cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line chooses about a measurement."""

    model: str = "minilm"
    tokens: int | None = None
    """Tokens of each row of the batch; None takes the model's own."""
    rounds: int | None = None
    """Measurements of each contender; None takes the benchmark's own."""
    layers: int = 24
    """Layers of the large model; fewer only to try a command out."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What our figure may be at most."""

    of: Literal["ratio", "difference", "value", "shortfall"]
    at_most: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One line of a table: ours against another's, all single measurements."""

    benchmark: str
    unit: Literal["seconds", "bytes", "elements", "share"]
    ours: str
    our_values: Values
    theirs: str
    their_values: Values
    bar: Bar | None = None


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What else went on while it was measured."""

    load_average_before: float
    """Processes that wanted to run in the minute before."""
    load_average_after: float
    share_of_others: float
    """Share of all processors' time that went to other processes meanwhile, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one command measured."""

    name: str
    command: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    conditions: Conditions
    comparisons: Sequence[Comparison]
    notes: Sequence[str] = field(default_factory=list)
    """What a reader must know to read the figures right."""


def interleave(measures: Mapping[str, Measure], *, rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Return `rounds` measurements of each contender, taken in turns, after `warm_up` rounds that are forgotten."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(-warm_up, rounds):
        for name in rotated(list(measures), number):
            value = measures[name]()
            if number >= 0:
                values[name].append(value)
    return values


def compare(
    benchmark: str,
    values: Mapping[str, Values],
    ours: str,
    theirs: str,
    bar: Bar | None = None,
    *,
    unit: Literal["seconds", "bytes", "elements", "share"] = "seconds",
) -> Comparison:
    """Return the line of a table that holds `ours` against `theirs`, two of the contenders in `values`."""
    return Comparison(
        benchmark=benchmark,
        unit=unit,
        ours=ours,
        our_values=values[ours],
        theirs=theirs,
        their_values=values[theirs],
        bar=bar,
    )


def rotated(names: Sequence[str], number: int) -> list[str]:
    """Return the names in the order of round `number`: each comes first equally often."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def seconds(run: Callable[[], object], *, calls: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the wall time of one call of `run`, the mean of `calls`, everything queued on a GPU waited for."""
    gc.collect()
    _wait()
    start = clock()
    for _ in range(calls):
        run()
    _wait()
    return (clock() - start) / calls


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device() -> torch.device:
    """Return where the models are: on the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def shortfall(ours: Values, theirs: Values) -> float:
    """Return by how much the mean of ours lies below theirs, in standard errors of the mean difference by round.

    It takes two rounds at least. Where all rounds differ alike it is infinite, or 0 where none differs.
    """
    differences = [their - our for our, their in zip(ours, theirs, strict=True)]
    below, error = mean(differences), stdev(differences) / math.sqrt(len(differences))
    return below / error if error else math.copysign(math.inf, below) if below else 0.0


FIGURES: Mapping[str, Callable[[Values, Values], float]] = {
    "ratio": lambda ours, theirs: median(ours) / median(theirs),
    "difference": lambda ours, theirs: median(ours) - median(theirs),
    "value": lambda ours, _theirs: median(ours),
    "shortfall": shortfall,
}
"""What a bar may be about. All but the last are made of medians."""


def figure(comparison: Comparison) -> float:
    """Return what the bar is about; without one, the ratio."""
    return FIGURES[_kind(comparison)](comparison.our_values, comparison.their_values)


def _kind(comparison: Comparison) -> str:
    return comparison.bar.of if comparison.bar else "ratio"


def interval(comparison: Comparison) -> tuple[float, float] | None:
    """Return the 95 % interval of the figure over resampled rounds.

    None where it was measured but once, and for a shortfall, which is counted in standard errors already.
    """
    ours, theirs = comparison.our_values, comparison.their_values
    if len(ours) < 2 or len(ours) != len(theirs) or _kind(comparison) == "shortfall":
        return None
    dice, compute = random.Random(0), FIGURES[_kind(comparison)]
    figures = []
    for _ in range(RESAMPLES):
        rounds = dice.choices(range(len(ours)), k=len(ours))
        figures.append(compute([ours[i] for i in rounds], [theirs[i] for i in rounds]))
    cuts = quantiles(figures, n=40, method="inclusive")
    return cuts[0], cuts[-1]


def verdict(comparison: Comparison) -> str:
    """Return whether the bar is met, and whether the interval leaves that open."""
    if comparison.bar is None:
        return "\N{EN DASH}"
    limit, ends = comparison.bar.at_most, interval(comparison)
    word = "met" if figure(comparison) <= limit else "missed"
    return f"{word}, within noise" if ends is not None and ends[0] <= limit < ends[1] else word


@contextmanager
def watched() -> Iterator[Callable[[], Conditions]]:
    """Yield what tells, once the block is left, what else the machine did meanwhile."""
    load, start, busy, own = os.getloadavg()[0], time.perf_counter(), _busy_seconds(), _own_seconds()
    found: list[Conditions] = []
    yield lambda: found[0]
    available = (time.perf_counter() - start) * (os.cpu_count() or 1)
    others = _busy_seconds() - busy - (_own_seconds() - own)
    share = min(max(others / available, 0.0), 1.0)
    after = os.getloadavg()[0]
    found.append(Conditions(load_average_before=load, load_average_after=after, share_of_others=share))


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def describe() -> tuple[dict[str, Any], dict[str, str]]:
    """Return the machine and the versions a figure depends on; no host name, no path."""
    machine = {**describe_machine(), "threads": torch.get_num_threads()}
    return machine, {name: importlib.metadata.version(name) for name in PACKAGES}


def format_seconds(value: float) -> str:
    """Return a duration in the unit that leaves at least one whole, with three digits."""
    scale, unit = next(((s, u) for s, u in ((1, "s"), (1e3, "ms")) if abs(value) * s >= 1), (1e6, "µs"))
    return f"{value * scale:.3g} {unit}" if abs(value) * scale < 1000 else f"{value * scale:.0f} {unit}"


UNITS: Mapping[str, Callable[[float], str]] = {
    "seconds": format_seconds,
    "bytes": size,
    "elements": lambda value: f"{value:,.0f}",
    "share": lambda value: f"{value:.4f}",
}
COLUMNS = ("benchmark", "ours", "against", "median of ours", "median of theirs", "figure", "bar", "verdict")


def row(comparison: Comparison) -> list[str]:
    """Return the table's cells, one for each of `COLUMNS`."""
    show = UNITS[comparison.unit]
    spoken: Mapping[str, Callable[[float], str]] = {
        "ratio": lambda value: f"{value:.2f}x",
        "difference": lambda value: ("+" if value >= 0 else "") + show(value),
        "value": show,
        "shortfall": lambda value: f"{value:.1f} standard errors less",
    }
    speak, bar, ends = spoken[_kind(comparison)], comparison.bar, interval(comparison)
    spread = f" [{speak(ends[0])}, {speak(ends[1])}]" if ends else ""
    return [
        comparison.benchmark,
        comparison.ours,
        comparison.theirs,
        _centre(comparison.our_values, show),
        _centre(comparison.their_values, show),
        speak(figure(comparison)) + spread,
        f"at most {speak(bar.at_most)}" if bar else "\N{EN DASH}",
        verdict(comparison),
    ]


def _centre(values: Values, show: Callable[[float], str]) -> str:
    """Return the median, with the quartiles where there are enough measurements."""
    if len(values) < 4:
        return show(median(values))
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{show(median(values))} ({show(low)} to {show(high)})"


def markdown(report: Report) -> str:
    """Return the report as a page: what was run where, the table, what to know."""
    m, c = report.machine, report.conditions
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    processor = f"{m['cpu']} with {m['instructions']}" if "instructions" in m else m["cpu"]
    where = f"{processor}, {m['cores']} cores, {m['threads']} threads, {m['accelerator'] or 'no GPU'}"
    load = f"load average {c.load_average_before:.1f} before, {c.load_average_after:.1f} after"
    lines = [f"# {report.name}", "", f"`{report.command}`", "", f"{where}; {versions}; {load}.", ""]
    if c.share_of_others >= NOTICEABLE_SHARE:
        lines += [f"**Other processes took {c.share_of_others:.0%} of the processors: read the ratios only.**", ""]
    table = [COLUMNS, ["---"] * len(COLUMNS), *map(row, report.comparisons)]
    lines += [f"| {' | '.join(cells)} |" for cells in table]
    lines += ["", "Medians with quartiles; figures with 95 % intervals over resampled rounds."]
    return "\n".join([*lines, *(f"\n{note}" for note in report.notes)]) + "\n"


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as plain values, with the table's cells for those who read no Markdown."""
    cells = [dict(zip(COLUMNS, row(comparison), strict=True)) for comparison in report.comparisons]
    return {**asdict(report), "table": cells}


def from_json(value: Mapping[str, Any]) -> Report:
    """Return the report that `to_json` turned into `value`."""
    plain = {key: part for key, part in value.items() if key != "table"}
    comparisons = [Comparison(**{**c, "bar": c["bar"] and Bar(**c["bar"])}) for c in value["comparisons"]]
    return Report(**{**plain, "conditions": Conditions(**value["conditions"]), "comparisons": comparisons})


def write_report(report: Report, folder: Path) -> None:
    """Write `<folder>/<name>.json` and `.md`.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_json(report), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / f"{report.name}.json", text + "\n")
    write_text(folder / f"{report.name}.md", markdown(report))


def read_report(path: Path) -> Report:
    """Read a report's JSON file."""
    return from_json(json.loads(path.read_text(encoding="utf-8")))
