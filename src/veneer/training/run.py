"""One fine-tuning run: from a configuration to a run folder, on transformers' Trainer.

    <folder>/adapter/ or model/   the trained weights of the best epoch
    <folder>/results.json         the record, as `veneer.results` defines it

The folder appears whole or not at all. The test rows are scored once, after the epoch was chosen on validation.
"""

import hashlib
import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from veneer.data.metrics import in_words, is_collapsed, judged_by, score
from veneer.data.sources import ModelSource, Notify, find_model, load_splits
from veneer.data.splits import SPLITS, Splits, sample
from veneer.errors import ConfigError
from veneer.methods.table import Counts
from veneer.results import AnyScores, Results, RunRecord, write_results
from veneer.training.best_epoch import KeepBest
from veneer.training.config import FOUND_OUT, RunConfig
from veneer.training.encoding import Features, collator, encode, predict_logits
from veneer.training.machine import describe_machine, describe_versions, has_bfloat16, peak_memory_bytes
from veneer.training.models import Classifier, load_classifier, readable_tokens
from veneer.training.numbers import standardized
from veneer.training.output import move_results, partial_folder, require_free
from veneer.training.recipe import narrow_frozen, without_base_dropout
from veneer.training.saved import TaskCard, save_trained

LOSS_POINTS_PER_EPOCH = 10


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come."""

    step: int
    num_steps: int
    note: str


OnProgress = Callable[[Progress], None]


class Report(TrainerCallback):
    """Passes each step on to whoever shows the progress."""

    def __init__(self, data: str, on_progress: OnProgress, keep_best: KeepBest) -> None:
        self.data = data
        self.on_progress = on_progress
        self.keep_best = keep_best

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Report the step. The Trainer passes more than is used here."""
        best = self.keep_best.best
        note = f"epoch {math.ceil(state.epoch or 0)}/{math.ceil(args.num_train_epochs)}"
        if best is not None:
            metric, _ = judged_by(self.data, best)
            note += f", validation {best.figures[metric.key]:.3f}"
        self.on_progress(Progress(step=state.global_step, num_steps=state.max_steps, note=note))


def prepare_data(config: RunConfig, notify: Notify | None = None) -> Splits:
    """Return the rows a run works on, sampled where the configuration says so.

    Raises:
        DataError, UnknownNameError, DownloadError: see `load_splits`.
    """
    splits = load_splits(config.data_request(), notify)
    if config.max_train_rows is not None:
        splits = replace(splits, train=sample(splits.train, config.max_train_rows, seed=config.split_seed))
    if config.max_eval_rows is not None:
        validation = sample(splits.validation, config.max_eval_rows, seed=config.split_seed)
        test = splits.test and sample(splits.test, config.max_eval_rows, seed=config.split_seed)
        splits = replace(splits, validation=validation, test=test)
    return splits


