"""What a user chooses about an adapter, checked when it is built."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from veneer.errors import ConfigError, gathered
from veneer.lora.delta import SCALING_RULES

ALL_LINEAR = "all-linear"
MAX_ALPHA = 1e9
"""Far above any use, and far below what float32 can hold."""

Selector = str | Sequence[str]
"""Names matched at a `.` boundary, or one regular expression matched in full."""


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
    """Probability of zeroing an element of x before A while training, 0 to below 1."""
    targets: Selector = ALL_LINEAR
    """What to adapt: a list of module names, each matching a module's full name or its end after a `.`; a regular
    expression matched against the full name; or "all-linear": every linear layer but the output head."""
    exclude: Selector = ()
    """What to leave out of `targets`, by the same rules."""
    scaling: Literal["lora", "rslora"] = "lora"
    """"lora": alpha / r. "rslora": alpha / sqrt(r)."""
    seed: int = 0
    """Seed of A's random start, 0 to 2**63 - 1."""

    def __post_init__(self) -> None:
        for name in ("targets", "exclude"):
            value = getattr(self, name)
            if isinstance(value, Iterable) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        if problems := list(self._problems()):
            raise ConfigError(gathered("LoraConfig cannot be built:", problems))
        object.__setattr__(self, "alpha", float(self.alpha))

    @property
    def factor(self) -> float:
        """The scaling s that multiplies B A."""
        return SCALING_RULES[self.scaling](self.alpha, self.r)

    def _problems(self) -> list[str]:
        found = []
        if not _is_integer(self.r) or self.r < 1:
            found.append(f"r is {self.r!r}; it must be a whole number of at least 1")
        if not _is_number(self.alpha) or not 0 < self.alpha <= MAX_ALPHA:
            found.append(
                f"alpha is {self.alpha!r}; it must be a finite number above 0, at most {MAX_ALPHA:g} (often 2 * r)"
            )
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            found.append(f"dropout is {self.dropout!r}; it must be a probability from 0 to below 1")
        if self.scaling not in list(SCALING_RULES):
            found.append(f"scaling is {self.scaling!r}; it must be one of {', '.join(SCALING_RULES)}")
        if not _is_integer(self.seed) or not 0 <= self.seed < 2**63:
            found.append(f"seed is {self.seed!r}; it must be a whole number from 0 to 2**63 - 1")
        return found + _selector_problems("targets", self.targets) + _selector_problems("exclude", self.exclude)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _selector_problems(name: str, selector: Selector) -> list[str]:
    if isinstance(selector, str):
        try:
            re.compile(selector)
        except re.error as error:
            return [f"{name} is {selector!r}, which is not a valid regular expression ({error}); a list gives names"]
        return [] if selector else [f"{name} is an empty string; give a list of module names or a regular expression"]
    if not isinstance(selector, tuple):
        return [f"{name} is {selector!r}; it must be a list of module names or a regular expression"]
    return [
        f"{name} holds {term!r}; a list holds module names such as 'query' or 'layer.0.attention.query'"
        for term in selector
        if not isinstance(term, str) or not term.strip()
    ]
