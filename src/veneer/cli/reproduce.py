"""`veneer reproduce`: the LoRA paper's tables and figures, run again at a smaller scale."""

import os
import re
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from veneer.cli import options
from veneer.cli.console import note, progress_bars, run_label, stdout

if TYPE_CHECKING:
    from collections.abc import Callable

    from veneer.errors import VeneerError
    from veneer.paper.exhibit import Exhibit
    from veneer.results import RunRecord
    from veneer.training.config import RunConfig
    from veneer.training.grid import Grid
    from veneer.training.run import Progress

_UNLIMITED = 400
"""Width in characters of what goes into a file or a pipe, where nothing needs to be broken."""
_COMMITTED = Path("results/paper")
_UNITS = {"h": 3600, "m": 60, "s": 1}
_BUDGET = re.compile(r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?")


class RunLines:
    """Shows a line for each run that begins or ends: several run at once, so bars would get in each other's way."""

    def run_started(self, config: "RunConfig", number: int, num_runs: int) -> None:
        """Show which run begins."""
        note(f"[{number}/{num_runs}] {run_label(config)} ...")

    def run_progressed(self, progress: "Progress") -> None:
        """Show nothing."""

    def run_ended(self, record: "RunRecord") -> None:
        """Show what the run reached."""
        from veneer.training.run import summary_line

        note(f"{record.data}, {summary_line(record)}")

    def notify(self, line: str) -> None:
        """Show a line of a run."""
        note(line)


def reproduce(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="table2, glue, roberta, figure2, ranks, table18, data, subspaces, latency, modern, counts, or all; "
            "other tables and figures of the paper by theirs, as table5. all leaves out roberta, and glue without its "
            "files: ask for them by name.",
            show_default=False,
        ),
    ] = None,
    render_only: Annotated[
        bool, typer.Option("--render-only", help="Run and measure nothing; write what the records at hand give.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option(help="Begin nothing after this time: 2h, 90m, 1h30m. Without it everything is done.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at once; they share the processors.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Do the runs on the Ray cluster there: host:port, or auto (extra `ray`)."),
    ] = None,
    glue: Annotated[
        str | None,
        typer.Option("--glue", help="Folder of GLUE's files, for glue and roberta; else VENEER_GLUE or the hub."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Only measure, on a tiny scale, labelled as such; missing runs stay missing."),
    ] = False,
    runs: Annotated[Path, typer.Option(help="Folder of the run records.")] = Path("results/runs"),
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for index.html, Markdown, CSV and measurements. With --render-only the measurements of "
            f"{_COMMITTED} are taken where it holds none."
        ),
    ] = _COMMITTED,
) -> None:
    """Run what is missing for the paper's tables and figures, and write them with the paper's numbers beside ours."""
    started = time.monotonic()
    failures: list[VeneerError] = []
    from veneer.errors import together
    from veneer.paper.protocol import by_seed
    from veneer.paper.table_of_contents import all_sheets, find_exhibits
    from veneer.report.paper_files import write_paper
    from veneer.report.paper_terminal import sheet_on_terminal
    from veneer.training.grid import Grid

    chosen = find_exhibits(names or [])
    seconds = None if budget is None else parse_seconds(budget)
    _check_places(runs, out, render_only=render_only)
    measured = _measured(out, render_only=render_only)
    of_runs = ["workers", "ray", "glue"]
    if render_only and (idle := options.typed(context, ["budget", "quick", *of_runs])):
        note(f"--render-only runs and measures nothing; without effect: {idle}")
    elif quick and (idle := options.typed(context, of_runs)):
        note(f"--quick runs nothing; without effect: {idle}")
    if not render_only:
        all_sheets(runs, measured)  # what cannot be read is told before anything is run

        def left() -> float | None:
            return None if seconds is None else max(0.0, seconds - (time.monotonic() - started))

        if not quick:
            with_runs = _with_data(chosen, names or [], glue)

            def wanted(grid: Grid) -> "list[RunConfig]":
                """One seed of everything first."""
                configs = [config for exhibit in with_runs for config in exhibit.wanted(grid)]
                return by_seed([_with_glue(config, glue) for config in configs])

            def following(grid: Grid) -> "set[RunConfig]":
                return {config for exhibit in with_runs for config in exhibit.following(grid)}

            failures += _fill(runs, wanted, following, workers, ray, left)
        failures += _measure([exhibit.name for exhibit in chosen], out, Grid(folder=runs), quick, left)
    sheets = all_sheets(runs, measured)
    page = write_paper(sheets, out)
    width, shown = (stdout.width, stdout) if stdout.is_terminal else (None, Console(highlight=False, width=_UNLIMITED))
    for sheet in sheets:
        if sheet.exhibit in {exhibit.name for exhibit in chosen}:
            for part in sheet_on_terminal(sheet, width):
                shown.print(part)
            shown.print()
    stdout.print(f"page: {page}", markup=False, soft_wrap=True)
    if failures:
        raise together(failures, "not everything could be done; what was is kept:")


