"""Layer kinds: how each sees its weight as a matrix (out, in), and how it adds a low-rank update to its output.

An update (`updates.py`) knows nothing of layers, and a kind knows nothing of LoRA or DoRA: each pair works without a
class of its own.

| kind       | layers                                              | weight as (out, in)                       |
| linear     | nn.Linear; transformers' Conv1D (transposed)        | as it is; its transpose                   |
| linear     | quantised or foreign layers with in_/out_features   | not at hand: found by probing, on request |
| embedding  | nn.Embedding                                        | transposed: (dim, tokens)                 |
| conv       | nn.Conv1d, nn.Conv2d, nn.Conv3d                     | (out, channels / groups * kernel)         |
| parameter  | a parameter that its module computes with itself    | as it is, or each expert's transpose      |
"""

import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakTensorKeyDictionary

from veneer.lora.delta import add_delta_output, autocast_kind, exactly
from veneer.lora.state import KindName

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POINTWISE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED_CLASS = "transformers.pytorch_utils.Conv1D"
_CASTS = WeakTensorKeyDictionary()
"""Activation -> its version and a weak reference to it in autocast's dtype: nothing lives longer for being here."""


class Kind(ABC):
    """One kind of layer; stateless, so that copies and pickles of a layer share its meaning."""

    name: ClassVar[KindName] = "linear"
    weight_name: str = "weight"
    """Name of the adapted parameter in its module."""

    def is_transposed(self, module: nn.Module) -> bool:
        """Return whether the module stores its weight as (in, out)."""
        return False

    def sizes(self, module: nn.Module) -> tuple[int, int]:
        """Return (in, out): columns and rows of the weight's matrix."""
        matrix = self.matrix(module)
        return matrix.shape[-1], matrix.shape[-2]

    def weight_of(self, module: nn.Module) -> Tensor:
        """Return the weight as the module stores it."""
        weight: Tensor = getattr(module, self.weight_name)
        return weight

    def matrix(self, module: nn.Module) -> Float[Tensor, "*stack out in"]:
        """Return the weight seen as (out, in)."""
        weight = self.weight_of(module)
        return weight.transpose(-1, -2) if self.is_transposed(module) else weight

    def shaped(self, matrix: Float[Tensor, "*stack out in"], module: nn.Module) -> Tensor:
        """Return a matrix (out, in) in the shape and dtype of the module's weight: the way back."""
        weight = self.weight_of(module)
        stored = matrix.transpose(-1, -2).contiguous() if self.is_transposed(module) else matrix
        return stored.reshape(weight.shape).to(weight.dtype)

    @abstractmethod
    def add(
        self,
        module: nn.Module,
        x: Tensor,
        base_output: Tensor,
        factors: tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]],
        scaling: Float[Tensor, ""],
    ) -> Tensor:
        """Return the base's output plus the update's share, s B A x."""

    def per_channel(self, vector: Float[Tensor, " out"], module: nn.Module) -> Tensor:
        """Return a value for each output in a shape that multiplies the output."""
        return vector

    def dropped(self, x: Tensor, probability: float) -> Tensor:
        """Return x with elements zeroed at random, where x has elements to zero."""
        return functional.dropout(x, probability)

    def cast(self, x: Tensor) -> Tensor:
        """Return x in autocast's dtype, once, where the base and the update would each cast it."""
        kind = autocast_kind(x.device)
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:  # which autocast leaves alone
            return _cast_once(x, torch.get_autocast_dtype(kind))
        return x


class LinearKind(Kind):
    """`nn.Linear`: the weight is the matrix."""

    def add(
        self,
        module: nn.Module,
        x: Float[Tensor, "*batch in"],
        base_output: Float[Tensor, "*batch out"],
        factors: tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]],
        scaling: Float[Tensor, ""],
    ) -> Float[Tensor, "*batch out"]:
        """Map x (*batch, in) and the base's output (*batch, out) to (*batch, out)."""
        return add_delta_output(base_output, x, *factors, scaling)


class TransposedKind(LinearKind):
    """transformers' `Conv1D` (GPT-2): a linear layer that stores its weight as (in, out)."""

    def is_transposed(self, module: nn.Module) -> bool:
        """Return True."""
        return True


