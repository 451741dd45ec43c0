"""What every method shares about its arithmetic, so that a comparison compares methods and not recipes.

- Frozen linear layers are kept in bfloat16 where the run computes in bfloat16: autocast would cast their weights each
  time, so nothing is computed differently. Whatever is trained stays in float32.
- The pretrained layers' dropout is off: drawing random numbers costs up to half of a step on a CPU, and over five
  seeds and two tasks neither LoRA nor full fine-tuning was more accurate with it (results/recipe.md).
  `base_dropout=True` leaves it as it was in pretraining. A head's own dropout stays.

docs/performance.md has the measurements.
"""

import torch
from torch import nn


def without_base_dropout(model: nn.Module) -> None:
    """Switch off the dropout of a transformers model's pretrained part; its head keeps its own."""
    base = getattr(model, "base_model", model)
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "dropout_prob"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)


def narrow_frozen(model: nn.Module, precision: str) -> None:
    """Keep the linear layers that are not trained in the dtype of `precision`; shared weights stay as they are.

    Args:
        model: a model whose `requires_grad` flags say what is trained.
        precision: "float32", which changes nothing, or "bfloat16".
    """
    if precision != "bfloat16":
        return
    others = {
        id(p) for module in model.modules() if not isinstance(module, nn.Linear) for p in module.parameters(False)
    }
    for module in model.modules():
        if isinstance(module, nn.Linear) and not any(p.requires_grad or id(p) in others for p in module.parameters()):
            module._parameters = {
                name: None if p is None else nn.Parameter(p.to(torch.bfloat16), requires_grad=False)
                for name, p in module._parameters.items()
            }
