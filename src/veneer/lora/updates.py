"""Updates: the trained part of an adapted layer. LoRA, DoRA, a tied twin of either layer, and single token rows.

An update is told its layer's kind and base in each call and keeps neither. `forward` gives the adapted output,
`matrix` the adapted weight as (out, in); that both say the same is the law they are tested by.

The scaling and the strength are held as numbers, and again as tensors of no dimension that the forward pass reads:
changing them changes no code, so a compiled model is not compiled again.

Source: Hu et al. 2021, arXiv 2106.09685 (LoRA); Liu et al. 2024, arXiv 2402.09353 (DoRA; section 4.3: the norm is
held constant in the backward pass).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from veneer.lora.delta import add_delta, dora_weight, row_stretch, trained_dtype
from veneer.lora.kernels import adapted_linear
from veneer.lora.kinds import EmbeddingKind, Kind


class Update(nn.Module, ABC):
    """A change of one layer.

    Args:
        scaling: s.
        like: a tensor whose device the constants live on; float64 where it is.
    """

    scaling: float
    strength: float
    """t, see `set_constants`."""
    factor: Float[Tensor, ""]
    """t s: what the update is multiplied by."""

    def __init__(self, *, scaling: float, like: Tensor) -> None:
        super().__init__()
        vars(self).update(scaling=scaling, strength=1.0)  # no tensors, which nn.Module's own way looks for in each
        self._place_constants(like)

    @abstractmethod
    def forward(self, x: Tensor, base_output: Tensor, kind: Kind, base: nn.Module) -> Tensor:
        """Map the layer's input and the base's output to the adapted output, of the base output's shape."""

    @abstractmethod
    def matrix(self, kind: Kind, base: nn.Module) -> Float[Tensor, "*stack out in"]:
        """Return the adapted weight as a matrix, not yet rounded to the dtype of the base's."""

    def set_constants(self, *, scaling: float, strength: float) -> None:
        """Set s, and the share t of the update that acts: 0 is the base, 1 the adapter as trained."""
        self.scaling, self.strength = scaling, strength
        for name, value in self._constants().items():
            vars(self)[name].fill_(value)

    def _constants(self) -> dict[str, float]:
        """Return what the forward pass reads as tensors, by the attributes that hold them."""
        return {"factor": self.scaling * self.strength}

    def _place_constants(self, like: Tensor) -> None:
        with torch.inference_mode(False):  # one made within could not be filled outside
            for name, value in self._constants().items():
                vars(self)[name] = torch.scalar_tensor(value, device=like.device, dtype=trained_dtype(like))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow `.to(...)`; the constants are made anew, so that no cast rounds them."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._place_constants(next(self.parameters()))
        return self


class LowRankUpdate(Update):
    """A and B, and what stands in for them in the formula.

    Args:
        A: the start of A, (r, in); stacked (experts, r, in); for m adapted slices of a fused projection (m r, in).
        B: the start of B, (out, r); stacked (experts, out, r); fused (m * out / n, r).
        scaling: s.
        dropout: probability of zeroing an element of x before A, in training mode only.
        slices: which of the n equal slices of a fused projection are adapted; None for an ordinary layer.
        subtract_start: keep the start and compute with B A - B0 A0, so that the layer starts as its base.
    """

    A: nn.Parameter
    B: nn.Parameter
    dropout: float
    slices: tuple[bool, ...] | None
    start_A: Tensor | None
    start_B: Tensor | None

    def __init__(
        self,
        A: Float[Tensor, "*stack r in"],
        B: Float[Tensor, "*stack out r"],
        *,
        scaling: float,
        dropout: float = 0.0,
        slices: Sequence[bool] | None = None,
        subtract_start: bool = False,
    ) -> None:
        super().__init__(scaling=scaling, like=A)
        self._parameters.update(A=nn.Parameter(A), B=nn.Parameter(B))  # new names, which need no look for older ones
        vars(self).update(dropout=dropout, slices=None if slices is None else tuple(slices))
        if subtract_start:
            self.register_buffer("start_A", A.clone())
            self.register_buffer("start_B", B.clone())
        else:
            vars(self).update(start_A=None, start_B=None)

    def factors(self) -> tuple[Float[Tensor, "*stack r in"], Float[Tensor, "*stack out r"]]:
        """Return A and B of the formula: slices scattered, and a start subtracted as [A; A0], [B, -B0]."""
        A, B = self.A, self._whole(self.B)
        if self.start_A is not None:
            assert self.start_B is not None
            return torch.cat([A, self.start_A], -2), torch.cat([B, -self._whole(self.start_B)], -1)
        return A, B

    def _whole(self, B: Tensor) -> Tensor:
        return B if self.slices is None else scattered(B, self.slices)

    def _input(self, x: Tensor, kind: Kind) -> Tensor:
        return kind.dropped(x, self.dropout) if self.dropout and self.training else x

    def extra_repr(self) -> str:
        """Return the settings that `print(model)` shows."""
        sizes = f"{self.A.shape[-1]} -> {self.A.shape[-2]} -> {self._whole(self.B).shape[-2]}"
        return f"{sizes}, scaling={self.scaling:g}, dropout={self.dropout:g}, strength={self.strength:g}"


