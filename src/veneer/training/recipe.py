"""What every method shares about its arithmetic, so that a comparison compares methods and not recipes.

- Frozen weights are kept in bfloat16 where the run computes in bfloat16: autocast would cast them again in each
  forward pass. Whatever is trained stays in float32, and autocast computes with it in bfloat16.
- The frozen base's dropout is off (`base_dropout` puts it back): the pretrained layers' own noise costs a fifth of a
  step on a CPU. The head's dropout and the update's stay.

docs/performance.md has the measurements, and the accuracies with and without.
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
    """Keep every weight that is not trained in the dtype of `precision`; shared weights stay shared.

    Args:
        model: a model whose `requires_grad` flags say what is trained.
        precision: "float32", which changes nothing, or "bfloat16".
    """
    if precision != "bfloat16":
        return
    narrow: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.requires_grad and parameter.dtype == torch.float32:
                if id(parameter) not in narrow:
                    narrow[id(parameter)] = nn.Parameter(parameter.bfloat16(), requires_grad=False)
                module._parameters[name] = narrow[id(parameter)]
