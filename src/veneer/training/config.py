"""What defines a run. Two runs with equal configurations on one machine give equal results."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import torch

from veneer.data.sources import SHORT_NAMES, DataRequest
from veneer.data.splits import Task
from veneer.errors import ConfigError, gathered
from veneer.methods.settings import MethodSettings, lines_of
from veneer.methods.table import find_method, sizes_of
from veneer.training.machine import has_bfloat16

Precision = Literal["auto", "float32", "bfloat16"]
Attention = Literal["auto", "eager", "sdpa"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of one fine-tuning run.

    Raises:
        ConfigError: one or more settings are outside what is allowed; all are named.
        UnknownNameError: there is no such method.
    """

    model: str
    data: str
    method: str = "lora-all"
    seed: int = 0
    """Seed of the head's and A's start, the order of rows and dropout, 0 to 2**32 - 1."""
    text: str | None = None
    label: str | None = None
    text_pair: str | None = None
    task: Task = "classification"
    """Whether a table's labels are classes or numbers to predict; data with a short name knows itself."""
    glue: str | None = None
    """Folder of GLUE's files, for its tasks. Where they lie defines no run, so no record has it."""
    validation: str | None = None
    test: str | None = None
    validation_share: float = 0.1
    """Share of the rows held out to pick the best epoch, where no validation rows are given."""
    test_share: float = 0.0
    split_seed: int = 0
    """Seed of the held-out rows; the same for all seeds of a comparison."""
    max_train_rows: int | None = None
    """Train on a stratified sample of this many rows; None takes all."""
    max_eval_rows: int | None = None
    """Score validation and test on samples of this many rows; None takes all."""
    epochs: int = 3
    batch_size: int = 32
    learning_rate: float | None = None
    """Peak of the linear schedule; None takes the method's own."""
    warmup_ratio: float = 0.06
    weight_decay: float = 0.01
    max_tokens: int = 128
    """Longer texts are cut."""
    precision: Precision = "auto"
    """Arithmetic of forward and backward; "auto" is bfloat16 autocast where the hardware has it."""
    attention: Attention = "auto"
    """"auto" is eager on a CPU, where it is faster for short texts, and sdpa elsewhere."""
    base_dropout: bool = False
    """Whether the pretrained layers drop elements as they did in pretraining."""
    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    scaling: Literal["lora", "rslora"] = "lora"
    targets: tuple[str, ...] | None = None
    """Layers to adapt instead of the method's own choice."""
    weights: tuple[str, ...] = ()
    """Some of attention's query, key, value and output, to adapt instead of the method's own choice of layers."""
    sizes: tuple[tuple[str, int], ...] = ()
    """(name, number) of the method's own part where it has one, such as ("r", 16) of bottlenecks."""
    watch_test: bool = False
    """Score the test rows after each epoch as well, for the record alone: the paper reports the best of them."""
    quick: bool = False
    """Marks a shortened run; changes nothing by itself."""

    def __post_init__(self) -> None:
        find_method(self.method)
        problems = [
            f"{name} is {getattr(self, name)!r}; it must be {allowed}"
            for name, allowed, is_good in _RULES
            if not is_good(getattr(self, name))
        ]
        try:
            for name, value in vars(self.settings()).items():  # in one form, so that equal settings are equal
                object.__setattr__(self, name, value)
        except ConfigError as error:
            # The seed is named above, with a run's own limit.
            problems += [line for line in lines_of(error) if not line.startswith("seed is ")]
        if problems:
            raise ConfigError(gathered("these settings cannot be used:", problems))

    def settings(self) -> MethodSettings:
        """Return what attaches the method to a model."""
        return MethodSettings(**{field.name: getattr(self, field.name) for field in fields(MethodSettings)})

    def data_request(self) -> DataRequest:
        """Return which rows to load and how to split them."""
        shared = {field.name for field in fields(DataRequest)} & {field.name for field in fields(self)} - {"seed"}
        return DataRequest(**{name: getattr(self, name) for name in shared}, seed=self.split_seed)

    def peak_learning_rate(self) -> float:
        """Return the learning rate that will be used."""
        return self.learning_rate or find_method(self.method).learning_rate

    def resolved(self) -> "RunConfig":
        """Return the same settings with what the method and this machine decide filled in."""
        return replace(
            self,
            sizes=tuple(sizes_of(self.settings().chosen).items()),
            precision=resolve_precision(self.precision),
            attention=resolve_attention(self.attention),
            learning_rate=self.peak_learning_rate(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings that have a say as plain values; data that brings its own split is not held out."""
        idle = {"validation_share", "test_share"} if self.data in SHORT_NAMES else set()
        idle |= {name for name in ("sizes", "weights", "watch_test") if not getattr(self, name)}
        idle |= {"glue"} | ({"task"} if self.task == "classification" else set())
        plain = {**asdict(self), "sizes": dict(self.sizes)}
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in plain.items() if key not in idle
        }


FOUND_OUT = ("base_model", "rows_sha256")
"""What the configuration in a run's record has besides the settings: the model's own name, and which rows it had."""
Rule = Callable[[Any], bool]
"""Whether a setting's value is allowed."""


def _whole(minimum: int) -> Rule:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _optional(rule: Rule) -> Rule:
    return lambda value: value is None or rule(value)


def _number(low: float, high: float) -> Rule:
    return lambda value: isinstance(value, int | float) and math.isfinite(value) and low <= value < high


def _one_of(choices: object) -> tuple[str, Rule]:
    return f"one of {', '.join(get_args(choices))}", lambda value: value in get_args(choices)


_RULES: tuple[tuple[str, str, Rule], ...] = (
    ("seed", "a whole number from 0 to 2**32 - 1", lambda value: _whole(0)(value) and value < 2**32),  # numpy's limit
    ("epochs", "a whole number of at least 1", _whole(1)),
    ("batch_size", "a whole number of at least 1", _whole(1)),
    ("max_tokens", "a whole number of at least 4", _whole(4)),
    ("max_train_rows", "a whole number of at least 10", _optional(_whole(10))),
    ("max_eval_rows", "a whole number of at least 10", _optional(_whole(10))),
    (
        "learning_rate",
        "a number above 0 and below 1",
        _optional(lambda value: _number(0, 1)(value) and value > 0),
    ),
    ("warmup_ratio", "a share from 0 to below 1", _number(0, 1)),
    ("weight_decay", "a number from 0 to below 10", _number(0, 10)),
    ("validation_share", "a share above 0 and below 1", lambda value: _number(0, 1)(value) and value > 0),
    ("test_share", "a share from 0 to below 1", _number(0, 1)),
    ("task", *_one_of(Task)),
    ("base_dropout", "True or False", lambda value: isinstance(value, bool)),
    ("watch_test", "True or False", lambda value: isinstance(value, bool)),
    ("precision", *_one_of(Precision)),
    ("attention", *_one_of(Attention)),
)


def resolve_precision(precision: Precision) -> Precision:
    """Return "float32" or "bfloat16": what `precision` means on this machine."""
    if precision != "auto":
        return precision
    return "bfloat16" if has_bfloat16() else "float32"


def resolve_attention(attention: Attention) -> Attention:
    """Return "eager" or "sdpa": what `attention` means on this machine."""
    if attention != "auto":
        return attention
    return "sdpa" if torch.cuda.is_available() else "eager"
