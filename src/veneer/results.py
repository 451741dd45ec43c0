"""What a run leaves behind, as values and as files.

A run is one fine-tuning of one model by one method with one seed. Its `RunRecord` holds every figure of it; a
`Results` holds the records of one command with the machine and the versions they were measured on, and is written
as `results.json`. Tables, plots and the report read these files only, so every printed number can be traced.

This module does not measure and does not format: it only defines the values and moves them to and from disk.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, get_origin, get_type_hints

from veneer.errors import ConfigError
from veneer.files import write_text

RESULTS_SCHEMA = 1
RESULTS_FILE = "results.json"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How well predicted classes fit one split of the data."""

    CHOICE: ClassVar[str] = "macro_f1"
    """Which of `figures` the best epoch and the best method are chosen by."""

    accuracy: float
    """Share of rows predicted right, 0 to 1."""
    macro_f1: float
    """F1 averaged over the classes, each counting the same, 0 to 1."""
    loss: float
    """Mean cross-entropy, in nats per row."""
    num_examples: int
    """Rows of the split."""
    majority_share: float
    """Share of the split's most frequent class: what always answering it would score."""
    confusion: list[list[int]]
    """Rows are true classes, columns predicted ones, in the order of the record's `labels`."""

    @property
    def matthews(self) -> float:
        """Matthews's correlation of true and predicted classes, -1 to 1; 0 where either is one class only.

        Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient" (2004).
        """
        true, predicted = [sum(row) for row in self.confusion], [sum(row) for row in zip(*self.confusion, strict=True)]
        total, hits = sum(true), sum(row[place] for place, row in enumerate(self.confusion))
        covariance = total * hits - sum(t * p for t, p in zip(true, predicted, strict=True))
        variances = (total**2 - sum(t * t for t in true)) * (total**2 - sum(p * p for p in predicted))
        return covariance / math.sqrt(variances) if variances else 0.0

    @property
    def figures(self) -> dict[str, float]:
        """What the rows are judged by, more is better: the keys are those of `veneer.data.metrics.METRICS`."""
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1, "matthews": self.matthews}

    @property
    def choice(self) -> float:
        """What the best epoch and the best method are chosen by."""
        return self.figures[self.CHOICE]


@dataclass(frozen=True, kw_only=True)
class RegressionScores:
    """How well predicted numbers fit one split of the data."""

    CHOICE: ClassVar[str] = "pearson"
    """As for `Scores`."""

    pearson: float
    """Correlation of true and predicted numbers, -1 to 1; 0 where either are all equal."""
    spearman: float
    """The same of their ranks."""
    loss: float
    """Mean squared error, in the square of the numbers' unit."""
    num_examples: int
    """Rows of the split."""
    target_sd: float
    """Standard deviation of the true numbers; its square is the mean squared error of always answering their mean."""
    predicted_sd: float
    """Standard deviation of the predicted numbers."""

    @property
    def figures(self) -> dict[str, float]:
        """What the rows are judged by, as for `Scores`."""
        return {"pearson": self.pearson, "spearman": self.spearman}

    @property
    def choice(self) -> float:
        """What the best epoch and the best method are chosen by."""
        return self.figures[self.CHOICE]


AnyScores = Scores | RegressionScores
"""What a run reached: of classes, or of numbers."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Every figure of one run."""

    method: str
    model: str
    data: str
    seed: int
    labels: list[str]
    """Class names in the order of the model's outputs; none where it predicts a number."""
    trainable_parameters: int
    """lora_parameters + head_parameters + other_parameters."""
    lora_parameters: int
    head_parameters: int
    """Parameters that `from_pretrained` reported as newly initialised: the task's own output layer."""
    total_parameters: int
    """Parameters of the model in training, the low-rank ones included."""
    train_seconds: float
    """Wall time of training, the validation after each epoch included, loading and the test excluded."""
    peak_memory_bytes: int
    """Largest resident set of the run's process, or on a GPU the largest allocation there."""
    checkpoint_bytes: int
    """Bytes of the files that bring the trained model back, beside the pretrained one."""
    checkpoint: str
    """Where the checkpoint lies, relative to the results file."""
    best_epoch: int
    """The epoch whose weights were kept: the best `choice` on validation, the earliest among equals. From 1; 0 is the
    model as it began, where no epoch ended with a finite loss."""
    validation: AnyScores
    test: AnyScores | None
    """None where no test rows were given."""
    collapsed: bool
    """Nothing was learnt: the kept model gives (nearly) one answer only to the validation rows, see
    `veneer.data.metrics.is_collapsed`, or the training diverged in its first epoch. Test rows leave no run out."""
    train_curve: list[dict[str, float]]
    """`{"epoch": ..., "loss": ...}` at regular steps of training."""
    validation_curve: list[dict[str, float]]
    """`{"epoch": ..., "loss": ...}` and the `figures` of the validation rows after each epoch until one diverged."""
    split: dict[str, int]
    """Rows of `train`, `validation` and `test`."""
    config: dict[str, Any]
    """The run's full configuration, enough to run it again."""
    test_curve: list[dict[str, float]] = field(default_factory=list)
    """The same of the test rows, where the configuration asks for it; it chooses nothing."""

    @property
    def diverged_in(self) -> int | None:
        """The epoch that ended the training because its loss was no finite number; None where every epoch had one."""
        epoch = len(self.validation_curve) + 1
        return epoch if epoch <= self.config["epochs"] else None

    @property
    def other_parameters(self) -> int:
        """What is trained besides low-rank updates and the head: bottlenecks, trained tokens, pretrained weights."""
        return self.trainable_parameters - self.lora_parameters - self.head_parameters