def rows_sha256(splits: Splits) -> str:
    """Return a digest of every text and label, by which a resumed comparison knows that its data is still the same."""
    rows = [part and [part.texts, part.pairs, part.answers] for part in (splits.train, splits.validation, splits.test)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def run(
    config: RunConfig,
    folder: Path,
    *,
    splits: Splits | None = None,
    on_progress: OnProgress = lambda progress: None,
    notify: Notify | None = None,
    overwrite: bool = False,
    keep_diverged: bool = False,
) -> RunRecord:
    """Fine-tune, test and save; return the record that is also written to `folder`.

    Args:
        config: what to run.
        folder: the run folder; made anew.
        splits: what `prepare_data` returns for `config`, where it was called already.
        on_progress: called after each step.
        notify: takes one line for the user.
        overwrite: whether a folder that exists may be replaced, once the run is done.
        keep_diverged: whether a run whose first epoch ends without a finite loss is a result too: that of the model as
            it began, which counts as collapsed. Otherwise it is an error.

    Raises:
        OutputExistsError: `folder` is not free, or was filled while the run was under way, which is then beside it.
        VeneerError: the run cannot be done; nothing is left behind.
    """
    require_free(folder, overwrite=overwrite)
    source = find_model(config.model, notify)
    splits = splits or prepare_data(config, notify)
    with partial_folder(folder) as partial:
        record = _train_and_test(
            config, source, splits, folder=partial, on_progress=on_progress, notify=notify, keep_diverged=keep_diverged
        )
        write_results(partial, Results(machine=describe_machine(), versions=describe_versions(), records=[record]))
        move_results(partial, folder, overwrite=overwrite)
    if notify and (line := divergence(record)):
        notify(line)
    return record


def _train_and_test(
    config: RunConfig,
    source: ModelSource,
    splits: Splits,
    *,
    folder: Path,
    on_progress: OnProgress,
    notify: Notify | None,
    keep_diverged: bool,
) -> RunRecord:
    set_seed(config.seed)
    settings, resolved = config.settings(), config.resolved()
    classifier = load_classifier(source, splits.labels, seed=config.seed, attention=resolved.attention)
    added = settings.chosen.added_tokens
    max_tokens = readable_tokens(classifier.model, config.max_tokens, added=added)
    if notify:
        for line in _limits(resolved, max_tokens, added):
            notify(line)
    family = classifier.model.config.model_type
    if not config.base_dropout:  # before updates are in the base, whose dropout is their own
        without_base_dropout(classifier.model)
    counts = settings.attach(classifier.model, model_type=family, head=classifier.head)
    narrow_frozen(classifier.model, resolved.precision)
    card = TaskCard(
        model=config.model,
        base_model=source.hub_id,
        labels=splits.labels,
        text_pair=splits.train.pairs is not None,
        max_tokens=max_tokens,
        precision=resolved.precision,
        method=config.method,
        settings=resolved.settings() if settings.chosen.part else None,
    )
    encoded = {
        name: encode(part, classifier.tokenizer, labels=splits.labels, max_tokens=max_tokens)
        for name in SPLITS
        if (part := getattr(splits, name)) is not None
    }

    if notify and (line := _cut(encoded["train"], max_tokens)):
        notify(line)

    def scored(split: str) -> AnyScores:
        rows = encoded[split]
        logits = predict_logits(classifier.model, rows, classifier.tokenizer, precision=resolved.precision)
        return score(logits, torch.tensor([row["labels"] for row in rows]))

    watch = (lambda: scored("test")) if config.watch_test and "test" in encoded else None
    with _own_units(classifier, splits):
        outcome = _train(resolved, classifier, encoded, folder=folder, on_progress=on_progress, score_test=watch)
    best = outcome.keep_best
    if best.best is None and keep_diverged:
        best.best = scored("validation")
    _require_finite(best.best or best.latest)
    test = scored("test") if "test" in encoded else None
    _require_finite(test)
    checkpoint = save_trained(classifier, card, folder)
    return _record(resolved, card, counts, outcome=outcome, test=test, checkpoint=checkpoint, splits=splits)


def _own_units(classifier: Classifier, splits: Splits) -> AbstractContextManager[None]:
    """Return the context in which numbers, if it is numbers that are learnt, count in units of their own spread."""
    layer, targets = classifier.number_layer, splits.train.targets
    if layer is None or targets is None:
        return nullcontext()
    return standardized(layer, targets, is_new=classifier.is_head_new)


def _limits(config: RunConfig, max_tokens: int, added: int) -> Iterator[str]:
    """Yield what the model or the machine keeps the run from."""
    if max_tokens < config.max_tokens:
        beside = f" beside {added} trained ones" if added else ""
        yield f"texts are cut to {max_tokens} tokens, not {config.max_tokens}: {config.model} reads no more{beside}"
    if config.precision == "bfloat16" and not has_bfloat16():
        yield "bfloat16 is many times slower than float32 here, where no unit computes in it; try --precision auto"


def _cut(rows: Sequence[Features], max_tokens: int) -> str:
    """Return how many rows may have been cut, or "" where none was."""
    number = sum(len(row["input_ids"]) >= max_tokens for row in rows)  # type: ignore[arg-type]
    return (
        f"{number:,} of {len(rows):,} training rows fill {max_tokens} tokens: what is longer is cut" if number else ""
    )


def divergence(record: RunRecord) -> str:
    """Return that training ended early, or "" where it did not."""
    if record.diverged_in is None:
        return ""
    kept = f"epoch {record.best_epoch} is kept" if record.best_epoch else "the model is as it began"
    return (
        f"training ended in epoch {record.diverged_in}, whose loss is not a finite number; {kept}. "
        "A lower learning rate or alpha may do better"
    )


def _require_finite(scores: AnyScores | None) -> None:
    if scores is not None and not math.isfinite(scores.loss):
        raise ConfigError(
            "training gave no usable model: its loss is not a finite number. Lower the learning rate or alpha, or "
            "check the weights of the pretrained model"
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What training left behind, beside the weights in the model."""

    keep_best: KeepBest
    train_seconds: float
    peak_memory_bytes: int
    train_curve: list[dict[str, float]]


def _train(
    config: RunConfig,
    classifier: Classifier,
    rows: Mapping[str, list[Features]],
    *,
    folder: Path,
    on_progress: OnProgress,
    score_test: Callable[[], AnyScores] | None,
) -> Outcome:
    """Train, and leave the weights of the best epoch in the model."""
    keep_best = KeepBest(classifier.model, score_test)
    numbers = classifier.number_layer
    unit = numbers.sd**2 if numbers else 1.0
    steps_per_epoch = math.ceil(len(rows["train"]) / config.batch_size)
    with tempfile.TemporaryDirectory(dir=folder) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # third parties' advice on settings that are not the user's
        trainer = Trainer(
            model=classifier.model,
            args=_arguments(config, scratch, max(1, steps_per_epoch // LOSS_POINTS_PER_EPOCH)),
            data_collator=collator(classifier.tokenizer),
            train_dataset=rows["train"],
            eval_dataset=sorted(rows["validation"], key=lambda row: len(row["input_ids"])),
            compute_loss_func=numbers.loss if numbers else None,
            compute_metrics=keep_best.compute_metrics,
            callbacks=[keep_best, Report(config.data, on_progress, keep_best)],
        )
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    keep_best.restore()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    curve = [{"epoch": entry["epoch"], "loss": entry["loss"] * unit} for entry in logged]
    return Outcome(keep_best=keep_best, train_seconds=seconds, peak_memory_bytes=peak_memory_bytes(), train_curve=curve)


def _arguments(config: RunConfig, scratch: str, logging_steps: int) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=scratch,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=config.peak_learning_rate(),
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        bf16=config.precision == "bfloat16",
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="no",
        logging_steps=logging_steps,
        seed=config.seed,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    if arguments.n_gpu > 1:  # over all of them the Trainer would multiply the batch
        arguments._n_gpu = 1
    return arguments


def _record(
    config: RunConfig,
    card: TaskCard,
    counts: Counts,
    *,
    outcome: Outcome,
    test: AnyScores | None,
    checkpoint: Path,
    splits: Splits,
) -> RunRecord:
    best = outcome.keep_best
    assert best.best is not None
    return RunRecord(
        method=config.method,
        model=config.model,
        data=config.data,
        seed=config.seed,
        labels=list(card.labels),
        trainable_parameters=counts.trainable,
        lora_parameters=counts.lora,
        head_parameters=counts.head,
        total_parameters=counts.total,
        train_seconds=outcome.train_seconds,
        peak_memory_bytes=outcome.peak_memory_bytes,
        checkpoint_bytes=sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()),
        checkpoint=checkpoint.name,
        best_epoch=best.best_epoch,
        validation=best.best,
        test=test,
        collapsed=best.best_epoch == 0 or is_collapsed(best.best),
        train_curve=outcome.train_curve,
        validation_curve=best.history,
        test_curve=best.test_history,
        split=sizes(splits),
        config={**config.to_json(), **dict(zip(FOUND_OUT, (card.base_model, rows_sha256(splits)), strict=True))},
    )


def summary_line(record: RunRecord) -> str:
    """Return one line that says what a run reached."""
    name, scores = ("test", record.test) if record.test else ("validation", record.validation)
    mark = "" if not record.collapsed else ", collapsed to one answer" if record.best_epoch else ", diverged at once"
    told = in_words(scores, judged_by(record.data, scores))
    return f"{record.method}, seed {record.seed}: {name} {told}{mark}, {record.train_seconds:.0f} s"


def note_lines(splits: Splits) -> list[str]:
    """Return what the user should know of the data, a line each."""
    return [", ".join(f"{name} {size:,}" for name, size in sizes(splits).items()) + " rows", *splits.notes]


def sizes(splits: Splits) -> dict[str, int]:
    """Return the number of rows of each split there is."""
    return {name: len(part) for name in SPLITS if (part := getattr(splits, name)) is not None}