class OpaqueKind(LinearKind):
    """A linear layer whose weight is not a float matrix at hand: quantised, parametrised, or somebody's own class.

    The layer is called and the update added to what it returns; its weight is never read in a forward pass.
    """

    def sizes(self, module: nn.Module) -> tuple[int, int]:
        """Return (in_features, out_features): nothing else of the layer is known."""
        in_features, out_features = module.in_features, module.out_features
        assert isinstance(in_features, int)
        assert isinstance(out_features, int)
        return in_features, out_features

    def matrix(self, module: nn.Module) -> Float[Tensor, "out in"]:
        """Return the weight by sending the identity through the layer: exact where the layer is x W^T + b."""
        in_features, _ = self.sizes(module)
        return self._sent(module, torch.eye(in_features)).sub(self.offset(module)).t()

    def offset(self, module: nn.Module) -> Float[Tensor, " out"]:
        """Return what the layer makes of zeros: b."""
        in_features, _ = self.sizes(module)
        return self._sent(module, torch.zeros(in_features))

    def like(self, module: nn.Module) -> Tensor:
        """Return an empty tensor of the device and the dtype that the layer computes in; float32 where none tells."""
        tensors = [*module.parameters(), *module.buffers()]
        own = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.dtype.itemsize > 1]
        place = next(iter([*own, *tensors]), torch.empty(0))
        return torch.empty(0, device=place.device, dtype=own[0].dtype if own else torch.float32)

    def _sent(self, module: nn.Module, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        like = self.like(module)
        with torch.no_grad(), exactly(like.device):
            output: Tensor = module(x.to(like))
        return output


class EmbeddingKind(Kind):
    """`nn.Embedding`: a matrix applied to one-hot vectors, stored transposed as (tokens, dim)."""

    name = "embedding"

    def is_transposed(self, module: nn.Module) -> bool:
        """Return True: in = tokens, out = dim."""
        return True

    def add(
        self,
        module: nn.Module,
        x: Tensor,
        base_output: Float[Tensor, "*batch dim"],
        factors: tuple[Float[Tensor, "r tokens"], Float[Tensor, "dim r"]],
        scaling: Float[Tensor, ""],
    ) -> Float[Tensor, "*batch dim"]:
        """Map ids (*batch) and the base's output (*batch, dim) to (*batch, dim): columns of A are looked up."""
        assert isinstance(module, nn.Embedding)
        A, B = factors
        hidden = functional.embedding(x, A.t(), padding_idx=module.padding_idx)
        raised = functional.linear(hidden * scaling, B)
        return base_output + raised.to(base_output.dtype)  # a sum of its own: autocast would round a fused one

    def dropped(self, x: Tensor, probability: float) -> Tensor:
        """Return the ids: there is nothing to drop."""
        return x

    def cast(self, x: Tensor) -> Tensor:
        """Return the ids."""
        return x


class ConvKind(Kind):
    """`nn.Conv1d/2d/3d`: B A is the kernel, so stride, padding, dilation and groups act on the update as on the base.

    A is a convolution like the base's with r channels for each group, B one of width 1 that mixes them.
    """

    name = "conv"

    def matrix(self, module: nn.Module) -> Float[Tensor, "out in"]:
        """Return the kernel, flattened but for its first dimension."""
        return self.weight_of(module).flatten(1)

    def add(
        self,
        module: nn.Module,
        x: Tensor,
        base_output: Tensor,
        factors: tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]],
        scaling: Float[Tensor, ""],
    ) -> Tensor:
        """Map x (batch, channels, *space) and the base's output (batch, out, *space) to the latter's shape."""
        assert isinstance(module, CONVOLUTIONS)
        A, B = factors
        spatial = module.weight.shape[2:]
        kernel = A.to(x.dtype).view(A.shape[0], -1, *spatial).repeat(module.groups, 1, *[1] * len(spatial))
        hidden = module._conv_forward(x, kernel, None)  # the base's own padding, stride and dilation
        scaled = (hidden * scaling).to(base_output.dtype)
        mixer = B.to(scaled.dtype).view(*B.shape, *[1] * len(spatial))
        raised: Tensor = POINTWISE[len(spatial)](scaled, mixer, groups=module.groups)
        return base_output + raised

    def per_channel(self, vector: Float[Tensor, " out"], module: nn.Module) -> Tensor:
        """Return the vector with a dimension of 1 for each of the kernel's."""
        return vector.view(-1, *[1] * (self.weight_of(module).ndim - 2))


