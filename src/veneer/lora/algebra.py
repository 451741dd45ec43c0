"""Arithmetic on adapters: pure functions from `AdapterState` to `AdapterState`. No module is seen, nothing is written.

scaled, combined     exact: the delta s B A of the result is the weighted sum of the deltas that were given
shrunk, extracted    the closest update of a lower rank, with its relative error for each layer
ties, dare           merges defined on dense deltas, brought back to a rank, with the same error

Symbols: the delta of a layer is D = s B A, of shape (out, in), with A (r, in) and B (out, r); U diag(S) Vh is its
singular value decomposition. Stacked weights (experts) add a leading dimension and share one rank; their norms and
errors are taken over the whole stack. All tensors of a result are in float32, or float64 where an input is; its
scaling s is 1, but `scaled` keeps the one that was given.

Not here: DoRA. Its weight m (W0 + s B A) / |W0 + s B A| is no sum of W0 and a low-rank delta, so it is refused by name.

Source: Eckart & Young 1936 (the truncated decomposition is the closest matrix of its rank);
Yadav et al. 2023, arXiv 2306.01708 (TIES); Yu et al. 2023, arXiv 2311.03099 (DARE).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from veneer.errors import AdapterMismatchError, ConfigError, require_type
from veneer.lora.agreement import Adapters, admit, clashes, layer_names, refuse, same, update_problems
from veneer.lora.analysis import Svd, thin_svd
from veneer.lora.config import is_number, rank_problems
from veneer.lora.fingerprint import united
from veneer.lora.state import AdapterState, KindName, LowRank, config_for, require_states

Terms = Sequence[tuple[float, Float[Tensor, "*stack out in"]]]
"""Weight and dense delta of each adapter that holds a layer."""


@dataclass(frozen=True, eq=False)
class Extraction:
    """What `extracted` found between two sets of weights."""

    state: AdapterState
    errors: Mapping[str, float]
    """Layer -> |dW - s B A| / |dW|, Frobenius norms."""
    not_held: tuple[str, ...]
    """Full names of the tensors that differ, or exist on one side only, and are not in the state."""


def scaled(state: AdapterState, weight: float) -> AdapterState:
    """Return `state` with every delta multiplied by `weight`, folded into B; modules trained whole stay as they are.

    Args:
        state: the adapter.
        weight: any finite number; 0 switches the updates off, -1 subtracts them.

    Raises:
        ConfigError: `state` is no AdapterState, or the weight is not finite.
        AdapterMismatchError: a layer has a DoRA update, or holds NaN.
    """
    require_states({"state": state})
    admit([state], [weight])
    wide = {name: _wide(update.A, update.B) for name, update in state.updates.items()}
    updates = {n: replace(u, A=u.A.to(wide[n]), B=weight * u.B.to(wide[n])) for n, u in state.updates.items()}
    return replace(state, updates=updates)


def combined(
    states: Adapters, weights: Sequence[float], *, trained_from: int | None = None, any_base: bool = False
) -> AdapterState:
    """Return the adapter whose deltas are the weighted sums: A = [A1; A2], B = [w1 s1 B1, w2 s2 B2], s = 1.

    The rank of a layer is the sum of the ranks, at most the smaller side of its weight. A layer that only some
    adapters hold has only their terms. What was trained whole (modules, biases, token rows) is taken over, not
    weighted. Of the base the result says what any of them says: the fingerprints of all layers; `base_model` where all
    name the same.

    Args:
        states: one adapter or more, for the same base model.
        weights: a finite factor for each of them.
        trained_from: index of the adapter whose modules, biases and token rows trained whole are taken, and no
            others'; None takes all, which must agree where they meet.
        any_base: add also adapters whose fingerprints, base models or copies of base weights are not the same.

    Raises:
        ConfigError: these are no AdapterStates, or a weight or `trained_from` is outside what is allowed.
        AdapterMismatchError: the adapters do not fit together, or are known to be of different bases; every problem
            is named.
    """
    admit(states, weights, trained_from, any_base=any_base)
    updates = {}
    for name in layer_names(states):
        holders = [(w, state) for w, state in zip(weights, states, strict=True) if name in state.updates]
        updates[name] = _concatenated([(w * state.factor(name), state.updates[name]) for w, state in holders])
    return _joined(states, updates, trained_from)


def shrunk(
    state: AdapterState, *, rank: int | None = None, energy: float | None = None
) -> tuple[AdapterState, dict[str, float]]:
    """Return the closest adapter of lower rank, and layer -> |D - D'| / |D| in Frobenius norm.

    Args:
        state: the adapter.
        rank: the rank of every layer, at least 1; a layer that has less keeps what it has.
        energy: share of each layer's squared singular values to keep, above 0 to 1; each layer finds its own rank.

    Raises:
        ConfigError: `state` is no AdapterState, or not exactly one of `rank` and `energy` is given, or it is outside
            what is allowed.
        AdapterMismatchError: a layer has a DoRA update, or holds NaN.
    """
    require_states({"state": state})
    if (rank is None) == (energy is None):
        raise ConfigError(f"rank is {rank!r} and energy is {energy!r}; give exactly one of them")
    problems = rank_problems("rank", rank) if energy is None else _share_problems("energy", energy)
    refuse(ConfigError, "cannot shrink:", problems)
    refuse(AdapterMismatchError, "cannot shrink:", update_problems("the adapter", state))
    updates, errors = {}, {}
    for name, update in state.updates.items():
        svd = thin_svd(update, state.factor(name))
        A, B, errors[name] = _truncated(svd, rank or _rank_for(svd[1], energy or 1.0))
        dtype = _wide(update.A, update.B)
        updates[name] = _with_matrices(update, A.to(dtype), B.to(dtype))
    config = config_for(updates, dict.fromkeys(updates, 1.0), state.config)
    return replace(state, config=config, updates=updates), errors


def extracted(
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    *,
    rank: int,
    names: Collection[str] | None = None,
    embeddings: Collection[str] = (),
    transposed: Collection[str] = (),
) -> Extraction:
    """Return the adapter closest to tuned - base: a low-rank update for each matrix that differs.

    Args:
        base: full parameter name -> tensor, such as a state dict.
        tuned: the same after fine-tuning.
        rank: of every update, at least 1; at most the smaller side is used.
        names: the matrices to hold; None means every floating-point matrix whose name ends in ".weight". A name with
            another end is held as a parameter of that name.
        embeddings: those that belong to embeddings: stored (V, D) and seen as (D, V), so A is (r, V) and B (D, r).
        transposed: those of linear layers that store (in, out), as GPT-2's Conv1D does. State dicts do not tell.

    Raises:
        ConfigError: the rank is outside what is allowed, or `base` or `tuned` does not map names to tensors.
        AdapterMismatchError: a name cannot be used, or a difference is not finite; every problem is named. Or no matrix
            differs, so that there is nothing to hold.
    """
    sides, advice = {"base": base, "tuned": tuned}, "give the weights by their names, such as model.state_dict()"
    require_type(sides, Mapping, advice)
    require_type({f"{name!r} of {side}": t for side in sides for name, t in sides[side].items()}, Tensor, advice)
    refuse(ConfigError, "cannot extract:", rank_problems("rank", rank))
    every = {**base, **tuned}
    floats = [{n: t.shape for n, t in side.items() if t.ndim == 2 and t.is_floating_point()} for side in (base, tuned)]
    matrices = dict(floats[0].items() & floats[1].items())
    differing = [n for n in every if n not in base or n not in tuned or not same(base[n], tuned[n])]
    wanted = [name for name in every if name in matrices and name.endswith(".weight")] if names is None else names
    held = [name for name in differing if name in wanted and name in matrices]
    problems = [f"{n}: is not a matrix of floats, of one shape in both" for n in wanted if n not in matrices]
    problems += [f"{n}: is in neither set of weights" for n in (*embeddings, *transposed) if n not in every]
    problems += [f"{n}: holds NaN or infinity" for n in held if not _difference(base[n], tuned[n]).isfinite().all()]
    if not problems and not held:
        rest = f"what differs is no matrix to hold: {', '.join(differing[:3])}" if differing else "all are the same"
        problems = [f"none of the {len(wanted)} matrices that could be held differs between base and tuned; {rest}"]
    refuse(AdapterMismatchError, "cannot extract an adapter from these weights:", problems)
    updates, errors = {}, {}
    for name in held:
        delta = _difference(base[name], tuned[name])
        kind: KindName = "linear" if name.endswith(".weight") else "parameter"
        layer = name.removesuffix(".weight")
        A, B, errors[layer] = _closest(delta.mT if name in (*embeddings, *transposed) else delta, rank)
        updates[layer] = LowRank(A.contiguous(), B.contiguous(), kind="embedding" if name in embeddings else kind)
    state = AdapterState(config=config_for(updates, dict.fromkeys(updates, 1.0)), updates=updates)
    return Extraction(state, errors, tuple(name for name in differing if name not in held))


def ties(
    states: Adapters,
    weights: Sequence[float],
    *,
    density: float,
    rank: int,
    trained_from: int | None = None,
    any_base: bool = False,
) -> tuple[AdapterState, dict[str, float]]:
    """Return the TIES merge at this rank, and layer -> relative error of bringing it back to the rank.

    Trim: each delta keeps its largest entries by magnitude and is multiplied by its weight. Elect: each entry takes
    the sign of their sum. Merge: the mean of the weighted entries that have this sign, of all that have it. With equal
    weights that is the paper's lambda tau; the paper trims a whole model at once, here each layer is trimmed.

    All is done on the dense deltas. Done on A and B apart, as PEFT's "ties" does, the product has cross terms B1 A2 of
    adapters that were never trained together, and signs of A and B say nothing about signs of B A.

    Args and Raises as in `combined`, and:
        weights: a finite factor for each adapter; equal weights are the paper's lambda.
        density: share of entries that trimming keeps, above 0 to 1.
        rank: of every layer of the result; at most the smaller side is used.
    """

    def merge(terms: Terms) -> Tensor:
        stack = torch.stack([weight * _trimmed(delta, density) for weight, delta in terms])
        elected = stack.sum(dim=0).sign()
        agreeing = stack.sign() == elected
        return (stack * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp_min(1)

    refuse(ConfigError, "cannot merge:", _share_problems("density", density) + rank_problems("rank", rank))
    admit(states, weights, trained_from, any_base=any_base)
    return _merged(states, weights, rank, trained_from, merge)


def dare(
    states: Adapters,
    weights: Sequence[float],
    *,
    density: float,
    seed: int,
    rank: int,
    trained_from: int | None = None,
    any_base: bool = False,
) -> tuple[AdapterState, dict[str, float]]:
    """Return the DARE merge at this rank, and layer -> relative error of bringing it back to the rank.

    Each entry of each dense delta is dropped with probability 1 - density and divided by the density where it stays,
    so the weighted sum keeps its mean. PEFT drops entries of A and B apart instead; see `ties`.

    Args and Raises as in `ties`, and:
        weights: a finite factor for each.
        density: probability that an entry stays, above 0 to 1; 1 is the plain weighted sum.
        seed: of the choice, 0 to 2**63 - 1; the order of adapters and layers matters too.
    """
    problems = _share_problems("density", density) + rank_problems("rank", rank)
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        problems.append(f"seed is {seed!r}; it must be a whole number from 0 to 2**63 - 1")
    refuse(ConfigError, "cannot merge:", problems)
    generator = torch.Generator().manual_seed(seed)

    def merge(terms: Terms) -> Tensor:
        kept = [w / density * delta * (torch.rand(delta.shape, generator=generator) < density) for w, delta in terms]
        return torch.stack(kept).sum(dim=0)

    admit(states, weights, trained_from, any_base=any_base)
    return _merged(states, weights, rank, trained_from, merge)


def _difference(base: Tensor, tuned: Tensor) -> Tensor:
    wide = _wide(base, tuned)
    return tuned.detach().to("cpu", wide) - base.detach().to("cpu", wide)


def _truncated(svd: Svd, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return A and B of at most this rank, the singular values shared out evenly, and the relative error."""
    U, S, Vh = svd
    root = S[..., :rank].sqrt()
    total, rest = float(S.norm()), float(S[..., rank:].norm())
    A, B = root.unsqueeze(-1) * Vh[..., :rank, :], U[..., :rank] * root.unsqueeze(-2)
    return A, B, rest / total if rest else 0.0


