"""Results as one HTML page that needs nothing else: no network, no script, no second file.

This module only gathers what is shown, as text and numbers; `page.html.j2` beside it says where it stands and how it
looks, and escapes all of it. The same results give the same bytes.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from veneer.data.glue import has_pairs
from veneer.data.metrics import METRICS
from veneer.errors import ConfigError
from veneer.report.confusion import MOST_CLASSES, ConfusedPair, confused_pairs, confusion_plot
from veneer.report.formatting import UNKNOWN, count, duration, listed, percent, plain, score, setting, size
from veneer.report.plots import looks, loss_plot, score_plot, validation_plot
from veneer.report.recipe import recipe, setting_over_runs
from veneer.report.summary import (
    MethodSummary,
    best_by_validation,
    is_lora,
    split_scores,
    summarize,
)
from veneer.report.verdict import verdict
from veneer.results import Results, Scores

_MACHINE_LABELS: Mapping[str, str] = {
    "cpu": "Processor",
    "instructions": "Computes with",
    "cores": "Cores",
    "memory_bytes": "Memory",
    "accelerator": "Accelerator",
    "platform": "Platform",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method in the page's table."""

    label: str
    colour: str
    score: str
    second_score: str
    all_score: str
    all_second_score: str
    """The means with the collapsed runs; empty where none is left out."""
    trainable: str
    parts: str
    """LoRA's and the head's parameters apart; empty where there is no LoRA."""
    share: str
    time: str
    memory: str
    checkpoint: str
    learning_rate: str
    best_epoch: str
    runs: int
    collapsed: str
    """How many of them collapsed; empty where none did."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """One method's mistakes: a matrix, or the worst pairs where there are too many classes."""

    label: str
    svg: Markup | None
    pairs: list[ConfusedPair]


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What it takes to use the adapter of the best LoRA run, ready to be typed."""

    label: str
    seed: int
    shell_path: str
    python_path: str
    base: str
    num_labels: int
    has_pairs: bool
    """Whether a row has two texts."""


def render_page(results: Results) -> str:
    """Return the results as one self-contained HTML page.

    Raises:
        ConfigError: there is no run, or the runs cannot be compared (see `summarize`).
    """
    if not results.records:
        raise ConfigError("these results hold no run, and a report needs at least one: let a run finish first")
    summaries = summarize(results.records)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update({"count": count, "percent": percent, "unbroken": _unbroken})
    template = environment.from_string(files("veneer.report").joinpath("page.html.j2").read_text(encoding="utf-8"))
    first = summaries[0].records[0]
    return template.render(
        model=plain(first.model),
        data=plain(first.data),
        verdict=verdict(summaries),
        notes=[plain(note) for note in results.notes],
        split=summaries[0].split,
        metric=summaries[0].metric,
        second_metric=summaries[0].second_metric,
        choice=METRICS[first.validation.CHOICE],
        rows=_rows(summaries),
        single_runs=all(len(summary.scored) == 1 for summary in summaries),
        any_collapsed=any(summary.num_collapsed for summary in summaries),
        figures=_figures(summaries),
        confusions=_confusions(summaries),
        confusions_wide=len(first.labels) > 4,
        measured=_measured(summaries),
        recipe=recipe(summaries),
        machine=_machine(results.machine),
        versions=[(plain(name), plain(version)) for name, version in sorted(results.versions.items())],
        usage=_usage(summaries),
    )


def _unbroken(text: str) -> str:
    """Return the text with each number held together with its unit and its ±."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%").replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def _rows(summaries: Sequence[MethodSummary]) -> list[Row]:
    styles = looks(summaries)
    return [_row(summary, styles[summary.method].colour) for summary in summaries]


def _row(summary: MethodSummary, colour: str) -> Row:
    left_out = summary.num_collapsed and not summary.all_collapsed
    return Row(
        label=summary.label,
        colour=colour,
        score=score(summary.score.mean, summary.score.sd),
        second_score=score(summary.second_score.mean, summary.second_score.sd),
        all_score=score(summary.score_with_collapsed.mean) if left_out else "",
        all_second_score=score(summary.second_score_with_collapsed.mean) if left_out else "",
        trainable=count(summary.trainable_parameters),
        parts=_parts(summary),
        share=percent(summary.trainable_share),
        time=duration(summary.train_seconds),
        memory=size(summary.peak_memory_bytes),
        checkpoint=size(summary.checkpoint_bytes),
        learning_rate=setting_over_runs(summary, "learning_rate"),
        best_epoch=", ".join(str(record.best_epoch) for record in summary.records),
        runs=summary.num_runs,
        collapsed=_collapsed(summary),
    )


