"""PEFT's `adapter_config.json`, all 41 keys of it: read, written, inert, or refused.

Reading checks what each key holds and returns the settings as they stand; `declared_config` makes of them the
`LoraConfig` by which PEFT looks up rank and scaling of a layer. Which layers there are, the tensors decide: neither
`target_modules` as a regular expression nor `layers_to_transform` is evaluated. The keys of `rank_pattern` and
`alpha_pattern` are regular expressions that have to be; those that could take very long are refused.

Source: `LoraConfig` and `get_pattern_key` of peft 0.21.2.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from veneer.errors import AdapterFormatError, ConfigError, gathered
from veneer.formats.tensors import distinct
from veneer.lora.config import LoraConfig
from veneer.lora.state import AdapterState

LAYOUT_VERSION = "0.21.2"

INERT: Mapping[str, Any] = {
    "auto_mapping": None,
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_ga_config": None,
    "megatron_core": "megatron.core",
    "peft_version": LAYOUT_VERSION,
    "qalora_group_size": 16,
    "revision": None,
}
"""Settings that say nothing the tensors do not say, or matter to a start of training only, with what is written."""

NEUTRAL: Mapping[str, Any] = {
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "layer_replication": None,
    "lora_bias": False,
    "megatron_config": None,
    "monteclora_config": None,
    "use_bdlora": None,
    "use_qalora": False,
    "velora_config": None,
}
"""Settings that change what the adapter computes and are not supported, at the values that switch them off."""

BASE_KEEPING_INITS = (True, False, "gaussian", "orthogonal", "eva", "mica")
"""Values of `init_lora_weights` that leave the base weights alone; the others need a changed base model."""

AUTOMATIC_HEADS = frozenset({"classifier", "score"})
"""Names PEFT adds to `modules_to_save` for classification tasks whether or not the model has them."""

MAX_PATTERN_LENGTH = 200
MAX_CHOICES = 4
MAX_STEPS = 1e9
"""Matching a pattern with k repeats takes up to the (k + 1)-th power of the name's length in steps, for each way
through its alternatives."""

_PATTERN_TOKENS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d*,?\d*\}|.", re.DOTALL)
_REPEAT = re.compile(r"[*+?]|\{(?=.*\d).+\}")
_BACKREFERENCE = re.compile(r"\\[1-9]")
_OFF: tuple[Any, ...] = (None, False, [], {})


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


_FORMS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "alpha_pattern": (lambda value: isinstance(value, dict), "an object: name -> alpha"),
    "base_model_name_or_path": (_is_text, "a text"),
    "exclude_modules": (lambda value: _is_names(value) or _is_text(value), "a list of names or a regular expression"),
    "modules_to_save": (_is_names, "a list of names"),
    "peft_version": (_is_text, "a text"),
    "rank_pattern": (lambda value: isinstance(value, dict), "an object: name -> rank"),
    "target_modules": (lambda value: _is_names(value) or _is_text(value), "a list of names or a regular expression"),
    "target_parameters": (_is_names, "a list of names"),
    "task_type": (_is_text, "a text"),
    "trainable_token_indices": (
        lambda value: isinstance(value, list | dict),
        "a list of token ids, or an object: name -> such a list",
    ),
    "use_dora": (_is_flag, "true or false"),
    "use_rslora": (_is_flag, "true or false"),
}
"""What a setting that is read must be, where it is not null and `LoraConfig` does not check it."""

TAKEN = frozenset(_FORMS) - {"peft_version"} | {
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
}
"""Settings that are read and written."""


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of an `adapter_config.json`, each understood.

    Raises:
        AdapterFormatError: the file is not JSON or not PEFT's, or it has settings that are absent, malformed, unknown,
            or would change what the adapter computes; all are named.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise AdapterFormatError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise AdapterFormatError(f"{path} is not PEFT's: it has no 'peft_type'; only PEFT's LoRA folders can be read")
    if problems := setting_problems(settings):
        raise AdapterFormatError(gathered(f"{path} cannot be used:", problems))
    return settings


def declared_config(settings: Mapping[str, Any], path: Path) -> LoraConfig:
    """Return the config under whose patterns each layer has the rank and the scaling that PEFT gives it; no targets.

    Raises:
        AdapterFormatError: a value is outside what is allowed; all are named.
    """
    dropout, bias = settings.get("lora_dropout"), settings.get("bias")
    try:
        return LoraConfig(
            r=settings["r"],
            alpha=settings["lora_alpha"],
            dropout=0.0 if dropout is None else dropout,
            targets=(),
            rank_pattern=settings.get("rank_pattern") or {},
            alpha_pattern=settings.get("alpha_pattern") or {},
            scaling="rslora" if settings.get("use_rslora") else "lora",
            variant="dora" if settings.get("use_dora") else "lora",
            bias="none" if bias is None else bias,
        )
    except ConfigError as error:
        raise AdapterFormatError(f"{path} cannot be used: {error}") from None


def settings_text(
    state: AdapterState,
    config: LoraConfig,
    *,
    targets: str | Iterable[str],
    exclude: str | Iterable[str],
    parameters: Iterable[str],
) -> str:
    """Return `adapter_config.json` for a state: every key peft 0.21.2 writes. Same state, same text.

    Args:
        state: the adapter.
        config: its config, with the ranks and scalings of layers as PEFT sees them.
        targets: `target_modules`.
        exclude: `exclude_modules`.
        parameters: `target_parameters`.
    """
    loose_biases = config.bias == "none" and any(
        name.endswith("bias") and not name.startswith(tuple(f"{module}." for module in state.trained_modules))
        for name in state.trained
    )
    settings = {
        **NEUTRAL,
        **INERT,
        "alpha_pattern": {key: _number(value) for key, value in config.alpha_pattern.items()},
        "base_model_name_or_path": state.base_model,
        "bias": "all" if loose_biases else config.bias,
        "exclude_modules": _as_json(exclude) or None,
        "init_lora_weights": True,
        "lora_alpha": _number(config.alpha),
        "lora_dropout": 0.0 if list(parameters) else config.dropout,  # PEFT refuses dropout beside parameters
        "modules_to_save": sorted(state.trained_modules) or None,
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": dict(config.rank_pattern),
        "target_modules": _as_json(targets),
        "target_parameters": list(parameters) or None,
        "task_type": state.task_type,
        "trainable_token_indices": {name: rows.ids.tolist() for name, rows in state.token_rows.items()} or None,
        "use_dora": any(update.magnitude is not None for update in state.updates.values()),
        "use_rslora": config.scaling == "rslora",
    }
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def setting_problems(settings: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that is absent, malformed, unknown or not supported."""
    found = []
    if settings.get("peft_type", "LORA") != "LORA":
        found.append(f"peft_type is {settings['peft_type']!r}; only 'LORA' can be read")
    found += [f"{key} is missing" for key in ("r", "lora_alpha") if key not in settings]
    if settings.get("init_lora_weights", True) not in BASE_KEEPING_INITS:
        found.append(f"init_lora_weights={settings['init_lora_weights']!r} needs a base model with changed weights")
    for key, value in sorted(settings.items()):
        accepts, wanted = _FORMS.get(key, (None, ""))
        if accepts is not None and value is not None and not accepts(value):
            found.append(f"{key}={value!r} must be {wanted}")
        elif key in NEUTRAL and value != NEUTRAL[key] and value not in _OFF:
            found.append(f"{key}={value!r} is not supported")
        elif key not in NEUTRAL.keys() | INERT.keys() | TAKEN and value not in _OFF:
            found.append(f"{key}={value!r} is unknown; it could change what the adapter computes")
    return found + pattern_problems(settings)


