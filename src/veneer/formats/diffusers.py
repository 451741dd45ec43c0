"""diffusers' LoRA files, new and old names, read.

    <component>.<module>.lora_A.weight (r, in)           <component>.<module>.lora_B.weight (out, r)
    <component>.<module>.lora.down.weight                ....lora.up.weight
    <component>.<module>.lora_linear_layer.down.weight   ....lora_linear_layer.up.weight
    <component>.<attention>.processor.to_q_lora.down.weight and so for k, v and out
    <component>.<module>.alpha                           one number

A component is one model of a pipeline; a file without any component's name is that of the one asked for. Convolutions
have A (r, in, *kernel) and B (out, r, 1, ...).

The scaling is alpha / r. Newer files carry their settings in the metadata, older ones `.alpha` tensors or nothing: then
alpha was passed beside the file, and without it alpha = r for each layer, a scaling of 1 as in kohya's files, also
where ranks differ. (diffusers itself once took the most common rank as the alpha of all layers.)

Source: huggingface/diffusers, utils/state_dict_utils.py and loaders/lora_base.py.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from veneer.errors import AdapterFormatError, ConfigError, gathered
from veneer.formats.kohya import alpha_of, factor_of, scaled_pairs
from veneer.formats.loralib import Pairs
from veneer.formats.peft_settings import setting_problems
from veneer.formats.pickles import read_weights
from veneer.formats.tensors import distinct
from veneer.lora.config import LoraConfig
from veneer.lora.selectors import PLAIN_KEY
from veneer.lora.state import AdapterState, LowRank, config_for

Component = Literal["unet", "transformer", "text_encoder", "text_encoder_2"]
COMPONENTS: tuple[Component, ...] = ("unet", "transformer", "text_encoder", "text_encoder_2")
PARTS: Mapping[str, str] = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora.down.weight": "A",
    ".lora.up.weight": "B",
    ".lora_linear_layer.down.weight": "A",
    ".lora_linear_layer.up.weight": "B",
    "_lora.down.weight": "A",
    "_lora.up.weight": "B",
    ".alpha": "alpha",
}
"""How a key ends -> what it is. An old projection's name follows: `to_q_lora` is `to_q`."""
OLD_NAMES: Mapping[str, str] = {"to_out": "to_out.0"}
OLD_TEXT_NAMES: Mapping[str, str] = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""The module that an old projection's name stands for, in a denoiser and in a text encoder."""
METADATA_KEY = "lora_adapter_metadata"


def read_diffusers(
    path: Path, *, component: Component = "unet", alphas: Mapping[str, float] | None = None
) -> AdapterState:
    """Read one component's LoRA out of a diffusers file.

    Args:
        path: the file, such as pytorch_lora_weights.safetensors.
        component: which model of the pipeline; the tensors of the other COMPONENTS are left out.
        alphas: module name -> alpha, where they were kept beside the file.

    Raises:
        AdapterFormatError: the file is broken, holds what is not plain LoRA, or has alphas in two places; all is named.
    """
    if component not in COMPONENTS:
        raise AdapterFormatError(f"component is {component!r}; it must be one of {', '.join(COMPONENTS)}")
    tensors, metadata = read_weights(path)
    problems: list[str] = []
    pairs: Pairs = {}
    stored_alphas: dict[str, float] = {}
    for key, tensor in sorted(_of_component(tensors, component, problems).items()):
        name, part = _module_and_part(key, component)
        if part is None:
            problems.append(f"{key} is no part of a plain LoRA")
        elif part == "alpha":
            stored_alphas[name] = alpha_of(key, tensor, problems)
        elif part in pairs.setdefault(name, {}):
            problems.append(f"{key} is there a second time under another name")
        else:
            pairs[name][part] = tensor
    settings = _settings(metadata, component, problems)
    beside = {n: torch.tensor(float(alpha), dtype=torch.float64) for n, alpha in (alphas or {}).items()}
    given = {name: alpha_of(f"alphas[{name!r}]", value, problems) for name, value in beside.items()}
    if sum(map(bool, (settings, stored_alphas, given))) > 1:
        problems.append("alphas stand in two places: in tensors, in the metadata, or in alphas=...; one must do")
    chosen = {**stored_alphas, **given}
    problems += [f"{n} has an alpha, but no A and B" for n in sorted(chosen.keys() - pairs.keys())]
    updates = scaled_pairs(pairs, problems)
    config = _config(updates, settings, chosen, problems)
    if problems:
        raise AdapterFormatError(gathered(f"{path} cannot be used:", sorted(problems)))
    return AdapterState(config=config, updates=updates)


