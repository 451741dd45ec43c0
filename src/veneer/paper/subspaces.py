"""`subspaces`: what the updates of attention learn (the paper's Table 7 and Figures 3, 4, 6 to 8), layer by layer."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from veneer.paper.exhibit import Cell, Contents, Exhibit, HeatMaps, Measurement, Number, Panel, Table
from veneer.paper.subspace import random_similarity
from veneer.paper.subspace_measurement import LARGE, ROWS, SMALL, WEIGHTS, measure
from veneer.paper.subspace_verdicts import (
    SYMBOLS,
    Layer,
    factor,
    figure_of,
    layers_of,
    random_factor,
    seed_gap,
    verdicts,
)
from veneer.paper.tabulation import mean_difference
from veneer.training.grid import Grid

RELEASED_TOP_SHARES: Mapping[str, tuple[float, ...]] = {
    "query": (0.63, 0.44, 0.43, 0.39, 0.32, 0.34, 0.43, 0.69, 0.54, 0.84, 0.94, 0.99),
    "value": (0.28, 0.36, 0.38, 0.33, 0.31, 0.34, 0.33, 0.31, 0.63, 0.40, 0.47, 0.54),
}
"""The share of the largest singular value in |BA|^2 of the authors' released RoBERTa base adapter for MNLI, r = 8."""
PAPER_TABLE_7 = (
    ("r = 4", "0.32", "21.67", "0.02", "6.91", "21.5", "a slip: 6.91 / 0.32 = 21.59"),
    ("r = 64", "1.90", "37.71", "0.33", "3.57", "about 2", "3.57 / 1.90 = 1.88"),
)
SHOWN_SIZES = tuple(2**power for power in range(LARGE.bit_length()))
"""1, 2, 4, ... directions of each seed are compared in a row of their own."""


def contents(grid: Grid, measurement: Measurement | None) -> Contents:
    """Return the tables, heat maps and verdicts of a measurement; without one only the paper's own numbers."""
    paper = Table(
        name="subspaces-paper",
        title="Table 7 as the paper prints it: GPT-3, layer 48, |W_q| = 61.95",
        columns=("Rank", "Update's directions", "W_q's own", "Random", "|update|", "Amplification", "Note"),
        rows=PAPER_TABLE_7,
        notes=(
            "Norms of U^T W_q V, U and V the top singular vectors of the update, of W_q itself, of a random matrix.",
        ),
    )
    if measurement is None or not measurement["layers"]:
        return Contents(tables=(paper,), verdicts=verdicts(None))
    layers: list[Layer] = measurement["layers"]
    return Contents(
        tables=(_norms(layers), _seeds(measurement), _spectra(layers), paper),
        figures=_figures(layers, measurement),
        verdicts=verdicts(measurement),
    )


def _label(layer: Layer) -> str:
    number = re.search(r"\d+", layer["name"])
    return f"{SYMBOLS[layer['weight']]}, layer {number.group() if number else '?'}"


def _norms(layers: Sequence[Layer]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            _label(layer),
            r,
            *(
                Number(value=figure_of(layer, r, figure), digits=2)
                for figure in ("own", "base", "random", "delta_norm")
            ),
            Number(value=layer["base_norm"], digits=2),
            Number(value=factor(layer, r), digits=3),
            Number(value=random_factor(layer, r), digits=3),
        )
        for layer in layers
        for r in (SMALL, LARGE)
    ]
    return Table(
        name="subspaces-table7",
        title="Table 7 on MiniLM, every layer",
        columns=(
            *("Layer", "Rank", "Update's directions", "W's own", "Random", "|update|", "|W|"),
            *("Amplification", "Of random directions"),
        ),
        rows=tuple(rows),
        notes=(
            "Norms of U^T W V; means over two seeds. Random is the expectation (r / d) |W|, which the paper's column "
            "follows too. The update includes alpha / r. Amplification is |update| over the norm in the update's "
            "directions, and over that in random ones.",
        ),
    )


def _seeds(measurement: Measurement) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for size in SHOWN_SIZES:
        gaps = seed_gap(measurement, size)
        means = [
            fmean(layer["seeds"][size - 1][size - 1] for layer in layers_of(measurement, weight)) for weight in WEIGHTS
        ]
        chance = random_similarity(size, size, measurement["width"])
        rows.append(
            (
                size,
                *(Number(value=value) for value in (*means, chance)),
                replace(mean_difference(gaps), num_runs=None),
                f"{sum(gap > 0 for gap in gaps)} of {len(gaps)}",
            )
        )
    return Table(
        name="subspaces-two-seeds",
        title=f"The diagonals of Figures 4 and 7: phi of two seeds, r = {LARGE}",
        columns=("i = j", "W_q", "W_v", "Random", "W_q minus W_v", "Layers where W_q has more"),
        rows=tuple(rows),
        notes=(
            "Means over layers, with the 95 % interval of the gap; layers are what varies, of one pair of seeds. "
            "Random is the expectation i / d.",
        ),
    )