class LoraUpdate(LowRankUpdate):
    """LoRA: W0 + t s B A."""

    def forward(self, x: Tensor, base_output: Tensor, kind: Kind, base: nn.Module) -> Tensor:
        """Add t s B A x to the base's output."""
        return kind.add(base, self._input(x, kind), base_output, self.factors(), self.factor)

    def fused(self, x: Tensor, base: nn.Module) -> Tensor:
        """Return what `forward` does for a plain linear layer, the base's output included, in one autograd node."""
        assert isinstance(base, nn.Linear)
        return adapted_linear(x, base, self.factors(), self.factor, dropout=self.dropout if self.training else 0.0)

    def matrix(self, kind: Kind, base: nn.Module) -> Float[Tensor, "*stack out in"]:
        """Return W0 + t s B A."""
        return add_delta(kind.matrix(base), *self.factors(), self.factor)


class DoraUpdate(LowRankUpdate):
    """DoRA: m (W0 + s B A) / |W0 + s B A|, a trained length m for each row.

    The magnitude starts as |W0|, so the layer starts as its base. Dropout acts on x before A alone, as in LoRA.

    Args:
        A, B, scaling, dropout, slices, subtract_start: see `LowRankUpdate`.
        magnitude: m, (out,).
    """

    share: Float[Tensor, ""]
    """t: how far the weight goes from the base's to the adapted one; `factor` is s alone."""

    def __init__(
        self,
        A: Float[Tensor, "r in"],
        B: Float[Tensor, "out r"],
        magnitude: Float[Tensor, " out"],
        *,
        scaling: float,
        dropout: float = 0.0,
        slices: Sequence[bool] | None = None,
        subtract_start: bool = False,
    ) -> None:
        super().__init__(A, B, scaling=scaling, dropout=dropout, slices=slices, subtract_start=subtract_start)
        self.magnitude = nn.Parameter(magnitude)

    def _constants(self) -> dict[str, float]:
        return {"factor": self.scaling, "share": self.strength}

    def forward(self, x: Tensor, base_output: Tensor, kind: Kind, base: nn.Module) -> Tensor:
        """Scale W0 x + s B A x by m / |W0 + s B A|, the bias left out of it."""
        factors = self.factors()
        plain = kind.add(base, self._input(x, kind), base_output, factors, self.factor)
        stretch = row_stretch(kind.matrix(base), *factors, self.factor, self.magnitude)
        bias = getattr(base, "bias", None)
        unbiased = plain if bias is None else plain - kind.per_channel(bias.to(plain.dtype), base)
        output = plain + kind.per_channel(stretch - 1, base).to(plain.dtype) * unbiased
        return torch.lerp(base_output, output.to(base_output.dtype), self.share.to(base_output.dtype))

    def matrix(self, kind: Kind, base: nn.Module) -> Float[Tensor, "out in"]:
        """Return W0 + t (W' - W0), with W' = m (W0 + s B A) / |W0 + s B A|."""
        weight = kind.matrix(base)
        adapted = dora_weight(weight, *self.factors(), self.factor, self.magnitude)
        return torch.lerp(weight.to(adapted.dtype), adapted, self.share)


class TiedUpdate(Update):
    """The update of a layer whose weight is another's, seen transposed: (s B A)^T = s A^T B^T.

    An output layer that shares its weight with an embedding shares the embedding's update this way.

    Args:
        source: the other layer's update; its parameters are shared.
    """

    def __init__(self, source: LoraUpdate) -> None:
        super().__init__(scaling=source.scaling, like=source.A)
        self.source = source

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """Return A and B as this layer sees them."""
        A, B = self.source.factors()
        return B.t(), A.t()

    def forward(self, x: Tensor, base_output: Tensor, kind: Kind, base: nn.Module) -> Tensor:
        """Add t s A^T B^T x to the base's output."""
        return kind.add(base, self.source._input(x, kind), base_output, self.factors(), self.factor)

    def matrix(self, kind: Kind, base: nn.Module) -> Float[Tensor, "out in"]:
        """Return W0 + t s A^T B^T."""
        return add_delta(kind.matrix(base), *self.factors(), self.factor)


