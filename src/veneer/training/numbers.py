"""Numbers as a model's answer: learnt in units of their own spread, given in the unit of the labels.

A new head answers about 0, and a step moves its weights by about the learning rate. Labels far from 0 or far apart
would never be reached so, and whatever else is trained would be bent to make up for their mean. Therefore the last
layer's output counts in standard deviations from the mean of the training labels. After training both are multiplied
into its weights: what is saved is a linear layer like any other, and whoever loads it needs to know of no unit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss

from veneer.errors import DataError


class NumberLayer(nn.Linear):
    """The last layer of a head for one number: mean + sd * (W x + b), in float32 under autocast as well.

    In bfloat16 there is no year between 2000 and 2008.
    """

    mean = 0.0
    sd = 1.0

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch 1"]:
        """Return the number in the unit of the labels."""
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return self.mean + self.sd * linear(x.float(), self.weight.float(), bias)

    def loss(self, outputs: Any, labels: Float[Tensor, " batch"], **kwargs: object) -> Float[Tensor, ""]:  # noqa: ANN401
        """Return the mean squared error in units of sd, so that it depends on no unit; transformers' Trainer calls it.

        Args:
            outputs: what the model returned, with `logits` of shape (batch, 1).
            labels: the true numbers.
            kwargs: what else the Trainer passes.
        """
        return mse_loss(outputs.logits[:, 0].float(), labels.float()) / self.sd**2


def put_number_layer(model: nn.Module, head: Sequence[str]) -> NumberLayer:
    """Make the last layer of a model's head a `NumberLayer` of the same parameters, in place, and return it.

    Raises:
        DataError: no linear layer of the head has one output.
    """
    names = [
        f"{module}.{inner}" if inner else module
        for module in head
        for inner, layer in model.get_submodule(module).named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == 1
    ]
    if not names:
        raise DataError(f"{type(model).__name__} cannot learn numbers: its head has no linear layer with one output")
    plain: Any = model.get_submodule(names[-1])
    layer = NumberLayer(plain.in_features, 1, bias=plain.bias is not None, device="meta")
    layer.weight, layer.bias = plain.weight, plain.bias
    model.set_submodule(names[-1], layer.train(plain.training))
    return layer


@contextmanager
def standardized(layer: NumberLayer, targets: Sequence[float], *, is_new: bool) -> Iterator[None]:
    """Let a layer learn in units of the targets' spread, counted from their mean; then put the units into its weights.

    A layer without a bias cannot take up a mean: it counts from 0, in units of the targets' root mean square.

    Args:
        layer: the last layer of the head.
        targets: the numbers of the training rows.
        is_new: whether it starts anew, near the mean; one that was trained before keeps its output.
    """
    mean = 0.0 if layer.bias is None else fmean(targets)
    sd = fmean((target - mean) ** 2 for target in targets) ** 0.5 or 1.0
    if not is_new:
        _rescale(layer, 1 / sd, -mean / sd)
    layer.mean, layer.sd = mean, sd
    try:
        yield
    finally:
        layer.mean, layer.sd = 0.0, 1.0
        _rescale(layer, sd, mean)


@torch.no_grad()
def _rescale(layer: NumberLayer, factor: float, shift: float) -> None:
    layer.weight.mul_(factor)
    if layer.bias is not None:
        layer.bias.mul_(factor).add_(shift)
