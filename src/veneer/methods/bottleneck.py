"""Bottleneck adapters: small two-layer networks inserted into the frozen blocks, h <- h + W_up f(W_down h).

Each has biases: 2 d r + r + d parameters for blocks of width d. The variants differ in place and in f:

- "houlsby" (Adapter^H; Houlsby et al., arXiv 1902.00751, section 2.1): two a block, on the outputs of attention's
  projection and of the feed-forward's second one, before the residual sums.
- "pfeiffer" (Adapter^P; Pfeiffer et al., arXiv 2005.00247): one a block, after the feed-forward and a LayerNorm. It
  reads the block's last norm N of the sum u, adds to the sum, and the same frozen norm follows: N(u + W_up f(W_down
  N(u))), as the authors' AdapterHub has it (SeqBnConfig). Where a block ends in a plain sum, as in GPT-2 and Llama, it
  reads that and adds to it.
- "lin" (Adapter^L; Lin et al., arXiv 2004.03829): one a block, on its output, which a LayerNorm of its own, trained
  too (2 d more), prepares for it.

AdapterDrop (Rueckle et al., arXiv 2010.11918, "specialised") leaves out those of the first blocks: `dropped_blocks`.

f is swish for houlsby and ReLU for the others, as in the LoRA authors' scripts. What differs from the originals:

- W_up starts at exactly zero, so that no output changes at first. Houlsby draws both from a truncated N(0, 0.01^2).
  W_down is drawn from N(0, 1/d), which keeps the size of what it reads: with W_up at zero nothing asks for less.
- The frozen model's own norms stay frozen; Houlsby trains them. The LoRA paper counts none (section 5.1, L_LN = 0).
- In training, the model's own dropout after a wrapped projection acts on the sum; Houlsby's adapter follows it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import skip_init
from torch.utils.hooks import RemovableHandle

from veneer.errors import ConfigError, unknown_name
from veneer.lora.delta import trained_dtype
from veneer.lora.layers import AdaptedModule
from veneer.methods.anatomy import Anatomy, block_names, hidden_size
from veneer.methods.sizes import require_counts

Variant = Literal["houlsby", "pfeiffer", "lin"]


@dataclass(frozen=True, kw_only=True)
class BottleneckConfig:
    """Which bottlenecks, and how many of which size.

    Raises:
        ConfigError: a number is outside what is allowed.
        UnknownNameError: there is no such variant.
    """

    variant: Variant
    r: int
    """Width of the bottleneck, at least 1."""
    dropped_blocks: int = 0
    """How many of the first blocks go without."""

    def __post_init__(self) -> None:
        if self.variant not in PLACEMENTS:
            raise unknown_name("bottleneck variant", str(self.variant), PLACEMENTS)
        require_counts(self, {"r": 1, "dropped_blocks": 0})


class Bottleneck(nn.Module):
    """What is added to h: W_up f(W_down N(h) + b_down) + b_up, N a LayerNorm or nothing.

    Args:
        width: d, the size of h.
        r: size in between.
        activation: f.
        has_norm: whether N is a trained LayerNorm.
        like: a tensor of the base, for the device; the dtype is float32, or float64 beside a float64 base.
        generator: draws W_down; nothing is drawn on the meta device.
    """

    def __init__(
        self, width: int, r: int, *, activation: nn.Module, has_norm: bool, like: Tensor, generator: Generator
    ) -> None:
        super().__init__()
        place = {"device": like.device, "dtype": trained_dtype(like)}
        self.norm = nn.LayerNorm(width, **place) if has_norm else nn.Identity()  # type: ignore[arg-type]
        self.down = skip_init(nn.Linear, width, r, **place)  # type: ignore[no-untyped-call]
        self.activation = activation
        self.up = skip_init(nn.Linear, r, width, **place)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()
            if not like.is_meta:
                self.down.weight.copy_(torch.randn(r, width, generator=generator) / width**0.5)

    def forward(self, h: Tensor) -> Tensor:
        """Map (..., d) to (..., d), in the dtype of h."""
        x = self.norm(h.to(self.down.weight.dtype))
        added: Tensor = self.up(self.activation(self.down(x)))
        return added.to(h.dtype)


class WithBottleneck(AdaptedModule):
    """A module and its bottleneck; the classes below say how the two meet.

    Args:
        base: the module as it was; it is not changed.
        bottleneck: the trained part.
    """

    def __init__(self, base: nn.Module, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.base = base
        self.bottleneck = bottleneck
        self.follow_mode()


class AfterModule(WithBottleneck):
    """A projection, or a whole block, and a bottleneck on its output, the first one where it returns several."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the base's own signature
        """Map what the base maps, and add to it."""
        output = self.base(*args, **kwargs)
        if isinstance(output, tuple):
            return (output[0] + self.bottleneck(output[0]), *output[1:])
        return output + self.bottleneck(output)


class AroundNorm(WithBottleneck):
    """A norm N and a bottleneck that reads its output and adds to its input."""

    def forward(self, u: Tensor) -> Tensor:
        """Map (..., d) to N(u + bottleneck(N(u))), (..., d)."""
        return self.base(u + self.bottleneck(self.base(u)).to(u.dtype))  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One variant."""

    wrappers: Callable[[Anatomy], Mapping[str, type[WithBottleneck]]]
    """Name within a block of each module to wrap, "" for the block itself, to what it is wrapped with."""
    activation: type[nn.Module]
    has_norm: bool


PLACEMENTS: Mapping[str, Placement] = {
    "houlsby": Placement(
        wrappers=lambda anatomy: dict.fromkeys((anatomy.attention_output, anatomy.mlp_output), AfterModule),
        activation=nn.SiLU,
        has_norm=False,
    ),
    "pfeiffer": Placement(
        wrappers=lambda anatomy: {anatomy.last_norm: AroundNorm} if anatomy.last_norm else {"": AfterModule},
        activation=nn.ReLU,
        has_norm=False,
    ),
    "lin": Placement(wrappers=lambda anatomy: {"": AfterModule}, activation=nn.ReLU, has_norm=True),
}


def insert_bottlenecks(
    model: nn.Module, anatomy: Anatomy, config: BottleneckConfig, generator: Generator
) -> tuple[RemovableHandle, ...]:
    """Wrap the modules that `config` names, in place; there are no hooks to return.

    Raises:
        ConfigError: every block would go without. Nothing has changed then.
    """
    blocks = block_names(model, anatomy)
    if config.dropped_blocks >= len(blocks):
        raise ConfigError(
            f"dropped_blocks is {config.dropped_blocks}, but the model has {len(blocks)} blocks: "
            f"{len(blocks) - 1} is the most"
        )
    placement, wrapped = PLACEMENTS[config.variant], {}
    for block in blocks[config.dropped_blocks :]:
        for part, wrapper in placement.wrappers(anatomy).items():
            name = f"{block}.{part}" if part else block
            base = model.get_submodule(name)
            bottleneck = Bottleneck(
                hidden_size(model),
                config.r,
                activation=placement.activation(),
                has_norm=placement.has_norm,
                like=next(base.parameters()),
                generator=generator,
            )
            wrapped[name] = wrapper(base, bottleneck)
    for name, module in wrapped.items():
        model.set_submodule(name, module)
    return ()
