"""Parameters and buffers of a model by the full names they have in the plain one, whether it is adapted or not."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from veneer.lora.layers import plain_modules
from veneer.lora.plan import Plan
from veneer.lora.updates import Update


def trained_names(the_plan: Plan, root: nn.Module) -> list[str]:
    """Return the full names of the tensors that are trained besides the updates."""
    bases = _bases(root) if the_plan.trained_modules else {}
    inside = [
        f"{name}.{key}"
        for name in the_plan.trained_modules
        for key, value in bases[name].state_dict().items()
        if isinstance(value, Tensor)  # and no extra state, which has no parameter to stand in
    ]
    return [*inside, *the_plan.trained_biases]


def own_tensors(root: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return parameters and buffers, the very objects, by the full names they have in the plain model."""
    wanted = list(names)
    bases = _bases(root) if wanted else {}
    found: dict[str, Tensor] = {}
    for name in wanted:
        path, _, leaf = name.rpartition(".")
        owner = bases[path]
        tensor = owner._parameters.get(leaf)
        found[name] = owner.get_buffer(leaf) if tensor is None else tensor
    return found


def exchange(root: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put `tensors` in the place of the parameters and buffers of these names; return the objects that were there.

    Objects change places and no value is written, so a graph that was recorded before stays valid.
    """
    earlier = own_tensors(root, tensors)
    bases = _bases(root) if tensors else {}
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner, present = bases[path], earlier[name]
        like = tensor.to(device=tensor.device if present.is_meta else present.device, dtype=present.dtype)
        if leaf in owner._buffers:
            owner._buffers[leaf] = like
        elif isinstance(tensor, nn.Parameter):
            owner._parameters[leaf] = tensor
        else:
            owner._parameters[leaf] = nn.Parameter(like, requires_grad=present.requires_grad)
    return earlier


def _bases(root: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of the plain model by name; an update is none, whatever the base calls one of its own."""
    return {name: module for name, module in plain_modules(root) if not isinstance(module, Update)}
