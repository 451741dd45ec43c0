"""kohya's LoRA files, and those of LyCORIS that are plain LoRA, read.

    <prefix>_<module, its dots as underscores>.lora_down.weight    (r, in), of a convolution (r, in, *kernel)
    ...                                       .lora_up.weight      (out, r), of a convolution (out, r, 1, ...)
    ...                                       .alpha               one number; the scaling is alpha / r

Module names cannot be read back from the file, since underscores stand in them as well: the model's own names are
flattened and looked up. A missing alpha or one of 0 means alpha = r, a scaling of 1. LyCORIS has rank-stabilised
scaling and its trained scalar folded into alpha and `lora_up`, so nothing else is needed for them.

LoHa, LoKr, Tucker-decomposed, full and DoRA modules are refused by name.

Source: kohya-ss/sd-scripts, networks/lora.py; KohakuBlueleaf/LyCORIS, modules/.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from veneer.errors import AdapterFormatError, gathered
from veneer.formats.loralib import Pairs, pair_problems
from veneer.formats.pickles import read_weights
from veneer.lora.delta import SCALING_RULES
from veneer.lora.selectors import nearest
from veneer.lora.state import AdapterState, LowRank, config_for

PREFIXES = ("lora_unet", "lora_te", "lora_te1", "lora_te2", "lycoris")
PARTS: Mapping[str, str] = {"lora_down.weight": "A", "lora_up.weight": "B"}
OTHER_METHODS: Mapping[str, str] = {
    "lora_mid": "a Tucker decomposition",
    "dora_scale": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "diff": "a full difference",
    "oft_": "OFT",
    "on_input": "(IA)^3",
}
"""How the names of other methods' tensors begin."""
SMALLEST_ALPHA, LARGEST_ALPHA = 1e-6, 1e6
"""Far outside any use, and far from where arithmetic fails."""
MOST_HINTS = 3
"""For how many unknown names the nearest ones are looked up, which takes a while in a large model."""


def read_kohya(path: Path, *, names: Collection[str], prefix: str | None = None) -> AdapterState:
    """Read one model's LoRA out of a kohya or LyCORIS file.

    Args:
        path: the file.
        names: the names of the model's modules, as `model.named_modules()` gives them.
        prefix: which model of the file, such as "lora_te1"; the tensors of the other PREFIXES are left out then. Needed
            only where the file holds several models, or a prefix of its own.

    Raises:
        AdapterFormatError: the file is broken, holds what is not plain LoRA, or names modules that the model has not
            or has twice; all is named.
    """
    tensors, _ = read_weights(path)
    problems: list[str] = []
    chosen = _chosen_prefix({_prefix_of(key) for key in tensors}, prefix, problems)
    modules = _by_flat_name(names)
    pairs: Pairs = {}
    alphas: dict[str, float] = {}
    unknown: set[str] = set()
    for key, tensor in sorted(tensors.items()):
        flat, _, part = key.partition(".")
        if not chosen or not flat.startswith(f"{chosen}_"):
            if _prefix_of(key) is None:
                problems.append(
                    f"{key} stands under none of the prefixes {', '.join(PREFIXES)}; give its own as prefix="
                )
            continue
        flat = flat.removeprefix(f"{chosen}_")
        if part not in PARTS and part != "alpha":
            problems.append(f"{key} is {_method_of(part)}; only plain LoRA can be read")
        elif len(found := modules.get(flat, [])) == 1:
            if part == "alpha":
                alphas[found[0]] = alpha_of(key, tensor, problems)
            else:
                pairs.setdefault(found[0], {})[PARTS[part]] = tensor
        elif found:
            problems.append(f"{key} may be any of {', '.join(found)}, which have one name with underscores")
        else:
            unknown.add(flat)
    for position, flat in enumerate(sorted(unknown)):
        hint = nearest(flat, modules) if position < MOST_HINTS else ""
        problems.append(f"{chosen}_{flat}: no module of the model is named so{hint}")
    problems += [f"{name} has an alpha, but no A and B" for name in alphas.keys() - pairs.keys()]
    updates = scaled_pairs(pairs, problems)
    if not updates and not problems:
        problems.append(f"it holds nothing under {chosen}_")
    if problems:
        raise AdapterFormatError(gathered(f"{path} cannot be used:", sorted(problems)))
    factors = {name: factor_of(alphas.get(name, 0.0), update.rank) for name, update in updates.items()}
    return AdapterState(config=config_for(updates, factors), updates=updates)


def scaled_pairs(pairs: Pairs, problems: list[str]) -> dict[str, LowRank]:
    """Return the update of each linear layer or convolution, in order of names; what does not fit is a problem.

    Args:
        pairs: A (r, in) or (r, in, *kernel), and B (out, r) or (out, r, 1, ...), of each module.
        problems: a line is appended for each.
    """
    updates: dict[str, LowRank] = {}
    for name, pair in sorted(pairs.items()):
        if found := pair_problems(name, pair, dimensions=(2, 3, 4, 5)):
            problems += found
            continue
        A, B = pair["A"], pair["B"]
        if A.ndim != B.ndim or A.shape[0] != B.shape[1] or B[0, 0].numel() != 1:
            shapes = f"A {tuple(A.shape)} and B {tuple(B.shape)}"
            problems.append(
                f"{name}: {shapes} do not fit; (r, in) and (out, r) do, or (r, in, *kernel) and (out, r, 1..)"
            )
        else:
            updates[name] = LowRank(A, B.flatten(1), kind="linear" if A.ndim == 2 else "conv")
    return updates


def factor_of(alpha: float, r: int) -> float:
    """Return the scaling s = alpha / r, where an alpha of 0 stands for r."""
    return SCALING_RULES["lora"](alpha or r, r)


def alpha_of(key: str, tensor: Tensor, problems: list[str]) -> float:
    """Return the alpha in a tensor of one number; one that is out of range is a problem, and 0 is returned."""
    value = float(tensor) if tensor.numel() == 1 else -1.0
    if value == 0 or SMALLEST_ALPHA <= value <= LARGEST_ALPHA:
        return value
    given = value if tensor.numel() == 1 else f"of shape {tuple(tensor.shape)}"
    problems.append(f"{key} is {given}; it must be 0, which means r, or one number up to {LARGEST_ALPHA:g}")
    return 0.0


def _prefix_of(key: str) -> str | None:
    return next((prefix for prefix in PREFIXES if key.startswith(f"{prefix}_")), None)


def _chosen_prefix(present: Collection[str | None], given: str | None, problems: list[str]) -> str | None:
    """Return the prefix to read: the one given, or the only known one that is there."""
    known = sorted(prefix for prefix in present if prefix is not None)
    if given is None and len(known) > 1:
        problems.append(f"the file holds several models: {', '.join(known)}; choose one with prefix=...")
    return given or (known[0] if known else None)


def _by_flat_name(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the module names by what they are called in the file."""
    modules: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        modules.setdefault(name.replace(".", "_"), []).append(name)
    return modules


def _method_of(part: str) -> str:
    return next((method for start, method in OTHER_METHODS.items() if part.startswith(start)), "unknown")
