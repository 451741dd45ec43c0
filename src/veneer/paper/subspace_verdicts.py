"""What the measurement behind `subspaces.py` says of the paper's claims, each beside what random directions give.

A figure of a layer is the mean over the seeds of its adapters where there are two. A claim is judged by the mean over
the layers with Student's interval: layers are what varies, and they belong to the same few trainings, so the interval
tells nothing of other trainings. A claim that random directions would pass as well is undecided, however clearly it is
passed.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from veneer.paper.exhibit import Measurement, Outcome, Verdict
from veneer.paper.subspace import random_similarity
from veneer.paper.subspace_measurement import LARGE, SMALL
from veneer.paper.tabulation import mean_difference
from veneer.paper.verdicts import FEWEST_PAIRS, not_measured

SYMBOLS = {"query": "W_q", "value": "W_v"}
TENTH = 38
"""A tenth of MiniLM's 384 directions."""
FAR = 2.0
"""So many times what random directions give is far from them. The paper has 2 in Figure 8 and 16 in Table 7."""
SIZES = (1, SMALL, LARGE)
"""So many top directions of two seeds are compared to judge Figure 4; the exhibit tabulates those between, too."""
RANDOM_SPREAD = 1 / (math.sqrt(2) * SMALL)
"""Relative standard deviation of |U^T W V| over random U and V: that of the norm of r^2 equal normal values."""
PAPER_RATIO = (6.91 / 0.32) / (3.57 / 1.90)
PAPER_RANDOM_RATIO = (64 / 4) * 6.91 / 3.57
"""What Table 7's own |update| give for directions that have nothing to do with W."""
Layer = dict[str, Any]


def layers_of(measurement: Measurement, weight: str) -> list[Layer]:
    """Return the layers of "query" or "value", the first layer first."""
    return [layer for layer in measurement["layers"] if layer["weight"] == weight]


def figure_of(layer: Layer, r: int, figure: str, *, over: str | None = None) -> float:
    """Return a figure of the layer's updates of rank r, or its ratio to another: the mean over seeds."""
    return fmean(
        update[figure] / (update[over] if over is not None else 1) for update in layer["adapters"] if update["r"] == r
    )


def factor(layer: Layer, r: int) -> float:
    """Return how much an update of rank r amplifies: |update| / |U^T W V|, U and V its top r directions (section 7.3).

    The update is the effective one, alpha / r included: the paper does not say, and the factor scales with it.
    """
    return figure_of(layer, r, "delta_norm", over="own")


def random_factor(layer: Layer, r: int) -> float:
    """Return the factor of random directions with the same |update|."""
    return figure_of(layer, r, "delta_norm", over="random")


def more_than_random(layer: Layer, r: int) -> float:
    """Return |U^T W V| over its expectation for random directions."""
    return figure_of(layer, r, "own", over="random")


def seed_gap(measurement: Measurement, size: int) -> list[float]:
    """Return phi of the top `size` directions of two seeds, that of W_q minus that of W_v, layer by layer."""
    return [
        query["seeds"][size - 1][size - 1] - value["seeds"][size - 1][size - 1]
        for query, value in zip(layers_of(measurement, "query"), layers_of(measurement, "value"), strict=True)
    ]


def side(values: Sequence[float], bound: float) -> Outcome:
    """Return "held" where the whole interval of the mean lies above `bound`, "not held" where all of it lies below."""
    mean = mean_difference(values)
    if mean.low is None or mean.high is None or len(values) < FEWEST_PAIRS:
        return "undecided"
    return "held" if mean.low > bound else "not held" if mean.high < bound else "undecided"


def every(parts: Sequence[Outcome]) -> Outcome:
    """Return the outcome of a claim that holds where each part does, and does not where one does not."""
    if "not held" in parts:
        return "not held"
    return "held" if all(part == "held" for part in parts) else "undecided"


def unlike_random(claimed: Outcome, values: Sequence[float], bound: float) -> Outcome:
    """Return what was claimed; undecided where it is held, but the values do not lie above a bound set by chance."""
    return "undecided" if claimed == "held" and side(values, bound) != "held" else claimed


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the range over layers, their mean and its interval, as a sentence's part."""
    mean = mean_difference(values)
    text = f"{min(values):.{digits}f} to {max(values):.{digits}f} (mean {mean.value:.{digits}f}"
    if mean.low is None or mean.high is None:
        return f"{text}, one layer)"
    return f"{text}, 95 % interval over {len(values)} layers {mean.low:.{digits}f} to {mean.high:.{digits}f})"


