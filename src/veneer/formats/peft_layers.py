"""One layer's tensors as PEFT lays them out, to and from `LowRank`.

    linear      A (r, in)             B (out, r)
    embedding   A (r, tokens)         B (dim, r)
    conv        A (r, in, *kernel)    B (out, r / groups, 1 ...)    A sees all channels of the input, also with groups
    parameter   A (r, in)             B (out, r)
      stacked   A (experts r, in)     B (out, r experts)            row e r + k of A and column k experts + e of B

    magnitude   (out,); of a convolution (1, out, 1 ...)

Source: `Linear`, `Embedding`, `_ConvNd` and `ParamWrapper` in `tuners/lora/layer.py` of peft 0.21.2.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from veneer.errors import AdapterFormatError
from veneer.lora.selectors import Selector
from veneer.lora.state import KindName, LowRank

Pair = tuple[Tensor, Tensor]
"""A and B in PEFT's layout."""
MAX_KERNEL_DIMS = 3


def from_peft(kind: KindName, A: Tensor, B: Tensor, magnitude: Tensor | None, r: int) -> LowRank:
    """Return the update of one layer.

    Args:
        kind: what the layer is.
        A: in PEFT's layout.
        B: in PEFT's layout.
        magnitude: DoRA's, or None.
        r: the rank that the settings give the layer.

    Raises:
        AdapterFormatError: the shapes do not belong together, or no update of such a layer computes this.
    """
    if not A.numel() or not B.numel():
        raise _misfit(A, B, r, "without a 0")
    update = _READERS[kind](A, B, r)
    if magnitude is None:
        return update
    if magnitude.numel() != B.shape[0]:
        raise AdapterFormatError(f"magnitude has shape {tuple(magnitude.shape)}; it must have {B.shape[0]} elements")
    return LowRank(update.A, update.B, magnitude.flatten(), update.kind, update.groups)


def to_peft(update: LowRank) -> tuple[dict[str, Tensor], int]:
    """Return the tensors of one layer in PEFT's layout by the end of their key, and PEFT's rank of it."""
    A, B = _WRITERS[update.kind](update)
    names = (
        ("lora_embedding_A", "lora_embedding_B") if update.kind == "embedding" else ("lora_A.weight", "lora_B.weight")
    )
    tensors = dict(zip(names, (A, B), strict=True))
    if update.magnitude is not None:
        around = (1, -1) + (1,) * (B.ndim - 2) if update.kind == "conv" else (-1,)
        tensors["lora_magnitude_vector"] = update.magnitude.reshape(around)
    return tensors, update.rank * update.groups


def paired(in_proj: LowRank, out_proj: LowRank | None, ratio: float) -> tuple[LowRank, LowRank]:
    """Return the updates of attention's two projections with one rank and one scaling, as PEFT keeps them.

    Args:
        in_proj: of the stacked q, k and v: A (r, dim), B (3 dim, r).
        out_proj: of the output projection; None where it has no update, which becomes one of zeros.
        ratio: scaling of `out_proj` / scaling of `in_proj`, folded into the B of `out_proj`.

    Returns:
        Both, the smaller rank filled up with zeros.
    """
    if out_proj is None:
        A = in_proj.A
        return in_proj, LowRank(torch.zeros_like(A), A.new_zeros(A.shape[1], A.shape[0]))
    B = out_proj.B if ratio == 1 else (out_proj.B.double() * ratio).to(out_proj.B.dtype)
    rank = max(in_proj.rank, out_proj.rank)
    return padded(in_proj, rank), padded(LowRank(out_proj.A, B), rank)


def padded(update: LowRank, rank: int) -> LowRank:
    """Return the same update of a matrix at a higher rank: rows of zeros below A, columns of zeros beside B."""
    missing = rank - update.rank
    A = torch.cat([update.A, update.A.new_zeros(missing, update.A.shape[1])])
    B = torch.cat([update.B, update.B.new_zeros(update.B.shape[0], missing)], dim=1)
    return LowRank(A, B, update.magnitude, update.kind)


def slices_of(name: str, fused: Mapping[str, Sequence[bool]]) -> Sequence[bool]:
    """Return which slices of a layer are adapted: of one that is not fused, its only one."""
    term = Selector(tuple(fused)).term_for(name)
    return (True,) if term is None else fused[term]


