"""The methods that are compared: each turns a pretrained classifier into one that trains only its own part.

All of them train the head, the newly initialised output layer. Learning rates are each method's own. LoRA's is ten to
twenty times full fine-tuning's, where its optimum lies over many models ("LoRA Without Regret", Thinking Machines 2025;
"LoRA Learns Less and Forgets Less", arXiv 2405.09673); the head alone is small and starts from nothing. With
MiniLM on rotten-tomatoes' validation rows these did better than 5e-3, 1e-3 (lora-all) and 1e-4 (full); for lora-qv no
other rate was tried to the end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from veneer.errors import unknown_name
from veneer.lora.config import ALL_LINEAR, LoraConfig
from veneer.lora.inject import adapt
from veneer.lora.selectors import Terms
from veneer.methods.anatomy import query_value


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to fine-tune."""

    name: str
    learning_rate: float
    """Peak learning rate if the user names none."""
    targets: Callable[[str], Terms] | None
    """Model family to the layers that get a low-rank update; None trains every weight."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Parameters of a model that a method was attached to."""

    trainable: int
    lora: int
    head: int
    total: int


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(name="head", learning_rate=2e-2, targets=lambda model_type: ()),
        Method(name="lora-qv", learning_rate=1e-3, targets=query_value),
        Method(name="lora-all", learning_rate=5e-4, targets=lambda model_type: ALL_LINEAR),
        Method(name="full", learning_rate=5e-5, targets=None),
    )
}


def find_method(name: str) -> Method:
    """Return the method called `name`, or raise an `UnknownNameError` that lists all."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


def attach(
    model: nn.Module, method: Method, *, model_type: str, head: Sequence[str], config: LoraConfig, own_targets: bool
) -> Counts:
    """Make `model` train by `method`, in place.

    Args:
        model: the pretrained classifier.
        method: what to train.
        model_type: the model's family, as in its config.json.
        head: names of the newly initialised modules.
        config: rank, scaling and so on; its targets count only with `own_targets`.
        own_targets: whether `config.targets` replaces the method's own choice of layers.

    Raises:
        TargetError, ConfigError: the layers cannot be found or adapted. The model is as it was.
    """
    if method.targets is None:
        model.requires_grad_(True)
        lora = 0
    else:
        chosen = config if own_targets else replace(config, targets=method.targets(model_type))
        lora = adapt(model, chosen, head).lora_parameters
    head_parameters = sum(p.numel() for name in head for p in model.get_submodule(name).parameters())
    return Counts(
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        lora=lora,
        head=head_parameters,
        total=sum(p.numel() for p in model.parameters()),
    )