def _amplifies(measurement: Measurement) -> tuple[Outcome, str]:
    query = layers_of(measurement, "query")
    small, large = ([factor(layer, r) for layer in query] for r in (SMALL, LARGE))
    by_chance = [[random_factor(layer, r) for layer in query] for r in (SMALL, LARGE)]
    claimed = every([_reachable(side(of, 1), chance) for of, chance in zip((small, large), by_chance, strict=True)])
    shown = " and ".join(f"{min(of):.2f} to {max(of):.2f}" for of in by_chance)
    return unlike_random(claimed, [more_than_random(layer, SMALL) for layer in query], FAR), (
        f"The factor |update| / |U^T W_q V| is {spread(small)} at r = {SMALL} and {spread(large)} at r = {LARGE}; "
        "below 1 the update is smaller than W_q in its own directions. Random directions with the same |update| would "
        f"have {shown}. The factor grows with |update|, and so with how long was trained: where random directions "
        "stay below 1 in every layer, a factor below 1 tells of that and contradicts nothing."
    )


def _reachable(outcome: Outcome, by_chance: Sequence[float]) -> Outcome:
    """Return the outcome; undecided where it is not held, but |update| is too small for random directions, too."""
    return "undecided" if outcome == "not held" and max(by_chance) < 1 else outcome


def _falls_with_rank(measurement: Measurement) -> tuple[Outcome, str]:
    query = layers_of(measurement, "query")
    ratios = [factor(layer, SMALL) / factor(layer, LARGE) for layer in query]
    by_chance = [random_factor(layer, SMALL) / random_factor(layer, LARGE) for layer in query]
    quotients = [more_than_random(layer, LARGE) / more_than_random(layer, SMALL) for layer in query]
    return unlike_random(side(ratios, 1), quotients, 1), (
        f"The factor at r = {SMALL} over that at r = {LARGE} is {spread(ratios)}. But random directions, which know "
        f"nothing of W_q, would give {min(by_chance):.2f} to {max(by_chance):.2f}, because they have more of W_q the "
        f"more of them there are; the measured ratio divided by theirs is {spread(quotients)}. Only a ratio above "
        f"theirs would tell of training; the paper's {PAPER_RATIO:.1f} is below its {PAPER_RANDOM_RATIO:.0f}, too."
    )


def _more_than_random(measurement: Measurement) -> tuple[Outcome, str]:
    query = layers_of(measurement, "query")
    small, large = ([more_than_random(layer, r) for layer in query] for r in (SMALL, LARGE))
    return every([side(small, 1), side(large, 1)]), (
        f"|U^T W_q V|, divided by its expectation for random directions, is {spread(small)} at r = {SMALL} and "
        f"{spread(large)} at r = {LARGE}. One draw of {SMALL} random directions varies by about "
        f"{100 * RANDOM_SPREAD:.0f} %."
    )


def _many_times_random(measurement: Measurement) -> tuple[Outcome, str]:
    query = layers_of(measurement, "query")
    times = [more_than_random(layer, SMALL) for layer in query]
    most = [figure_of(layer, SMALL, "base", over="random") for layer in query]
    return side(times, FAR), (
        f"At r = {SMALL} they have {spread(times)} times what random directions have; many times would be {FAR:.0f} at "
        f"least. There was room for more: W_q's own top {SMALL} directions have {min(most):.0f} to "
        f"{max(most):.0f} times what random ones have."
    )


def _repeats_nothing(measurement: Measurement) -> tuple[Outcome, str]:
    query = layers_of(measurement, "query")
    shares = [figure_of(layer, SMALL, "own", over="base") for layer in query]
    by_chance = [figure_of(layer, SMALL, "random", over="base") for layer in query]
    claimed = side([-share for share in shares], -0.5)
    return unlike_random(claimed, [more_than_random(layer, SMALL) for layer in query], FAR), (
        f"Of what W_q's own top {SMALL} directions have of W_q, the update's have a share of {spread(shares, 3)}; not "
        f"repeating them is a share below a half. Random directions have {min(by_chance):.3f} to {max(by_chance):.3f} "
        f"and repeat nothing either, so a small share tells of a choice of directions only where it is at least "
        f"{FAR:.0f} times theirs; in the paper it is 16 times."
    )


