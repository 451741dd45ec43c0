"""`veneer compare`: the same pretrained model fine-tuned by several methods, side by side."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veneer.cli import options
from veneer.cli.console import note, progress_bars, stdout

if TYPE_CHECKING:
    from veneer.training.config import RunConfig

QUICK = {"epochs": 2, "max_train_rows": 640, "max_eval_rows": 300, "batch_size": 16, "max_tokens": 40}
QUICK_RATE = 2
"""Few steps want higher learning rates; every method's is multiplied by this."""
QUICK_NOTE = (
    "QUICK RUN: trained on at most {max_train_rows} rows for {epochs} epochs in batches of {batch_size} at twice the "
    "usual learning rates, scored on at most {max_eval_rows} rows, texts cut to {max_tokens} tokens. Its figures show "
    "that everything works, not what the methods can do."
)


def compare(
    context: typer.Context,
    model: options.Model = "minilm",
    data: options.Data = "rotten-tomatoes",
    text: options.Text = None,
    label: options.Label = None,
    text_pair: options.TextPair = None,
    task: options.Task = "classification",
    glue: options.Glue = None,
    validation: options.Validation = None,
    test: options.Test = None,
    test_share: Annotated[float, typer.Option(help="Share held out for test where no test rows are given.")] = 0.2,
    methods: Annotated[
        str, typer.Option(help="Comma-separated methods; `veneer train --help` names all of them.")
    ] = "head,lora-qv,lora-all,full",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Number of seeds; more than one gives a spread.")] = 1,
    seed: options.Seed = 0,
    epochs: options.Epochs = 2,
    batch_size: options.BatchSize = 32,
    max_tokens: options.MaxTokens = 128,
    r: options.Rank = 8,
    alpha: options.Alpha = 16.0,
    dropout: options.Dropout = 0.0,
    precision: options.Precision = "auto",
    base_dropout: options.BaseDropout = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A smaller version, about a minute, labelled as such.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for results.json, report.html and the trained weights.")] = Path(
        "runs/compare"
    ),
    overwrite: options.Overwrite = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Keep the runs that are complete in --out; with --overwrite too, those done otherwise are done again.",
        ),
    ] = False,
) -> None:
    """Fine-tune by several methods and report what each gained and cost."""
    from veneer.errors import ConfigError
    from veneer.files import write_text
    from veneer.methods.table import METHODS
    from veneer.report.page import render_page
    from veneer.report.summary import summarize
    from veneer.report.terminal import results_table
    from veneer.report.verdict import headline
    from veneer.training.compare import compare as run_all
    from veneer.training.compare import require_startable
    from veneer.training.config import RunConfig
    from veneer.training.output import REPORT_FILE
    from veneer.training.run import note_lines, prepare_data

    require_startable(out, overwrite=overwrite, resume=resume)
    names = options.names(methods)
    if not names:
        raise ConfigError(f"--methods names no method; known: {', '.join(METHODS)}")
    shared = RunConfig(
        model=model,
        data=data,
        text=text,
        label=label,
        text_pair=text_pair,
        task=task,  # type: ignore[arg-type]  # checked by RunConfig, as are others below
        glue=glue,
        validation=validation,
        test=test,
        test_share=test_share,
        seed=seed,
        split_seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        max_tokens=max_tokens,
        r=r,
        alpha=alpha,
        dropout=dropout,
        base_dropout=base_dropout,
        precision=precision,  # type: ignore[arg-type]
        quick=quick,
    )
    options.require_acting(context, data=data, methods=names)
    notes = []
    if quick:
        shared = replace(shared, **QUICK)  # type: ignore[arg-type]
        notes.append(QUICK_NOTE.format(**QUICK))
    configs = _configs(shared, names, seeds)
    data_notes = note_lines(prepare_data(shared, note))
    for line in notes + data_notes:
        note(line)
    with progress_bars() as bars:
        results = run_all(configs, out, bars, notes=notes + data_notes, overwrite=overwrite, resume=resume)
    write_text(out / REPORT_FILE, render_page(results))
    summaries = summarize(results.records)
    stdout.print(results_table(summaries))
    stdout.print(headline(summaries), markup=False, soft_wrap=True)
    stdout.print(f"\nreport: {out / REPORT_FILE}\nresults: {out / 'results.json'}", markup=False, soft_wrap=True)


def _configs(shared: "RunConfig", names: tuple[str, ...], num_seeds: int) -> "list[RunConfig]":
    """Return a run for each seed and method, one seed of every method first."""
    from veneer.methods.table import find_method

    rates = {name: find_method(name).learning_rate * (QUICK_RATE if shared.quick else 1) for name in names}
    return [
        replace(shared, seed=shared.seed + number, method=name, learning_rate=rate)
        for number in range(num_seeds)
        for name, rate in rates.items()
    ]