class RowsUpdate(Update):
    """Rows of an embedding that are trained and replace the base's; its tied output layer scores with them too.

    Args:
        ids: the tokens, ascending.
        rows: the start, the base's own rows.
    """

    def __init__(self, ids: Int[Tensor, " tokens"], rows: Float[Tensor, "tokens dim"]) -> None:
        super().__init__(scaling=1.0, like=rows)
        self.register_buffer("ids", ids, persistent=False)
        self.rows = nn.Parameter(rows)

    @torch.no_grad()
    def fill(self, rows: Float[Tensor, "tokens dim"], ids: Int[Tensor, " tokens"]) -> None:
        """Take over the rows of these tokens, the same ones as before; on the meta device the tensors themselves."""
        if self.rows.is_meta:
            self.ids = ids
            self.rows = nn.Parameter(rows.to(self.rows.dtype, copy=True), requires_grad=self.rows.requires_grad)
            self._place_constants(rows)
        else:
            self.rows.copy_(rows)

    def forward(self, x: Tensor, base_output: Tensor, kind: Kind, base: nn.Module) -> Tensor:
        """Replace what the base gave for these tokens: their vectors, or in an output layer their scores."""
        ids = self.get_buffer("ids")
        rows = self.rows.to(base_output.dtype)
        if isinstance(kind, EmbeddingKind):
            place = torch.searchsorted(ids, x.long()).clamp_max(len(ids) - 1)
            replaced = torch.where((ids[place] == x).unsqueeze(-1), rows[place], base_output)
        else:
            bias = getattr(base, "bias", None)
            scores = functional.linear(x.to(rows.dtype), rows, None if bias is None else bias[ids].to(rows.dtype))
            replaced = base_output.index_copy(-1, ids, scores)
        return torch.lerp(base_output, replaced, self.factor.to(base_output.dtype))

    def matrix(self, kind: Kind, base: nn.Module) -> Float[Tensor, "out in"]:
        """Return the weight with the rows in their places."""
        weight = kind.matrix(base)
        dtype = torch.promote_types(weight.dtype, self.rows.dtype)
        weight, rows = weight.to(dtype), self.rows.to(dtype)
        replaced = (
            weight.index_copy(1, self.get_buffer("ids"), rows.t())
            if isinstance(kind, EmbeddingKind)
            else weight.index_copy(0, self.get_buffer("ids"), rows)
        )
        return torch.lerp(weight, replaced, self.factor.to(dtype))


def scattered(B: Float[Tensor, "packed r"], slices: Sequence[bool]) -> Float[Tensor, "out ranks"]:
    """Return the B of a fused projection: each adapted slice's block in its rows and in its own r columns, else zero.

    Args:
        B: the blocks of the m adapted slices, one below the other, (m * out / n, r).
        slices: which of the n slices are adapted.

    Returns:
        (out, m r).
    """
    blocks, r = B.chunk(sum(slices)), B.shape[1]
    ranks = r * len(blocks)
    padded = iter([functional.pad(block, (k * r, ranks - (k + 1) * r)) for k, block in enumerate(blocks)])
    empty = B.new_zeros(blocks[0].shape[0], ranks)
    return torch.cat([next(padded) if is_adapted else empty for is_adapted in slices])


def gathered_blocks(B: Float[Tensor, "out ranks"], slices: Sequence[bool]) -> Float[Tensor, "packed r"]:
    """Return the blocks of a scattered B, one below the other: the way back from `scattered`."""
    height, r = B.shape[0] // len(slices), B.shape[1] // sum(slices)
    adapted = [index for index, is_adapted in enumerate(slices) if is_adapted]
    return torch.cat([B[j * height : (j + 1) * height, k * r : (k + 1) * r] for k, j in enumerate(adapted)])


def is_scattered(B: Float[Tensor, "out ranks"], slices: Sequence[bool]) -> bool:
    """Return whether B holds a block for each adapted slice, and zeros around them."""
    if B.shape[0] % len(slices) or B.shape[1] % sum(slices):
        return False
    return torch.equal(scattered(gathered_blocks(B, slices), slices), B)
