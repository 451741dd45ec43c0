"""The one formula: h = W0 x + s B A x, and its parts.

Symbols: W0 is the frozen weight seen as a matrix of shape (out, in), as `nn.Linear` stores it; `kinds.py` says how
other layers' weights are seen so. A has shape (r, in), B has shape (out, r), and s is the scaling. The update of the
weight is s B A, of shape (out, in). Stacked weights (experts) add a leading dimension to all of them.

Source: Hu et al. 2021, arXiv 2106.09685v2, equation 3 and section 4.1 (s = alpha / r);
Kalajdzievski 2023, arXiv 2312.03732 (rank-stabilised: s = alpha / sqrt(r));
Liu et al. 2024, arXiv 2402.09353 (DoRA: W = m (W0 + s B A) / |W0 + s B A|, the norm of each row).

Every other module calls these functions; a second copy of the formula anywhere is a bug.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

SCALING_RULES: Mapping[str, Callable[[float, int], float]] = {
    "lora": lambda alpha, r: alpha / r,
    "rslora": lambda alpha, r: alpha / math.sqrt(r),
}
ALPHA_RULES: Mapping[str, Callable[[float, int], float]] = {
    "lora": lambda factor, r: factor * r,
    "rslora": lambda factor, r: factor * math.sqrt(r),
}
"""The alpha that gives a factor s at rank r: the way back."""


def delta_weight(
    A: Float[Tensor, "*stack r in"], B: Float[Tensor, "*stack out r"], scaling: float | Float[Tensor, ""]
) -> Float[Tensor, "*stack out in"]:
    """Return the update of the weight, s B A."""
    with exactly(A.device):
        return scaling * (B @ A)


def add_delta(
    weight: Float[Tensor, "*stack out in"],
    A: Float[Tensor, "*stack r in"],
    B: Float[Tensor, "*stack out r"],
    scaling: float | Float[Tensor, ""],
) -> Float[Tensor, "*stack out in"]:
    """Return W0 + s B A, summed in the wider of its dtypes and not rounded to that of the weight."""
    add_product = torch.addmm if A.ndim == 2 else torch.baddbmm  # the sum rides on the product: one pass over W0
    dtype = torch.promote_types(weight.dtype, A.dtype)
    with exactly(A.device):
        total: Tensor = add_product(weight.to(dtype), B.to(dtype) * scaling, A.to(dtype))
    return total


def add_delta_output(
    base_output: Float[Tensor, "*batch out"],
    x: Float[Tensor, "*batch in"],
    A: Float[Tensor, "r in"],
    B: Float[Tensor, "out r"],
    scaling: Float[Tensor, ""],
) -> Float[Tensor, "*batch out"]:
    """Return `base_output` + s B A x without forming B A: two thin products, the sum fused into the second.

    The r-sized matrices are cast to the dtype of x, never x to theirs, so x is not copied and not saved twice.
    """
    hidden = (functional.linear(x, A.to(x.dtype)) * scaling).to(base_output.dtype)
    flat_output = base_output.reshape(-1, base_output.shape[-1])
    flat_hidden = hidden.reshape(-1, hidden.shape[-1])
    output: Tensor = torch.addmm(flat_output, flat_hidden, B.to(hidden.dtype).t()).view(base_output.shape)
    return output


def row_norms(
    weight: Float[Tensor, "*stack out in"],
    A: Float[Tensor, "*stack r in"],
    B: Float[Tensor, "*stack out r"],
    scaling: float | Float[Tensor, ""],
) -> Float[Tensor, "*stack out"]:
    """Return |W0 + s B A| of each row without forming the sum.

    |w + s b A|^2 = |w|^2 + 2 s b . (w A^T) + s^2 b . (b A A^T), for a row w of W0 and b of B: products of the size of
    W0 A^T. Where the update cancels the weight, the rounding of the squares shows: relative error up to sqrt(eps).
    """
    dtype = torch.promote_types(A.dtype, torch.float32)  # squares overflow in float16
    wide, A, B = weight.to(dtype), A.to(dtype), B.to(dtype)
    At = A.transpose(-1, -2)
    squares = torch.linalg.vector_norm(wide, dim=-1).square()
    with exactly(A.device):
        mixed = (wide @ At).mul(2 * scaling) + (B @ (A @ At)).mul(scaling * scaling)
    norms: Tensor = (squares + (mixed * B).sum(dim=-1)).clamp_min(torch.finfo(A.dtype).tiny).sqrt()
    return norms


def row_stretch(
    weight: Float[Tensor, "*stack out in"],
    A: Float[Tensor, "*stack r in"],
    B: Float[Tensor, "*stack out r"],
    scaling: float | Float[Tensor, ""],
    magnitude: Float[Tensor, "*stack out"],
) -> Float[Tensor, "*stack out"]:
    """Return m / |W0 + s B A| of each row, what DoRA multiplies W0 + s B A by; gradients flow to m alone (sec. 4.3)."""
    with torch.no_grad():
        norms = row_norms(weight, A, B, scaling)
    return magnitude / norms


def dora_weight(
    weight: Float[Tensor, "*stack out in"],
    A: Float[Tensor, "*stack r in"],
    B: Float[Tensor, "*stack out r"],
    scaling: float | Float[Tensor, ""],
    magnitude: Float[Tensor, "*stack out"],
) -> Float[Tensor, "*stack out in"]:
    """Return m (W0 + s B A) / |W0 + s B A|, in the wider of its dtypes."""
    return add_delta(weight, A, B, scaling) * row_stretch(weight, A, B, scaling, magnitude).unsqueeze(-1)


def exactly(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast rounds nothing: weights are summed in the dtype they have."""
    kind = autocast_kind(device)
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def autocast_kind(device: torch.device) -> str:
    """Return for which kind of device autocast has a say: on the meta device, of which it knows nothing, the CPU's."""
    return "cpu" if device.type == "meta" else device.type


def trained_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype of what is trained beside a weight: float32 whatever the weight is, float64 where it is that."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32