def _rank_for(S: Float[Tensor, "*stack n"], energy: float) -> int:
    """Return the smallest rank, at least 1, that keeps this share of the squared singular values of the whole stack."""
    squares = S.square().reshape(-1, S.shape[-1]).sum(dim=0)
    lost = squares.flip(0).cumsum(0).flip(0)  # lost[k]: what rank k leaves out; summed from the small end, exact at 0
    return max(1, int((lost > (1 - energy) * lost[0]).sum()))


def _closest(delta: Float[Tensor, "*stack out in"], rank: int) -> tuple[Tensor, Tensor, float]:
    """Return A and B of at most this rank closest to a dense delta, and the relative error."""
    return _truncated(torch.linalg.svd(delta, full_matrices=False), rank)


def _with_matrices(update: LowRank, A: Float[Tensor, "*stack r in"], B: Float[Tensor, "*stack out r"]) -> LowRank:
    """Return an update for the same layer with these matrices, A in the layout of the layer's kind."""
    laid_out = A.reshape(-1, *update.A.shape[1:]) if update.kind == "conv" else A
    return replace(update, A=laid_out.contiguous(), B=B.contiguous())


def _concatenated(terms: Sequence[tuple[float, LowRank]]) -> LowRank:
    """Return the weighted sum of updates of one layer; ranks beyond its smaller side are multiplied out."""
    dtype = _wide(*(tensor for _, update in terms for tensor in (update.A, update.B)))
    A = torch.cat([update.matrices[0].to(dtype) for _, update in terms], dim=-2)
    B = torch.cat([factor * update.B.to(dtype) for factor, update in terms], dim=-1)
    out, inside = B.shape[-2], A.shape[-1]
    if A.shape[-2] > min(out, inside):
        unit = torch.eye(min(out, inside), dtype=dtype).expand(*B.shape[:-2], -1, -1)
        A, B = (B @ A, unit) if out <= inside else (unit, B @ A)
    return _with_matrices(terms[0][1], A, B)


