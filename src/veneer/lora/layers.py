"""An adapted layer: a frozen `base` layer and one low-rank `update` beside it.

What an update computes is in `delta.py`; a layer kind only says how its base takes part. The layer wraps its base and
is no subclass of it: the base module stays the user's very object, untouched, and can be put back.

A forward pass changes nothing. There is no merged state: see `inject.py` for merging.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from veneer.lora.delta import add_delta, add_delta_output


class LowRankUpdate(nn.Module):
    """The trained part: A, B and their scaling.

    Args:
        A: the start of A, shape (r, in).
        B: the start of B, shape (out, r).
        scaling: the factor s of s B A.
        dropout: probability of zeroing an element of x before A, in training mode only.
    """

    def __init__(self, A: Float[Tensor, "r in"], B: Float[Tensor, "out r"], *, scaling: float, dropout: float) -> None:
        super().__init__()
        self.A = nn.Parameter(A)
        self.B = nn.Parameter(B)
        self.scaling = scaling
        self.dropout = dropout

    def forward(
        self, x: Float[Tensor, "*batch in"], base_output: Float[Tensor, "*batch out"]
    ) -> Float[Tensor, "*batch out"]:
        """Map x (*batch, in) and the base layer's output (*batch, out) to the adapted output (*batch, out)."""
        if self.dropout and self.training:
            x = nn.functional.dropout(x, self.dropout)
        return add_delta_output(base_output, x, self.A, self.B, self.scaling)

    def merged_weight(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """Return W0 + s B A in the dtype of `weight`."""
        return add_delta(weight, self.A, self.B, self.scaling)

    def extra_repr(self) -> str:
        """Return the settings that `print(model)` shows."""
        r, in_features = self.A.shape
        return f"{in_features} -> {r} -> {self.B.shape[0]}, scaling={self.scaling:g}, dropout={self.dropout:g}"


class AdaptedLinear(nn.Module):
    """A linear layer with a low-rank update: h = W0 x + b + s B A x.

    Args:
        base: the layer as it was; it is not changed.
        update: A of shape (r, in), B of shape (out, r).
    """

    def __init__(self, base: nn.Linear, update: LowRankUpdate) -> None:
        super().__init__()
        self.base = base
        self.update = update
        self.train(base.training)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Map (*batch, in) to (*batch, out)."""
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:  # which autocast leaves alone
            x = x.to(torch.get_autocast_dtype(x.device.type))  # once, where base and update would each do it
        output: Tensor = self.update(x, self.base(x))
        return output

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The weight this layer acts with, W0 + s B A, with gradients to A and B.

        Some modules bypass `forward` and compute with `layer.weight` themselves: `nn.MultiheadAttention` with its
        output projection, `nn.TransformerEncoderLayer` with both linear layers on its fast path. They get the adapted
        weight. Costs one product B A at each reading.
        """
        merged: Tensor = self.update.merged_weight(self.base.weight)
        return merged

    @property
    def bias(self) -> Float[Tensor, " out"] | None:
        """The base layer's own bias."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """Size of the last dimension of the input."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Size of the last dimension of the output."""
        return self.base.out_features


def new_update(base: nn.Linear, A: Float[Tensor, "r in"], *, scaling: float, dropout: float) -> LowRankUpdate:
    """Return an update for `base` that starts at A and B = 0, on the base's device, in float32 or wider."""
    dtype = torch.promote_types(torch.float32, base.weight.dtype)
    start = A.to(device=base.weight.device, dtype=dtype)
    B = torch.zeros(base.out_features, A.shape[0], device=base.weight.device, dtype=dtype)
    return LowRankUpdate(start, B, scaling=scaling, dropout=dropout)
