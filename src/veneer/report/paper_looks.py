"""One look for one name throughout the page: a method is found again in every figure by its colour and marker.

Figures are gone through in the page's order. A name that has no look yet gets the one that is used least, first by the
names that share a figure with it, then by all: so only a figure of more names than colours repeats one, with another
marker.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from veneer.paper.exhibit import Figure, HeatMaps
from veneer.report.drawing import PALETTE

_MARKERS = ("o", "D", "s", "v", "^", "P", "X", "h")


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a series is drawn."""

    colour: str
    marker: str


Looks = Mapping[str, Look]
"""Name of a series -> its look."""
_ALL = tuple(
    Look(colour=colour, marker=_MARKERS[(place + turn) % len(_MARKERS)])
    for turn in range(len(_MARKERS))
    for place, colour in enumerate(PALETTE)
)


def looks_of(figures: Sequence[Figure]) -> Looks:
    """Return the look of each name in these figures."""
    together = [[series.name for series in figure.series] for figure in figures if not isinstance(figure, HeatMaps)]
    looks: dict[str, Look] = {}
    for name in dict.fromkeys(name for names in together for name in names):
        beside = {other for names in together if name in names for other in names} & set(looks)
        looks[name] = _least_used([looks[other] for other in beside], list(looks.values()))
    return looks


def _least_used(near: list[Look], everywhere: list[Look]) -> Look:
    def use(look: Look) -> tuple[int, int, int]:
        colours = [sum(other.colour == look.colour for other in group) for group in (near, everywhere)]
        return colours[0], colours[1], everywhere.count(look)

    return min(_ALL, key=use)