def _same_top_direction(measurement: Measurement) -> tuple[Outcome, str]:
    top = {weight: [layer["ranks"][0][0] for layer in layers_of(measurement, weight)] for weight in SYMBOLS}
    others = fmean(_without_the_first(layer["ranks"], SMALL) for layer in measurement["layers"])
    width = measurement["width"]
    shown = "; ".join(
        f"for {SYMBOLS[weight]} {spread(phis)}, above 0.5 in {sum(phi > 0.5 for phi in phis)} layers"
        for weight, phis in top.items()
    )
    return every([side(phis, 0.5) for phis in top.values()]), (
        f"phi (0 orthogonal, 1 the same) of the top direction of each A is {shown}. Random directions have "
        f"{random_similarity(1, 1, width):.3f}. The next {SMALL - 1} directions have {others:.2f} on average, random "
        f"ones {random_similarity(SMALL - 1, SMALL - 1, width):.2f}. One pair of trainings was compared."
    )


def _without_the_first(phi: Sequence[Sequence[float]], size: int) -> float:
    """Return phi of directions 2 to `size` of both sides, out of that of the top directions for all sizes.

    phi of the top i and top j times min(i, j) sums the squared cosines of a corner, so a block is four corners.
    """
    block = size * phi[size - 1][size - 1] - phi[0][size - 1] - phi[size - 1][0] + phi[0][0]
    return block / (size - 1)


def _seeds_share_more(measurement: Measurement) -> tuple[Outcome, str]:
    gaps = {size: seed_gap(measurement, size) for size in SIZES}
    shown = "; ".join(
        f"for the top {size} {spread(of)}, above 0 in {sum(gap > 0 for gap in of)} layers" for size, of in gaps.items()
    )
    return every([side(of, 0) for of in gaps.values()]), (
        f"phi (0 orthogonal, 1 the same) of two seeds, that of W_q minus that of W_v, is {shown}. Random directions "
        "have no gap. The claim holds where all three intervals lie above 0, and does not where one lies below. One "
        "pair of seeds was compared."
    )


def _hardly_the_top(measurement: Measurement) -> tuple[Outcome, str]:
    phis = [layer["base"][3][TENTH - 1] for layer in layers_of(measurement, "query")]
    chance = random_similarity(4, TENTH, measurement["width"])
    claimed = side([-phi for phi in phis], -0.25)
    return unlike_random(claimed, phis, FAR * chance), (
        f"phi (0 orthogonal, 1 within) of the update's top 4 and W_q's top {TENTH} directions is {spread(phis, 3)}; "
        f"hardly is at most 0.25. Random directions have {chance:.3f}, here as in the paper, so a small phi tells of a "
        f"choice of directions only where it is at least {FAR:.0f} times theirs, as the paper's 0.2 is."
    )


Judge = Callable[[Measurement], tuple[Outcome, str]]
_TABLE_7 = "Table 7, section 7.3"
CLAIMS: tuple[tuple[str, str, Judge], ...] = (
    (
        "The update amplifies the directions of W_q that it acts on (21.6 times at r = 4, 1.9 times at r = 64)",
        _TABLE_7,
        _amplifies,
    ),
    (
        "A small rank amplifies far more than a large one (21.6 times at r = 4 against 1.9 times at r = 64)",
        _TABLE_7,
        _falls_with_rank,
    ),
    (
        "The update's directions have more of W_q in them than random ones",
        _TABLE_7,
        _more_than_random,
    ),
    (
        "The update's directions have many times as much of W_q in them as random ones (0.32 against 0.02 at r = 4)",
        _TABLE_7,
        _many_times_random,
    ),
    (
        "The update does not repeat the top directions of W_q (0.32 against 21.67)",
        _TABLE_7,
        _repeats_nothing,
    ),
    (
        f"The top direction is the same for r = {SMALL} and r = {LARGE} (phi above 0.5)",
        "Figure 3, section 7.2",
        _same_top_direction,
    ),
    (
        "Two seeds share more directions in the update of W_q than in that of W_v",
        "Figure 4, section 7.2",
        _seeds_share_more,
    ),
    (
        "The update's top 4 directions are hardly among W_q's top tenth (phi barely above 0.2)",
        "Figure 8, appendix H",
        _hardly_the_top,
    ),
)
"""What the paper says, where, and what judges it."""


def verdicts(measurement: Measurement | None) -> tuple[Verdict, ...]:
    """Return the verdict on each claim; of nothing, or of a quick measurement, that none is measured yet."""
    quick = measurement is not None and measurement["quick"]
    told = []
    for claim, source, judge in CLAIMS:
        if measurement is None or quick or not measurement["layers"]:
            told.append(not_measured(claim, source, quick=quick))
        else:
            outcome, because = judge(measurement)
            told.append(Verdict(claim=claim, source=source, outcome=outcome, because=because))
    return tuple(told)