def _spectra(layers: Sequence[Layer]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            _label(layer),
            *(Number(value=figure_of(layer, r, "top_share"), digits=2) for r in (SMALL, LARGE)),
            *(Number(value=figure_of(layer, r, "effective_rank"), digits=1) for r in (SMALL, LARGE)),
            *(Number(value=figure_of(layer, r, "intruders"), digits=1) for r in (SMALL, LARGE)),
            Number(value=layer["rank_changes_top"], digits=2),
        )
        for layer in layers
    ]
    shares = [f"{SYMBOLS[weight]} {' '.join(f'{v:.2f}' for v in of)}" for weight, of in RELEASED_TOP_SHARES.items()]
    return Table(
        name="subspaces-spectra",
        title="What is in the updates",
        columns=(
            "Layer",
            *(f"{what}, r = {r}" for what in ("Top-1 share", "Effective rank", "Intruders") for r in (SMALL, LARGE)),
            "Top direction of the updates alike",
        ),
        rows=tuple(rows),
        notes=(
            "Top-1 share: the largest singular value's part of |update|^2. Intruders: of the 10 top singular vectors "
            "of W + update, those unlike all of W's (cosine below 0.5; arXiv 2410.21228). Means over two seeds.",
            f"The authors' released RoBERTa base adapter for MNLI has top-1 shares {'; '.join(shares)}, from the first "
            "layer to the last.",
        ),
    )


def _figures(layers: Sequence[Layer], measurement: Measurement) -> tuple[HeatMaps, ...]:
    drawn = Panel(title="random", values=_values(measurement["random"]))
    width = measurement["width"]
    expected = Panel(
        title="random, expected",
        values=tuple(tuple(random_similarity(i, j, width) for j in range(1, LARGE + 1)) for i in range(1, SMALL + 1)),
    )

    def panels(figure: str, *between: Panel) -> tuple[Panel, ...]:
        """Return a panel for each layer, W_q's first; `between` stands between W_q's and W_v's."""
        of = {
            weight: [
                Panel(title=_label(layer), values=_values(layer[figure]))
                for layer in layers
                if layer["weight"] == weight
            ]
            for weight in WEIGHTS
        }
        return (*of["query"], *between, *of["value"])

    base = panels("base", expected)
    of_random = 'The panel "random, expected" is max(i, j) / d, the expectation for random directions.'
    most = max(value for panel in base for row in panel.values for value in row)
    return (
        HeatMaps(
            name="subspaces-ranks",
            title=f"Figures 3 and 6: what A of r = {SMALL} and of r = {LARGE} have in common",
            y_label=f"i, of r = {SMALL}",
            x_label=f"j, of r = {LARGE}",
            panels=panels("ranks", expected),
            caption="phi of the top i and the top j right singular vectors: 1 where one span contains the other. The "
            f"two adapters have different seeds. {of_random}",
        ),
        HeatMaps(
            name="subspaces-seeds",
            title=f"Figures 4 and 7: what two seeds have in common, r = {LARGE}",
            y_label="i, first seed",
            x_label="j, second seed",
            panels=panels("seeds", drawn),
            caption='The panel "random" is of two Gaussian matrices; where i = j = 64 their expectation is '
            f"{random_similarity(LARGE, LARGE, width):.3f}.",
        ),
        HeatMaps(
            name="subspaces-base",
            title="Figure 8: what the update and W have in common",
            y_label=f"i, of update, r = {SMALL}",
            x_label="j, of W",
            panels=base,
            high=math.ceil(10 * most) / 10,
            caption="phi of the top i directions of the update and the top j of W. The shades have a scale of "
            f"their own, up to the largest value. {of_random}",
        ),
    )


def _values(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in rows)


EXHIBIT = Exhibit(
    name="subspaces",
    title="What the updates learn",
    shows="Table 7 and Figures 3, 4, 6, 7 and 8 (section 7, appendix H): updates of GPT-3 have a very low rank, and "
    "amplify directions that W has but does not stress.",
    contents=contents,
    measure=measure,
    decided_by="Intervals are over the layers of one model.",
    scaled_down=(
        "Model: MiniLM, d = 384 and 6 layers, instead of GPT-3, d = 12,288 and 96 layers; all layers are shown.",
        f"Ranks: {SMALL} and {LARGE} throughout, where Table 7 has 4 and 64.",
        "Scaling: alpha is 16 at either rank, so s = alpha / r is 2 and 1/4; the learning rate is the method's own, "
        "0.001, not swept.",
        f"Training: {ROWS:,} film reviews, 3 epochs, so that the four adapters take minutes; two seeds a rank, so "
        "what is said of two seeds is of one pair. An interval over layers takes the layers of one model for "
        "independent, which they are not.",
    ),
)
