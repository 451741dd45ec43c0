"""All modules and parameters of a model by name, in one pass each.

The same as `nn.Module.named_modules` and `named_parameters` give, without a generator for each level of the model: the
verbs look at the whole model several times, and that is a good part of what they take.
"""

from collections.abc import Mapping

from torch import nn


def named_modules(root: nn.Module) -> dict[str, nn.Module]:
    """Return every module once, by the first of its names, in the order of `root.named_modules()`."""
    found: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()
    waiting = [("", root)]
    while waiting:
        name, module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        found[name] = module
        if module._modules:
            start = f"{name}." if name else ""
            waiting += [(start + leaf, child) for leaf, child in reversed(module._modules.items()) if child is not None]
    return found


def named_parameters(root: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter once, by the first of its names, in the order of `root.named_parameters()`."""
    return parameters_of(named_modules(root))


def parameters_of(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return every parameter of `named_modules(root)` once, by the first of its names."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, module in modules.items():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{name}.{leaf}" if name else leaf] = parameter
    return found
