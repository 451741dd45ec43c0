"""One autograd node for an adapted linear layer: h = x W0^T + b + s drop(x) A^T B^T.

Plain torch does the same in six nodes (`updates.py` with `delta.py`, the oracle of the tests): each sum of two (n, in)
gradients is a pass over memory of its own, and dropout keeps a copy of x and a mask for each layer. Here the sums ride
on the products (`addmm`), x is kept once for all layers it feeds, and the mask is drawn again from its seed.

    n rows, in, out, r; all products in the dtype of x, sums in the accumulator of the product
    forward    z = s drop(x) A^T                  (n, r)      kept, with x
               h = x W0^T + b + z B^T             (n, out)
    backward   u = s g B                          (n, r)      g = dL/dh
               dA = u^T drop(x)                   (r, in)
               dB = g^T z                         (out, r)
               dx = g W0 + drop'(u A)             (n, in)

Source: the equations are those of Hu et al. 2021, arXiv 2106.09685, equation 3, differentiated.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

LEVELS = 1 << 16
"""Dropout compares 16 random bits with the probability: its error is below 2^-17, and the scale is exact for it."""


def adapted_linear(
    x: Float[Tensor, "*batch in"],
    base: nn.Linear,
    factors: tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]],
    scaling: Float[Tensor, ""],
    *,
    dropout: float = 0.0,
) -> Float[Tensor, "*batch out"]:
    """Return the adapted output of a linear layer, in one node.

    Args:
        x: the layer's input, of the dtype of the base's weight.
        base: the frozen layer.
        factors: A and B.
        scaling: s.
        dropout: probability of zeroing an element of x before A; the seed comes from torch's global generator.
    """
    noise = (dropout, int(torch.randint(2**62, ()).item())) if dropout else None
    output: Tensor = _AdaptedLinear.apply(  # type: ignore[no-untyped-call]
        x, base.weight, base.bias, *factors, scaling, noise
    )
    return output


def can_fuse(base: nn.Module, update: nn.Module, x: Tensor) -> bool:
    """Return whether nothing stands between a layer and the one node.

    That would be another dtype, a hook or somebody's `forward` on either module, a compiler, forward-mode
    differentiation, or torch.func.
    """
    return (
        torch.is_grad_enabled()
        and base.weight.dtype == x.dtype
        and _is_untouched(base)
        and _is_untouched(update)
        and not base.weight.requires_grad
        and not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
    )


def _is_untouched(module: nn.Module) -> bool:
    """Return whether calling the module runs its class's `forward` and nothing else."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return not hooks and "forward" not in module.__dict__


class _AdaptedLinear(torch.autograd.Function):
    """See the head of the file; shapes (n, in) -> (n, out)."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        scaling: Tensor,
        noise: tuple[float, int] | None,
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        dropped = flat if noise is None else flat * _mask(flat, *noise)
        z = _thin(dropped, A.to(x.dtype).t()).mul_(scaling)
        h = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        h.addmm_(z, B.to(x.dtype).t())
        needs_A = ctx.needs_input_grad[3]  # type: ignore[attr-defined]
        ctx.save_for_backward(x if needs_A else None, weight, A, B, scaling, z)  # type: ignore[arg-type]
        ctx.shape = x.shape  # type: ignore[attr-defined]
        ctx.noise = noise  # type: ignore[attr-defined]
        return h.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("an adapted linear layer has no second derivative; do without create_graph=True here")
        x, weight, A, B, scaling, z = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_x, _, needs_bias, needs_A, needs_B, *_ = ctx.needs_input_grad  # type: ignore[attr-defined]
        g = gradients[0].reshape(-1, weight.shape[0])
        like = g.new_empty(()).expand(len(g), weight.shape[1])
        mask = _mask(like, *ctx.noise) if ctx.noise and (needs_x or needs_A) else None  # type: ignore[attr-defined]
        dx = dA = dB = None
        u = _thin(g, B.to(g.dtype)).mul_(scaling) if needs_x or needs_A else None
        if needs_A and u is not None:
            flat = x.reshape(-1, x.shape[-1])
            dA = (u.t() @ (flat if mask is None else flat * mask)).to(A.dtype)
        if needs_B:
            dB = (z.t() @ g).t().to(B.dtype)  # up to twice as fast as g.t() @ z
        if needs_x and u is not None:
            dx = g @ weight
            if mask is None:
                dx.addmm_(u, A.to(g.dtype))
            else:
                dx.addcmul_(u @ A.to(g.dtype), mask)
            dx = dx.view(ctx.shape)  # type: ignore[attr-defined]
        return dx, None, g.sum(0) if needs_bias else None, dA, dB, None, None


def _thin(x: Float[Tensor, "n in"], factor: Float[Tensor, "in r"]) -> Float[Tensor, "n r"]:
    """Return x F, few columns wide.

    In float32 a processor forms it transposed, F^T x^T, in half the time, and z^T and u^T are what the backward pass
    multiplies with. In bfloat16 that would lay out all of x anew.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return (factor.t() @ x.t()).t()
    return x @ factor


def _mask(like: Float[Tensor, "n in"], probability: float, seed: int) -> Float[Tensor, "n in"]:
    """Return 0 or 1 / (1 - p) for each element, the same for the same seed."""
    threshold = min(round(probability * LEVELS), LEVELS - 1)
    generator = torch.Generator(like.device).manual_seed(seed)
    words = torch.empty(like.numel() // 4 + 1, dtype=torch.int64, device=like.device)
    lanes = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: like.numel()]
    kept = lanes >= threshold - LEVELS // 2
    return kept.view(like.shape).to(like.dtype).mul_(LEVELS / (LEVELS - threshold))
