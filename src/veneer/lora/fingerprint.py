"""Which base an adapter was trained on: a digest of a sample of its adapted weights.

Another model of the same shape, or the same one fine-tuned, has other values nearly everywhere, so a few from each
weight tell them apart; reading all of them would cost more than loading the adapter. A base loaded in a narrower dtype
is still the same base: the sample is digested once for each dtype that it can be rounded to, and two fingerprints are
compared where both have a digest.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

SAMPLE_SIZE = 8192
"""Values looked at in the whole model, at least 4 in each weight."""
NARROWER: Mapping[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.float64: (torch.float64, torch.float32, torch.float16, torch.bfloat16),
    torch.float32: (torch.float32, torch.float16, torch.bfloat16),
    torch.float16: (torch.float16,),
    torch.bfloat16: (torch.bfloat16,),
}


def fingerprint(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return dtype -> digest of a sample of `weights`, for their dtype and each one that it rounds to.

    Args:
        weights: the adapted weights of the base by full name. Weights that are not plain floats are left out; without
            any, or on the meta device, the fingerprint is empty.
    """
    plain = {
        name: weight.detach()
        for name, weight in sorted(weights.items())
        if weight.dtype in NARROWER and type(weight.data) is Tensor and not weight.is_meta
    }
    if not plain:
        return {}
    dtype = next(iter(plain.values())).dtype
    for weight in plain.values():
        dtype = torch.promote_types(dtype, weight.dtype)
    share = max(4, SAMPLE_SIZE // len(plain))
    sample = torch.cat([_spread(weight, share).to("cpu", dtype) for weight in plain.values()])
    shapes = repr([(name, tuple(weight.shape)) for name, weight in plain.items()]).encode()
    return {
        str(narrow).removeprefix("torch."): hashlib.sha256(shapes + _bytes(sample.to(narrow))).hexdigest()[:32]
        for narrow in NARROWER[dtype]
    }


def differs(given: Mapping[str, str], present: Mapping[str, str]) -> bool:
    """Return whether two fingerprints are known to be of different bases."""
    both = given.keys() & present.keys()
    return bool(both) and all(given[dtype] != present[dtype] for dtype in both)


def _spread(weight: Tensor, count: int) -> Tensor:
    """Return `count` values from all over a weight."""
    flat = weight.reshape(-1)
    places = torch.arange(count, device=weight.device) * (flat.numel() - 1) // max(count - 1, 1)
    return flat[places]


def _bytes(values: Tensor) -> bytes:
    return bytes(values.contiguous().view(torch.uint8).tolist())