@dataclass(frozen=True, kw_only=True)
class Results:
    """The records of one command and what they were measured on."""

    machine: Mapping[str, Any]
    """`cpu`, `cores`, `memory_bytes`, `accelerator` (or None), `platform`."""
    versions: Mapping[str, str]
    records: list[RunRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader must know to read the figures right, such as a shortened run; shown above every table."""
    schema: int = RESULTS_SCHEMA


def record_from_json(value: Mapping[str, Any]) -> RunRecord:
    """Return the record that `asdict` turned into `value`.

    Raises:
        ConfigError: a field is missing, unknown or of another kind, or scores contradict their own confusion matrix.
    """
    value = {"test_curve": [], **value}  # records older than this field
    known = {f.name for f in fields(RunRecord)}
    if known != set(value):
        missing, unknown = (", ".join(sorted(names)) for names in (known - set(value), set(value) - known))
        raise ConfigError(
            f"a run record's fields are others; missing: {missing or 'none'}, unknown: {unknown or 'none'}"
        )
    test = None if value["test"] is None else _scores_from_json(value["test"])
    record = RunRecord(**{**value, "validation": _scores_from_json(value["validation"]), "test": test})
    _require_kinds(record)
    return record


def _scores_from_json(value: Mapping[str, Any]) -> AnyScores:
    scores = RegressionScores(**value) if "pearson" in value else Scores(**value)
    _require_kinds(scores)
    if isinstance(scores, Scores):
        if any(len(row) != len(scores.confusion) for row in scores.confusion):
            raise ConfigError("the confusion matrix is not square")
        rows, hits = sum(map(sum, scores.confusion)), sum(row[place] for place, row in enumerate(scores.confusion))
        if rows != scores.num_examples or abs(hits - scores.accuracy * rows) > 1:
            raise ConfigError(
                f"an accuracy of {scores.accuracy:g} on {scores.num_examples} rows contradicts its confusion matrix, "
                f"which has {hits} hits on {rows} rows"
            )
    return scores


_KINDS: Mapping[Any, tuple[type, ...]] = {float: (int, float)} | {
    kind: (kind,) for kind in (int, str, bool, list, dict)
}
"""What a field is said to be -> what JSON makes of it."""


def _require_kinds(value: RunRecord | AnyScores) -> None:
    """Raise where a field of a record, or of scores, is of another kind than it is said to be, or no finite number."""
    for name, hint in get_type_hints(type(value)).items():
        kinds, found = _KINDS.get(get_origin(hint) or hint), getattr(value, name)
        if kinds is None:  # scores, which are read by themselves
            continue
        if type(found) not in kinds or (type(found) is float and not math.isfinite(found)):
            raise ConfigError(f"{name} is {found!r}, not a {'finite ' * (hint is float)}{kinds[-1].__name__}")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` to `path` as UTF-8 JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_results(folder: Path, results: Results) -> Path:
    """Write `results` as `folder/results.json` and return its path."""
    path = folder / RESULTS_FILE
    write_json(path, asdict(results))
    return path


def read_results(path: Path) -> Results:
    """Read a results file, or the one inside a run folder.

    Raises:
        ConfigError: the file is missing, is not a results file, or has another schema.
    """
    file = path / RESULTS_FILE if path.is_dir() else path
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if value["schema"] != RESULTS_SCHEMA:
            raise ConfigError(f"it has schema {value['schema']!r}, but this version reads schema {RESULTS_SCHEMA}")
        results = Results(**{**value, "records": [record_from_json(record) for record in value["records"]]})
        if not isinstance(results.machine, dict) or not isinstance(results.versions, dict):
            raise ConfigError(f"machine is {results.machine!r} and versions {results.versions!r}, not both objects")
        return results
    except FileNotFoundError:
        raise ConfigError(f"no results file at {file}: give a run folder or the path of its {RESULTS_FILE}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{file} is not a results file: {error}") from None
