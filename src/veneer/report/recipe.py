"""What the runs were told: the configuration that all share, and where the methods differ.

The configuration is read as it comes, so a new setting appears in the report without a change here; the table below
only gives the known ones a name and a place. A setting that no run gave a value is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from veneer.report.formatting import UNKNOWN, plain, setting
from veneer.report.summary import MethodSummary

SETTING_LABELS: Mapping[str, str] = {
    "model": "Model",
    "base_model": "Base model",
    "data": "Data",
    "seed": "Seeds",
    "epochs": "Epochs",
    "batch_size": "Batch size",
    "learning_rate": "Learning rate",
    "warmup_ratio": "Warm-up, share of steps",
    "weight_decay": "Weight decay",
    "base_dropout": "Dropout in the pretrained layers",
    "dropout": "LoRA dropout",
    "r": "LoRA r",
    "alpha": "LoRA alpha",
    "scaling": "LoRA scaling",
    "targets": "LoRA targets",
    "weights": "LoRA on attention's",
    "sizes": "Sizes of the method",
    "max_tokens": "Longest input, tokens",
    "precision": "Precision",
    "attention": "Attention",
    "validation_share": "Validation, share of rows",
    "test_share": "Test, share of rows",
    "max_train_rows": "Train on at most, rows",
    "max_eval_rows": "Score on at most, rows",
    "split_seed": "Seed of the split",
    "quick": "Quick run",
    "rows_sha256": "Rows, sha256",
}
"""Names for the reader, in the order of the report; other settings follow under their own name."""
_ELSEWHERE = {"method"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of all runs."""

    shared: list[tuple[str, str]]
    """(name, value) of the settings that every method has alike."""
    differing: list[tuple[str, list[str]]]
    """(name, one value per method) of the others."""


def recipe(summaries: Sequence[MethodSummary]) -> Recipe:
    """Return the settings of the runs; where a method's runs differ, as in their seeds, its values are listed."""
    records = [record for summary in summaries for record in summary.records]
    given = {key for record in records for key, value in record.config.items() if value is not None} - _ELSEWHERE
    keys = [key for key in SETTING_LABELS if key in given] + sorted(given - set(SETTING_LABELS))
    shared: list[tuple[str, str]] = []
    differing: list[tuple[str, list[str]]] = []
    for key in keys:
        name = SETTING_LABELS.get(key, plain(key))
        values = [setting_over_runs(summary, key) for summary in summaries]
        if len(set(values)) == 1:
            shared.append((name, values[0]))
        else:
            differing.append((name, values))
    return Recipe(shared=shared, differing=differing)


def setting_over_runs(summary: MethodSummary, key: str) -> str:
    """Return the setting's values over the method's runs, each once."""
    return ", ".join(dict.fromkeys(setting(record.config.get(key)) for record in summary.records)) or UNKNOWN
