"""What fine-tuning leaves of the pretrained model's own skill: the numbers behind a part of `modern.py`.

MiniLM was pretrained to embed sentences so that like ones lie close. After fine-tuning on one task, sentences of
another are embedded again: how many of each one's nearest neighbours are still among them?
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from veneer.data.sources import DataRequest, find_model, load_splits
from veneer.data.splits import Examples
from veneer.errors import ConfigError
from veneer.paper.exhibit import Measurement
from veneer.paper.protocol import MODEL, SETTINGS, run_of
from veneer.paper.rates import chosen_rate
from veneer.paper.tabulation import accuracy_on_test
from veneer.training.compare import Watcher, run_in_process
from veneer.training.config import RunConfig, resolve_precision
from veneer.training.encoding import BATCH_SIZE, autocast, collator, encode
from veneer.training.grid import Grid
from veneer.training.machine import describe_machine, describe_versions
from veneer.training.models import Classifier, load_classifier
from veneer.training.saved import load_trained

LEARNT, REMEMBERED = "trec", "rotten-tomatoes"
METHODS = ("full", "lora-qv", "lora-all")
SEEDS = range(3)
NEIGHBOURS = 10
ROWS, QUICK_ROWS = 1000, 40
"""Sentences that are embedded."""


def config_of(grid: Grid, method: str, seed: int, *, quick: bool) -> RunConfig:
    """Return one of the trainings, at the rate that the sweep chose; a quick one at the method's own if need be.

    Raises:
        ConfigError: none is chosen yet.
    """
    shortened = {"max_train_rows": 64, "max_eval_rows": 60, "epochs": 1} if quick else {}
    rate = chosen_rate(grid, LEARNT, method)
    if rate is None and not quick:
        raise ConfigError(
            f"what {method} forgets is measured at the rate that its sweep on {LEARNT} chooses, and runs of that are "
            "missing; `veneer reproduce modern` does them first"
        )
    return run_of(LEARNT, method, seed, {"learning_rate": rate, **shortened})


def measure(watcher: Watcher, grid: Grid, quick: bool) -> Measurement:
    """Train by each method and return what is left, run by run."""
    splits = load_splits(DataRequest(data=REMEMBERED), watcher.notify)
    sentences = list(splits.validation.texts)[: QUICK_ROWS if quick else ROWS]
    source = find_model(MODEL, watcher.notify)
    before = embeddings(load_classifier(source, ("a", "b"), seed=0, attention="eager"), sentences)
    seeds = range(1) if quick else SEEDS
    configs = [config_of(grid, method, seed, quick=quick) for seed in seeds for method in METHODS]
    runs = []
    for number, config in enumerate(configs, start=1):
        watcher.run_started(config, number, len(configs))
        with tempfile.TemporaryDirectory() as temporary:
            record = run_in_process(config, Path(temporary) / "run", watcher)
            after = embeddings(load_trained(Path(temporary) / "run").classifier, sentences)
        watcher.run_ended(record)
        runs.append(
            {
                "method": config.method,
                "seed": config.seed,
                "learning_rate": config.peak_learning_rate(),
                "collapsed": record.collapsed,
                "accuracy": accuracy_on_test(record),
                "neighbours_kept": neighbours_kept(before, after, NEIGHBOURS),
                "cosine": float((before * after).sum(dim=1).mean()),
            }
        )
    return {"quick": quick, "machine": describe_machine(), "versions": describe_versions(), "runs": runs}


def embeddings(classifier: Classifier, sentences: list[str]) -> Float[Tensor, "rows d"]:
    """Return each sentence's embedding, of length 1: the mean over its tokens of the last hidden states.

    All models compute as those in training do, so that rounding alone makes no neighbour.
    """
    model: Any = classifier.model
    model.eval()
    rows = encode(Examples(texts=tuple(sentences)), classifier.tokenizer, labels=(), max_tokens=128)
    collate, means = collator(classifier.tokenizer), []
    for start in range(0, len(rows), BATCH_SIZE):
        inputs = {key: value.to(model.device) for key, value in collate(rows[start : start + BATCH_SIZE]).items()}
        with torch.inference_mode(), autocast(model.device, resolve_precision(SETTINGS["precision"])):
            hidden = model.base_model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"].unsqueeze(-1)
        means.append((hidden * mask).sum(dim=1) / mask.sum(dim=1))
    return torch.nn.functional.normalize(torch.cat(means), dim=1).cpu()


def neighbours_kept(before: Float[Tensor, "rows d"], after: Float[Tensor, "rows d"], k: int) -> float:
    """Return the share of each row's k nearest neighbours by cosine, itself left out, that are the same in both.

    Args:
        before: rows of length 1.
        after: the same rows, embedded otherwise.
        k: fewer than there are other rows.
    """
    tops = []
    for rows in (before, after):
        cosines = rows @ rows.T
        cosines.fill_diagonal_(-torch.inf)
        near = torch.zeros_like(cosines, dtype=torch.bool)
        tops.append(near.scatter(1, cosines.topk(k, dim=1).indices, value=True))
    return float((tops[0] & tops[1]).sum() / (k * len(before)))
