"""What a user chooses about an adapter, checked when it is built."""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from veneer.errors import ConfigError, gathered
from veneer.lora.delta import SCALING_RULES
from veneer.lora.selectors import Pattern, Terms, compiled_key

ALL_LINEAR = "all-linear"
MAX_ALPHA = 1e9
"""Far above any use, and far below what float32 can hold."""
CHOICES: Mapping[str, tuple[str, ...]] = {
    "scaling": tuple(SCALING_RULES),
    "variant": ("lora", "dora"),
    "init": ("kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva"),
    "bias": ("none", "all", "lora_only"),
}


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The settings of one adapter. Names mean what they mean in PEFT, where PEFT has them.

    Raises:
        ConfigError: one or more settings are outside what is allowed; all are named.
    """

    r: int = 8
    """Rank of the update, at least 1 and at most the smaller side of each adapted layer."""
    alpha: float = 16.0
    """Numerator of the scaling, above 0."""
    dropout: float = 0.0
    """Probability of zeroing an element of x before A while training, 0 to below 1. Token ids and stacked parameters
    have no such x: nothing is dropped there."""
    targets: Terms = ALL_LINEAR
    """What to adapt: a list of module names, each matching a module's full name or its end after a `.`; a regular
    expression matched against the full name; or "all-linear": every linear layer but the output head."""
    exclude: Terms = ()
    """What to leave out of `targets`, by the same rules."""
    layers: Sequence[int] | None = None
    """Adapt only modules whose name holds one of these layer numbers: the first number between dots."""
    parameters: Sequence[str] = ()
    """Parameters to adapt where a module computes with them itself, such as the stacked experts of a mixture
    ("experts.gate_up_proj") or "in_proj_weight" of attention; matched as a list of names is."""
    fused: Mapping[str, Sequence[bool]] = field(default_factory=dict, hash=False)
    """Name of a fused projection -> which of its equal slices get an update of rank r each, as loralib's
    `enable_lora`: {"c_attn": (True, False, True)} adapts q and v."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Regular expression for the end of a name -> rank of those layers instead of `r`; the first match decides."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict, hash=False)
    """The same for `alpha`."""
    scaling: Literal["lora", "rslora"] = "lora"
    """"lora": alpha / r. "rslora": alpha / sqrt(r)."""
    variant: Literal["lora", "dora"] = "lora"
    """"dora" trains the length of each row of the weight besides its low-rank change."""
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva"] = "kaiming"
    """Start of A and B; see `lora/init.py`. The base weights are never written."""
    train_A: bool = True
    """False freezes A at its start (LoRA-FA): x need not be kept for the backward pass."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases of the base are trained: none, all, or those of adapted layers."""
    token_rows: Mapping[str, Sequence[int]] = field(default_factory=dict, hash=False)
    """Name of an embedding -> ids of the tokens whose rows are trained, such as new tokens."""
    seed: int = 0
    """Seed of the random starts, 0 to 2**63 - 1."""

    def __post_init__(self) -> None:
        for name in ("targets", "exclude", "layers", "parameters"):
            value = getattr(self, name)
            if isinstance(value, Iterable) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        for name in ("fused", "token_rows"):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                rows = {key: tuple(v) if isinstance(v, Iterable) else v for key, v in value.items()}
                object.__setattr__(self, name, rows)
        for name in ("rank_pattern", "alpha_pattern"):
            if isinstance(value := getattr(self, name), Mapping):
                object.__setattr__(self, name, dict(value))
        if problems := list(self._problems()):
            raise ConfigError(gathered("LoraConfig cannot be built:", problems))
        object.__setattr__(self, "alpha", float(self.alpha))

    @property
    def factor(self) -> float:
        """The scaling s that multiplies B A, where no pattern says otherwise."""
        return SCALING_RULES[self.scaling](self.alpha, self.r)

    def rank_of(self, name: str) -> int:
        """Return the rank of the layer of this full name; in a fused projection, of each slice."""
        rank = self._rank_pattern.value_for(name)
        return self.r if rank is None else int(rank)

    def factor_of(self, name: str) -> float:
        """Return the scaling s of the layer of this full name."""
        alpha = self._alpha_pattern.value_for(name)
        return SCALING_RULES[self.scaling](self.alpha if alpha is None else alpha, self.rank_of(name))

    @cached_property
    def _rank_pattern(self) -> Pattern:
        return Pattern(self.rank_pattern)

    @cached_property
    def _alpha_pattern(self) -> Pattern:
        return Pattern(self.alpha_pattern)

    def _problems(self) -> list[str]:
        found = rank_problems("r", self.r) + _alpha_problems("alpha", self.alpha)
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            found.append(f"dropout is {self.dropout!r}; it must be a probability from 0 to below 1")
        found += [
            f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}"
            for name, allowed in CHOICES.items()
            if getattr(self, name) not in allowed
        ]
        if not _is_integer(self.seed) or not 0 <= self.seed < 2**63:
            found.append(f"seed is {self.seed!r}; it must be a whole number from 0 to 2**63 - 1")
        if not isinstance(self.train_A, bool):
            found.append(f"train_A is {self.train_A!r}; it must be True or False")
        if self.layers is not None and not _all_counts(self.layers):
            found.append(f"layers is {self.layers!r}; it must be a list of layer numbers such as [0, 1]")
        if isinstance(self.parameters, str):
            found.append(f"parameters is {self.parameters!r}; it must be a list of names")
        else:
            found += _selector_problems("parameters", self.parameters)
        found += _selector_problems("targets", self.targets) + _selector_problems("exclude", self.exclude)
        return found + self._mapping_problems()

    def _mapping_problems(self) -> list[str]:
        found = []
        for name in ("fused", "rank_pattern", "alpha_pattern", "token_rows"):
            mapping = getattr(self, name)
            if not isinstance(mapping, Mapping) or not all(isinstance(key, str) and key for key in mapping):
                found.append(f"{name} is {mapping!r}; it must map names to values")
                continue
            for key, value in mapping.items():
                found += [f"{name}[{key!r}]: {problem}" for problem in _VALUE_PROBLEMS[name](key, value)]
        return found


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Return whether this is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _all_counts(values: object) -> bool:
    return isinstance(values, tuple) and all(_is_integer(value) and value >= 0 for value in values)


