"""`veneer evaluate` and `veneer predict`: a trained classifier put to work."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veneer.cli import options
from veneer.cli.console import note, print_json, stdout
from veneer.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

    from veneer.data.splits import Examples
    from veneer.results import AnyScores
    from veneer.training.saved import SavedClassifier


def evaluate(
    adapter: options.Trained,
    data: options.Data,
    text: options.Text = None,
    label: options.Label = None,
    text_pair: options.TextPair = None,
    glue: options.Glue = None,
    split: Annotated[str, typer.Option(help="Which split of a named data set: train, validation or test.")] = "test",
    model: options.BaseModel = None,
    any_base: options.AnyBase = False,
    as_json: options.AsJson = False,
) -> None:
    """Score a trained classifier on labelled text."""
    from veneer.data.metrics import METRICS, in_words
    from veneer.data.sources import SHORT_NAMES, DataRequest, load_rows
    from veneer.training.saved import find_trained, load_trained, read_card

    task = "classification" if data in SHORT_NAMES else read_card(find_trained(adapter)).task
    request = DataRequest(data=data, text=text, label=label, text_pair=text_pair, task=task, glue=glue)
    rows = load_rows(request, split=split, notify=note)
    trained = load_trained(adapter, model=model, any_base=any_base, notify=note)
    scores = trained.scores(rows)
    name = data if Path(data).is_file() else f"{data} ({split})"
    if as_json:
        about = {"adapter": str(adapter), "data": name, "labels": trained.card.labels}
        print_json({**about, **asdict(scores), **scores.figures})
        return
    told = in_words(scores, [METRICS[key] for key in scores.figures])
    stdout.print(f"{name}: {told}, {_loss_and_baseline(scores)}", markup=False, soft_wrap=True)


def _loss_and_baseline(scores: "AnyScores") -> str:
    """Return the loss, the number of rows, and what the best constant answer would reach."""
    from veneer.results import Scores

    if isinstance(scores, Scores):
        loss, baseline = f"cross-entropy {scores.loss:.4f}", f"the most frequent class: {scores.majority_share:.4f}"
    else:
        loss, baseline = f"mean squared error {scores.loss:.6g}", f"the mean: {scores.target_sd**2:.6g}"
    return f"{loss} on {scores.num_examples:,} rows (always answering {baseline})"


def predict(
    adapter: options.Trained,
    sentence: Annotated[str | None, typer.Argument(metavar="TEXT", help="One text.")] = None,
    pair: Annotated[str | None, typer.Option("--pair", help="The second text that goes with TEXT.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A file of texts, instead of TEXT.")] = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    out: Annotated[Path | None, typer.Option(help="File for the predictions: .csv, .tsv, .jsonl or .parquet.")] = None,
    model: options.BaseModel = None,
    any_base: options.AnyBase = False,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Classify one text, or a file of texts into a file of predictions, with probabilities; or predict numbers."""
    from veneer.data.predictions import check_output, write_predictions
    from veneer.data.splits import Examples
    from veneer.data.tables import read_examples
    from veneer.training.saved import load_trained

    if (sentence is None) == (data is None):
        raise ConfigError(
            'give either one text (veneer predict ADAPTER "some text") or a file (--data FILE --text COLUMN)'
        )
    if data is not None and (text is None or out is None):
        raise ConfigError("--data needs --text, the column to read, and --out, the file to write")
    if data is not None and pair is not None:
        raise ConfigError("--pair goes with one text; for a file, --text-pair names the column")
    if sentence is not None and (text is not None or text_pair is not None):
        raise ConfigError("--text and --text-pair name columns of a file; they go with --data, not with one text")
    for given in (sentence, pair):
        _require_text(given)
    if out is not None:
        check_output(out, overwrite=overwrite)
    if data is not None:
        assert text is not None
        rows = read_examples(data, text=text, label=None, text_pair=text_pair)
    else:
        assert sentence is not None
        rows = Examples(texts=(sentence,), pairs=None if pair is None else (pair,))
    trained = load_trained(adapter, model=model, any_base=any_base, notify=note)
    table = _predictions(trained, rows)
    if out is None:
        _print_one(trained, table, as_json=as_json)
        return
    write_predictions(table, out, overwrite=overwrite)
    counts = table["label"].value_counts().to_dict() if trained.card.labels else {}
    if as_json:
        print_json({"out": str(out), "rows": len(table), **({"counts": counts} if counts else {})})
        return
    listed = ", ".join(f"{label} {count:,}" for label, count in counts.items())
    stdout.print(
        f"{len(table):,} predictions written to {out}" + f": {listed}" * bool(listed), markup=False, soft_wrap=True
    )


def _predictions(trained: "SavedClassifier", rows: "Examples") -> "pd.DataFrame":
    from veneer.data.predictions import number_table, prediction_table

    if trained.card.task == "regression":
        return number_table(rows, trained.numbers(rows))
    return prediction_table(rows, trained.card.labels, trained.probabilities(rows))


def _print_one(trained: "SavedClassifier", table: "pd.DataFrame", *, as_json: bool) -> None:
    """Print the prediction for the one text: its classes by probability, or its number."""
    first = table.iloc[0]
    if trained.card.task == "regression":
        number = float(first["prediction"])
        if as_json:
            print_json({"text": first["text"], "prediction": number})
        else:
            stdout.print(f"{number:.6g}", markup=False)
        return
    probabilities = {label: float(first[f"p({label})"]) for label in trained.card.labels}
    if as_json:
        print_json({"text": first["text"], "label": str(first["label"]), "probabilities": probabilities})
        return
    for label, probability in sorted(probabilities.items(), key=lambda item: -item[1]):
        stdout.print(f"{probability:.4f}  {label}", markup=False)


def _require_text(given: str | None) -> None:
    if given is not None and not given.strip():
        raise DataError("the text is empty; give at least one word")
    if given is not None and any("\ud800" <= character <= "\udfff" for character in given):  # how Python passes bytes
        raise DataError(f"the text {given!r} is not UTF-8; give it in UTF-8")
