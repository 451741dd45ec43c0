"""Whether adapters can be put together: every reason why not, for `algebra.py`."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations

from torch import Tensor

from veneer.errors import AdapterMismatchError, ConfigError, gathered, require_type
from veneer.lora.config import is_number
from veneer.lora.fingerprint import compared
from veneer.lora.finite import is_finite
from veneer.lora.selectors import Inside
from veneer.lora.state import AdapterState, LowRank, require_states

Adapters = Sequence[AdapterState]


def admit(
    states: Adapters, weights: Sequence[float], trained_from: int | None = None, *, any_base: bool = False
) -> None:
    """Raise the error that names everything that keeps these adapters from being added; see `algebra.combined`."""
    require_type({"states": states}, Sequence, "give the adapters in a list, such as [first, second]")
    require_type({"weights": weights}, Collection, "give a weight for each adapter in a list, such as [1.0, 0.5]")
    require_states({f"states[{index}]": state for index, state in enumerate(states)})
    found = [f"weights[{i}] is {w!r}; it must be a finite number" for i, w in enumerate(weights) if not is_number(w)]
    if not states or len(states) != len(weights):
        found.append(
            f"{len(states)} adapters and {len(weights)} weights are given; give one or more, a weight for each"
        )
    if trained_from is not None and trained_from not in range(len(states)):
        found.append(f"trained_from is {trained_from!r}; it must be the index of one of {len(states)} adapters")
    refuse(ConfigError, "cannot add these adapters:", found)
    found = [problem for i, state in enumerate(states) for problem in update_problems(f"adapter {i}", state)]
    for name in layer_names(states):
        layouts = {_layout(state.updates[name]) for state in states if name in state.updates}
        if len(layouts) > 1:
            found.append(f"{name}: the layers differ: {' and '.join(sorted(map(str, layouts)))}")
    found += [] if any_base else _base_problems(states)
    sources = states if trained_from is None else [states[trained_from]]
    found += [f"{n}: trained to different values; name one by trained_from" for n in clashes(map(_whole, sources))]
    if len(biases := sorted({state.config.bias for state in sources})) > 1:
        found.append(f"bias: set to {' and '.join(biases)}; name one adapter by trained_from")
    inside = Inside(name for state in sources for name in state.trained_modules)
    found += [f"{name}: has an update, but is trained whole as well" for name in layer_names(states) if inside(name)]
    refuse(AdapterMismatchError, "these adapters cannot be added:", found)


def _base_problems(states: Adapters) -> list[str]:
    """Return a line for each sign that the adapters were trained on different bases."""
    found = [f"{n}: the adapters carry different weights of the base" for n in clashes(s.base_copies for s in states)]
    pairs = (compared(a.fingerprint, b.fingerprint) for a, b in combinations(states, 2))
    if layers := sorted({name for known in pairs for name, is_same in known.items() if not is_same}):
        more = f" and {len(layers) - 3} more" * (len(layers) > 3)
        found.append(f"the fingerprints are of different base weights, in {', '.join(layers[:3])}{more}")
    if len(models := sorted({state.base_model for state in states if state.base_model})) > 1:
        found.append(f"the base models are {' and '.join(map(repr, models))}; name one for all (--base-model)")
    return [f"{line}; any_base=True adds the adapters all the same" for line in found]


def _whole(state: AdapterState) -> dict[str, Tensor]:
    """Return everything that was trained whole: modules, biases, token rows."""
    ids = {f"{name} (token ids)": rows.ids for name, rows in state.token_rows.items()}
    return {**state.trained, **ids, **{f"{name} (token rows)": rows.rows for name, rows in state.token_rows.items()}}


def clashes(holdings: Iterable[Mapping[str, Tensor]]) -> list[str]:
    """Return the names under which two hold different tensors."""
    first: dict[str, Tensor] = {}
    pairs = [(name, tensor, first.setdefault(name, tensor)) for held in holdings for name, tensor in held.items()]
    return list(dict.fromkeys(name for name, tensor, known in pairs if not same(tensor, known)))


def update_problems(owner: str, state: AdapterState) -> list[str]:
    """Return a line for each update that is not a finite low-rank delta."""
    advice = "which is no low-rank delta; merge it into its model and use `extracted` on the weights"
    found = [f"{n}: {owner} has a DoRA update, {advice}" for n, u in state.updates.items() if u.magnitude is not None]
    tensors = [(f"{n}.{part}", tensor) for n, u in state.updates.items() for part, tensor in u.tensors().items()]
    return found + [f"{name}: {owner} holds NaN or infinity" for name, t in tensors if not is_finite(t)]


def _layout(update: LowRank) -> tuple[str, int, tuple[int, ...], tuple[int, ...]]:
    """Return kind, groups and the shapes without the rank: what two updates of one layer have in common."""
    axis = update.A.ndim - 2 if update.kind == "parameter" else 0
    inside = tuple(size for i, size in enumerate(update.A.shape) if i != axis)
    return update.kind, update.groups, inside, tuple(update.B.shape[:-1])


def layer_names(states: Adapters) -> list[str]:
    """Return the names of the layers that any of the adapters updates, in their order."""
    return list(dict.fromkeys(name for state in states for name in state.updates))


def same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have one shape and the same values, on whatever devices."""
    return a.shape == b.shape and bool((a == b.to(a.device)).all())


def refuse(error: type[ConfigError | AdapterMismatchError], headline: str, problems: Sequence[str]) -> None:
    """Raise the error that names all problems, if there are any."""
    if problems:
        raise error(gathered(headline, problems))
