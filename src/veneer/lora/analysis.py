"""What an adapter does to each layer: norms, effective rank, intruder dimensions. Reads values, changes nothing.

The delta of a layer is D = s B A = U diag(S) Vh, of shape (out, in). Its singular values come from the thin factors;
D is formed only where it is compared with base weights. Stacked weights (experts) count as one block-diagonal matrix:
singular values, norms and intruders are those of all blocks together. DoRA's change is D = W' - W0 with
W' = m (W0 + s B A) / |W0 + s B A|, which only the base weights tell; without them the figures are of s B A alone.

Source: Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality" (effective rank);
Shuttleworth et al. 2024, arXiv 2410.21228 (intruder dimensions: k = 10 top vectors, a threshold eps of 0.5 to 0.9).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from veneer.errors import AdapterMismatchError, ConfigError, gathered, require_type
from veneer.lora.delta import add_delta, dora_weight
from veneer.lora.state import AdapterState, LowRank, require_states

Svd = tuple[Float[Tensor, "*stack out n"], Float[Tensor, "*stack n"], Float[Tensor, "*stack n in"]]
"""U, S in descending order, and Vh; n is the smallest of r, in and out."""


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One layer of an adapter, whose delta D is s B A, and of DoRA W' - W0 where base weights were given.

    The last three are None where none were given.
    """

    name: str
    rank: int
    delta_norm: float
    """|D|, Frobenius."""
    spectral_norm: float
    """The largest singular value of D."""
    effective_rank: float
    """exp of the entropy of the singular values of D divided by their sum; 0 where all are 0. At most the rank, of a
    stack that of all blocks together, or with DoRA's magnitude applied the smaller side."""
    magnitude_applied: bool | None = None
    """Of DoRA: whether D is W' - W0, or without base weights s B A alone. None where there is no magnitude."""
    base_norm: float | None = None
    """|W0|, Frobenius."""
    relative_norm: float | None = None
    """|D| / |W0|."""
    intruders: int | None = None
    """See `intruder_dimensions`; of DoRA, with its magnitude applied."""


def thin_svd(update: LowRank, factor: float) -> Svd:
    """Return the singular value decomposition of s B A in float64, never forming (out, in).

    With B = Q1 R1 and A^T = Q2 R2, s B A = Q1 (s R1 R2^T) Q2^T: only the middle, at most (r, r), is decomposed.

    Args:
        update: A (r, in) and B (out, r), or stacks of them; a magnitude is not looked at.
        factor: s.
    """
    A, B = (matrix.double() for matrix in update.matrices)
    Q1, R1 = torch.linalg.qr(B)
    Q2, R2 = torch.linalg.qr(A.mT)
    U, S, Vh = torch.linalg.svd(factor * R1 @ R2.mT, full_matrices=False)
    return Q1 @ U, S, Vh @ Q2.mT


def singular_values(update: LowRank, factor: float) -> Float[Tensor, "*stack n"]:
    """Return the singular values of s B A in descending order, in float64; n is the smallest of r, in and out."""
    return thin_svd(update, factor)[1]


def effective_rank(values: Float[Tensor, "*stack n"]) -> float:
    """Return exp(H(p)), p = values / sum of values, H in nats: 1 for one value, n for n equal ones, 0 for zeros."""
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else 0.0


def intruder_dimensions(
    base_weight: Float[Tensor, "*stack out in"],
    tuned_weight: Float[Tensor, "*stack out in"],
    *,
    k: int = 10,
    eps: float = 0.5,
) -> int:
    """Return how many of the k top left singular vectors of W are unlike all of W0's: max |cos| below eps.

    Of a stack these are the k top vectors of each block, and the count is of all blocks together.

    Vectors of singular values that are zero up to rounding are arbitrary; they count on neither side.

    Args:
        base_weight: W0, seen as (out, in).
        tuned_weight: W = W0 + s B A, or any weight of the same shape.
        k: how many of the top vectors to look at, at least 1.
        eps: the cosine below which a vector is an intruder, above 0 to 1.

    Raises:
        ConfigError: k or eps is outside what is allowed.
        AdapterMismatchError: the shapes differ, or a weight is not finite.
    """
    if k < 1 or not 0 < eps <= 1:
        raise ConfigError(f"k is {k!r} and eps is {eps!r}; k must be at least 1, eps above 0 and at most 1")
    shapes = tuple(base_weight.shape), tuple(tuned_weight.shape)
    finite = torch.isfinite(base_weight).all() and torch.isfinite(tuned_weight).all()
    if shapes[0] != shapes[1] or not finite:
        raise AdapterMismatchError(f"weights of shapes {shapes[0]} and {shapes[1]}; give finite ones of one shape")
    U0, S0, _ = torch.linalg.svd(base_weight.double(), full_matrices=False)
    U, S, _ = torch.linalg.svd(tuned_weight.double(), full_matrices=False)
    known = U0 * _present(S0, shapes[0]).unsqueeze(-2)
    cosines = (U[..., :k].mT @ known).abs().amax(dim=-1)
    return int(((cosines < eps) & _present(S, shapes[1])[..., :k]).sum())


