"""An adapter and its base model made into one: a model folder like any other, for whatever loads transformers' models.

    <folder>/config.json, model.safetensors, ...   the base's configuration, and the merged weights
    <folder>/tokenizer.json, ...                   the tokenizer that lies beside the adapter, or else the base's
    <folder>/veneer.json                           the task card, where `veneer train` made the adapter

The base is loaded in float32, whatever it is stored in, so that the sums are rounded once, to the dtype asked for.
Which class of model an adapter is for, its task type says; without one, a classification head in it, or else the base.
Every weight must come from one of the two: what transformers would draw at random is refused.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from veneer.data.sources import ModelSource, Notify, find_model
from veneer.errors import (
    AdapterFormatError,
    AdapterMismatchError,
    ConfigError,
    gathered,
    unknown_name,
)
from veneer.formats.adapter import read_adapter
from veneer.formats.convert import METHOD_FILE, SAFE_ENDING, tensor_names
from veneer.formats.peft import CONFIG_FILE
from veneer.formats.peft_settings import AUTOMATIC_HEADS
from veneer.lora.inject import merge
from veneer.lora.selectors import Inside
from veneer.lora.state import AdapterState
from veneer.lora.transfer import load_state
from veneer.training.config import resolve_attention
from veneer.training.models import load_classifier, loading_error, quieten
from veneer.training.saved import CARD_FILE, TaskCard, find_trained, read_card

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MODEL_CLASSES: Mapping[str, str] = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""PEFT's name of a task -> the class of transformers that PEFT loads the base with."""
TOKENIZER_FILE = "tokenizer_config.json"


