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
    for name, weight in sorted(weights.items()):
        for dtype, digest in _digests(weight):
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
    return any(_is_other(given, name, weight) for name, weight in weights.items())


def _is_other(given: Fingerprint, name: str, weight: Tensor) -> bool:
    is_known = False
    for dtype, digest in _digests(weight):
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


def _digests(weight: Tensor) -> Iterator[tuple[str, str]]:
    """Yield each dtype that a weight is known in, the widest first, and its digest there."""
    if weight.dtype not in NARROWER or type(weight.data) is not Tensor or weight.is_meta:
        return
    sample, shape = _spread(weight.detach()).cpu(), repr(tuple(weight.shape)).encode()
    for narrow in NARROWER[weight.dtype]:
        digest = hashlib.sha256(shape + _bytes(sample.to(narrow))).hexdigest()[:DIGEST_SIZE]
        yield str(narrow).removeprefix("torch."), digest


def _spread(weight: Tensor) -> Tensor:
    """Return values from all over a weight, at most `SAMPLE_SIZE`."""
    count = min(SAMPLE_SIZE, weight.numel())
    places = torch.arange(count, device=weight.device) * (weight.numel() - 1) // max(count - 1, 1)
    return weight.take(places)


def _bytes(values: Tensor) -> bytes:
    """Return the memory of a contiguous tensor on the CPU."""
    return ctypes.string_at(values.data_ptr(), values.nbytes)
