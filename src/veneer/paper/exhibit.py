"""What a table or a figure of the paper becomes here: values only, so that any output can be made of them.

An `Exhibit` knows what the paper shows, which runs or measurements it needs, and how they become a `Sheet`: tables
with the paper's numbers beside ours, figures as data, a verdict for each claim, and what was scaled down. A sheet never
waits for anything: what is not there yet is named in `missing`.

"The paper" is Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, version 2.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from veneer.paper.protocol import MODEL, ForeseenGrid, run_of
from veneer.training.compare import Watcher
from veneer.training.config import RunConfig
from veneer.training.grid import Grid
from veneer.training.machine import processor

Outcome = Literal["held", "not held", "undecided", "not run yet", "not tested at this scale"]
"""Undecided: measured, but these numbers cannot tell. Not run yet: what would decide it is among the missing."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """A measured value with what is known of its spread."""

    value: float
    sd: float | None = None
    """Sample standard deviation over runs."""
    low: float | None = None
    """Lower end of the interval that the table names: 95 % confidence, or quartiles."""
    high: float | None = None
    num_runs: int | None = None
    digits: int = 3
    """Decimals that it is shown with."""
    signed: bool = False
    """Whether it is a difference, shown with its sign."""
    note: str = ""
    """What must be known to read it, such as a run that collapsed."""


Cell = str | int | Number | None
"""One entry of a table: None is what is not there yet, or what the paper does not have."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under headings."""

    name: str
    """Name of its file, without the ending."""
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    """How to read it."""

    def __post_init__(self) -> None:
        assert len(set(self.columns)) == len(self.columns), f"{self.name}: a file of it would have a heading twice"
        assert all(len(row) == len(self.columns) for row in self.rows), f"{self.name}: a row is too short or too long"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One heat map of several: `values[i][j]` belongs to i + 1 on the vertical axis, j + 1 on the horizontal one."""

    title: str
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class HeatMaps:
    """Heat maps on one scale of shades."""

    name: str
    title: str
    x_label: str
    y_label: str
    panels: tuple[Panel, ...]
    low: float = 0.0
    high: float = 1.0
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A named line, or a named cloud of points, of (x, y)."""

    name: str
    points: tuple[tuple[float, float], ...]
    spans: tuple[tuple[float, float] | None, ...] = ()
    """Lower and upper end at each point, None where it is of a single run; nothing where no spread is known."""

    def __post_init__(self) -> None:
        assert len(self.spans) in (0, len(self.points)), f"{self.name}: a span for each point, or none at all"


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Lines, named where they end."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    spans_are: str = "one standard deviation over runs to either side"
    """What the spans of its series are."""
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Points, each with a name; a series of several points is several runs of one thing."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    caption: str = ""


Figure = HeatMaps | Curves | Scatter


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one claim of the paper."""

    claim: str
    source: str
    """Where the paper says it: section, table or figure."""
    outcome: Outcome
    because: str
    """The numbers that decide, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """An exhibit as it stands: what the records and measurements at hand make of it."""

    exhibit: str
    title: str
    shows: str
    """What the paper shows, and where."""
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    decided_by: str = ""
    """What whoever reads the verdicts must know of how they come about, if anything."""
    scaled_down: tuple[str, ...] = ()
    """What differs from the paper's experiment, and why."""
    missing: tuple[str, ...] = ()
    """The runs and measurements that are not there yet, by name."""
    following: tuple[str, ...] = ()
    """How many runs of what will be missing once the sweeps of their learning rates have ended."""

    @property
    def counts(self) -> Mapping[Outcome, int]:
        """How many claims have each outcome."""
        return {outcome: sum(verdict.outcome == outcome for verdict in self.verdicts) for outcome in get_args(Outcome)}


Measurement = Mapping[str, Any]
"""What an exhibit measured itself, as plain JSON values."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What an exhibit makes of its records and measurements; the rest of its sheet is known beforehand."""

    tables: tuple[Table, ...]
    figures: tuple[Figure, ...] = ()
    verdicts: tuple[Verdict, ...] = ()


BY_SEEDS = (
    "How a claim is judged: two methods are compared by pairs of runs of one seed, three at least, with Student's 95 % "
    "interval; several tasks count alike, and their mean has the interval of independent means (Welch). A claim of "
    "better holds where the whole interval lies above 0, one of no worse where it lies above minus the margin; it does "
    "not hold where the whole interval lies below; all else is undecided. A run has collapsed where 99 % of the "
    "validation rows got one answer, where the numbers it answered spread by less than 1 % of the true ones, or where "
    "it diverged at once; it enters no mean, unless all did, and no pair, and is told. Intervals are over seeds, on "
    "the same test rows, the same tasks and at the chosen rates: they tell how much seeds matter, not how much other "
    "rows, tasks or rates would. A comparison is made for each claim, and again whenever runs are added, and some "
    "claims share runs; were there no differences at all, chance alone would still decide about one in twenty of the "
    "claims of better."
)
"""What whoever reads verdicts on trained models must know."""