def _of_component(tensors: Mapping[str, Tensor], component: str, problems: list[str]) -> dict[str, Tensor]:
    """Return the tensors of the component by their names in it."""
    by_component: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        first, _, rest = key.partition(".")
        known = first in COMPONENTS
        by_component.setdefault(first if known else "", {})[rest if known else key] = tensor
    unnamed = by_component.pop("", {})
    if not by_component:
        return unnamed
    problems += [f"{key} belongs to none of the components {', '.join(COMPONENTS)}" for key in unnamed]
    if component not in by_component:
        problems.append(f"it holds no {component}, only {', '.join(sorted(by_component))}")
    return by_component.get(component, {})


def _module_and_part(key: str, component: str) -> tuple[str, str | None]:
    """Return the module that a key belongs to, and which part of its update it is, None where it is none."""
    ending = next((ending for ending in PARTS if key.endswith(ending)), None)
    if ending is None:
        return key, None
    module = key.removesuffix(ending).replace(".processor.", ".")
    is_old = ending.startswith("_") or module.endswith("_lora")
    if is_old:
        parent, dot, last = module.removesuffix("_lora").rpartition(".")
        names = OLD_TEXT_NAMES if component.startswith("text_encoder") else OLD_NAMES
        module = f"{parent}{dot}{names.get(last, last)}"
    return module, PARTS[ending]


def _settings(metadata: Mapping[str, str], component: str, problems: list[str]) -> dict[str, Any]:
    """Return the component's PEFT settings from the metadata, empty where there are none."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        content = json.loads(text, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        problems.append(f"the metadata's {METADATA_KEY} is not valid JSON: {error}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"the metadata's {METADATA_KEY} holds no settings")
        return {}
    if any(key.partition(".")[0] in COMPONENTS for key in content):
        start = f"{component}."
        content = {key.removeprefix(start): value for key, value in content.items() if key.startswith(start)}
    found = [] if not content else setting_problems(content)
    found += ["use_dora=True is not supported"] if content.get("use_dora") is True else []
    problems += [f"{line} (in the metadata)" for line in found]
    return {} if found else content


def _config(
    updates: Mapping[str, LowRank], settings: Mapping[str, Any], alphas: Mapping[str, float], problems: list[str]
) -> LoraConfig:
    """Return the config of all layers: by the metadata's settings, or by an alpha for each."""
    if not settings:
        return config_for(updates, {name: factor_of(alphas.get(name, 0.0), u.rank) for name, u in updates.items()})
    patterns = {key: settings.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
    keys = [key for pattern in patterns.values() if isinstance(pattern, dict) for key in pattern]
    if strange := [key for key in keys if not PLAIN_KEY.fullmatch(key)]:  # of unknown cost to match
        problems.append(f"patterns in the metadata must be plain names; {', '.join(strange):.200} is not")
        return LoraConfig()
    try:
        rule = LoraConfig(
            r=settings.get("r"),  # type: ignore[arg-type]
            alpha=settings.get("lora_alpha"),  # type: ignore[arg-type]
            scaling="rslora" if settings.get("use_rslora") else "lora",
            rank_pattern=patterns["rank_pattern"],
            alpha_pattern=patterns["alpha_pattern"],
        )
        config = config_for(updates, {name: rule.factor_of(name) for name in updates}, rule)
    except ConfigError as error:
        problems.append(f"the metadata's settings: {error}")
        return LoraConfig()
    ranks = {name: rule.rank_of(name) for name in updates}
    problems += [
        f"{name} has rank {update.rank}, but the metadata says {ranks[name]}"
        for name, update in updates.items()
        if update.rank != ranks[name]
    ]
    return config
