"""Saving and loading an adapter by path: the two verbs that join a model and a file."""

from os import PathLike
from pathlib import Path

from torch import nn

from veneer.formats.peft import read_peft, write_peft
from veneer.lora.state import AdapterState, load_state, state
from veneer.lora.targets import Plan


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
    """
    write_peft(state(model, base_model=base_model, task_type=task_type), Path(path))


def load(model: nn.Module, path: str | PathLike[str], *, trainable: bool = False) -> Plan:
    """Adapt the plain `model` with the adapter at `path`, whole or not at all; return the plan carried out.

    Args:
        model: the base model, not adapted yet.
        path: a PEFT folder.
        trainable: whether the adapter may be trained on; otherwise everything is frozen.

    Raises:
        AdapterFormatError: the file is broken or asks for what is not supported.
        AdapterMismatchError: it does not fit this model. The model is as it was.
        AdapterStateError: the model is adapted already.
    """
    return load_state(model, read_adapter(Path(path)), trainable=trainable)


def read_adapter(path: Path) -> AdapterState:
    """Read an adapter in any format that is known; see `formats/peft.py` for the errors."""
    return read_peft(path)
