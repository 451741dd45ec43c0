"""The start of A and B, by the names of `LoraConfig.init`, and the input directions that EVA starts from.

The base weight is never written. Where B0 A0 is not zero, the layer computes W0 x + s (B A - B0 A0) x, so that an
adapted model starts as exactly what its base computes. Quantised weights are made plain by the caller.

A weight is seen as `delta.py` sees it, (out, in), or (experts, out, in) where it is stacked. All draws come from the
generator, on the CPU and in float32, so that neither the device nor the dtype of the weight changes them.

Source:
    kaiming: the published code of Hu et al. 2021, arXiv 2106.09685, and PEFT draw A from the Kaiming uniform
        distribution with a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in)), where the paper draws from a Gaussian.
    gaussian: PEFT, A ~ N(0, 1/r^2).
    orthogonal: PEFT, datta0.github.io/posts/rethink-lora-init: A and B random with B A = 0.
    pissa: Meng et al. 2024, arXiv 2404.02948, eq. 2-3: s B A is the principal part of W0.
    olora: Büyükakyüz 2024, arXiv 2406.01775, algorithm 1: B A is the leading part of Q R = W0.
    eva: Paischer et al. 2024, arXiv 2410.07170, section 3: A spans what the layer's inputs vary along. The ranks stay
        as configured: the paper's redistribution of ranks among layers (rho) is left out.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from veneer.errors import ConfigError, DataError, gathered, unknown_name
from veneer.lora.delta import trained_dtype

ORTHOGONAL_SHRINK = 10.0
"""PEFT divides A and B of the orthogonal start by this."""
SPARE_DIRECTIONS = 4
MIN_DIRECTIONS = 64
"""EVA holds 4 r directions between batches, at least 64. Where the variance decays slowly (768 inputs, singular values
falling as k^-1/4, r = 8) holding r loses 1.6 % of what the best r directions explain; holding 64 loses 0.05 %."""
RANK_TOLERANCE = 10.0
"""Directions below this many rounding errors of the largest count as not seen."""


class Start(NamedTuple):
    """A0 and B0, in float32 (float64 for float64 weights) on the weight's device."""

    A: Float[Tensor, "*stack r in"]
    B: Float[Tensor, "*stack out r"]


@dataclass(frozen=True)
class Init:
    """One way to start."""

    make: Callable[[Tensor, int, float, torch.Generator], Start]
    """(weight, r, scaling, generator) -> start."""
    subtracted: bool
    """B0 A0 is not zero (or only up to rounding), so the layer subtracts it."""
    needs_weight: bool
    """False: only the shape, dtype and device of the weight are read, so the meta device will do."""


def kaiming(
    r: int, in_features: int, generator: torch.Generator, stack: tuple[int, ...] = ()
) -> Float[Tensor, "*stack r in"]:
    """Return A drawn from U(-1/sqrt(in), 1/sqrt(in)), in float32 on the CPU."""
    bound = 1 / math.sqrt(in_features)
    return _empty(*stack, r, in_features).uniform_(-bound, bound, generator=generator)


def gaussian(
    r: int, in_features: int, generator: torch.Generator, stack: tuple[int, ...] = ()
) -> Float[Tensor, "*stack r in"]:
    """Return A drawn from N(0, 1/r^2), in float32 on the CPU."""
    return _empty(*stack, r, in_features).normal_(std=1 / r, generator=generator)


def starting_at_zero(
    draw: Callable[[int, int, torch.Generator, tuple[int, ...]], Tensor],
) -> Callable[[Tensor, int, float, torch.Generator], Start]:
    """Return the start that has A as `draw` gives it, and B = 0."""

    def make(weight: Float[Tensor, "*stack out in"], r: int, _scaling: float, generator: torch.Generator) -> Start:
        *stack, out_features, in_features = weight.shape
        if weight.is_meta:  # no values to draw
            sizes = ((*stack, r, in_features), (*stack, out_features, r))
            return Start(*(torch.empty(size, dtype=trained_dtype(weight), device="meta") for size in sizes))
        A = _placed(draw(r, in_features, generator, tuple(stack)), weight)
        return Start(A, A.new_zeros(*stack, out_features, r))

    return make