def parse_seconds(text: str) -> float:
    """Return the seconds of a time such as 2h, 90m or 1h30m."""
    from veneer.errors import ConfigError

    found = _BUDGET.fullmatch(text.strip().lower())
    if found is None or not any(found.groupdict().values()):
        raise ConfigError(f"--budget is {text!r}; give hours, minutes or seconds, such as 2h, 90m or 1h30m")
    return sum(float(number) * _UNITS[unit] for unit, number in found.groupdict().items() if number)


def _check_places(runs: Path, out: Path, *, render_only: bool) -> None:
    """Raise what is wrong with the folders to read from and to write to, before anything is run.

    Args:
        runs: where the records are.
        out: where the page is, or will be.
        render_only: whether no run will be written.
    """
    from veneer.errors import OutputExistsError
    from veneer.paper.table_of_contents import EXHIBITS
    from veneer.report.paper_files import require_own, rests_on_runs
    from veneer.results import RESULTS_FILE
    from veneer.training.output import require_folder, require_writable

    for folder in (runs, out):
        require_folder(folder)
    require_own(out, {name: exhibit.title for name, exhibit in EXHIBITS.items()})
    require_writable(out, "--out")
    if not render_only:
        require_writable(runs, "--runs")
    if not any(runs.glob(f"*/{RESULTS_FILE}")):
        what = "holds no record of a run" if runs.is_dir() else "does not exist"
        if rests_on_runs(out):
            raise OutputExistsError(
                f"{runs} {what}, and the page in {out} would give way to one without results; name the folder of the "
                "records by --runs, or another --out, or delete the page"
            )
        note(f"{runs} {what} (--runs names the folder of the records)")


def _with_data(exhibits: "list[Exhibit]", names: list[str], glue: str | None) -> "list[Exhibit]":
    """Return those whose runs are to be done: of all, not what has to be asked for by name."""
    from veneer.data.glue import VARIABLE
    from veneer.paper.table_of_contents import own_name

    has_glue = glue is not None or bool(os.environ.get(VARIABLE))
    left_out = ({"roberta"} if has_glue else {"roberta", "glue"}) - set(map(own_name, names))
    if not left_out & {exhibit.name for exhibit in exhibits}:
        return exhibits
    note(f"left out, to be asked for by name: {', '.join(sorted(left_out))}; --glue or {VARIABLE} brings glue in")
    return [exhibit for exhibit in exhibits if exhibit.name not in left_out]


def _with_glue(config: "RunConfig", folder: str | None) -> "RunConfig":
    """Return a run that finds GLUE's files in this folder, if it needs them; it stays the same run."""
    from veneer.data.glue import TASKS

    return replace(config, glue=folder) if config.data in TASKS else config


def _fill(
    folder: Path,
    wanted: "Callable[[Grid], list[RunConfig]]",
    following: "Callable[[Grid], set[RunConfig]]",
    workers: int,
    ray: str | None,
    left: "Callable[[], float | None]",
) -> "list[VeneerError]":
    """Do the missing runs while time is left; return what is to be raised once all else is done, where runs failed."""
    from veneer.errors import VeneerError
    from veneer.training.grid import Grid, run_here
    from veneer.training.ray_runs import ray_runner

    grid = Grid(folder=folder)
    configs = wanted(grid)
    missing = grid.missing(configs)
    if not missing:
        return []
    later = following(grid)
    more = f", and {len(later)} more once rates are chosen" if later else ""
    note(f"{_are(missing)} missing{more}{_expected([*missing, *later], grid.done(configs))}")
    left_out = _other_rows(grid, configs, missing)
    failures = list(left_out.values())

    def needed() -> "list[RunConfig]":
        return [config for config in wanted(grid) if config.data not in left_out]

    with (
        nullcontext(run_here) if ray is None else ray_runner(ray) as runner,
        progress_bars() if ray is None and workers == 1 else nullcontext(RunLines()) as watcher,
    ):
        try:
            for _ in grid.fill(needed, watcher, runner=runner, workers=workers, seconds=left()):
                pass
        except VeneerError as error:
            return [*failures, error]
    if still := grid.missing(needed()):
        note(f"the budget is spent: {_are(still)} still missing; the same command goes on")
    return failures


