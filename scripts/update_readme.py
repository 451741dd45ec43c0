"""Fill the README's results and file tree from the committed run and the source; `tests/test_readme.py` compares."""

import ast
import re
from pathlib import Path

from veneer.report.summary import summarize
from veneer.report.terminal import markdown_table
from veneer.report.verdict import headline
from veneer.results import read_results

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "results" / "first-light"
OTHER_FILES = {
    "results": "committed runs: what the tables above are made of",
    "tests": "laws and oracles, laid out as the source is; `tests/oracles` compares with peft and loralib",
    "scripts/check": "format, lint, types, tests",
    "requirements.lock": "the exact versions `make` installs",
}


def results_block() -> str:
    """Return the committed run's table, its sentence, and where and how it was measured."""
    results = read_results(RUN)
    summaries = summarize(results.records)
    machine = results.machine
    seeds = ", ".join(str(record.seed) for record in summaries[0].records)
    where = (
        f"Measured with seeds {seeds} on {machine['cores']} cores of an {machine['cpu']}, no GPU, torch "
        f"{results.versions['torch']}; ± is the standard deviation over seeds. Every figure is in "
        f"[results/first-light/results.json](results/first-light/results.json). Shared cores: read the times as ratios."
    )
    return "\n\n".join([markdown_table(summaries), headline(summaries), where])


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
    for name, block in {"results": results_block(), "tree": tree_block()}.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
