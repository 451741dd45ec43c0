"""PEFT's adapter folder, read and written.

    <folder>/adapter_config.json        the settings
    <folder>/adapter_model.safetensors  base_model.model.<module>.lora_A.weight (r, in), .lora_B.weight (out, r),
                                        base_model.model.<parameter> for modules trained whole

Reading is strict: every tensor is understood or the folder is refused, and so is every setting that would change the
maths and is not supported; all problems are named together. Nothing is unpickled: `adapter_model.bin` is not read.

Source: the files peft 0.21.2 writes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from veneer.errors import AdapterFormatError, ConfigError, gathered
from veneer.files import write_bytes, write_text
from veneer.lora.config import LoraConfig
from veneer.lora.state import AdapterState, LowRank

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
LAYOUT_VERSION = "0.21.2"
KEY_PREFIX = "base_model.model."
WRAPPER_PARTS = ("_orig_mod.", "_fsdp_wrapped_module.")
"""What torch.compile and FSDP put into module names; not part of the model's own names."""

UNDERSTOOD_KEYS = frozenset(
    {
        "base_model_name_or_path",
        "exclude_modules",
        "init_lora_weights",
        "lora_alpha",
        "lora_dropout",
        "modules_to_save",
        "peft_type",
        "r",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
INERT: Mapping[str, Any] = {
    "auto_mapping": None,
    "ensure_weight_tying": False,
    "inference_mode": True,
    "megatron_core": "megatron.core",
    "peft_version": LAYOUT_VERSION,
    "qalora_group_size": 16,
    "revision": None,
}
"""Settings that change nothing as long as the NEUTRAL ones keep their values, with what is written for them."""

NEUTRAL: Mapping[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "bias": "none",
    "corda_config": None,
    "eva_config": None,
    "fan_in_fan_out": False,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_bias": False,
    "lora_ga_config": None,
    "megatron_config": None,
    "monteclora_config": None,
    "rank_pattern": {},
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "velora_config": None,
}
"""Settings that are not supported, at the values that switch them off."""

BASE_KEEPING_INITS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base weights alone; the others need a changed base model."""

AUTOMATIC_HEADS = frozenset({"classifier", "score"})
"""Names PEFT adds to `modules_to_save` for classification tasks whether or not the model has them."""


def write_peft(adapter: AdapterState, folder: Path) -> None:
    """Write `adapter` as a PEFT folder, replacing the two files if they are there. Same state, same bytes.

    Raises:
        OSError: the folder cannot be written.
    """
    tensors = {f"{KEY_PREFIX}{name}": tensor for name, tensor in adapter.trained.items()}
    for name, (A, B) in adapter.updates.items():
        tensors[f"{KEY_PREFIX}{name}.lora_A.weight"] = A
        tensors[f"{KEY_PREFIX}{name}.lora_B.weight"] = B
    contiguous = {name: tensors[name].contiguous() for name in sorted(tensors)}
    config = adapter.config
    settings = {
        **NEUTRAL,
        **INERT,
        "base_model_name_or_path": adapter.base_model,
        "exclude_modules": _as_json(config.exclude) or None,
        "init_lora_weights": True,
        "lora_alpha": int(config.alpha) if config.alpha.is_integer() else config.alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": list(adapter.trained_modules) or None,
        "peft_type": "LORA",
        "r": config.r,
        "target_modules": _as_json(config.targets),
        "task_type": adapter.task_type,
        "use_rslora": config.scaling == "rslora",
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / TENSOR_FILE, safetensors.torch.save(contiguous, metadata={"format": "pt"}))
    write_text(folder / CONFIG_FILE, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def read_peft(folder: Path) -> AdapterState:
    """Read a PEFT folder.

    Raises:
        AdapterFormatError: the folder is not one, is broken, or asks for what is not supported; all is named.
    """
    settings = _read_config(folder)
    if problems := _setting_problems(settings):
        raise AdapterFormatError(gathered(f"{folder / CONFIG_FILE} cannot be used:", problems))
    updates, trained = _sorted_tensors(folder / TENSOR_FILE)
    modules = _trained_modules(settings.get("modules_to_save") or [], trained, folder)
    targets = settings.get("target_modules")
    if targets is None or settings.get("exclude_modules"):  # PEFT's exclude has rules of its own; the tensors decide
        targets = list(updates)
    try:
        config = LoraConfig(
            r=settings["r"],
            alpha=settings["lora_alpha"],
            dropout=settings.get("lora_dropout", 0.0),
            targets=_sorted_selector(targets),
            scaling="rslora" if settings.get("use_rslora") else "lora",
        )
    except ConfigError as error:
        raise AdapterFormatError(f"{folder / CONFIG_FILE} cannot be used: {error}") from None
    return AdapterState(
        config=config,
        updates=updates,
        trained=trained,
        trained_modules=modules,
        base_model=settings.get("base_model_name_or_path"),
        task_type=settings.get("task_type"),
    )


def _as_json(selector: object) -> object:
    return list(selector) if isinstance(selector, tuple) else selector


def _sorted_selector(selector: str | list[str]) -> str | tuple[str, ...]:
    return selector if isinstance(selector, str) else tuple(sorted(selector))


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the settings of a folder that has both files, or say what it is instead."""
    if not folder.is_dir():
        raise AdapterFormatError(f"no adapter folder at {folder}: give the folder that holds {CONFIG_FILE}")
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise AdapterFormatError(f"{folder} is not an adapter: it holds no {CONFIG_FILE}")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise AdapterFormatError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise AdapterFormatError(f"{path} is not PEFT's: it has no 'peft_type'; only PEFT's LoRA folders can be read")
    if not (folder / TENSOR_FILE).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        reason = (
            "adapter_model.bin is a pickle, which can run code; save it again as safetensors" if pickled else "missing"
        )
        raise AdapterFormatError(f"{folder / TENSOR_FILE}: {reason}")
    return settings


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _setting_problems(settings: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that is absent, unknown or would change what the adapter computes."""
    found = []
    if settings["peft_type"] != "LORA":
        found.append(f"peft_type is {settings['peft_type']!r}; only 'LORA' can be read")
    found += [f"{key} is missing" for key in ("r", "lora_alpha") if key not in settings]
    if settings.get("init_lora_weights", True) not in BASE_KEEPING_INITS:
        found.append(f"init_lora_weights={settings['init_lora_weights']!r} needs a base model with changed weights")
    for key, value in sorted(settings.items()):
        if key in NEUTRAL and value != NEUTRAL[key] and value not in (None, False, [], {}):
            found.append(f"{key}={value!r} is not supported")
        elif key not in NEUTRAL.keys() | INERT.keys() | UNDERSTOOD_KEYS and value not in (None, False, [], {}):
            found.append(f"{key}={value!r} is unknown; it could change what the adapter computes")
    if not isinstance(settings.get("use_rslora", False), bool):
        found.append(f"use_rslora={settings['use_rslora']!r} must be true or false")
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        value = settings.get(key)
        names = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(name, str) for name in names):
            found.append(f"{key}={value!r} must be a list of names")
    if isinstance(settings.get("modules_to_save"), str):
        found.append("modules_to_save must be a list of names")
    return found


def _sorted_tensors(path: Path) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """Return A and B by layer, and the other tensors by name; all in memory, none mapped to the file."""
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except (SafetensorError, KeyError, NotImplementedError) as error:  # the last two: a dtype torch does not know
        raise AdapterFormatError(f"{path} is truncated or not a safetensors file that torch reads: {error}") from None
    problems = []
    parts: dict[str, dict[str, Tensor]] = {}
    trained: dict[str, Tensor] = {}
    seen: set[str] = set()
    for key, tensor in tensors.items():
        name = key.removeprefix(KEY_PREFIX)
        for wrapper in WRAPPER_PARTS:
            name = name.replace(wrapper, "")
        layer, _, part = name.rpartition(".lora_")
        if name in seen:
            problems.append(f"{key} is there a second time under another prefix")
        seen.add(name)
        if part in ("A.weight", "B.weight"):
            parts.setdefault(layer, {})[part[0]] = tensor
            if not tensor.is_floating_point() or tensor.ndim != 2:
                problems.append(f"{key} has shape {tuple(tensor.shape)} and {tensor.dtype}; A and B are float matrices")
        elif layer or ".base_layer." in name:
            problems.append(f"{key} is of a kind that is not supported")
        else:
            trained[name] = tensor
    problems += [f"{layer}: lora_{'AB'['A' in p]} is missing" for layer, p in parts.items() if len(p) == 1]
    if not tensors:
        problems.append("it holds no tensors")
    if problems:
        raise AdapterFormatError(gathered(f"{path} cannot be used:", sorted(problems)))
    return {layer: LowRank(p["A"], p["B"]) for layer, p in sorted(parts.items())}, dict(sorted(trained.items()))


def _trained_modules(listed: list[str], trained: Mapping[str, Tensor], folder: Path) -> tuple[str, ...]:
    """Return the full names of the modules that the tensors trained whole belong to."""
    modules: set[str] = set()
    homeless = []
    for name in trained:
        parts = name.split(".")
        prefixes = (".".join(parts[:end]) for end in range(1, len(parts)))
        home = next((p for p in prefixes if p.endswith(tuple(listed))), None)  # PEFT's rule: at no boundary
        if home is None:
            homeless.append(f"{name} belongs to no module in modules_to_save={listed!r}")
        else:
            modules.add(home)
    missing = [m for m in listed if not any(home.endswith(m) for home in modules)]
    automatic = AUTOMATIC_HEADS if any(home.endswith(tuple(AUTOMATIC_HEADS)) for home in modules) else frozenset()
    homeless += [f"modules_to_save names {m!r}, but no tensor of it is there" for m in missing if m not in automatic]
    if homeless:
        raise AdapterFormatError(gathered(f"{folder} cannot be used:", homeless))
    return tuple(sorted(modules))