MACHINES = "Machines: those at hand; runs:"
"""What a sheet says of where its runs were done begins so; without runs it says nothing of it."""


def _no_runs(grid: Grid) -> list[RunConfig]:
    return []


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One or more tables or figures of the paper that share their runs."""

    name: str
    """What the command calls it."""
    title: str
    shows: str
    """What the paper shows, and where."""
    contents: Callable[[Grid, Measurement | None], Contents]
    """Records and the exhibit's own measurement, None where it was not made yet, to what they make."""
    decided_by: str = BY_SEEDS
    """What whoever reads its verdicts must know of how they come about."""
    scaled_down: tuple[str, ...] = ()
    sweep: Callable[[Grid], list[RunConfig]] = _no_runs
    """The runs that choose learning rates, as far as the records in a grid tell which are needed."""
    runs: Callable[[Grid], list[RunConfig]] = _no_runs
    """The runs it needs besides, at the rates that the records choose."""
    borrowed: Callable[[Grid], list[RunConfig]] = _no_runs
    """Runs of other exhibits that it shows where they are there."""
    measure: Callable[[Watcher, Grid, bool], Measurement] | None = None
    """Measures anew, with the records at hand, told whether to be quick; None where records, or nothing, are enough."""

    def wanted(self, grid: Grid) -> list[RunConfig]:
        """Return every run it asks for so far; what is done of them may call for others."""
        return [*self.sweep(grid), *self.runs(grid)]

    def sheet(self, grid: Grid, measurement: Measurement | None = None) -> Sheet:
        """Return what the records in `grid` and the measurement make of the exhibit.

        Raises:
            ConfigError: a record cannot be read, or runs were done on different rows of one data set.
        """
        runs = self.wanted(grid)
        grid.require_same_rows([*runs, *self.borrowed(grid)])
        contents = self.contents(grid, measurement)
        unmeasured = self.measure is not None and measurement is None
        return Sheet(
            exhibit=self.name,
            title=self.title,
            shows=self.shows,
            tables=contents.tables,
            figures=contents.figures,
            verdicts=contents.verdicts,
            decided_by=self.decided_by,
            scaled_down=self.scaled_down + _machines(grid, [*runs, *self.borrowed(grid)]) + _shortened(measurement),
            missing=tuple(_in_words(grid, config) for config in grid.missing(runs))
            + (("the measurement itself",) if unmeasured else ()),
            following=_counted(self.following(grid)),
        )

    def following(self, grid: Grid) -> list[RunConfig]:
        """Return the runs that will be missing once the sweeps have ended, at a rate that stands for the chosen one.

        A sweep's own run is one of them already, whichever rate is chosen.
        """

        def at_any_rate(config: RunConfig) -> Path:
            return grid.places(replace(config, learning_rate=None))[0]

        known, swept = set(self.runs(grid)), {at_any_rate(config) for config in self.sweep(grid)}
        foreseen = [config for config in self.runs(ForeseenGrid(folder=grid.folder)) if config not in known]
        return [config for config in dict.fromkeys(foreseen) if at_any_rate(config) not in swept]


def _counted(configs: Sequence[RunConfig]) -> tuple[str, ...]:
    """Return how many of the runs are of each method on each task, in words."""
    counted = Counter(
        ", ".join([Path(config.data).stem, *([config.model] if config.model != MODEL else []), config.method])
        for config in configs
    )
    return tuple(f"{name}: {number}" for name, number in counted.items())


def _in_words(grid: Grid, config: RunConfig) -> str:
    """Return which run it is, by what differs from the shared setting, and its folder; the same on every machine."""
    shared = run_of(config.data, config.method, config.seed)
    parts = [Path(config.data).stem, config.method, f"seed {config.seed}"]
    for name, value in vars(config).items():
        if value == getattr(shared, name) or name in ("glue", "learning_rate"):
            continue
        if name == "sizes":
            parts += [f"{size}={number}" for size, number in value]
        else:
            shown = (
                " + ".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else value
            )
            parts.append(f"{name.replace('_', ' ')}={'all' if value is None else shown}")
    if config.learning_rate is not None:
        parts.append(f"rate {config.learning_rate:g}")
    return f"{', '.join(parts)} ({grid.places(config)[0].name})"


def _machines(grid: Grid, runs: Sequence[RunConfig]) -> tuple[str, ...]:
    """Return how many of the runs were done in which precision on which processor, where there are any."""
    done = grid.results(runs)
    counted = Counter(f"in {one.records[0].config['precision']} on an {processor(one.machine)}" for one in done)
    if not counted:
        return ()
    told = ", ".join(f"{count} {how}" for how, count in sorted(counted.items()))
    return (f"{MACHINES} {told}. results/recipe.md compares the precisions.",)


def _shortened(measurement: Measurement | None) -> tuple[str, ...]:
    quick = measurement is not None and measurement.get("quick")
    return ("QUICK measurement: it shows that everything works, and its figures mean nothing.",) if quick else ()
