"""Adapters by path: `save` and `load` join a model and a folder, `write_adapter` and `read_adapter` a value and one."""

from os import PathLike
from pathlib import Path

from torch import nn

from veneer.errors import AdapterFormatError
from veneer.formats.convert import FORMATS, read_any, sniff
from veneer.formats.peft_writing import write_peft
from veneer.lora.plan import Plan
from veneer.lora.state import AdapterState, require_states
from veneer.lora.transfer import load_fresh, state


def save(
    model: nn.Module, path: str | PathLike[str], *, base_model: str | None = None, task_type: str | None = None
) -> None:
    """Write the adapter inside `model` as a PEFT folder at `path`. Never touches the network.

    Args:
        model: an adapted model.
        path: the folder; made if absent, its two adapter files replaced if present.
        base_model: hub id or path of the pretrained model, noted for whoever loads the adapter.
        task_type: PEFT's name of the task ("SEQ_CLS", "CAUSAL_LM", ...), noted too.

    Raises:
        AdapterStateError: the model is not adapted.
        AdapterFormatError: the adapter holds what PEFT's format cannot. Nothing is written.
        OutputExistsError: a file is where the folder should be.
    """
    write_adapter(state(model, base_model=base_model, task_type=task_type), path)


def load(model: nn.Module, path: str | PathLike[str], *, trainable: bool = False, any_base: bool = False) -> Plan:
    """Adapt the plain `model` with the adapter at `path`, whole or not at all; return the plan carried out.

    Args:
        model: the base model, not adapted yet.
        path: a PEFT folder, or an AdapterHub folder.
        trainable: whether the adapter may be trained on; otherwise everything is frozen.
        any_base: load also onto a base with other weights than the adapter was trained on.

    Raises:
        AdapterFormatError: the files are broken, ask for what is not supported, or have to be converted first.
        AdapterMismatchError: the adapter does not fit, or was trained on other weights. The model is as it was.
        AdapterStateError: the model is adapted already.
    """
    return load_fresh(model, read_adapter(path), trainable=trainable, any_base=any_base)


def write_adapter(adapter: AdapterState, path: str | PathLike[str]) -> None:
    """Write an adapter as a PEFT folder at `path`: `save`, for a value. Same state, same bytes.

    Args:
        adapter: out of a model, read, or computed by `veneer.algebra`.
        path: the folder; made if absent, its two adapter files replaced if present.

    Raises:
        ConfigError: `adapter` is no AdapterState.
        AdapterFormatError: it holds what PEFT's format cannot. Nothing is written.
        OutputExistsError: a file is where the folder should be.
    """
    require_states({"adapter": adapter})
    write_peft(adapter, Path(path))


def read_adapter(path: str | PathLike[str]) -> AdapterState:
    """Read an adapter as a value, without a model: `load`, for a value. Nothing is unpickled.

    Args:
        path: a PEFT folder, or an AdapterHub folder.

    Raises:
        AdapterFormatError: it is neither, is broken, or asks for what is not supported. Of a format that needs to be
            converted first, the command to type is named.
    """
    folder = Path(path)
    found = sniff(folder)
    if folder.is_dir():
        return read_any(folder, file_format=found)
    command = f"veneer convert {path} OUTPUT{FORMATS[found].needs}"
    raise AdapterFormatError(f"{path} is a file in the format {found}, which may not say all; type `{command}` first")