def write_merged(
    path: Path,
    folder: Path,
    *,
    model: str | None = None,
    dtype: str = "float32",
    any_base: bool = False,
    notify: Notify | None = None,
) -> str:
    """Write the model that an adapter and its base make together into an empty folder; return a line that says so.

    Args:
        path: a PEFT or AdapterHub folder, or a run folder that holds one.
        folder: where to.
        model: the base model, instead of the one that the adapter names.
        dtype: what the weights are rounded to, a name in DTYPES.
        any_base: merge also into a base with other weights than the adapter was trained on.
        notify: takes one line for the user.

    Raises:
        AdapterFormatError: there is no adapter at `path`, or a broken one.
        AdapterMismatchError: the adapter does not fit the base, or the two leave a weight without a value.
        AdapterStateError: the base's weights cannot take the update, such as quantised ones.
        ConfigError, UnknownNameError, DataError, DownloadError: there is no such base or dtype, or it cannot be had.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    found = find_trained(path)
    if (found / METHOD_FILE).is_file():
        advice = "use it by veneer evaluate, veneer predict or veneer.training.saved.load_trained"
        raise AdapterFormatError(f"{found} is no LoRA alone ({METHOD_FILE}), and nothing else is merged; {advice}")
    if not (found / CONFIG_FILE).is_file():
        raise AdapterFormatError(f"{found} is a complete model already: there is nothing to merge, use it as it is")
    card = read_card(found) if (found / CARD_FILE).is_file() else None
    adapter = read_adapter(found)
    reference = model or (adapter.base_model if card is None else card.pretrained)
    if reference is None:
        raise ConfigError(f"{found} does not say which base model it belongs to; give it by --model")
    source = find_model(reference, notify)
    network = load_base(adapter, source, card)
    load_state(network, adapter, any_base=any_base)
    merge(network)
    network.to(DTYPES[dtype])  # type: ignore[arg-type]
    if card is not None and card.task == "regression" and dtype == "bfloat16" and notify:
        notify("its numbers are rounded too: bfloat16 has every eighth year around 2000; --dtype float32 keeps them")
    network.save_pretrained(folder)
    tokenizer = (_tokenizer(found) if (found / TOKENIZER_FILE).is_file() else None) or _tokenizer(source.location)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    elif notify:
        notify(f"no tokenizer: neither {found} nor {reference} holds one")
    if card is not None:
        shutil.copyfile(found / CARD_FILE, folder / CARD_FILE)
    size = sum(file.stat().st_size for file in folder.iterdir())
    layers = f"{len(adapter.updates)} layer{'s' * (len(adapter.updates) != 1)}"
    return f"merged {layers} of {found} into {reference}: a {type(network).__name__} in {dtype}, {size:,} bytes"


def load_base(adapter: AdapterState, source: ModelSource, card: TaskCard | None = None) -> PreTrainedModel:
    """Return the base model of an adapter, of the class and with the head that the adapter is for, in float32.

    Args:
        adapter: what will be loaded onto it.
        source: where the base lies.
        card: what `veneer train` noted beside the adapter, if it did.

    Raises:
        AdapterMismatchError: a weight is neither in the base nor in the adapter; all are named.
        DataError, DownloadError, UnknownNameError: the base cannot be loaded, or not for the adapter's task.
    """
    if card is not None:
        return load_classifier(source, card.labels, seed=0, attention=resolve_attention("auto")).model
    config = _read_config(source)
    heads = Inside(name for name in adapter.trained_modules if name.rpartition(".")[2] in AUTOMATIC_HEADS)
    num_labels = min((len(t) for name, t in adapter.trained.items() if heads(name) and t.ndim == 2), default=None)
    if num_labels is not None and num_labels != config.num_labels:
        config.num_labels = num_labels
    task = adapter.task_type or ("SEQ_CLS" if num_labels is not None else None)
    if task is not None and task not in MODEL_CLASSES:
        raise unknown_name("task type", task, MODEL_CLASSES)
    model_class = _own_class(config) if task is None else getattr(transformers, MODEL_CLASSES[task])
    try:
        model, report = model_class.from_pretrained(
            source.location,
            config=config,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # for a broken folder transformers raises many kinds, none of them ours
        raise loading_error(source, error, f"by {model_class.__name__}") from None
    absent = {*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])} - adapter.trained.keys()
    if absent:
        problems = [f"{name}: the base has it not, or of another size, nor has the adapter" for name in sorted(absent)]
        headline = f"{source.name} and the adapter do not make a whole {type(model).__name__}:"
        raise AdapterMismatchError(gathered(headline, problems))
    assert isinstance(model, PreTrainedModel)
    model.train(False)
    return model


def module_names(reference: str, notify: Notify | None = None) -> tuple[str, ...]:
    """Return the names of a model's modules without reading its weights.

    Args:
        reference: a short name, a folder or a hub id, of which the configuration is read; or a safetensors file with
            a model's weights, of which the header is.
        notify: takes one line for the user when something has to be fetched.

    Raises:
        AdapterFormatError, UnknownNameError, DataError, DownloadError: there is no such model, or it cannot be had.
    """
    if reference.endswith(SAFE_ENDING):
        if not Path(reference).is_file():
            raise AdapterFormatError(f"no file at {reference}: give a model, or the safetensors file of its weights")
        return tuple(sorted({name.rpartition(".")[0] for name in tensor_names(Path(reference))}))
    source = find_model(reference, notify)
    config = _read_config(source)
    model_class = _own_class(config)
    try:
        with torch.device("meta"):
            is_general = model_class is transformers.AutoModel
            model = model_class.from_config(config) if is_general else model_class(config)
    except Exception as error:  # a configuration can be wrong in any way
        raise loading_error(source, error, f"by {model_class.__name__}") from None
    return tuple(name for name, _ in model.named_modules() if name)


def _read_config(source: ModelSource) -> Any:  # noqa: ANN401 - each family has a class of its own
    quieten()
    try:
        return AutoConfig.from_pretrained(source.location, trust_remote_code=False)
    except Exception as error:  # as above
        raise loading_error(source, error, "by AutoConfig") from None


def _own_class(config: Any) -> Any:  # noqa: ANN401 - transformers builds these classes as it goes
    """Return the class that a model was saved from, as its configuration names it."""
    named = (getattr(transformers, name, None) for name in config.architectures or ())
    return next((found for found in named if found is not None), transformers.AutoModel)


def _tokenizer(place: Path | str) -> PreTrainedTokenizerBase | None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception:  # what it raises where there is none depends on the family
        return None
    has_words = len(tokenizer) > len(set(tokenizer.all_special_ids))
    return tokenizer if has_words and isinstance(tokenizer, PreTrainedTokenizerBase) else None
