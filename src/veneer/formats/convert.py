"""Every format of adapter files in one table: told apart, read, and written anew as one that can be loaded.

    peft          a folder, its adapter_config.json with "peft_type"
    adapter-hub   a folder, its adapter_config.json with "config" instead
    kohya         a file: lora_unet_..., or .lora_down, .hada_ and .lokr_ of another prefix
    loralib       a file: <module>.lora_A
    diffusers     a file: lora_A.weight or lora.down.weight under unet., transformer. or text_encoder.

A folder is told by its settings and a file by the names of its tensors. Whether it can be used, its reader says. A
pickle is opened only where the options say so, and then no further than `pickles.py` goes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from safetensors import SafetensorError, safe_open

from veneer.errors import AdapterFormatError, ConfigError, gathered, unknown_name
from veneer.formats.adapterhub import TENSOR_FILES, read_adapterhub
from veneer.formats.diffusers import COMPONENTS, Component, read_diffusers
from veneer.formats.diffusers import PARTS as DIFFUSERS_PARTS
from veneer.formats.kohya import PREFIXES, read_kohya
from veneer.formats.loralib import Fused, read_loralib
from veneer.formats.peft import CONFIG_FILE, TENSOR_FILE, read_peft, state_from
from veneer.formats.peft_settings import read_settings
from veneer.formats.peft_writing import write_peft
from veneer.formats.pickles import READERS, read_weights
from veneer.formats.vllm import write_vllm
from veneer.lora.state import AdapterState

SAFE_ENDING = ".safetensors"
PICKLED_PEFT = "adapter_model.bin"
PICKLES_BESIDE = {PICKLED_PEFT: TENSOR_FILE, TENSOR_FILES[1]: TENSOR_FILES[0]}
"""A folder's pickle, which is read only where the safetensors file is missing."""

METHOD_FILE = "method.safetensors"
"""What `veneer train` writes for a method that is not LoRA alone; it is told from adapters, not read here."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What an adapter's files may not say themselves. A format refuses what it has no use for."""

    alpha: float | None = None
    """The scaling is alpha / r."""
    r: int | None = None
    """The rank, to be checked."""
    fused: Fused = field(default_factory=dict)
    """Name of a fused projection -> which of its slices are adapted."""
    embeddings: tuple[str, ...] = ()
    """Names of embeddings."""
    model: tuple[str, ...] = ()
    """Names of all modules of the model that the adapter is for."""
    component: str | None = None
    """Which model of a file that holds several; see `models_in`."""
    pickles: bool = False
    """Whether weights in a pickle may be read; for every format."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How adapters in one format are read."""

    read: Callable[[Path, ReadOptions], AdapterState]
    takes: frozenset[str] = frozenset()
    """The options that say something for this format."""
    needs: str = ""
    """What `veneer convert` has to be told besides the path."""
    model_of: Callable[[str], str | None] | None = None
    """Name of a tensor -> the model it is for, in files that may hold several."""


def sniff(path: Path, *, pickles: bool = False) -> str:
    """Return the format of the adapter at `path`, a name in FORMATS.

    Args:
        path: a folder or a file. A folder whose settings are not AdapterHub's counts as PEFT's, whatever it lacks.
        pickles: whether a pickle may be opened to look for names.

    Raises:
        AdapterFormatError: nothing is there, or nothing that is known.
    """
    if not path.exists():
        raise AdapterFormatError(f"no adapter folder at {path}, and no file: give the path of an adapter")
    if path.is_dir():
        if (path / METHOD_FILE).is_file():
            what = f"holds {METHOD_FILE}, what a method trained that is not LoRA alone"
            raise AdapterFormatError(f"{path} {what}: no format of adapters has it; use veneer evaluate or predict")
        return "adapter-hub" if _has_adapterhub_settings(path) else "peft"
    names = tensor_names(path, pickles=pickles)
    for found, sign in FILE_SIGNS.items():
        if any(map(sign, names)):
            if found in FORMATS:
                return found
            raise AdapterFormatError(f"{path} is {found}; give the folder that it belongs in, with its {CONFIG_FILE}")
    known = ", ".join(FORMATS)
    shown = ", ".join(sorted(names)[:3]) or "nothing"
    raise AdapterFormatError(f"{path} holds {shown}: no format has such names; if it is one of {known}, say which")


def read_any(path: Path, *, file_format: str | None = None, options: ReadOptions | None = None) -> AdapterState:
    """Read an adapter in any format.

    Args:
        path: its folder or file.
        file_format: a name in FORMATS; None means what `sniff` finds.
        options: what the files do not say.

    Raises:
        UnknownNameError: there is no such format.
        ConfigError: an option is given that the format has no use for, or one is outside what is allowed.
        AdapterFormatError: the files are broken, hold what is not supported, or would have to be unpickled.
    """
    given = ReadOptions() if options is None else options
    if file_format is not None and file_format not in FORMATS:
        raise unknown_name("adapter format", file_format, FORMATS)
    if not given.pickles and (pickled := _pickle_at(path)):
        advice = f"type `veneer convert {path} OUTPUT`, which reads the weights in it and nothing else, and use OUTPUT"
        raise AdapterFormatError(f"{pickled} is a pickle, which can run code; {advice}")
    name = file_format or sniff(path, pickles=given.pickles)
    takers = {option: [n for n, f in FORMATS.items() if option in f.takes] for option in _optional(given)}
    useless = [
        f"{option} is for {', '.join(takers[option])}; leave it out" for option in takers if name not in takers[option]
    ]
    if useless:
        raise ConfigError(gathered(f"{path} is in the format {name}, which says this itself:", useless))
    return FORMATS[name].read(path, given)