def orthogonal(weight: Float[Tensor, "*stack out in"], r: int, _scaling: float, generator: torch.Generator) -> Start:
    """Return random A and B whose middle spaces are orthogonal: A = Q1^T G / 10, B = H Q2 / 10 with Q2 Q1^T = 0.

    Q1 and Q2 are every other row of a random orthogonal (r, r) matrix, G and H standard normal; r is even.
    """
    *stack, out_features, in_features = weight.shape
    basis = torch.linalg.qr(_empty(*stack, r, r).normal_(generator=generator)).Q
    wide = _empty(*stack, in_features, r // 2).normal_(generator=generator)
    tall = _empty(*stack, r // 2, out_features).normal_(generator=generator)
    A = (wide @ basis[..., 0::2, :]).mT / ORTHOGONAL_SHRINK
    B = tall.mT @ basis[..., 1::2, :] / ORTHOGONAL_SHRINK
    return Start(_placed(A.contiguous(), weight), _placed(B.contiguous(), weight))


def pissa(weight: Float[Tensor, "*stack out in"], r: int, scaling: float, _generator: torch.Generator) -> Start:
    """Return A and B with s B A = U_r S_r V_r^T, the best approximation of W0 at rank r, each with sqrt(S_r / s)."""
    U, S, Vh = torch.linalg.svd(_wide(weight), full_matrices=False)
    root = (S[..., :r] / scaling).sqrt()
    return Start(_owned(root.unsqueeze(-1) * Vh[..., :r, :]), _owned(U[..., :r] * root.unsqueeze(-2)))


def olora(weight: Float[Tensor, "*stack out in"], r: int, _scaling: float, _generator: torch.Generator) -> Start:
    """Return B = the first r columns of Q and A = the first r rows of R, of W0 = Q R."""
    Q, R = torch.linalg.qr(_wide(weight))
    return Start(_owned(R[..., :r, :]), _owned(Q[..., :r]))


INITS: Mapping[str, Init] = {
    "kaiming": Init(starting_at_zero(kaiming), subtracted=False, needs_weight=False),
    "gaussian": Init(starting_at_zero(gaussian), subtracted=False, needs_weight=False),
    "orthogonal": Init(orthogonal, subtracted=True, needs_weight=False),
    "pissa": Init(pissa, subtracted=True, needs_weight=True),
    "olora": Init(olora, subtracted=True, needs_weight=True),
    "eva": Init(starting_at_zero(kaiming), subtracted=False, needs_weight=False),
}
"""The A of "eva" only holds the place of `input_directions`, which need data."""


def start(
    init_name: str, weight: Float[Tensor, "*stack out in"], r: int, scaling: float, generator: torch.Generator
) -> Start:
    """Return A0 and B0 of one layer; the weight is only read.

    Args:
        init_name: a key of `INITS`.
        weight: W0, of any floating dtype; may be on the meta device where `needs_weight` is False, and so is the start.
        r: rank, at least 1.
        scaling: s, above 0.
        generator: source of the draws, on the CPU.

    Raises:
        UnknownNameError: there is no such initialisation.
        ConfigError: the initialisation cannot start this layer; see `start_problems`.
    """
    if init_name not in INITS:
        raise unknown_name("initialisation", init_name, INITS)
    if problems := start_problems(init_name, weight, r):
        raise ConfigError(gathered(f"init {init_name!r} cannot start this layer:", problems))
    return INITS[init_name].make(weight, r, scaling, generator)


def odd_rank(init_name: str, r: int) -> str:
    """Return why an initialisation cannot have this rank, whatever the layer, or ""."""
    is_odd = init_name == "orthogonal" and r % 2
    return f"r is {r}; 'orthogonal' splits it in two halves, so it must be even" if is_odd else ""


def start_problems(init_name: str, weight: Float[Tensor, "*stack out in"], r: int) -> list[str]:
    """Return why an initialisation cannot start a layer of this weight and rank; empty where it can."""
    odd = odd_rank(init_name, r)
    found = [odd] if odd else []
    if not INITS[init_name].needs_weight:
        return found
    smaller_side = min(weight.shape[-2:])
    if r > smaller_side:
        found.append(f"r is {r}; a weight of shape {tuple(weight.shape)} has no more than {smaller_side} directions")
    if weight.is_meta:
        found.append("the weight is on the meta device, but its values are needed; load them first, or use 'kaiming'")
    elif not bool(weight.isfinite().all()):
        found.append("the weight holds NaN or infinity; mend the base model, or use 'kaiming'")
    return found


class InputDirections:
    """The top right singular vectors of all inputs a layer sees, batch by batch (an incremental truncated SVD).

    Between batches at most `kept` directions are held, each times its singular value; the QR of these rows on top of a
    new batch has the same singular values and right singular vectors as all rows together. The result is exact as long
    as the inputs span no more than `kept` dimensions. Inputs are not centred: what counts is |A x|, as in the paper
    (PEFT subtracts the mean).

    Args:
        kept: number of directions held between batches, at least 1.
        name: of the layer, for messages.
    """

    def __init__(self, kept: int, *, name: str = "the layer") -> None:
        self._kept = kept
        self._name = name
        self._rows: Tensor | None = None

    def update(self, x: Float[Tensor, "*batch in"]) -> None:
        """Take in one batch of inputs.

        Raises:
            DataError: x holds NaN or infinity.
        """
        flat = _wide(x).reshape(-1, x.shape[-1])
        if not bool(flat.isfinite().all()):
            raise DataError(f"{self._name}: an input holds NaN or infinity; look at the model and the batch before it")
        rows = torch.linalg.qr(flat if self._rows is None else torch.cat([self._rows, flat]), mode="r").R
        if rows.shape[0] > self._kept:
            _, S, Vh = torch.linalg.svd(rows, full_matrices=False)
            rows = S[: self._kept, None] * Vh[: self._kept]
        self._rows = rows

    def directions(self, r: int) -> Float[Tensor, "r in"]:
        """Return the r directions along which the inputs were largest: orthonormal rows, the largest first.

        Raises:
            DataError: the inputs span fewer than r dimensions, or there were none.
        """
        if self._rows is None:
            raise DataError(f"{self._name}: saw no input; give batches that reach it, or leave it out")
        _, S, Vh = torch.linalg.svd(self._rows, full_matrices=False)
        rounding = RANK_TOLERANCE * torch.finfo(S.dtype).eps
        found = int(S.gt(rounding * S[:1]).sum())
        if found < r:
            raise DataError(
                f"{self._name}: its inputs span {found} dimensions, but r is {r}; give more batches, or lower r"
            )
        return _owned(Vh[:r])


def input_directions(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[object], *, r: Mapping[str, int]
) -> dict[str, Float[Tensor, "r in"]]:
    """Return EVA's A for each layer: the top right singular vectors of its inputs over all batches.

    The model runs in eval mode without gradients and is left as it was, as are the random states; also after an
    exception. Every position counts the same, so a batch with padding lets the padding count.

    Args:
        model: runs on the batches.
        layers: the layers by name; each reads its input's last dimension, so neither token ids nor images.
        batches: a mapping is passed as keywords, a tuple or list as arguments, anything else as the one argument; on
            the model's device.
        r: name of a layer -> its rank.

    Raises:
        DataError: some layers saw too little, or NaN; all that saw too little are named.
    """
    seen = {name: InputDirections(max(MIN_DIRECTIONS, SPARE_DIRECTIONS * r[name]), name=name) for name in layers}
    with _observing(model), ExitStack() as hooks:
        for name, layer in layers.items():
            handle = layer.register_forward_pre_hook(_feeding(seen[name]), with_kwargs=True)
            hooks.callback(handle.remove)
        for batch in batches:
            _call(model, batch)
    found, problems = {}, []
    for name, inputs in seen.items():
        try:
            found[name] = inputs.directions(r[name])
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError(gathered("the batches do not give every layer its start:", problems))
    return found


@contextmanager
def _observing(model: nn.Module) -> Iterator[None]:
    """Run the block in eval mode and without gradients; restore each module's own mode and the random states."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _feeding(inputs: InputDirections) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(_layer: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        inputs.update(args[0] if args else next(iter(keywords.values())))

    return hook


def _call(model: nn.Module, batch: object) -> None:
    if isinstance(batch, Mapping):
        model(**batch)  # the names are those of the user's model
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)


def _empty(*shape: int) -> Tensor:
    """Return room for draws, whatever the default device and dtype are at the moment."""
    return torch.empty(shape, device="cpu", dtype=torch.float32)


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor without its graph, in float32 or as float64 where it is."""
    return tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()


def _owned(part: Tensor) -> Tensor:
    """Return a copy in rows, so that the factorisation it is a part of can be freed."""
    return part.clone(memory_format=torch.contiguous_format)


def _placed(tensor: Tensor, weight: Tensor) -> Tensor:
    return tensor.to(weight.device, trained_dtype(weight))
