"""The one formula: h = W0 x + s B A x, and its parts.

Symbols: W0 is the frozen weight, of shape (out, in) as `nn.Linear` stores it. A has shape (r, in), B has shape
(out, r), and s is the scaling. The update of the weight is s B A, of shape (out, in).

Source: Hu et al. 2021, arXiv 2106.09685v2, equation 3 and section 4.1 (s = alpha / r);
Kalajdzievski 2023, arXiv 2312.03732 (rank-stabilised: s = alpha / sqrt(r)).

Every other module calls these functions; a second copy of the formula anywhere is a bug.
"""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

SCALING_RULES: Mapping[str, Callable[[float, int], float]] = {
    "lora": lambda alpha, r: alpha / r,
    "rslora": lambda alpha, r: alpha / math.sqrt(r),
}


def delta_weight(A: Float[Tensor, "r in"], B: Float[Tensor, "out r"], scaling: float) -> Float[Tensor, "out in"]:
    """Return the update of the weight, s B A."""
    return scaling * (B @ A)


def add_delta(
    weight: Float[Tensor, "out in"], A: Float[Tensor, "r in"], B: Float[Tensor, "out r"], scaling: float
) -> Float[Tensor, "out in"]:
    """Return W0 + s B A, summed in the dtype of A and B and rounded once to the dtype of the weight."""
    return (weight.to(A.dtype) + delta_weight(A, B, scaling)).to(weight.dtype)


def add_delta_output(
    base_output: Float[Tensor, "*batch out"],
    x: Float[Tensor, "*batch in"],
    A: Float[Tensor, "r in"],
    B: Float[Tensor, "out r"],
    scaling: float,
) -> Float[Tensor, "*batch out"]:
    """Return `base_output` + s B A x without forming B A: two thin products, the sum fused into the second.

    The r-sized matrices are cast to the dtype of x, never x to theirs, so x is not copied and not saved twice.
    """
    hidden = functional.linear(x, A.to(x.dtype)).to(base_output.dtype)
    flat_output = base_output.reshape(-1, base_output.shape[-1])
    flat_hidden = hidden.reshape(-1, hidden.shape[-1])
    summed = torch.addmm(flat_output, flat_hidden, B.to(hidden.dtype).t(), alpha=scaling)
    return summed.view(base_output.shape)