def models_in(path: Path, file_format: str, *, pickles: bool = False) -> tuple[str, ...]:
    """Return the names of the models that a file of kohya's or diffusers' holds updates of; of other formats none.

    Raises:
        AdapterFormatError: the file cannot be read.
    """
    model_of = FORMATS[file_format].model_of
    if model_of is None:
        return ()
    return tuple(sorted({model for name in tensor_names(path, pickles=pickles) if (model := model_of(name))}))


def tensor_names(path: Path, *, pickles: bool = False) -> frozenset[str]:
    """Return the names of the tensors in a file; of a safetensors file only the header is read.

    Raises:
        AdapterFormatError: the file is broken, of an unknown kind, or a pickle that may not be opened.
    """
    if path.suffix.lower() == SAFE_ENDING:
        try:
            with safe_open(path, framework="pt") as file:
                return frozenset(file.keys())
        except SafetensorError as error:
            raise AdapterFormatError(f"{path} is truncated or not a safetensors file: {error}") from None
    if not pickles and _pickle_at(path):
        raise AdapterFormatError(f"{path} is a pickle, which can run code; type `veneer convert {path} OUTPUT`")
    tensors, _ = read_weights(path)
    return frozenset(tensors)


def _pickle_at(path: Path) -> Path | None:
    """Return the file that would have to be unpickled to read the adapter, or None."""
    if path.is_file():
        return path if path.suffix.lower() in READERS.keys() - {SAFE_ENDING} else None
    beside = ((path / pickled, path / safe) for pickled, safe in PICKLES_BESIDE.items())
    return next((pickled for pickled, safe in beside if pickled.is_file() and not safe.is_file()), None)


def _has_adapterhub_settings(folder: Path) -> bool:
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "config" in content and "peft_type" not in content


def _optional(options: ReadOptions) -> list[str]:
    """Return the names of the options that are given and are not for every format."""
    every = {option for file_format in FORMATS.values() for option in file_format.takes}
    return sorted(option for option in every if getattr(options, option) != getattr(ReadOptions(), option))


def _read_peft(path: Path, options: ReadOptions) -> AdapterState:
    if _pickle_at(path) != path / PICKLED_PEFT:
        return read_peft(path)
    settings = read_settings(path / CONFIG_FILE)
    return state_from(settings, *read_weights(path / PICKLED_PEFT), path)


def _read_loralib(path: Path, options: ReadOptions) -> AdapterState:
    return read_loralib(path, alpha=options.alpha, r=options.r, fused=options.fused, embeddings=options.embeddings)


def _read_kohya(path: Path, options: ReadOptions) -> AdapterState:
    if not options.model:
        advice = "say which model it is for, so that they can be looked up (--model)"
        raise ConfigError(f"{path} is a kohya file, where the dots of module names are underscores; {advice}")
    return read_kohya(path, names=options.model, prefix=_chosen_model(path, "kohya", options))


def _read_diffusers(path: Path, options: ReadOptions) -> AdapterState:
    chosen = _chosen_model(path, "diffusers", options) or COMPONENTS[0]
    return read_diffusers(path, component=cast(Component, chosen))  # which checks it


def _chosen_model(path: Path, file_format: str, options: ReadOptions) -> str | None:
    """Return which model's updates to read: the one asked for, or the only one."""
    held = models_in(path, file_format, pickles=options.pickles)
    if options.component is None and len(held) > 1:
        advice = "choose one as component (--component), the others are left out"
        raise AdapterFormatError(f"{path} holds updates of several models: {', '.join(held)}; {advice}")
    return options.component or next(iter(held), None)


def _kohya_model(name: str) -> str | None:
    return next((prefix for prefix in PREFIXES if name.startswith(f"{prefix}_")), None)


def _diffusers_model(name: str) -> str | None:
    return next((component for component in COMPONENTS if name.startswith(f"{component}.")), None)


def _is_diffusers(name: str) -> bool:
    is_old = ".processor." in name or "_lora." in name or ".lora_linear_layer." in name
    is_part = name.endswith(tuple(ending for ending in DIFFUSERS_PARTS if ending != ".alpha"))
    return is_part and (is_old or _diffusers_model(name) is not None)


FORMATS: Mapping[str, Format] = {
    "peft": Format(read=_read_peft),
    "adapter-hub": Format(read=lambda path, options: read_adapterhub(path)),
    "kohya": Format(
        read=_read_kohya, takes=frozenset({"model", "component"}), needs=" --model MODEL", model_of=_kohya_model
    ),
    "loralib": Format(
        read=_read_loralib, takes=frozenset({"alpha", "r", "fused", "embeddings"}), needs=" --alpha ALPHA"
    ),
    "diffusers": Format(read=_read_diffusers, takes=frozenset({"component"}), model_of=_diffusers_model),
}
"""The formats that are read."""

FILE_SIGNS: Mapping[str, Callable[[str], bool]] = {
    "the tensor file of a PEFT folder": lambda name: name.startswith("base_model.model."),
    "the tensor file of an AdapterHub folder": lambda name: ".loras." in name,
    "kohya": lambda name: (
        _kohya_model(name) is not None or any(part in name for part in (".lora_down.", ".hada_", ".lokr_"))
    ),
    "loralib": lambda name: name.endswith((".lora_A", ".lora_B")),
    "diffusers": _is_diffusers,
}
"""What a file is -> whether a tensor's name says so; the first that any name fits decides."""

WRITERS: Mapping[str, Callable[[AdapterState, Path], Sequence[str] | None]] = {"peft": write_peft, "vllm": write_vllm}
"""The formats that are written, each into a folder; a writer returns what it had to change, a sentence each."""
