"""A trained classifier on disk, and back: what `evaluate` and `predict` work with.

An adapter folder is PEFT's two files and a task card, `veneer.json`, which says what the adapter is for: its base
model, the class names in the order of the outputs, none where the output is a number, how texts are cut. A method that
is not LoRA alone leaves one file instead of PEFT's, see `method_folder.py`, and its card says besides how it is
attached. A fully fine-tuned model is a complete transformers folder with the same card.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from veneer.data.metrics import score
from veneer.data.models import MODELS
from veneer.data.sources import ModelSource, Notify, find_model
from veneer.data.splits import Examples, Task
from veneer.errors import AdapterFormatError, ConfigError, DataError, UnknownNameError, gathered
from veneer.files import write_text
from veneer.formats.adapter import load, save
from veneer.formats.peft import CONFIG_FILE
from veneer.methods.settings import MethodSettings
from veneer.results import AnyScores
from veneer.training.config import resolve_attention, resolve_precision
from veneer.training.encoding import encode, predict_logits
from veneer.training.method_folder import load_method, write_method
from veneer.training.models import Classifier, load_classifier
from veneer.training.recipe import narrow_frozen

CARD_FILE = "veneer.json"
CARD_SCHEMA = 1
ADAPTER_FOLDER = "adapter"
MODEL_FOLDER = "model"


@dataclass(frozen=True, kw_only=True)
class TaskCard:
    """What a trained classifier is for."""

    model: str
    """The pretrained model as the user named it: a short name, a local folder or a hub id."""
    base_model: str
    """Its hub id or folder, for other tools."""
    labels: tuple[str, ...]
    """Class names in the order of the outputs; none where the one output is a number."""
    text_pair: bool
    """Whether a row has two texts."""
    max_tokens: int
    precision: str
    """Arithmetic that the reported scores were computed in."""
    method: str
    settings: MethodSettings | None = None
    """What attaches the method anew; None for LoRA alone and full fine-tuning, whose files say it themselves."""
    schema: int = CARD_SCHEMA

    @property
    def pretrained(self) -> str:
        """What the pretrained model is found by from anywhere: a folder is named in full."""
        return self.model if self.model in MODELS else self.base_model

    @property
    def task(self) -> Task:
        """Whether the outputs are classes or a number."""
        return "classification" if self.labels else "regression"

    @property
    def purpose(self) -> str:
        """What it was trained for, as the end of a sentence."""
        return f"for the labels: {', '.join(self.labels)}" if self.labels else "to predict a number"

    def to_json(self) -> dict[str, Any]:
        """Return the card as plain values."""
        value = {**asdict(self), "settings": self.settings and self.settings.to_json()}
        return {key: part for key, part in value.items() if key != "settings" or part is not None}


@dataclass(frozen=True, kw_only=True)
class SavedClassifier:
    """A trained classifier in memory."""

    card: TaskCard
    classifier: Classifier

    def probabilities(self, examples: Examples) -> Float[Tensor, "rows classes"]:
        """Return each class's probability for each row."""
        return self._outputs(examples).softmax(dim=1)

    def numbers(self, examples: Examples) -> Float[Tensor, " rows"]:
        """Return the predicted number of each row, for regression."""
        return self._outputs(examples)[:, 0]

    def scores(self, examples: Examples) -> AnyScores:
        """Return how well the classifier does on labelled rows.

        Raises:
            DataError: a row has a label the classifier does not know, or the rows are of the other task.
        """
        answers = self._answers(examples)
        return score(self._outputs(examples), answers)

    def _answers(self, examples: Examples) -> Shaped[Tensor, " rows"]:
        """Return the true class numbers, or the true numbers."""
        if (examples.targets is not None) != (self.card.task == "regression"):
            ours, theirs = ("numbers", "classes") if self.card.task == "regression" else ("classes", "numbers")
            raise DataError(f"this model predicts {ours}, but the data's labels are {theirs}; give data of its task")
        if examples.targets is not None:
            return torch.tensor(examples.targets)
        assert examples.labels is not None
        if unknown := sorted(set(examples.labels) - set(self.card.labels)):
            known = ", ".join(map(repr, self.card.labels))
            raise DataError(f"the data has labels this classifier does not know: {unknown[:10]}; it knows {known}")
        return torch.tensor([self.card.labels.index(label) for label in examples.labels])

    def _outputs(self, examples: Examples) -> Float[Tensor, "rows outputs"]:
        if (examples.pairs is not None) != self.card.text_pair:
            options = "--text-pair for a file, --pair for one text"
            expected = f"two texts a row: give {options}" if self.card.text_pair else f"one text a row: no {options}"
            raise DataError(f"this classifier was trained on {expected}")
        tokenizer = self.classifier.tokenizer
        unlabelled = Examples(texts=examples.texts, pairs=examples.pairs, labels=None)
        rows = encode(unlabelled, tokenizer, labels=self.card.labels, max_tokens=self.card.max_tokens)
        return predict_logits(self.classifier.model, rows, tokenizer, precision=_precision(self.card))


def _precision(card: TaskCard) -> str:
    """Return the arithmetic the classifier was tested in, or float32 where this machine has no other."""
    return resolve_precision("auto") if card.precision == "bfloat16" else "float32"


