"""loralib's checkpoints: `torch.save(loralib.lora_state_dict(model, bias))`, read.

    <module>.lora_A, <module>.lora_B    Linear     A (r, in), B (out, r)
                                        Embedding  A (r, tokens), B (dim, r)
                                        MergedLinear with m of n slices adapted: A (m r, in), B (out / n * m, r)
    <module>.bias                       with bias="all" or "lora_only"
    <module>.<anything else>            a module that was trained whole, such as a classifier

The file holds no settings: alpha has to be given, and so has what shapes cannot tell: which layers are embeddings, and
which slices of a fused projection are adapted. In MergedLinear slice j has its own A_j and B_j, so seen as one matrix
B is block-diagonal over the adapted slices and has zero rows for the others; that is how the state holds it, with r,
alpha and `fused` of the config per slice.

Not read: convolutions, whose A (r k, in k) and B (out k, r k) do not factor as a convolution of rank r; and files with
the base weight of an adapted layer, because those taken in `eval()` hold W + s B A and no mark that they do. A
convolution's file alone looks like a linear layer's; the model's shapes refuse it.

Source: loralib 0.1.2; Hu et al. 2021, arXiv 2106.09685, for s = alpha / r.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from veneer.errors import AdapterFormatError, gathered
from veneer.formats.pickles import read_weights
from veneer.formats.tensors import own_name
from veneer.lora.config import LoraConfig
from veneer.lora.selectors import Selector, nearest
from veneer.lora.state import AdapterState, LowRank, config_for
from veneer.lora.updates import scattered

Fused = Mapping[str, Sequence[bool]]
Pairs = dict[str, dict[str, Tensor]]
"""Module name -> its "A" and "B"."""


def read_loralib(
    path: Path,
    *,
    alpha: float | None = None,
    r: int | None = None,
    fused: Fused | None = None,
    embeddings: Collection[str] = (),
) -> AdapterState:
    """Read a loralib checkpoint, flat or under "model_state_dict"; as `.pt`, `.bin` or safetensors.

    A tensor besides `lora_A` and `lora_B` is a trained bias where its name ends in "bias" and its module holds nothing
    else; every other one makes its module one that was trained whole.

    Args:
        path: the file.
        alpha: the `lora_alpha` the layers were built with; the scaling is alpha / r.
        r: their rank, if it should be checked; A and B have it otherwise.
        fused: name of a fused projection, or its end after a `.` -> which slices are adapted, as `enable_lora`.
        embeddings: names of embeddings, or their ends after a `.`.

    Raises:
        AdapterFormatError: the file is broken, or does not fit the arguments; all is named.
        ConfigError: alpha, r or fused is outside what is allowed.
    """
    chosen = LoraConfig(alpha=1.0 if alpha is None else alpha, r=1 if r is None else r, fused=fused or {})
    tensors, _ = read_weights(path)
    problems: list[str] = []
    if alpha is None:
        problems.append("alpha is not in the file: give alpha=... (--alpha), the lora_alpha the layers were built with")
    pairs, others = _sorted_tensors(tensors, problems)
    updates = low_ranks(pairs, chosen.fused, embeddings, problems)
    config = config_of_slices(updates, chosen)
    if r is not None:
        found = {name: config.rank_of(name) for name in updates}
        problems += [f"{name} has rank {rank}, but r={r} is given" for name, rank in found.items() if rank != r]
    trained_modules, bias = _trained(others, pairs, problems)
    if problems:
        raise AdapterFormatError(gathered(f"{path} cannot be used:", sorted(problems)))
    return AdapterState(
        config=replace(config, bias=bias),
        updates=updates,
        trained=others,
        trained_modules=trained_modules,
    )


def low_ranks(pairs: Pairs, fused: Fused, embeddings: Collection[str], problems: list[str]) -> dict[str, LowRank]:
    """Return the update of each module, in order of names; what does not fit is added to `problems`.

    Args:
        pairs: A and B of each module in loralib's layout.
        fused: name or its end -> the adapted slices of a fused projection.
        embeddings: names or their ends.
        problems: a line is appended for each.
    """
    fused_terms, embedding_terms = Selector(list(fused)), Selector(list(embeddings))
    for argument, terms in (("fused", fused_terms), ("embeddings", embedding_terms)):
        problems += [f"{argument} names {t!r}, which has no A and B here{nearest(t, pairs)}" for t in terms.idle(pairs)]
    updates: dict[str, LowRank] = {}
    for name, pair in sorted(pairs.items()):
        if found := pair_problems(name, pair):
            problems += found
            continue
        term = fused_terms.term_for(name)
        slices = (True,) if term is None else tuple(fused[term])
        if problem := _slice_problem(pair["A"], pair["B"], slices):
            problems.append(f"{name}: {problem}")
            continue
        B = pair["B"] if len(slices) == 1 else scattered(pair["B"], slices)
        updates[name] = LowRank(pair["A"], B, kind="embedding" if embedding_terms(name) else "linear")
    return updates


def config_of_slices(updates: Mapping[str, LowRank], like: LoraConfig) -> LoraConfig:
    """Return `like` for layers that share its alpha, with the rank of its fused projections counted per slice."""
    terms = Selector(list(like.fused))
    slices = dict(updates)
    for name, update in updates.items():
        if term := terms.term_for(name):
            r = update.rank // sum(like.fused[term])
            slices[name] = LowRank(update.A[:r], update.B[:, :r], kind=update.kind)
    config = config_for(slices, dict.fromkeys(slices, 1.0), like)  # the ranks; alpha is one for all
    return replace(config, alpha=like.alpha, alpha_pattern={}, fused=like.fused)


def pair_problems(name: str, pair: Mapping[str, Tensor], *, dimensions: Collection[int] = (2,)) -> list[str]:
    """Return a line for each way in which A or B of a module is missing or no matrix of floats."""
    found = [f"{name}: {part} is missing" for part in "AB" if part not in pair]
    for part, tensor in sorted(pair.items()):
        if not tensor.is_floating_point() or tensor.ndim not in dimensions or not tensor.numel():
            found.append(
                f"{name}: {part} has shape {tuple(tensor.shape)} and {tensor.dtype}; it must be a float matrix"
            )
    return found


def _slice_problem(A: Tensor, B: Tensor, slices: Sequence[bool]) -> str | None:
    """Return why A (m r, in) and B (rows, r) do not make m = sum(slices) updates, or None."""
    (rows, _), (raised, r), given = A.shape, B.shape, sum(slices)
    shapes = f"A has {rows} rows and B {r} columns"
    if rows == given * r and raised % given == 0:
        return None
    if rows % r or rows == r or raised % (rows // r):
        return f"{shapes}; both must be the rank" if given == 1 else f"{shapes}; {given} slices do not fit them"
    if len(slices) > 1:
        return f"{shapes}: {rows // r} slices are adapted, but fused gives {given}"
    way = "fused={'c_attn': (True, False, True)} (--fused c_attn=101)"
    return f"{shapes}: a fused projection with {rows // r} slices adapted; say which of all, as in {way}"


def _sorted_tensors(tensors: Mapping[str, Tensor], problems: list[str]) -> tuple[Pairs, dict[str, Tensor]]:
    """Return A and B by module, and all other tensors by name."""
    pairs: Pairs = {}
    others: dict[str, Tensor] = {}
    seen: set[str] = set()
    for key, tensor in sorted(tensors.items()):
        name = own_name(key)
        module, _, last = name.rpartition(".")
        if name in seen:
            problems.append(f"{key} is there a second time under another name")
        elif last in ("lora_A", "lora_B") and module:
            pairs.setdefault(module, {})[last[-1]] = tensor
        elif "lora_" in key:
            problems.append(f"{key} is none of loralib's: they are named <module>.lora_A and <module>.lora_B")
        else:
            others[name] = tensor
        seen.add(name)
    if not pairs:
        problems.append("it holds no lora_A and lora_B")
    return pairs, others


def _trained(
    others: Mapping[str, Tensor], pairs: Pairs, problems: list[str]
) -> tuple[tuple[str, ...], Literal["none", "all", "lora_only"]]:
    """Return which modules were trained whole, and which biases; refuse what an adapted layer cannot have."""
    modules = {key.rpartition(".")[0] for key in others if not key.endswith("bias")}
    bias: Literal["none", "all", "lora_only"] = "none"
    for key, tensor in others.items():
        module, _, last = key.rpartition(".")
        parent = module.removesuffix(".conv")
        if parent != module and parent in pairs:
            problems.append(f"{parent} is a convolution; loralib's A and B do not factor as one of rank r")
        elif module in pairs and not last.endswith("bias"):
            advice = "a file taken in eval() holds it with s B A added; save loralib.lora_state_dict(model) instead"
            problems.append(f"{key} is there beside {module}.lora_A: {advice}")
        elif not module and not last.endswith("bias"):
            problems.append(f"{key} belongs to no module")
        elif module not in modules:
            if tensor.ndim != 1 or not tensor.is_floating_point():
                problems.append(f"{key} has shape {tuple(tensor.shape)} and {tensor.dtype}; a bias is a float vector")
            bias = "lora_only" if bias != "all" and module in pairs else "all"
    return tuple(sorted(modules)), bias
