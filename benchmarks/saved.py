"""Bytes kept for the backward pass: three projections of one input, adapted by us and by PEFT, in bytes of the input.

Counted are the distinct storages that autograd packs (`torch.autograd.graph.saved_tensors_hooks`), the frozen weights
and the parameters A and B left out. What a layer keeps elsewhere than in autograd's graph is not seen.
"""

from collections.abc import Callable, Mapping

import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import Tensor, nn

import veneer
from benchmarks.harness import Bar, Comparison, Options, device

ROWS, WIDTH, RANK, ALPHA = 2048, 256, 8, 16
PROJECTIONS = ("query", "key", "value")
DROPOUT = 0.1


class Attention(nn.Module):
    """q, k and v of one x: what every attention layer begins with."""

    def __init__(self) -> None:
        super().__init__()
        for name in PROJECTIONS:
            self.add_module(name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (rows, width) to three of the same shape."""
        return [projection(x) for projection in self.children()]


def ours(dropout: float) -> nn.Module:
    """Return the projections in bfloat16, adapted by us."""
    model = Attention().to(device(), torch.bfloat16)
    veneer.adapt(model, veneer.LoraConfig(r=RANK, alpha=ALPHA, dropout=dropout, targets=PROJECTIONS))
    return model.train()


def peft(dropout: float) -> nn.Module:
    """Return the projections in bfloat16, adapted by PEFT."""
    model = Attention().to(device(), torch.bfloat16)
    config = PeftConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=list(PROJECTIONS))
    return get_peft_model(model, config).train()


CONTENDERS: Mapping[str, Callable[[float], nn.Module]] = {"veneer": ours, "PEFT": peft}


def saved_bytes(run: Callable[[], object], left_out: nn.Module) -> int:
    """Return the bytes of all distinct storages that `run` saves for backward, but those of `left_out`'s parameters."""
    known = {parameter.untyped_storage().data_ptr() for parameter in left_out.parameters()}
    storages: dict[int, int] = {}
    kept: list[Tensor] = []  # a storage that were freed could give its address to the next

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = run()
    del outputs
    return sum(storages.values())


def saved(options: Options) -> list[Comparison]:
    """Compare the bytes that three projections of one bfloat16 input save with the bytes of that input."""
    x = torch.randn(ROWS, WIDTH, device=device(), dtype=torch.bfloat16, requires_grad=True)
    bars = {("veneer", 0.0): 1.1, ("veneer", DROPOUT): 1.3}
    return [
        Comparison(
            benchmark=f"saved for backward, q, k, v on one bfloat16 x ({ROWS} x {WIDTH}), dropout {dropout:g}",
            unit="bytes",
            ours=name,
            our_values=[_saved_by(build(dropout), x)],
            theirs="x itself",
            their_values=[x.untyped_storage().nbytes()],
            bar=Bar(of="ratio", at_most=bars[name, dropout]) if (name, dropout) in bars else None,
        )
        for dropout in (0.0, DROPOUT)
        for name, build in CONTENDERS.items()
    ]


def _saved_by(model: nn.Module, x: Tensor) -> int:
    return saved_bytes(lambda: model(x), model)
