"""Which base an adapter was trained on: for each adapted layer a digest of a sample of its weight.

Another model of the same shape, or the same one fine-tuned, has other values nearly everywhere, so a few from each
weight tell them apart; reading all of them would cost more than loading the adapter. A base loaded in a narrower dtype
is still the same base: the sample is digested once for each dtype that it can be rounded to. Each layer stands for
itself, so two fingerprints are compared in the layers and dtypes that both have, and adapters of different layers can
be put together.
"""

import ctypes
import hashlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

Fingerprint = Mapping[str, Mapping[str, str]]
"""dtype -> layer -> digest."""
SAMPLE_SIZE = 256
"""Values looked at in each weight; the same ones whatever other layers are adapted."""
DIGEST_SIZE = 8
"""Hexadecimal digits of a digest: 32 bits for each layer."""
NARROWER: Mapping[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.float64: (torch.float64, torch.float32, torch.float16, torch.bfloat16),
    torch.float32: (torch.float32, torch.float16, torch.bfloat16),
    torch.float16: (torch.float16,),
    torch.bfloat16: (torch.bfloat16,),
}


def fingerprint(weights: Mapping[str, Tensor]) -> dict[str, dict[str, str]]:
    """Return dtype -> layer -> digest of a sample of its weight, for the weight's dtype and each that it rounds to.

    Args:
        weights: the adapted weights of the base by full name. Weights that are not plain floats, or are on the meta
            device, are left out.
    """
    found: dict[str, dict[str, str]] = {}
    for name, digests in _digests(dict(sorted(weights.items()))):
        for dtype, digest in digests:
            found.setdefault(dtype, {})[name] = digest
    return found


def compared(given: Fingerprint, present: Fingerprint) -> dict[str, bool]:
    """Return layer -> whether its weight is the same, of the layers that both know in a common dtype.

    One common dtype in which it is the same is enough: a base that was rounded and widened again is the same base.
    """
    both = {dtype: given[dtype].keys() & present[dtype].keys() for dtype in given.keys() & present.keys()}
    return {
        layer: any(given[dtype][layer] == present[dtype][layer] for dtype in both if layer in both[dtype])
        for layer in sorted(set().union(*both.values()))
    }


def differs(given: Fingerprint, weights: Mapping[str, Tensor]) -> bool:
    """Return whether a fingerprint is known to be of another base than these weights: `compared` finds a difference.

    Nothing is digested that is not compared: of the same base each weight in one dtype.
    """
    return any(_is_other(given, name, digests) for name, digests in _digests(weights))


def _is_other(given: Fingerprint, name: str, digests: Iterable[tuple[str, str]]) -> bool:
    is_known = False
    for dtype, digest in digests:
        known = given.get(dtype, {}).get(name)
        if known == digest:
            return False
        is_known = is_known or known is not None
    return is_known


def united(fingerprints: Iterable[Fingerprint]) -> dict[str, dict[str, str]]:
    """Return what any of the fingerprints knows, without that in which two disagree."""
    digests: dict[str, dict[str, set[str]]] = {}
    for known in fingerprints:
        for dtype, layers in known.items():
            for layer, digest in layers.items():
                digests.setdefault(dtype, {}).setdefault(layer, set()).add(digest)
    agreed = {dtype: {n: min(d) for n, d in layers.items() if len(d) == 1} for dtype, layers in digests.items()}
    return {dtype: layers for dtype, layers in agreed.items() if layers}


def to_note(known: Fingerprint) -> dict[str, dict[str, str]]:
    """Return a fingerprint as files hold it, each layer named once: "dtype dtype ..." -> layer -> digests joined."""
    note: dict[str, dict[str, str]] = {}
    for layer in sorted(set().union(*known.values())):
        dtypes = [dtype for dtype in sorted(known) if layer in known[dtype]]
        note.setdefault(" ".join(dtypes), {})[layer] = "".join(known[dtype][layer] for dtype in dtypes)
    return note


def from_note(note: Mapping[str, object]) -> dict[str, dict[str, str]]:
    """Return the fingerprint that a file holds; what is not laid out as in `to_note` says nothing.

    Older files hold one digest of all weights together, dtype -> digest: of each layer by itself nothing is known.
    """
    known: dict[str, dict[str, str]] = {}
    for dtypes, layers in note.items():
        if isinstance(layers, Mapping):
            for position, dtype in enumerate(dtypes.split()):
                start = position * DIGEST_SIZE
                known[dtype] = known.get(dtype, {}) | {
                    n: str(d)[start : start + DIGEST_SIZE] for n, d in layers.items()
                }
    return known


def _digests(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Iterator[tuple[str, str]]]]:
    """Yield the name of each weight of plain floats, and its digest in each dtype it is known in, the widest first."""
    places: dict[tuple[int, torch.device], Tensor] = {}
    for name, weight in weights.items():
        if weight.dtype not in NARROWER or type(weight.data) is not Tensor or weight.is_meta:
            continue
        size = weight.numel(), weight.device
        if size not in places:
            places[size] = _spread(*size)
        yield name, _digests_of(weight.detach().take(places[size]).cpu(), tuple(weight.shape))


def _digests_of(sample: Tensor, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    for narrow in NARROWER[sample.dtype]:
        digest = hashlib.sha256(repr(shape).encode() + _bytes(sample.to(narrow))).hexdigest()[:DIGEST_SIZE]
        yield str(narrow).removeprefix("torch."), digest


def _spread(count: int, device: torch.device) -> Tensor:
    """Return places from all over a weight of `count` values, at most `SAMPLE_SIZE`."""
    size = min(SAMPLE_SIZE, count)
    return torch.arange(size, device=device) * (count - 1) // max(size - 1, 1)


def _bytes(values: Tensor) -> bytes:
    """Return the memory of a contiguous tensor on the CPU."""
    return ctypes.string_at(values.data_ptr(), values.nbytes)