def _other_rows(grid: "Grid", wanted: "list[RunConfig]", missing: "list[RunConfig]") -> "dict[str, VeneerError]":
    """Return the tasks of GLUE whose files hold other rows than earlier runs were done on, each with what to do.

    Raises:
        DataError, DownloadError: the files of a task are not at hand.
    """
    from veneer.data.glue import TASKS
    from veneer.errors import DataError
    from veneer.training.run import note_lines, prepare_data, rows_sha256

    others: dict[str, VeneerError] = {}
    for task in dict.fromkeys(config.data for config in missing if config.data in TASKS):
        configs = [config for config in wanted if config.data == task]
        done = [(config, record) for config in configs if (record := grid.find(config)) is not None]
        splits = prepare_data(done[0][0] if done else configs[0], note)
        for line in note_lines(splits):
            note(f"{task}: {line}")
        if done and done[0][1].config["rows_sha256"] != rows_sha256(splits):
            others[task] = DataError(
                f"{task} has other rows here than the runs in {grid.folder} were done on, which could not be compared "
                "with its missing runs; give the same files by --glue, or keep runs on these apart by --runs and --out"
            )
    return others


def _are(runs: "list[RunConfig]") -> str:
    return f"{len(runs)} run{'s are' if len(runs) != 1 else ' is'}"


def _expected(missing: "list[RunConfig]", done: "list[RunRecord]") -> str:
    """Return about how long the missing runs take, as those did that are there, as a sentence's part; "" of none."""
    from statistics import fmean

    times: dict[tuple[str, ...], list[float]] = {}
    for record in done:
        for kind in ((record.model, record.data), (record.model, record.data, record.method)):
            times.setdefault(kind, []).append(record.train_seconds)
    kinds = [((config.model, config.data, config.method), (config.model, config.data)) for config in missing]
    known = [fmean(times[next(kind for kind in of if kind in times)]) for of in kinds if of[-1] in times]
    if not known:
        return ""
    hours = fmean(known) * len(missing) / 3600
    return f"; runs like these took about {hours:.1f} h in sum where the others were done"


def _measured(out: Path, *, render_only: bool) -> Path:
    """Return the folder whose measurements are rendered: this one, or the committed one where it holds none."""
    from veneer.paper.measurements import FOLDER

    if (out / FOLDER).is_dir() or not (_COMMITTED / FOLDER).is_dir():
        return out
    if not render_only:
        note(f"{out} holds no measurements: only what is measured now will be in it, not those of {_COMMITTED}")
        return out
    note(f"{out} holds no measurements; those of {_COMMITTED} are taken")
    return _COMMITTED


def _measure(
    names: list[str], out: Path, grid: "Grid", quick: bool, left: "Callable[[], float | None]"
) -> "list[VeneerError]":
    """Make the measurements that are missing, or only quick ones where more is wanted, while time is left.

    Returns:
        What is to be raised once all else is done: what could not be measured, and why.
    """
    from veneer.errors import VeneerError, first_line
    from veneer.paper.measurements import place, read_measurement, write_measurement
    from veneer.paper.table_of_contents import EXHIBITS
    from veneer.training.machine import describe_machine, processor

    failures: list[VeneerError] = []
    for name in names:
        measure, earlier = EXHIBITS[name].measure, read_measurement(out, name)
        if measure is None:
            continue
        if earlier is not None and (quick or not earlier.get("quick")):
            if (there := processor(earlier["machine"])) != processor(describe_machine()):
                note(f"{name} was measured on another machine ({there}); to measure here delete {place(out, name)}")
            continue
        if left() == 0:
            note(f"{name} is not measured: the budget is spent")
            continue
        note(f"measuring {name} ...")
        try:
            write_measurement(out, name, measure(RunLines(), grid, quick))
        except VeneerError as error:
            note(f"not measured: {first_line(error)}")
            failures.append(error)
    return failures
