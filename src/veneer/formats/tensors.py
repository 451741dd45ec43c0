"""Tensor files: safetensors, read whole into memory and checked, written whole with a digest of what they hold.

    8 bytes    length of the header
    header     JSON: name -> dtype, shape, begin and end in the body; "__metadata__" -> text by key
    body       the tensors' bytes

Nothing is unpickled and nothing stays mapped to the file. The same tensors and metadata give the same bytes.

Source: the format's description in safetensors 0.8, and its own reader, which does the reading here.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from veneer.errors import AdapterFormatError
from veneer.files import write_bytes
from veneer.lora.finite import is_finite

DIGEST = "veneer_digest"
"""Metadata key of the digest of all names, dtypes, shapes and bytes."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What adapters are read in."""
WRAPPER_PARTS = ("_orig_mod.", "_fsdp_wrapped_module.")
"""What torch.compile and FSDP put into module names; not part of the model's own names."""

_NOT_TENSORS = (SafetensorError, ArithmeticError, AssertionError, LookupError, RecursionError, RuntimeError, TypeError)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file by name, and its metadata.

    Raises:
        AdapterFormatError: the file is truncated, or not one that torch reads, or not what its digest says.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
        header = _header(data)
    except (*_NOT_TENSORS, ValueError) as error:
        raise AdapterFormatError(f"{path} is truncated or not a safetensors file that torch reads: {error}") from None
    metadata = header.pop("__metadata__", None) or {}
    if DIGEST in metadata and metadata[DIGEST] != _digest(header, data):
        raise AdapterFormatError(f"{path} was damaged or edited: its tensors are not those its digest was made of")
    return tensors, metadata


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors by name, with `metadata` and a digest, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    write_bytes(path, tensor_file(tensors, metadata))


def tensor_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the file of these tensors, with `metadata` and a digest."""
    apart = {name: tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format) for name in tensors}
    data = safetensors.torch.save(apart)
    header = _header(data)
    texts = {"format": "pt", **metadata, DIGEST: _digest(header, data)}
    head = json.dumps({"__metadata__": dict(sorted(texts.items())), **header}, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the body begins at a multiple of 8
    return len(head).to_bytes(8, "little") + head + data[_body_start(data) :]


def own_name(name: str) -> str:
    """Return a name as the plain model has it, without what torch.compile and FSDP put in."""
    for part in WRAPPER_PARTS:
        name = name.replace(part, "")
    return name


def finite_problems(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor that holds NaN or infinity."""
    return [f"{name} holds NaN or infinity" for name, tensor in tensors.items() if not is_finite(tensor)]


def _body_start(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def _header(data: bytes) -> dict[str, Any]:
    """Return the header of a file that safetensors accepted."""
    header: dict[str, Any] = json.loads(data[8 : _body_start(data)], object_pairs_hook=distinct)
    return header


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dictionary.

    Raises:
        ValueError: a key stands twice.
    """
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _digest(header: Mapping[str, Any], data: bytes) -> str:
    """Return the sha256 over name, dtype, shape and bytes of each tensor, in the order of their names."""
    body = memoryview(data)[_body_start(data) :]
    digest = hashlib.sha256()
    for name, entry in sorted(header.items()):
        begin, end = entry["data_offsets"]
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        digest.update(body[begin:end])
    return f"sha256:{digest.hexdigest()}"
