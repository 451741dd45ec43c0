"""How alike two subspaces are, and what an update does to the directions of a weight: section 7 of the paper.

Legend: d the width both subspaces live in, i and j their dimensions; W a weight (out, in), D its update of the same
shape. Singular vectors are right ones: they are directions of the layer's input, where A (r, in) lives.

What the paper misprints is written here as its numbers need it: appendix G's projection metric is
d(U, V)^2 = p - sum of sigma^2, so that phi = 1 - d^2 / p with p = min(i, j), not (1 - d^2) / p.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def right_directions(matrix: Float[Tensor, "out d"], number: int) -> Float[Tensor, "d number"]:
    """Return the `number` right singular vectors of the largest singular values, as orthonormal columns, in float64."""
    _, _, Vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    directions: Tensor = Vh[:number].T.contiguous()
    return directions


def left_directions(matrix: Float[Tensor, "out d"], number: int) -> Float[Tensor, "out number"]:
    """Return the `number` left singular vectors of the largest singular values, as orthonormal columns, in float64."""
    U, _, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
    directions: Tensor = U[:, :number].contiguous()
    return directions


def similarities(U: Float[Tensor, "d m"], V: Float[Tensor, "d n"]) -> Float[Tensor, "m n"]:
    """Return phi of the first i columns of U and the first j of V at [i - 1, j - 1], for all i and j at once.

    phi = |U_i^T V_j|_F^2 / min(i, j) goes from 0 (orthogonal) to 1 (one span contains the other). The norm sums the
    squared cosines of its block, so all of them are one cumulated sum.

    Args:
        U: orthonormal columns.
        V: the same.

    Source: equation 4.
    """
    cosines = (U.T @ V).square()
    sums = cosines.cumsum(0).cumsum(1)
    rows = torch.arange(1, U.shape[1] + 1, dtype=sums.dtype).unsqueeze(1)
    columns = torch.arange(1, V.shape[1] + 1, dtype=sums.dtype).unsqueeze(0)
    return sums / torch.minimum(rows, columns)


def random_similarity(i: int, j: int, d: int) -> float:
    """Return E phi of two random subspaces of dimensions i and j: i j / d squared cosines over min(i, j)."""
    return max(i, j) / d


def projected_norm(U: Float[Tensor, "out r"], W: Float[Tensor, "out in"], V: Float[Tensor, "in r"]) -> float:
    """Return |U^T W V|_F: how much of W lies between these directions (Table 7)."""
    return float((U.T @ W.double() @ V).norm())


def random_projected_norm(W: Float[Tensor, "out in"], r: int) -> float:
    """Return the root of E |U^T W V|_F^2 for random U and V of dimension r: r |W|_F / sqrt(out in), so (r / d) |W|_F.

    This is what Table 7's column "random" holds: 61.95 * 4 / 12288 = 0.02.
    """
    return r * float(W.double().norm()) / math.sqrt(W.numel())
