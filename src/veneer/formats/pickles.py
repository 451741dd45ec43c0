"""Weights in the files `torch.save` writes, read without running anything, and weights in either kind of file.

A pickle is a program. Who calls this converts a file on purpose; nothing loads a pickle by itself.
`torch.load(weights_only=True)` runs no foreign code, but it allows more calls than a table of weights needs, and some
of them allocate whatever the file asks for. So the archive is checked before torch sees it: its entries are stored as
they are (a compressed one can be a thousand times its size), and its program names nothing but what plain tensors are
made of. Afterwards the tensors may not be larger than the file can account for (a view with stride 0 has any size).

Source: the archives torch 2.13 writes; the format is the same since torch 1.6.
"""

import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from veneer.errors import AdapterFormatError, gathered
from veneer.formats.tensors import FLOATS, finite_problems, read_tensors

MAX_FILE_BYTES = 8 * 2**30
"""Above any adapter, and above a whole checkpoint of a billion parameters in float32."""
MAX_PROGRAM_BYTES = 64 * 2**20
"""The part of the archive that names the tensors; some 200 bytes a tensor."""
MAX_VIEWS = 8
"""How often the bytes of a file may be counted in its tensors: tied weights are stored once and named several times."""
WRAPPERS = ("model_state_dict", "state_dict")
"""Under which single key training scripts put the weights."""
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

_STORAGES = ("Bool", "Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double")
_ALLOWED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}Storage" for name in _STORAGES),
}


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a file by their names, and its metadata; the file's ending decides how.

    Returns:
        Tensors on the CPU, of the usual number types, all finite; and the metadata of a safetensors file.

    Raises:
        AdapterFormatError: no such file, an unknown ending, a broken file, or a tensor with NaN or infinity.
    """
    reader = READERS.get(path.suffix.lower())
    if not path.is_file():
        raise AdapterFormatError(f"no file at {path}: give the file that holds the adapter's tensors")
    if reader is None:
        raise AdapterFormatError(f"{path}: files ending in {path.suffix!r} are not read, only {', '.join(READERS)}")
    tensors, metadata = reader(path)
    problems = [
        f"{name} is of {tensor.dtype}; adapters are read in float16, bfloat16, float32 and float64"
        for name, tensor in tensors.items()
        if tensor.dtype not in FLOATS + INTEGERS
    ]
    problems += finite_problems(tensors)
    if not tensors:
        problems.append("it holds no tensors")
    if problems:
        raise AdapterFormatError(gathered(f"{path} cannot be used:", sorted(problems)))
    return tensors, metadata


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Read a state dict from what `torch.save` wrote, flat or under one of the WRAPPERS.

    Raises:
        AdapterFormatError: not such a file, or it holds anything but plain tensors by name.
    """
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken program can fail in any way, and none of them is ours
        raise AdapterFormatError(f"{path} is not a file of weights that torch reads: {_first_line(error)}") from None
    if isinstance(content, dict) and len(content) == 1 and next(iter(content)) in WRAPPERS:
        content = next(iter(content.values()))
    if not isinstance(content, dict):
        raise AdapterFormatError(
            f"{path} holds a {type(content).__name__}; it must hold tensors by name (a state dict)"
        )
    problems = [
        f"{name!r:.200} is a {type(value).__name__}; save the state dict alone"
        for name, value in content.items()
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided
    ]
    if problems:
        raise AdapterFormatError(gathered(f"{path} holds more than tensors by name:", problems))
    claimed = sum(tensor.numel() * tensor.itemsize for tensor in content.values())
    if claimed > MAX_VIEWS * path.stat().st_size:
        raise AdapterFormatError(f"{path}: its tensors claim {claimed} bytes, but it has only {path.stat().st_size}")
    return {name: tensor.detach() for name, tensor in content.items()}


def _without_metadata(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    return read_pickle(path), {}


READERS: Mapping[str, Callable[[Path], tuple[dict[str, Tensor], dict[str, str]]]] = {
    ".safetensors": read_tensors,
    ".pt": _without_metadata,
    ".pth": _without_metadata,
    ".bin": _without_metadata,
    ".ckpt": _without_metadata,
}


def _check_archive(path: Path) -> None:
    """Refuse an archive that could make torch call or allocate what a table of weights does not need."""
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise AdapterFormatError(f"{path} has {size} bytes; at most {MAX_FILE_BYTES} are read")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            programs = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            names = {entry.filename for entry in entries}
            if len(programs) != 1 or len(names) < len(entries):
                raise AdapterFormatError(f"{path} is a zip archive, but not one that torch.save writes")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise AdapterFormatError(f"{path} is a compressed archive; torch.save writes none")
            if programs[0].file_size > MAX_PROGRAM_BYTES:
                raise AdapterFormatError(f"{path} has an index of {programs[0].file_size} bytes; that is no adapter")
            program = archive.read(programs[0])
        foreign = {str(arg) for code, arg, _ in pickletools.genops(program) if code.name == "GLOBAL"} - _ALLOWED
    except AdapterFormatError:
        raise
    except Exception as error:  # zipfile and pickletools raise a dozen kinds for broken bytes
        advice = "load and save it once more with torch 1.6 or later if it is older than that"
        raise AdapterFormatError(
            f"{path} is truncated or not a file that torch.save writes ({_first_line(error)}); {advice}"
        ) from None
    if foreign:
        named = ", ".join(sorted(name.replace(" ", ".")[:100] for name in foreign)[:5])
        raise AdapterFormatError(
            f"{path} needs {named}; a file of weights needs plain tensors only, so it is not opened"
        )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
