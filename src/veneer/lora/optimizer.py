"""Parameter groups for LoRA+: B learns faster than A.

B starts at zero and A does not, so with one learning rate for both, B moves too little in wide models. Embeddings get
the same two rates as other layers; there is no rate of their own as in the authors' code. The optimizer itself is the
user's: `torch.optim.AdamW(optimizer_groups(model, lr=1e-4))`.

Source: Hayou et al. 2024, arXiv 2402.12354, section 4 (eta_B = ratio * eta_A, ratio about 16).
"""

from typing import Any

from torch import nn

from veneer.errors import ConfigError, gathered
from veneer.lora.config import is_number
from veneer.lora.updates import Update

DEFAULT_RATIO = 16.0


def optimizer_groups(
    model: nn.Module, *, lr: float, ratio: float = DEFAULT_RATIO, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups for a `torch.optim` optimizer.

    Each trainable parameter is in exactly one group, and only groups that hold something are returned, in this order:
    "A" and "B" of the updates, "other" for what else is trained, "no_decay" for vectors and scalars (biases, norms,
    magnitudes), which are not decayed.

    Args:
        model: adapted or not.
        lr: learning rate of all but B, above 0.
        ratio: learning rate of B over that of A, above 0; 1 is plain LoRA.
        weight_decay: of all but vectors and scalars, at least 0.

    Returns:
        Groups with the keys name, params, lr and weight_decay.

    Raises:
        ConfigError: a number is outside what is allowed; all are named.
    """
    _check(lr=lr, ratio=ratio, weight_decay=weight_decay)
    groups: dict[str, dict[str, Any]] = {
        "A": {"lr": lr, "weight_decay": weight_decay},
        "B": {"lr": lr * ratio, "weight_decay": weight_decay},
        "other": {"lr": lr, "weight_decay": weight_decay},
        "no_decay": {"lr": lr, "weight_decay": 0.0},
    }
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                groups[_group_of(module, name, parameter)].setdefault("params", []).append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if "params" in group]


def _group_of(module: nn.Module, name: str, parameter: nn.Parameter) -> str:
    if name in {"A", "B"} and isinstance(module, Update):
        return name
    return "other" if parameter.dim() > 1 else "no_decay"


def _check(*, lr: float, ratio: float, weight_decay: float) -> None:
    above_zero = {"lr": lr, "ratio": ratio}
    problems = [
        f"{name} is {value!r}; it must be a finite number above 0"
        for name, value in above_zero.items()
        if not (is_number(value) and value > 0)
    ]
    if not (is_number(weight_decay) and weight_decay >= 0):
        problems.append(f"weight_decay is {weight_decay!r}; it must be a finite number of at least 0")
    if problems:
        raise ConfigError(gathered("the optimizer groups cannot be built:", problems))