def rank_problems(name: str, value: object) -> list[str]:
    """Return a line where this is no rank."""
    good = _is_integer(value) and value >= 1  # type: ignore[operator]
    return [] if good else [f"{name} is {value!r}; it must be a whole number of at least 1"]


def _alpha_problems(name: str, value: object) -> list[str]:
    good = is_number(value) and 0 < value <= MAX_ALPHA  # type: ignore[operator]
    advice = f"it must be a finite number above 0, at most {MAX_ALPHA:g} (often 2 * r)"
    return [] if good else [f"{name} is {value!r}; {advice}"]


def _regex_problems(key: str, compiled: Callable[[str], object] = re.compile) -> list[str]:
    try:
        compiled(key)
    except re.error as error:
        return [f"not a valid regular expression ({error})"]
    return []


def _slice_problems(value: object) -> list[str]:
    good = isinstance(value, tuple) and len(value) > 1 and all(isinstance(v, bool) for v in value) and any(value)
    return [] if good else [f"is {value!r}; it must be a list of True and False, one for each slice, one of them True"]


def _token_problems(value: object) -> list[str]:
    good = isinstance(value, tuple) and _all_counts(value) and 0 < len(value) == len(set(value))
    return [] if good else [f"is {value!r}; it must be a list of different token ids"]


_VALUE_PROBLEMS: Mapping[str, Callable[[str, object], list[str]]] = {
    "fused": lambda _key, value: _slice_problems(value),
    "rank_pattern": lambda key, value: _regex_problems(key, compiled_key) + rank_problems("rank", value),
    "alpha_pattern": lambda key, value: _regex_problems(key, compiled_key) + _alpha_problems("alpha", value),
    "token_rows": lambda _key, value: _token_problems(value),
}


def _selector_problems(name: str, terms: Terms) -> list[str]:
    if isinstance(terms, str):
        if problems := _regex_problems(terms):
            return [f"{name} is {terms!r}, which is {problems[0]}; a list gives names"]
        return [] if terms else [f"{name} is an empty string; give a list of module names or a regular expression"]
    if not isinstance(terms, tuple):
        return [f"{name} is {terms!r}; it must be a list of module names or a regular expression"]
    return [
        f"{name} holds {term!r}; a list holds module names such as 'query' or 'layer.0.attention.query'"
        for term in terms
        if not isinstance(term, str) or not term.strip()
    ]