def pattern_problems(settings: Mapping[str, Any], longest: int = 0) -> list[str]:
    """Return a line for each pattern that could take very long to match or would mean something else here.

    Args:
        settings: as they were read.
        longest: letters of the longest name that is matched.
    """
    return [
        f"{key}: {pattern[:MAX_PATTERN_LENGTH]!r} {problem}; give the layers' full names"
        for key in ("rank_pattern", "alpha_pattern")
        if isinstance(patterns := settings.get(key), dict)
        for pattern in patterns
        if (problem := _pattern_problem(pattern, longest))
    ]


def _pattern_problem(pattern: str, longest: int) -> str | None:
    if len(pattern) > MAX_PATTERN_LENGTH:
        return f"is longer than {MAX_PATTERN_LENGTH} characters"
    choices, previous, closed, steps = 0, "", False, longest
    ambiguous = [False]  # for each open group whether it can match one text in several ways
    branches = [1]  # and how many alternatives it has so far
    for token in _PATTERN_TOKENS.findall(pattern):
        if _BACKREFERENCE.fullmatch(token):
            return "refers back to a group"
        repeats = bool(_REPEAT.fullmatch(token)) and previous != "(" and not _REPEAT.fullmatch(previous)
        if repeats and closed:
            return "repeats a group that itself repeats or chooses"
        choices += repeats or (token == "|" and not ambiguous[-1])
        steps *= longest if repeats else 1
        branches[-1] += token == "|"
        ambiguous[-1] |= repeats or token == "|"
        closed, previous = False, token
        if token == "(":
            ambiguous.append(False)
            branches.append(1)
        elif token == ")" and len(ambiguous) > 1:
            steps *= branches.pop()
            closed = ambiguous.pop()
            ambiguous[-1] |= closed
    if choices > MAX_CHOICES:
        return f"repeats and chooses more than {MAX_CHOICES} times"
    if steps * branches[0] > MAX_STEPS:
        return f"repeats and chooses {choices} times, too often for names of {longest} letters"
    return None


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _as_json(terms: str | Iterable[str]) -> str | list[str]:
    return terms if isinstance(terms, str) else list(terms)
