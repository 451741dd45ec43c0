"""The start of A. B starts at zero, so that an adapted model computes exactly what its base computes.

The paper draws A from a Gaussian; its published code and PEFT draw it from the Kaiming uniform distribution with
a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in)). Veneer follows the code.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def kaiming(r: int, in_features: int, generator: torch.Generator) -> Float[Tensor, "r in"]:
    """Return A drawn from U(-1/sqrt(in), 1/sqrt(in)), in float32 on the CPU."""
    bound = 1 / math.sqrt(in_features)
    return torch.empty(r, in_features).uniform_(-bound, bound, generator=generator)
