"""The summary as a table, for the console or in Markdown; its sentence is `veneer.report.verdict.headline`."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from veneer.report.formatting import compact_count, count, duration, percent, score, size
from veneer.report.summary import MethodSummary, Spread, is_lora


def results_table(summaries: Sequence[MethodSummary]) -> Table:
    """Return one row per method that fits 80 columns; names are shown as they are, never read as rich's markup."""
    split = summaries[0].split.capitalize() if summaries else "Test"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("Method", overflow="fold", min_width=15)
    # Left: with three decimals each the means stay in line, and the ± below them.
    table.add_column(f"{split}\naccuracy")
    table.add_column("\nMacro-F1")
    for heading in ("Parameters\ntrained", "Training\ntime", "Peak\nmemory", "Size on\ndisk"):
        table.add_column(heading, justify="right")
    for summary in summaries:
        cells = [
            _score(summary.accuracy),
            _score(summary.macro_f1),
            f"{compact_count(summary.trainable_parameters)} {percent(summary.trainable_share):>6}",
            duration(summary.train_seconds),
            size(summary.peak_memory_bytes),
            size(summary.checkpoint_bytes),
        ]
        style = "dim" if summary.all_collapsed else ""
        table.add_row(_name(summary), *(Text(cell) for cell in cells), style=style)
    return table


def markdown_table(summaries: Sequence[MethodSummary]) -> str:
    """Return the same figures as a Markdown table, for a README or an issue."""
    split = summaries[0].split if summaries else "test"
    headings = [
        "Method",
        f"{split.capitalize()} accuracy",
        "Macro-F1",
        "Trainable (LoRA + head)",
        "Share",
        "Training",
        "Peak memory",
        "On disk",
        "Runs",
    ]
    lines = [f"| {' | '.join(headings)} |", "|---|" + "---:|" * 8]
    for summary in summaries:
        own = f" + {count(summary.other_parameters)} of the method's own" * summary.has_own_part
        parts = f" ({count(summary.lora_parameters)} + {count(summary.head_parameters)}{own})" * (
            summary.has_own_part or is_lora(summary)
        )
        cells = [
            summary.label,
            score(summary.accuracy.mean, summary.accuracy.sd),
            score(summary.macro_f1.mean, summary.macro_f1.sd),
            f"{count(summary.trainable_parameters)}{parts}",
            percent(summary.trainable_share),
            duration(summary.train_seconds),
            size(summary.peak_memory_bytes),
            size(summary.checkpoint_bytes),
            f"{summary.num_runs}" + f", {summary.num_collapsed} collapsed" * bool(summary.num_collapsed),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _name(summary: MethodSummary) -> Text:
    """Return the method's name; below it how many runs there were and how many collapsed, where that is news."""
    runs = [f"{summary.num_runs} runs"] if summary.num_runs > 1 else []
    if summary.num_collapsed:
        runs.append("all collapsed" if summary.all_collapsed and runs else f"{summary.num_collapsed} collapsed")
    return Text(summary.label) + Text("\n" + ", ".join(runs) if runs else "", style="dim")


def _score(spread: Spread) -> str:
    return score(spread.mean, spread.sd).replace(" ± ", "\n± ")
