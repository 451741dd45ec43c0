"""How a method is to be attached: which one, its sizes, and the settings of its low-rank updates."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from veneer.errors import ConfigError, gathered, unknown_name
from veneer.lora.config import LoraConfig
from veneer.methods.anatomy import has_fused, query_value
from veneer.methods.table import PROJECTIONS, Counts, Method, attach, find_method, low_rank, resized, sizes_of


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """A method and all that `attach` needs besides a model. Settings that a method has no use for change nothing.

    Raises:
        ConfigError: one or more settings are outside what is allowed; all are named.
        UnknownNameError: there is no such method.
    """

    method: str
    sizes: tuple[tuple[str, int], ...] = ()
    """(name, number) of the method's own part, such as ("r", 16) of bottlenecks; the others are as in its table."""
    weights: tuple[str, ...] = ()
    """Attention's projections to adapt instead of the method's own choice: some of query, key, value and output."""
    targets: tuple[str, ...] | None = None
    """Layers to adapt instead of the method's own choice, by name."""
    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    scaling: Literal["lora", "rslora"] = "lora"
    seed: int = 0
    """Seed of every start."""

    def __post_init__(self) -> None:
        method = find_method(self.method)
        problems = _size_problems(method, self.sizes) + _weight_problems(self.weights)
        if self.targets is not None:
            object.__setattr__(self, "targets", tuple(self.targets))
        try:
            self._lora()
        except ConfigError as error:
            problems += lines_of(error)
        if self.targets is not None and self.weights:
            problems.append("targets and weights are both given; choose the layers by one of them")
        given = "targets" if self.targets is not None else "weights" if self.weights else ""
        if given and not method.has_updates:
            problems.append(f"{given} are given, but the method {self.method!r} adapts no layers")
        if problems:
            raise ConfigError(gathered(f"the method {self.method!r} cannot be used so:", problems))
        object.__setattr__(self, "sizes", tuple(sorted(dict(self.sizes).items())))
        object.__setattr__(self, "weights", tuple(sorted(self.weights, key=PROJECTIONS.index)))

    @property
    def chosen(self) -> Method:
        """The method in the sizes that are asked for."""
        return resized(find_method(self.method), dict(self.sizes))

    def updates(self, model_type: str) -> LoraConfig:
        """Return the settings of the low-rank updates in a model of this family, which layers included.

        Raises:
            ConfigError: the family is not known.
        """
        if self.targets is not None:
            return self._lora(self.targets)
        if self.weights:
            return low_rank(self._lora(), model_type, self.weights)
        own = self.chosen.targets
        if own is query_value and has_fused(model_type):  # which no names of layers could tell apart
            return low_rank(self._lora(), model_type, ("query", "value"))
        return self._lora(own(model_type) if own else ())

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values, from which the class makes them again."""
        return {**asdict(self), "sizes": dict(self.sizes)}

    def attach(self, model: nn.Module, *, model_type: str, head: Sequence[str]) -> Counts:
        """Make `model` train so, in place: `methods.table.attach` with these settings."""
        return attach(model, self.chosen, model_type=model_type, head=head, config=self.updates(model_type))

    def _lora(self, targets: str | Sequence[str] | None = None) -> LoraConfig:
        return LoraConfig(
            r=self.r,
            alpha=self.alpha,
            dropout=self.dropout,
            scaling=self.scaling,
            seed=self.seed,
            targets=(self.targets or ()) if targets is None else targets,
        )


def lines_of(error: ConfigError) -> list[str]:
    """Return the problems that an error has gathered, or the error where it is one problem itself."""
    _, *lines = str(error).splitlines()
    return [line.removeprefix("  - ") for line in lines] or [str(error)]


def _size_problems(method: Method, sizes: Sequence[tuple[str, int]] | Mapping[str, int]) -> list[str]:
    try:
        given = dict(sizes)
    except (TypeError, ValueError):
        return [f"sizes is {sizes!r}; it must be pairs of a name and a whole number"]
    known = sizes_of(method)
    found = ["sizes names one size twice"] if len(given) < len(sizes) else []
    found += [
        str(unknown_name(f"size of the method {method.name}", name, known)) for name in given if name not in known
    ]
    try:
        resized(method, {name: value for name, value in given.items() if name in known})
    except ConfigError as error:
        found += lines_of(error)
    return found


def _weight_problems(weights: Sequence[str]) -> list[str]:
    unknown = [weight for weight in weights if weight not in PROJECTIONS]
    if unknown or len(set(weights)) < len(weights):
        return [f"weights is {weights!r}; it must be some of {', '.join(PROJECTIONS)}, each once"]
    return []
