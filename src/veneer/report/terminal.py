"""The summary as a table, for the console or in Markdown; its sentence is `veneer.report.verdict.headline`."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from veneer.report.formatting import compact_count, count, duration, percent, score, size
from veneer.report.summary import MethodSummary, Spread, is_lora


def results_table(summaries: Sequence[MethodSummary]) -> Table:
    """Return one row per method that fits 80 columns; names are shown as they are, never read as rich's markup."""
    score_heading, second_heading = _score_headings(summaries)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("Method", overflow="fold", min_width=15)
    # Left: with three decimals each the means stay in line, and the ± below them.
    table.add_column("\n".join(score_heading))
    table.add_column(f"\n{second_heading}")
    for heading in ("Parameters\ntrained", "Training\ntime", "Peak\nmemory", "Size on\ndisk"):
        table.add_column(heading, justify="right")
    for summary in summaries:
        cells = [
            _score(summary.score),
            _score(summary.second_score),
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
    score_heading, second_heading = _score_headings(summaries)
    headings = [
        "Method",
        " ".join(score_heading),
        second_heading,
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
            score(summary.score.mean, summary.score.sd),
            score(summary.second_score.mean, summary.second_score.sd),
            f"{count(summary.trainable_parameters)}{parts}",
            percent(summary.trainable_share),
            duration(summary.train_seconds),
            size(summary.peak_memory_bytes),
            size(summary.checkpoint_bytes),
            f"{summary.num_runs}" + f", {summary.num_collapsed} collapsed" * bool(summary.num_collapsed),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _score_headings(summaries: Sequence[MethodSummary]) -> tuple[tuple[str, str], str]:
    """Return the split and what the task is judged by, and what is told beside it."""
    if not summaries:
        return ("Test", "accuracy"), "Macro-F1"
    first = summaries[0]
    return (first.split.capitalize(), first.metric.short), first.second_metric.heading


def _name(summary: MethodSummary) -> Text:
    """Return the method's name; below it how many runs there were and how many collapsed, where that is news."""
    runs = [f"{summary.num_runs} runs"] if summary.num_runs > 1 else []
    if summary.num_collapsed:
        runs.append("all collapsed" if summary.all_collapsed and runs else f"{summary.num_collapsed} collapsed")
    return Text(summary.label) + Text("\n" + ", ".join(runs) if runs else "", style="dim")


def _score(spread: Spread) -> str:
    return score(spread.mean, spread.sd).replace(" ± ", "\n± ")