def layer_report(
    state: AdapterState, base_weights: Mapping[str, Tensor] | None = None, *, k: int = 10, eps: float = 0.5
) -> tuple[LayerReport, ...]:
    """Return a report on each layer, in the adapter's order.

    Of a DoRA layer the figures are those of W' - W0 with base weights, and without them of s B A alone, its magnitude
    left out of account; `LayerReport.magnitude_applied` says which.

    Args:
        state: the adapter.
        base_weights: layer name -> W0 of every layer, seen as `AdapterState.delta` is: (out, in), so an embedding's
            is (D, V), GPT-2's Conv1D's is transposed, and a convolution's kernel is flattened into `in`.
        k: as in `intruder_dimensions`, which costs two decompositions of the whole weight for each layer.
        eps: the same.

    Raises:
        ConfigError: k or eps is outside what is allowed, or `state` is no AdapterState.
        AdapterMismatchError: a base weight is missing or does not fit; every problem is named.
    """
    require_states({"state": state})
    if base_weights is not None:
        require_type({"base_weights": base_weights}, Mapping, "give the base weights by the names of their layers")
        if problems := _base_problems(state, base_weights):
            raise AdapterMismatchError(gathered("the base weights do not fit the adapter:", problems))
    found = []
    for name, update in state.updates.items():
        factor, is_dora = state.factor(name), update.magnitude is not None
        base_norm, intruders = None, None
        if base_weights is not None:
            base = base_weights[name].detach().cpu().double()
            tuned = _tuned(base, update, factor)
            values = torch.linalg.svdvals(tuned - base) if is_dora else singular_values(update, factor)
            base_norm, intruders = float(base.norm()), intruder_dimensions(base, tuned, k=k, eps=eps)
        else:
            values = singular_values(update, factor)
        delta_norm = float(values.norm())
        report = LayerReport(
            name=name,
            rank=update.rank,
            delta_norm=delta_norm,
            spectral_norm=float(values.max()),
            effective_rank=effective_rank(values),
            magnitude_applied=base_weights is not None if is_dora else None,
            base_norm=base_norm,
            relative_norm=None if base_norm is None else delta_norm / base_norm if base_norm else math.inf,
            intruders=intruders,
        )
        found.append(report)
    return tuple(found)


def _present(values: Float[Tensor, "*stack n"], shape: tuple[int, ...]) -> Tensor:
    """Return which singular values of matrices of this shape are more than rounding."""
    return values > torch.finfo(values.dtype).eps * max(shape[-2:]) * values.amax(dim=-1, keepdim=True)


def _tuned(base: Float[Tensor, "*stack out in"], update: LowRank, factor: float) -> Float[Tensor, "*stack out in"]:
    """Return the weight that a layer acts with, in float64."""
    A, B = (matrix.double() for matrix in update.matrices)
    if update.magnitude is None:
        return add_delta(base, A, B, factor)
    return dora_weight(base, A, B, factor, update.magnitude.double())


def _base_problems(state: AdapterState, base_weights: Mapping[str, Tensor]) -> list[str]:
    found = []
    for name, update in state.updates.items():
        A, B = update.matrices
        shape = (*B.shape[:-1], A.shape[-1])
        if name not in base_weights:
            found.append(f"{name}: no base weight is given; give one of shape {shape} under the layer's name")
        elif tuple(base_weights[name].shape) != shape:
            found.append(f"{name}: the base weight has shape {tuple(base_weights[name].shape)}, the delta {shape}")
        elif not torch.isfinite(base_weights[name]).all():
            found.append(f"{name}: the base weight holds NaN or infinity")
    return found
