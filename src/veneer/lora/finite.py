"""Whether a tensor holds NaN or infinity: asked of every adapter that is read and of every weight that is merged."""

import math

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Return whether no element is NaN or infinite. Of integers that is always so.

    The sum tells at once where it is finite itself, many times as fast as looking at each element.
    """
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype.itemsize == 1):  # float8 has no sum
        return bool(torch.isfinite(tensor if tensor.is_complex() else tensor.float()).all())
    if not tensor.is_floating_point():
        return True
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)).item()
    return math.isfinite(total) or bool(torch.isfinite(tensor).all())