def _trimmed(delta: Tensor, density: float) -> Tensor:
    """Return `delta` with all but the largest share of its entries set to 0; at least one stays."""
    kept = max(1, int(density * delta.numel()))
    chosen = delta.flatten().abs().topk(kept).indices
    flat = torch.zeros_like(delta).flatten()
    return flat.scatter(0, chosen, delta.flatten()[chosen]).view_as(delta)


def _merged(
    states: Adapters, weights: Sequence[float], rank: int, trained_from: int | None, merge: Callable[[Terms], Tensor]
) -> tuple[AdapterState, dict[str, float]]:
    """Return the adapter closest to merging the dense deltas, one layer in memory at a time, and its errors."""
    updates, errors = {}, {}
    for name in layer_names(states):
        holders = [(weight, state) for weight, state in zip(weights, states, strict=True) if name in state.updates]
        A, B, errors[name] = _closest(merge([(weight, state.delta(name)) for weight, state in holders]), rank)
        updates[name] = _with_matrices(holders[0][1].updates[name], A, B)
    return _joined(states, updates, trained_from), errors


def _joined(states: Adapters, updates: Mapping[str, LowRank], trained_from: int | None) -> AdapterState:
    """Return the adapter with these updates at s = 1 and all else that the given ones carry and agree on."""
    first, *others = states
    sources = states if trained_from is None else [states[trained_from]]
    token_rows = {name: rows for state in sources for name, rows in state.token_rows.items()}
    ids = {name: rows.ids.tolist() for name, rows in token_rows.items()}
    like = replace(first.config, bias=sources[0].config.bias, token_rows=ids)
    torn = clashes(state.base_copies for state in states)  # of different bases, where any is welcome
    return AdapterState(
        config=config_for(updates, dict.fromkeys(updates, 1.0), like),
        updates=updates,
        trained={name: tensor for state in sources for name, tensor in state.trained.items()},
        trained_modules=tuple(dict.fromkeys(name for state in sources for name in state.trained_modules)),
        token_rows=token_rows,
        base_copies={n: t for state in states for n, t in state.base_copies.items() if n not in torn},
        base_model=first.base_model if all(state.base_model == first.base_model for state in others) else None,
        task_type=first.task_type if all(state.task_type == first.task_type for state in others) else None,
        fingerprint=united(state.fingerprint for state in states),
    )


def _wide(*tensors: Tensor) -> torch.dtype:
    """Return float32, or float64 where one of the tensors is."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _share_problems(name: str, value: object) -> list[str]:
    good = is_number(value) and 0 < value <= 1  # type: ignore[operator]
    return [] if good else [f"{name} is {value!r}; it must be above 0 and at most 1"]