def one_slice(update: LowRank, slices: Sequence[bool]) -> LowRank:
    """Return an update of the rank that the config gives each slice."""
    rank = update.rank // sum(slices)
    return update if len(slices) == 1 else LowRank(update.A[:rank], update.B[:, :rank], update.magnitude)


def _read_matrix(A: Tensor, B: Tensor, r: int, kind: KindName = "linear") -> LowRank:
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != r or B.shape[1] != r:
        raise _misfit(A, B, r, "(r, in) and (out, r)")
    return LowRank(A, B, kind=kind)


def _read_stack(A: Tensor, B: Tensor, r: int) -> LowRank:
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or A.shape[0] % r:
        raise _misfit(A, B, r, "(experts r, in) and (out, r experts)")
    experts = A.shape[0] // r
    if experts == 1:
        return LowRank(A, B, kind="parameter")
    stacked = B.view(B.shape[0], r, experts).permute(2, 0, 1).contiguous()
    return LowRank(A.view(experts, r, A.shape[1]), stacked, kind="parameter")


def _read_conv(A: Tensor, B: Tensor, r: int) -> LowRank:
    fits = A.ndim == B.ndim <= MAX_KERNEL_DIMS + 2 and A.shape[0] == r
    fits = fits and B.numel() == B.shape[0] * B.shape[1] and r % B.shape[1] == 0
    groups = r // B.shape[1] if fits else 1
    if not fits or A.shape[1] % groups or B.shape[0] % groups:
        raise _misfit(A, B, r, "(r, in, *kernel) and (out, r / groups, 1 ...), in and out divisible by groups")
    B = B.flatten(1)
    return LowRank(A, B, kind="conv") if groups == 1 else _read_grouped(A, B, groups)


def _read_grouped(A: Float[Tensor, "r in *kernel"], B: Float[Tensor, "out q"], groups: int) -> LowRank:
    """Return the update of a convolution with groups; r = q groups, and group g of `out` uses rows g q ... of A.

    A row that sees only its own group's channels is a row of a grouped convolution. Where all groups have the same
    rows, they are kept once; otherwise each group keeps its own, and B is zero for the others'.
    """
    q, out, width = B.shape[1], B.shape[0], A.shape[1] // groups
    blocks = A.view(groups, q, groups, width, *A.shape[2:])
    group = torch.arange(groups)
    own = blocks[group, :, group]
    if own.count_nonzero() != blocks.count_nonzero():
        raise AdapterFormatError("the update reaches across groups, and no convolution with groups computes that")
    if bool((own == own[0]).all()):
        return LowRank(own[0].clone(), B, kind="conv", groups=groups)
    scattered = B.new_zeros(groups, out // groups, groups, q)
    scattered[group, :, group] = B.view(groups, out // groups, q)
    return LowRank(own.flatten(0, 1), scattered.view(out, groups * q), kind="conv", groups=groups)


def _misfit(A: Tensor, B: Tensor, r: int, wanted: str) -> AdapterFormatError:
    shapes = f"A has shape {tuple(A.shape)} and B has shape {tuple(B.shape)}"
    return AdapterFormatError(f"{shapes}, but with r = {r} of the settings they must have shapes {wanted}")


def _write_matrix(update: LowRank) -> Pair:
    return update.A, update.B


def _write_stack(update: LowRank) -> Pair:
    if update.A.ndim == 2:
        return update.A, update.B
    return update.A.flatten(0, 1), update.B.permute(1, 2, 0).flatten(1)


def _write_conv(update: LowRank) -> Pair:
    r, width, *kernel = update.A.shape
    A = update.A.new_zeros(update.groups, r, update.groups, width, *kernel)
    group = torch.arange(update.groups)
    A[group, :, group] = update.A
    B = update.B.reshape(*update.B.shape, *(1 for _ in kernel))
    return A.view(update.groups * r, update.groups * width, *kernel), B


_READERS: Mapping[KindName, Callable[[Tensor, Tensor, int], LowRank]] = {
    "linear": _read_matrix,
    "embedding": lambda A, B, r: _read_matrix(A, B, r, "embedding"),
    "conv": _read_conv,
    "parameter": _read_stack,
}
_WRITERS: Mapping[KindName, Callable[[LowRank], Pair]] = {
    "linear": _write_matrix,
    "embedding": _write_matrix,
    "conv": _write_conv,
    "parameter": _write_stack,
}
