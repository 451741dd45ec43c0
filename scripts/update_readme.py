"""Fill the README's results and file tree from the committed runs and the source; `tests/test_readme.py` compares."""

import ast
import io
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from veneer.paper.protocol import SCALE, TASKS
from veneer.paper.table2 import runs_of
from veneer.paper.table_of_contents import ARITHMETIC, EXHIBITS, LATER_WORK, all_sheets
from veneer.paper.tabulation import difference, found, own_score_on_test
from veneer.paper.verdicts import in_points
from veneer.report.paper_page import outcome_in_words
from veneer.report.summary import summarize
from veneer.report.terminal import markdown_table, results_table
from veneer.report.verdict import headline
from veneer.results import RunRecord, read_results
from veneer.training.grid import Grid

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "results" / "first-light"
PAPER = ROOT / "results" / "paper"
OTHER_FILES = {
    "ARCHITECTURE.md": "the ideas, the floors, what a change touches, why each dependency is there",
    "CONTRIBUTING.md": "the house rules",
    "docs": "compatibility and performance, the whole tables",
    "benchmarks": "speed and memory against PEFT, one command a table; `benchmarks/results` has the tables",
    "Makefile": "setup, demo, test, check",
    "pyproject.toml": "the package and the settings of its checks",
    "results": "committed runs: what the tables above are made of",
    "tests": "laws and oracles, laid out as the source is; `tests/oracles` compares with peft, loralib and AdapterHub",
    "scripts/check": "format, lint, types, tests; what `.ci/run` comes down to",
    "scripts/update_readme.py": "makes this list and the results above from the source and the committed run",
    "scripts/update_docs.py": "makes docs/compatibility.md from the tests and the tables of the formats",
    "requirements.lock": "the exact versions `make` installs",
}


def results_block() -> str:
    """Return the committed run's table, its sentence, and where and how it was measured."""
    results = read_results(RUN)
    summaries = summarize(results.records)
    machine = results.machine
    seeds = ", ".join(str(record.seed) for record in summaries[0].records)
    epochs = summaries[0].records[0].config["epochs"]
    where = (
        f"Measured with seeds {seeds} on {machine['cores']} cores of an {machine['cpu']}, no GPU, torch "
        f"{results.versions['torch']}: {epochs} epochs, each method at its own learning rate; ± is the standard "
        "deviation over seeds. Every figure is in "
        "[results/first-light/results.json](results/first-light/results.json). Shared cores: read the times as ratios."
    )
    screen = "\n".join(["```", *console_lines(results_table(summaries)), "```"])
    return "\n\n".join(
        [screen, headline(summaries), "The same with the parameters counted out:", markdown_table(summaries), where]
    )


def paper_block() -> str:
    """Return what the committed records make of the paper's exhibits, and where."""
    grid = Grid(folder=ROOT / "results" / "runs")
    sheets = all_sheets(grid.folder, PAPER)
    experiments = [sheet for sheet in sheets if sheet.exhibit != ARITHMETIC]
    paper = [sheet for sheet in experiments if sheet.exhibit != LATER_WORK]
    later = [sheet for sheet in experiments if sheet.exhibit == LATER_WORK]
    behind = grid.done([config for exhibit in EXHIBITS.values() for config in exhibit.wanted(grid)])
    parts = [
        f"[Every table, figure and verdict](results/paper/index.html) on one page, from {len(behind)} training runs. "
        f"{SCALE} Of the paper's claims, besides those about counts, {outcome_in_words(*paper)}; of those of later "
        f"work {outcome_in_words(*later)}. Most are judged by intervals over seeds on the same test rows, and some "
        "share runs.",
        f"To read here: {', '.join(f'[{name}](results/paper/{name}.md)' for name in EXHIBITS)}.",
    ]
    for task in TASKS:
        full, *loras = (found(grid, runs_of(grid, task, method)) for method in ("full", "lora-qv", "lora-all"))
        parts += [
            f"**{task}**: {headline(summarize([*lora, *full]))} {paired(lora, full)}" for lora in loras if lora and full
        ]
    return "\n\n".join([*parts, "![Accuracy against size](results/paper/figures/figure2.svg)"])


def paired(lora: Sequence[RunRecord], full: Sequence[RunRecord]) -> str:
    """Return the difference seed by seed, as the page's verdicts have it."""
    gap = difference(lora, full, own_score_on_test)
    if gap is None or gap.low is None or gap.high is None:
        return ""
    said = "though, it is more than seeds explain" if gap.low > 0 or gap.high < 0 else "too, seeds may explain it"
    return f"On these very rows, {said}: pair by pair, LoRA minus full is {in_points(gap)}."


def console_lines(table: Table) -> list[str]:
    """Return what a terminal of 80 columns shows."""
    console = Console(width=80, record=True, file=io.StringIO(), color_system=None)
    console.print(table)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    return [line for line in lines if line]


def tree_block() -> str:
    """Return every source file with the first line of its docstring."""
    lines = []
    for path in sorted((ROOT / "src").rglob("*.py"), key=lambda p: (p.parent.name != "veneer", p.parent, p.name)):
        summary = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
        lines.append(f"{path.relative_to(ROOT / 'src')!s:<36} {summary}")
    lines += [f"{name:<36} {summary}" for name, summary in OTHER_FILES.items()]
    return "\n".join(["```", *lines, "```"])


def filled(text: str) -> str:
    """Return the README's text with both blocks made anew."""
    for name, block in {"results": results_block(), "paper": paper_block(), "tree": tree_block()}.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
