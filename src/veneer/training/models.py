"""Loading a pretrained model as a classifier, and finding the part of it that is new."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from veneer.data.sources import ModelSource
from veneer.errors import ConfigError, DataError, DownloadError, first_line, gathered
from veneer.lora.targets import HEAD_NAMES
from veneer.methods.anatomy import num_positions
from veneer.training.numbers import NumberLayer, put_number_layer

LEAST_TOKENS = 4
"""Room that a text must have: a token each at its start and end, and something between."""
NUMBER = "number"
"""What a regression model's configuration calls its one output."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A pretrained model with a head for classes, or for one number, in eval mode and float32."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: tuple[str, ...]
    """Names of the modules that `from_pretrained` initialised anew, or of the head that the model came with."""
    is_head_new: bool
    number_layer: NumberLayer | None = None
    """The last layer of a head for one number."""


def quieten() -> None:
    """Keep what transformers says and draws by itself off the terminal."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load_classifier(source: ModelSource, labels: Sequence[str], *, seed: int, attention: str) -> Classifier:
    """Return the model at `source` with a head for `labels`, the head's start drawn with `seed`.

    Without labels the head has one output, a number.

    Raises:
        DataError: the folder holds no model that can classify text.
        DownloadError: the hub could not be reached.
    """
    quieten()
    torch.manual_seed(seed)
    outputs = labels or (NUMBER,)
    try:
        config = AutoConfig.from_pretrained(
            source.location,
            trust_remote_code=False,
            num_labels=len(outputs),
            id2label=dict(enumerate(outputs)),
            label2id={label: number for number, label in enumerate(outputs)},
            problem_type=None if labels else "regression",
        )
        tokenizer = AutoTokenizer.from_pretrained(source.location, trust_remote_code=False)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source.location,
            config=config,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation=attention,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # for a broken folder transformers raises many kinds, none of them ours
        raise loading_error(source, error) from None
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise DataError(f"{source.name} has no usable tokenizer: put its tokenizer.json beside its config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    new = {*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}
    head = new_modules(model, new) or existing_head(model)
    if problems := _gaps(model, new, head):
        raise DataError(gathered(f"{source.name} cannot be used as a pretrained classifier:", problems))
    number_layer = None if labels else put_number_layer(model, head)
    return Classifier(
        model=model.eval(), tokenizer=tokenizer, head=head, is_head_new=bool(new), number_layer=number_layer
    )


def _gaps(model: nn.Module, new: set[str], head: Sequence[str]) -> list[str]:
    """Return what the checkpoint lacks that training a head cannot make good."""
    if not head:
        return ["no classification head was found"]
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    new_share = sum(size for name, size in sizes.items() if name in new) / sum(sizes.values())
    if new_share > 0.5:
        return [f"{new_share:.0%} of its weights are missing"]
    return [
        f"{name} is missing, in a module whose other weights are there"
        for name in sizes
        if name in new and not any(name.startswith(module + ".") for module in head)
    ]


def new_modules(model: nn.Module, new: set[str]) -> tuple[str, ...]:
    """Return the largest modules all of whose parameters are in `new`, in the model's order."""
    found: list[str] = []
    for name, module in model.named_modules():
        parameters = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
        inside = any(name.startswith(outer + ".") for outer in found)
        if name and parameters and not inside and new.issuperset(parameters):
            found.append(name)
    return tuple(found)


def existing_head(model: nn.Module) -> tuple[str, ...]:
    """Return the head of a model that came with one of the right size."""
    return tuple(name for name, _ in model.named_children() if name in HEAD_NAMES)


def readable_tokens(model: nn.Module, wanted: int, *, added: int = 0) -> int:
    """Return `wanted`, or the number of tokens that a text may have where the model's positions end, if that is fewer.

    Args:
        model: the pretrained model.
        wanted: how long texts may be otherwise.
        added: by how many tokens the method lengthens every text.

    Raises:
        ConfigError: hardly any token of the text would be left.
    """
    positions = num_positions(model)
    if positions is None:
        return wanted
    if positions - added < min(LEAST_TOKENS, positions):
        raise ConfigError(f"{added} trained tokens leave no room for text in the model's {positions} positions")
    return min(wanted, positions - added)


def loading_error(
    source: ModelSource, error: Exception, how: str = "as a text classifier"
) -> DataError | DownloadError:
    """Return what to tell the user when `transformers` could not load `source`."""
    reason = first_line(error)
    if Path(source.location).is_dir():
        return DataError(f"{source.name} cannot be loaded {how}: {reason}; repair the folder")
    found = f"no folder {source.name} is here, and the model could not be fetched from the hub"
    return DownloadError(f"{found}: {reason}")