def _parts(summary: MethodSummary) -> str:
    """Return what the trained parameters are made of, where that is more than the head and less than everything."""
    if not is_lora(summary) and not summary.has_own_part:
        return ""
    parts = [f"{count(summary.lora_parameters)} LoRA"] * is_lora(summary)
    parts.append(f"{count(summary.head_parameters)} head")
    parts += [f"{count(summary.other_parameters)} of its own"] * summary.has_own_part
    return " + ".join(parts)


def _collapsed(summary: MethodSummary) -> str:
    """Return how many runs collapsed, empty where none did."""
    if not summary.num_collapsed:
        return ""
    return "all collapsed" if summary.all_collapsed and summary.num_runs > 1 else f"{summary.num_collapsed} collapsed"


def _figures(summaries: Sequence[MethodSummary]) -> dict[str, Markup]:
    """Return the plots that the records have points for."""
    records = [record for summary in summaries for record in summary.records]
    # Markup: each SVG is serialised from a tree, which escapes the names inside it.
    figures = {"score": Markup(score_plot(summaries))}
    if any(record.validation_curve for record in records):
        figures["validation"] = Markup(validation_plot(summaries))
    if any(record.train_curve for record in records):
        figures["loss"] = Markup(loss_plot(summaries))
    return figures


def _confusions(summaries: Sequence[MethodSummary]) -> list[Confusion]:
    if not summaries[0].records[0].labels:
        return []
    small = len(summaries[0].records[0].labels) <= MOST_CLASSES
    return [
        Confusion(
            label=summary.label,
            svg=Markup(confusion_plot(summary, name=f"confusion-{place}")) if small else None,
            pairs=[] if small else confused_pairs(summary),
        )
        for place, summary in enumerate(summaries, start=1)
    ]


def _measured(summaries: Sequence[MethodSummary]) -> dict[str, str | int]:
    """Return what the reader needs to weigh a score: the rows, the answers and what guessing would give."""
    first = summaries[0]
    record = first.records[0]
    scores = split_scores(record, first.split)
    best = best_by_validation(summaries) or first
    if isinstance(scores, Scores):
        kind, baseline = "Majority class", f"always answering it scores {scores.majority_share:.3f} accuracy"
    else:
        kind, baseline = "Baseline", f"always answering the mean has a mean squared error of {scores.target_sd**2:.3g}"
    return {
        "split": listed([f"{count(rows)} {name}" for name, rows in record.split.items()]),
        "labels": " · ".join(plain(label) for label in record.labels),
        "num_labels": len(record.labels),
        "baseline_name": kind,
        "baseline": baseline,
        "num_examples": count(scores.num_examples),
        "score": f"{best.score.mean:.3f}",
        "standard_error": f"{best.metric.standard_error(best.score.mean, scores.num_examples):.3f}",
    }


def _machine(machine: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return the machine as (name, value), the known facts first."""
    keys = [key for key in _MACHINE_LABELS if key in machine] + sorted(set(machine) - set(_MACHINE_LABELS))
    facts = []
    for key in keys:
        value = machine[key]
        if key == "accelerator" and value is None:
            shown = "none"
        elif key.endswith("_bytes") and isinstance(value, int | float):
            shown = size(value)
        else:
            shown = setting(value) or UNKNOWN
        facts.append((_MACHINE_LABELS.get(key, plain(key)), shown))
    return facts


def _usage(summaries: Sequence[MethodSummary]) -> Usage | None:
    """Return how to use the run of LoRA alone that validation likes best, or None without one that works."""
    runs = [
        (record, summary)
        for summary in summaries
        if is_lora(summary) and not summary.has_own_part
        for record in summary.records
        if not record.collapsed
    ]
    if not runs:
        return None
    record, summary = max(runs, key=lambda run: run[0].validation.choice)
    path = plain(record.checkpoint)
    return Usage(
        label=summary.label,
        seed=record.seed,
        shell_path=shlex.quote(path),
        python_path=_python_string(path),
        base=_python_string(plain(str(record.config.get("base_model") or record.model))),
        num_labels=len(record.labels) or 1,
        has_pairs=bool(record.config.get("text_pair")) or has_pairs(record.data),
    )


def _python_string(text: str) -> str:
    """Return the text as a Python string in double quotes, as this project writes them; JSON's rules are the same."""
    return json.dumps(text, ensure_ascii=False)
