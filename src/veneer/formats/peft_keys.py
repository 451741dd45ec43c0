"""Which layer a key of PEFT's tensor file means, and back.

Every key begins with `base_model.model.`, then

    <module>.lora_A.weight, .lora_B.weight, .lora_magnitude_vector    a layer
    <module>.lora_embedding_A, .lora_embedding_B                      an embedding
    <attention>.lora_A.weight, <attention>.base_layer.out_proj.lora_A.weight (and B)    nn.MultiheadAttention
    <module>[.base_layer ...].lora_A.weight                  parameters of a module, named in `target_parameters`

`.base_layer` stands behind each module that PEFT wraps, in all names below it. A module of which several parameters
are adapted is wrapped once for each, in the order in which it holds them, so the key without `.base_layer` belongs to
the last. No key says which parameter it means.

Source: peft 0.21.2, `_inject_parameters` in `tuners/tuners_utils.py`, `MultiheadAttention` in `tuners/lora/layer.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from veneer.formats.tensors import FLOATS, finite_problems, own_name
from veneer.lora.config import LoraConfig
from veneer.lora.selectors import Selector
from veneer.lora.state import KindName

KEY_PREFIX = "base_model.model."
WRAPPED = "base_layer"
TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"
PARTS: Mapping[str, str] = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
"""End of a key -> which tensor of a layer it is; the last is of older releases."""
EXPERTS = ("gate_up_proj", "down_proj")
"""Parameters in the order in which the models of transformers hold them."""
IN_PROJ, OUT_PROJ = "in_proj_weight", "out_proj"

Parts = Mapping[str, Tensor]


@dataclass
class Found:
    """What a tensor file holds, sorted by what it is; names still have `.base_layer` in them."""

    layers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Name -> the layer's tensors by part."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """Name of an embedding -> its trained rows."""
    others: dict[str, Tensor] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Layer:
    """One A and B of a file."""

    name: str
    """As it is in the plain base model."""
    kind: KindName
    declared: str
    """The name by which PEFT looks up its rank and alpha."""
    parts: Parts


def sorted_tensors(tensors: Mapping[str, Tensor]) -> Found:
    """Return the tensors of a file sorted by what they are, with a line for each that cannot be used."""
    found = Found(problems=finite_problems(tensors))
    seen: set[str] = set()
    for key, tensor in tensors.items():
        name = own_name(key).removeprefix(KEY_PREFIX)
        end = next((end for end in PARTS if name.endswith(end)), "")
        identity = name.removesuffix(".weight") if PARTS.get(end) == "magnitude" else name
        if identity in seen:
            found.problems.append(f"{key} is there a second time under another prefix or ending")
        seen.add(identity)
        if end:
            found.layers.setdefault(name.removesuffix(end), {})[PARTS[end]] = tensor
            if tensor.dtype not in FLOATS:
                allowed = ", ".join(str(dtype) for dtype in FLOATS)
                found.problems.append(f"{key} has dtype {tensor.dtype}; it must be one of {allowed}")
        elif name.endswith(TOKEN_ROWS):
            found.rows[plain(name.removesuffix(TOKEN_ROWS))] = tensor
        elif ".lora_" in name:
            found.problems.append(f"{key} is of a kind that is not supported")
        else:
            found.others[name] = tensor
    for name, parts in found.layers.items():
        prefix = "embedding_" if "embedding_A" in parts or "embedding_B" in parts else ""
        wanted = {f"{prefix}A", f"{prefix}B"}
        found.problems += [f"{plain(name)}: lora_{part} is missing" for part in sorted(wanted - parts.keys())]
        left = parts.keys() - wanted - {"magnitude"}
        found.problems += [f"{plain(name)}: lora_{part} is there beside lora_{prefix}A" for part in sorted(left)]
    if not tensors:
        found.problems.append("it holds no tensors")
    return found


def plain(name: str) -> str:
    """Return a name as it is in the plain base model."""
    return ".".join(part for part in name.split(".") if part != WRAPPED)


def wrapped(name: str, depths: Mapping[str, int]) -> str:
    """Return a name as it is once PEFT has wrapped the modules above it, each as often as `depths` says."""
    parts = name.split(".")
    result = [parts[0]]
    for end, part in enumerate(parts[1:], start=1):
        result += [WRAPPED] * depths.get(".".join(parts[:end]), 0) + [part]
    return ".".join(result)


def injection_order(parameters: Sequence[str]) -> list[str]:
    """Return names of parameters of one module in the order in which it holds them: the given one, where unknown."""
    known = set(parameters) <= set(EXPERTS)
    return sorted(parameters, key=EXPERTS.index) if known else list(parameters)


def named_layers(
    found: Mapping[str, Parts], settings: Mapping[str, Any], declared: LoraConfig, *, ordered: bool
) -> tuple[list[Layer], list[str]]:
    """Return the layers of a file by the names they have in the plain base model, and a line for each without one.

    Args:
        found: the layers by their names in the file.
        settings: the settings of the folder.
        declared: the ranks that follow from them.
        ordered: whether `target_parameters` is known to be in the order in which modules hold their parameters.
    """
    levels: dict[str, dict[int, str]] = {}  # module -> how often `.base_layer` follows it -> name in the file
    for name in sorted(found):
        module = name
        while module.endswith(f".{WRAPPED}"):
            module = module.removesuffix(f".{WRAPPED}")
        levels.setdefault(module, {})[name.count(f".{WRAPPED}", len(module))] = name
    terms = settings.get("target_parameters") or []
    targets = settings.get("target_modules") or []
    selected = None if isinstance(targets, str) else Selector(targets)
    owned: dict[str, list[str]] = {}
    for module, names in levels.items():
        first = found[names[min(names)]]
        if selected is not None:
            itself = selected(plain(module))
        else:  # no expression is evaluated; a module itself has rank r, a stack of experts a multiple of it
            itself = "A" not in first or first["A"].shape[0] == declared.rank_of(plain(module))
        owned[module] = _parameters(plain(module), terms, itself=itself and len(names) == 1) if terms else []
    layers: list[Layer] = []
    problems: list[str] = []
    for module, names in levels.items():
        name, parts = plain(module), found[names[min(names)]]
        above = module.removesuffix(f".{WRAPPED}.{OUT_PROJ}")
        if owned[module] or len(names) > 1:
            stack = [found[names[depth]] for depth in sorted(names, reverse=True)]
            if problem := _nesting_problem(name, owned[module], stack, ordered=ordered):
                problems.append(problem)
            else:
                own = [f"{name}.{leaf}" for leaf in injection_order(owned[module])]
                layers += [Layer(leaf, "parameter", leaf, parts) for leaf, parts in zip(own, stack, strict=True)]
        elif f"{module}.{WRAPPED}.{OUT_PROJ}" in found:
            layers.append(Layer(f"{name}.{IN_PROJ}", "parameter", name, parts))
        elif above != module and above in levels and not owned[above]:
            layers.append(Layer(name, "linear", plain(above), parts))
        else:
            layers.append(Layer(name, _kind(parts), name, parts))
    return layers, problems


def _parameters(module: str, terms: Sequence[str], *, itself: bool) -> list[str]:
    """Return which parameters of a module `target_parameters` may mean; `itself`: it is adapted as a module."""
    leaves = []
    for term in terms:
        owner, _, leaf = term.rpartition(".")
        if f".{module}".endswith(f".{owner}") if owner else not itself:
            leaves.append(leaf)
    return list(dict.fromkeys(leaves))


def _nesting_problem(module: str, parameters: Sequence[str], stack: Sequence[Parts], *, ordered: bool) -> str | None:
    """Return why the parameters of a module cannot be told apart, or None."""
    count = f"{module}: the file holds A and B of {len(stack)} of its parameters"
    if len(parameters) != len(stack):
        return f"{count}, target_parameters names {', '.join(parameters) or 'none'}"
    shapes = {tuple(tuple(tensor.shape) for _, tensor in sorted(parts.items())) for parts in stack}
    if len(shapes) < len(stack) and not ordered and not set(parameters) <= set(EXPERTS):
        return f"{count} with equal shapes, and does not say which of {', '.join(parameters)} is which"
    return None


def _kind(parts: Parts) -> KindName:
    if "embedding_A" in parts:
        return "embedding"
    return "conv" if parts["A"].ndim > 2 else "linear"
