"""Synthetic records: every figure in them is made up, and small enough to check by hand."""

import math
from dataclasses import replace
from typing import Any

from veneer.results import RegressionScores, Results, RunRecord, Scores
from veneer.training.config import RunConfig

SIZES = {"head": (0, 770), "lora-qv": (73_728, 770), "lora-all": (294_912, 770), "full": (0, 770)}
BASE_PARAMETERS = 22_713_216


def scores(accuracy: float, num_examples: int = 1000, macro_f1: float | None = None, num_labels: int = 2) -> Scores:
    """Scores whose confusion puts the hits on the diagonal and each class's mistakes into the next class."""
    rows = [num_examples // num_labels] * num_labels
    confusion = [[0] * num_labels for _ in rows]
    for label, total in enumerate(rows):
        hits = round(accuracy * total)
        confusion[label][label] = hits
        confusion[label][(label + 1) % num_labels] += total - hits
    return Scores(
        accuracy=accuracy,
        macro_f1=accuracy - 0.002 if macro_f1 is None else macro_f1,
        loss=0.5,
        num_examples=num_examples,
        majority_share=1 / num_labels,
        confusion=confusion,
    )


def record(method: str = "lora-all", accuracy: float = 0.8, seed: int = 0, **changes: Any) -> RunRecord:
    """A run with that accuracy on test and a validation that lies one point higher; `changes` replace fields."""
    labels = changes.get("labels", ["negative", "positive"])
    lora, head = SIZES.get(method, (10_000, 770))
    total = BASE_PARAMETERS + lora + head
    epochs = 5
    made = RunRecord(
        method=method,
        model="minilm",
        data="rotten-tomatoes",
        seed=seed,
        labels=labels,
        trainable_parameters=total if method == "full" else lora + head,
        lora_parameters=lora,
        head_parameters=head,
        total_parameters=total,
        train_seconds=30.0 + len(method) * 9,
        peak_memory_bytes=900_000_000 + lora * 100,
        checkpoint_bytes=(lora + head) * 4 if method != "full" else total * 4,
        checkpoint=f"runs/{method}-seed{seed}/adapter",
        best_epoch=3,
        validation=scores(min(accuracy + 0.01, 1), num_labels=len(labels)),
        test=scores(accuracy, num_labels=len(labels)),
        collapsed=False,
        train_curve=[
            {"epoch": step / 10, "loss": 0.69 * math.exp(-step / (40 * accuracy)) + 0.02 * math.sin(step + seed)}
            for step in range(1, 10 * epochs + 1)
        ],
        validation_curve=[
            {
                "epoch": epoch,
                "loss": 0.5,
                "accuracy": accuracy - 0.1 / epoch**1.5,
                "macro_f1": accuracy,
                "matthews": 0.5,
            }
            for epoch in range(1, epochs + 1)
        ],
        split={"train": 8530, "validation": 1000, "test": 1000},
        config={
            "method": method,
            "model": "minilm",
            "base_model": "sentence-transformers/all-MiniLM-L6-v2",
            "data": "rotten-tomatoes",
            "seed": seed,
            "epochs": epochs,
            "batch_size": 32,
            "learning_rate": 2e-5 if method == "full" else 5e-4,
            "warmup_ratio": 0.06,
            "weight_decay": 0.01,
            "max_tokens": 128,
            "precision": "float32",
            "attention": "sdpa",
            "r": 8 if lora else None,
            "alpha": 16 if lora else None,
            "dropout": 0.1 if lora else None,
            "targets": {"lora-qv": ["query", "value"], "lora-all": "all-linear"}.get(method),
            "scaling": "lora" if lora else None,
            "validation_share": 0.1,
            "test_share": None,
            "quick": False,
        },
    )
    return replace(made, **changes)


def numbers(pearson: float, num_examples: int = 1000) -> RegressionScores:
    """Scores of numbers that spread by 1.5, a Spearman correlation a little lower, and the error of a straight line."""
    return RegressionScores(
        pearson=pearson,
        spearman=pearson - 0.01,
        loss=1.5**2 * (1 - pearson**2),
        num_examples=num_examples,
        target_sd=1.5,
        predicted_sd=1.5 * abs(pearson),
    )


def regression(method: str = "lora-all", pearson: float = 0.8, seed: int = 0, **changes: Any) -> RunRecord:
    """A run that predicts numbers."""
    made: dict[str, Any] = {
        "data": "glue/stsb",
        "labels": [],
        "validation": numbers(min(pearson + 0.01, 1)),
        "test": numbers(pearson),
        "validation_curve": [
            {"epoch": epoch, "loss": 0.5, "pearson": pearson - 0.1 / epoch, "spearman": pearson - 0.2 / epoch}
            for epoch in range(1, 4)
        ],
    }
    return replace(record(method, 0.8, seed), **{**made, **changes})


def of_config(config: RunConfig, accuracy: float = 0.8, **changes: Any) -> RunRecord:
    """The run that a configuration defines; on STS-B `accuracy` is Pearson's correlation."""
    make = regression if config.data == "glue/stsb" else record
    settings = {**config.resolved().to_json(), "base_model": config.model, "rows_sha256": "of the rows"}
    own = {"data": config.data, "model": config.model, "config": settings}
    return make(config.method, accuracy, config.seed, **{**own, **changes})


def collapsed(method: str, seed: int = 0, **changes: Any) -> RunRecord:
    """A run that answers one class only."""
    return record(method, 0.5, seed, collapsed=True, **changes)


def results(*records: RunRecord, notes: list[str] | None = None) -> Results:
    return Results(
        machine={
            "cpu": "AMD EPYC 7B13",
            "cores": 2,
            "memory_bytes": 8_200_000_000,
            "accelerator": None,
            "platform": "Linux 6.1 x86_64",
        },
        versions={"torch": "2.13.0", "transformers": "5.23.0", "veneer": "0.1.0", "python": "3.11.9"},
        records=list(records),
        notes=notes or [],
    )