@dataclass(frozen=True)
class ParameterKind(Kind):
    """A parameter that its module computes with itself: (out, in), or (experts, out, in) for stacked experts."""

    weight_name: str = "weight"
    name: ClassVar[KindName] = "parameter"

    def is_transposed(self, module: nn.Module) -> bool:
        """Return whether the module says that it stores its experts as (in, out)."""
        return self.weight_of(module).ndim == 3 and bool(getattr(module, "is_transposed", False))

    def add(
        self,
        module: nn.Module,
        x: Tensor,
        base_output: Tensor,
        factors: tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]],
        scaling: Float[Tensor, ""],
    ) -> Tensor:
        """Never called: the module computes with the merged parameter."""
        raise NotImplementedError


def _cast_once(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in `dtype`, the same tensor for all layers that read this x, as query, key and value do.

    Each would otherwise cast x, keep its own copy for the backward pass and send back a gradient of its own. The first
    one's is found again for as long as a graph keeps it. A tensor that no graph made, such as the output of a frozen
    encoder, is cast and kept by each layer: whoever holds it may write to it unseen, through `.data` or the memory of
    an array.
    """
    if torch.compiler.is_compiling() or x.dtype == dtype or x.grad_fn is None:
        return x.to(dtype)
    version, kept = _CASTS.get(x, (None, None))  # type: ignore[no-untyped-call]
    found = kept() if version == x._version else None
    if found is None or found.dtype != dtype or found.requires_grad != (x.requires_grad and torch.is_grad_enabled()):
        found = x.to(dtype)
        _CASTS[x] = (x._version, weakref.ref(found))
    return found


LINEAR, TRANSPOSED, OPAQUE = LinearKind(), TransposedKind(), OpaqueKind()
EMBEDDING, CONV = EmbeddingKind(), ConvKind()


def kind_of(module: nn.Module) -> Kind | None:
    """Return the kind of a layer, or None where no low-rank update is defined for it."""
    if _is_plain_linear(module):  # most layers are
        return LINEAR
    if isinstance(module, nn.Embedding):
        return EMBEDDING
    if isinstance(module, CONVOLUTIONS):
        return CONV
    if f"{type(module).__module__}.{type(module).__qualname__}" == TRANSPOSED_CLASS:
        return TRANSPOSED
    sizes = (getattr(module, name, None) for name in ("in_features", "out_features"))
    return OPAQUE if all(isinstance(size, int) for size in sizes) else None


def obstacle(module: nn.Module, kind: Kind | None) -> str | None:
    """Return why a module of this kind cannot be adapted, or None where it can."""
    own_parameters = [parameter for parameter in module._parameters.values() if parameter is not None]
    if any(map(is_lazy, own_parameters)):
        return f"is a {type(module).__name__} whose sizes are not known yet; run the model once first"
    if kind is None:
        advice = f", and its own {', '.join(own)} by `parameters`" if (own := own_matrices(module)) else ""
        return f"is a {type(module).__name__}; linear, embedding and convolution layers can be adapted{advice}"
    if kind in (EMBEDDING, CONV) and type(module).forward not in {cls.forward for cls in (nn.Embedding, *CONVOLUTIONS)}:
        return f"is a {type(module).__name__} with a forward pass of its own; its update is not defined"
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.sparse or module.scale_grad_by_freq):
        return "is an Embedding with max_norm, sparse or scaled gradients, which its update would not have"
    if any(parameter.is_inference() for parameter in own_parameters):
        return "was made in inference mode, where nothing can be trained; make it outside"
    if kind is not OPAQUE and not _is_float_parameter(module):
        return f"is a {type(module).__name__} without a floating-point weight of its own"
    return None


def own_matrices(module: nn.Module) -> list[str]:
    """Return the names of the module's own parameters that have two dimensions or more."""
    return [name for name, p in module._parameters.items() if p is not None and not is_lazy(p) and p.ndim >= 2]


def _is_plain_linear(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and _is_float_parameter(module)
        and type(weight) is nn.Parameter
        and weight.shape == (module.out_features, module.in_features)
    )


def _is_float_parameter(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and is_wide_float(weight)


def is_wide_float(tensor: Tensor) -> bool:
    """Return whether the values are floating-point numbers as they stand, not codes of eight bits that want a scale."""
    return tensor.is_floating_point() and tensor.dtype.itemsize > 1