def save_trained(classifier: Classifier, card: TaskCard, folder: Path) -> Path:
    """Write a trained classifier below `folder`, as `adapter/` or, fully fine-tuned, as `model/`; return the path."""
    if card.method == "full":
        path = folder / MODEL_FOLDER
        classifier.model.save_pretrained(path)
        classifier.tokenizer.save_pretrained(path)
    elif card.settings is not None:
        path = folder / ADAPTER_FOLDER
        write_method(classifier.model, path)
    else:
        path = folder / ADAPTER_FOLDER
        save(classifier.model, path, base_model=card.base_model, task_type="SEQ_CLS")
    write_text(path / CARD_FILE, json.dumps(card.to_json(), indent=2, ensure_ascii=False) + "\n")
    return path


def load_trained(
    path: Path, *, model: str | None = None, any_base: bool = False, notify: Notify | None = None
) -> SavedClassifier:
    """Load a trained classifier from an adapter folder, a model folder or the run folder that holds one.

    Args:
        path: the folder.
        model: the pretrained model to put an adapter on, instead of the one its card names.
        any_base: put it also onto other weights than it was trained on.
        notify: takes one line for the user when something has to be fetched.

    Raises:
        AdapterFormatError: the folder holds no trained classifier, or a broken one.
        AdapterMismatchError: the adapter does not fit the model.
        ConfigError: the folder holds a complete model, which needs no other.
    """
    folder = find_trained(path)
    card = read_card(folder)
    if card.settings is None and not (folder / CONFIG_FILE).is_file():
        if model is not None or any_base:
            raise ConfigError(f"{folder} is a complete model, put on no other: leave out --model and --any-base")
        source = ModelSource(name=str(folder), location=str(folder), hub_id=str(folder))
        classifier = _load_whole(source, card.labels)
    else:
        classifier = _load_base(find_model(model or card.pretrained, notify), card.labels)
        if card.settings is None:
            load(classifier.model, folder, trainable=True, any_base=any_base)
        else:
            load_method(classifier.model, folder, card.settings, head=classifier.head, any_base=any_base)
    narrow_frozen(classifier.model, _precision(card))
    classifier.model.requires_grad_(False)
    if torch.cuda.is_available():
        classifier.model.to("cuda")  # type: ignore[arg-type]
    return SavedClassifier(card=card, classifier=classifier)


def read_card(folder: Path) -> TaskCard:
    """Read the task card of an adapter or model folder.

    Raises:
        AdapterFormatError: there is none, or it is broken.
    """
    path = folder / CARD_FILE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(TaskCard)}
        if set(value) | {"settings"} != known or value["schema"] != CARD_SCHEMA:
            raise ConfigError(f"it must hold {', '.join(sorted(known))} with schema {CARD_SCHEMA}")
        labels = value["labels"]
        is_named = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        if not is_named or len(labels) == 1 or len(set(labels)) < len(labels):
            allowed = "two names or more, all different, or none for regression"
            raise ConfigError(f"its labels must be {allowed}, but are {labels!r}")
        if not isinstance(value["max_tokens"], int) or value["max_tokens"] < 1:
            raise ConfigError(f"its max_tokens must be a whole number of at least 1, but is {value['max_tokens']!r}")
        if not isinstance(value["model"], str):
            raise ConfigError(f"its model must be a name, but is {value['model']!r}")
        settings = MethodSettings(**value["settings"]) if "settings" in value else None
        if settings is not None and settings.method != value["method"]:
            raise ConfigError(f"its settings are of {settings.method}, but its method is {value['method']!r}")
        return TaskCard(**{**value, "labels": tuple(value["labels"]), "settings": settings})
    except FileNotFoundError:
        reason = "it was not trained by `veneer train`; use veneer.load(model, path) in Python"
        raise AdapterFormatError(f"{folder} holds no {CARD_FILE}, so its labels are not known: {reason}") from None
    except (ValueError, TypeError, KeyError, UnknownNameError) as error:
        raise AdapterFormatError(f"{path} is broken: {error}") from None


def _load_base(source: ModelSource, labels: Sequence[str]) -> Classifier:
    return load_classifier(source, labels, seed=0, attention=resolve_attention("auto"))


def _load_whole(source: ModelSource, labels: Sequence[str]) -> Classifier:
    """Load a fully fine-tuned model: every weight must be there, of the right size and finite."""
    classifier = _load_base(source, labels)
    broken = [name for name, tensor in classifier.model.named_parameters() if not bool(torch.isfinite(tensor).all())]
    problems = [f"{name} holds NaN or infinity" for name in broken]
    if classifier.is_head_new:
        wanted = f"{len(labels)} labels" if labels else "one number"
        problems += [f"{name}: missing, or not made for {wanted}" for name in classifier.head]
    if problems:
        raise AdapterFormatError(gathered(f"{source.name} cannot be used as a trained classifier:", problems))
    return classifier


def find_trained(path: Path) -> Path:
    """Return the adapter or model folder that `path` is or holds, or raise an `AdapterFormatError`."""
    for folder in (path / ADAPTER_FOLDER, path / MODEL_FOLDER, path):
        if (folder / CARD_FILE).is_file() or (folder / CONFIG_FILE).is_file():
            return folder
    wanted = [f"an adapter folder, with {CONFIG_FILE}", "a run folder, with adapter/ or model/ in it"]
    raise AdapterFormatError(gathered(f"{path} holds no trained classifier; give one of:", wanted))
