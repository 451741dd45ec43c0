"""What a method other than LoRA alone has trained, in a file: bottlenecks, tokens, biases, blocks; the head besides.

    <folder>/method.safetensors   every trained tensor, by its name in the plain model where it has one there
    <folder>/veneer.json          the task card, whose settings attach the method again: see `saved.py`

Read strictly: every tensor must find its place and every place its tensor. The file carries a digest of itself and a
fingerprint of the frozen matrices, by which another base is refused.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from veneer.errors import AdapterFormatError, AdapterMismatchError, TargetError, gathered
from veneer.formats.convert import METHOD_FILE
from veneer.formats.notes import BASE, read_notes
from veneer.formats.tensors import finite_problems, read_tensors, write_tensors
from veneer.lora.fingerprint import Fingerprint, differs, fingerprint, to_note
from veneer.methods.settings import MethodSettings
from veneer.methods.trained import load_trained_state, named_weights, trained_state


def write_method(model: nn.Module, folder: Path) -> None:
    """Write what is trained in `model`, to which a method is attached, into `folder`; it is made if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    note = json.dumps(to_note(fingerprint(_frozen_matrices(model))), sort_keys=True)
    write_tensors(folder / METHOD_FILE, trained_state(model), {BASE: note})


def read_method(folder: Path) -> tuple[dict[str, Tensor], Fingerprint]:
    """Return the trained tensors in `folder` by name, and the fingerprint of the base.

    Raises:
        AdapterFormatError: there are none, or they are broken.
    """
    path = folder / METHOD_FILE
    if not path.is_file():
        raise AdapterFormatError(f"{folder} holds no {METHOD_FILE}, the tensors that its method trained")
    tensors, metadata = read_tensors(path)
    if problems := finite_problems(tensors):
        raise AdapterFormatError(gathered(f"{path} cannot be used:", problems))
    try:
        return tensors, read_notes(metadata, {}).fingerprint
    except (ValueError, RecursionError) as error:
        raise AdapterFormatError(f"{path} is broken: {error}") from None


def load_method(
    model: nn.Module, folder: Path, settings: MethodSettings, *, head: Sequence[str], any_base: bool
) -> None:
    """Attach the method of `settings` to a plain transformers model and fill it with what is in `folder`.

    Args:
        model: the pretrained classifier; of no use where this fails.
        folder: an adapter folder with a method's tensors.
        settings: what the folder's card says.
        head: names of the modules that are the task's own.
        any_base: accept also a base with other weights than the method was trained on.

    Raises:
        AdapterFormatError: the files are broken.
        AdapterMismatchError: the tensors do not fit the model, or were trained on other weights.
        ConfigError: the method does not go with the model's family.
    """
    tensors, base = read_method(folder)
    try:
        settings.attach(model, model_type=str(model.config.model_type), head=head)  # type: ignore[union-attr]
    except TargetError as error:
        raise AdapterMismatchError(f"the method {settings.method!r} does not fit this model: {error}") from None
    load_trained_state(model, tensors)
    if not any_base and differs(base, _frozen_matrices(model)):
        raise AdapterMismatchError(
            f"{folder} was trained on a base model with other weights than this {type(model).__name__}; "
            "load the base model it belongs to, or pass any_base=True (--any-base)"
        )


def _frozen_matrices(model: nn.Module) -> dict[str, Tensor]:
    """Return what tells the base: the matrices that are not trained. Biases and norms are alike in many models."""
    return {name: p for name, p in named_weights(model).items() if not p.requires_grad and p.ndim > 1}
