"""`veneer train`: one run on labelled text."""

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli import options
from veneer.cli.console import note, progress_bars, stdout


def train(
    context: typer.Context,
    data: options.Data,
    out: Annotated[Path, typer.Option(help="Run folder: results.json, and adapter/ or model/.")],
    model: options.Model = "minilm",
    text: options.Text = None,
    label: options.Label = None,
    text_pair: options.TextPair = None,
    task: options.Task = "classification",
    glue: options.Glue = None,
    validation: options.Validation = None,
    test: options.Test = None,
    validation_share: Annotated[float, typer.Option(help="Share held out where no validation rows are given.")] = 0.1,
    test_share: Annotated[float, typer.Option(help="Share held out for test where no test rows are given.")] = 0.0,
    method: options.Method = "lora-all",
    target: options.Target = None,
    weights: options.Weights = None,
    size: options.Size = None,
    epochs: options.Epochs = 3,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 32,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate; each method has its own.")] = None,
    max_tokens: options.MaxTokens = 128,
    r: options.Rank = 8,
    alpha: options.Alpha = 16.0,
    dropout: options.Dropout = 0.0,
    scaling: Annotated[str, typer.Option(help="lora (alpha / r) or rslora (alpha / sqrt r).")] = "lora",
    precision: options.Precision = "auto",
    base_dropout: options.BaseDropout = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Fine-tune on labelled text; leaves an adapter, or with --method full a model, and the figures in OUT."""
    from veneer.data.metrics import in_words, judged_by
    from veneer.training.config import RunConfig
    from veneer.training.output import require_free
    from veneer.training.run import note_lines, prepare_data, run

    config = RunConfig(
        model=model,
        data=data,
        method=method,
        seed=seed,
        split_seed=seed,
        text=text,
        label=label,
        text_pair=text_pair,
        task=task,  # type: ignore[arg-type]  # checked by RunConfig, as are others below
        glue=glue,
        validation=validation,
        test=test,
        validation_share=validation_share,
        test_share=test_share,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_tokens=max_tokens,
        base_dropout=base_dropout,
        precision=precision,  # type: ignore[arg-type]
        r=r,
        alpha=alpha,
        dropout=dropout,
        scaling=scaling,  # type: ignore[arg-type]
        targets=tuple(target) if target else None,
        weights=options.names(weights),
        sizes=options.sizes(size),
    )
    options.require_acting(context, data=data, methods=[method])
    require_free(out, overwrite=overwrite)
    splits = prepare_data(config, note)
    for line in note_lines(splits):
        note(line)
    if splits.test is None:
        note("no test rows: the validation figure also chose the epoch and is a little too good (--test, --test-share)")
    with progress_bars() as bars:
        bars.run_started(config, 1, 1)
        record = run(
            config, out, splits=splits, on_progress=bars.run_progressed, notify=bars.notify, overwrite=overwrite
        )
        bars.run_ended(record)
    metric, _ = judged_by(data, record.validation)
    stdout.print(
        f"trained {record.trainable_parameters:,} of {record.total_parameters:,} parameters; "
        f"best epoch {record.best_epoch}, validation {in_words(record.validation, [metric])}\n"
        f"saved: {out / record.checkpoint} ({record.checkpoint_bytes:,} bytes)\nresults: {out / 'results.json'}",
        markup=False,
        soft_wrap=True,
    )
