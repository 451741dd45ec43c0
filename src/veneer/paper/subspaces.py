"""`subspaces`: what the updates of attention learn (the paper's Table 7 and Figures 3, 4, 6 to 8), layer by layer."""

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from veneer.paper.exhibit import Cell, Contents, Exhibit, HeatMaps, Measurement, Number, Outcome, Panel, Table, Verdict
from veneer.paper.subspace import random_similarity
from veneer.paper.subspace_measurement import LARGE, ROWS, SMALL, WEIGHTS, measure
from veneer.paper.tabulation import untested
from veneer.training.grid import Grid

SYMBOLS: Mapping[str, str] = {"query": "W_q", "value": "W_v"}
TENTH = 38
"""A tenth of MiniLM's 384 directions."""
ENOUGH = 5 / 6
"""A claim on every layer holds where this share of the layers agrees."""
RELEASED_TOP_SHARES: Mapping[str, tuple[float, ...]] = {
    "query": (0.63, 0.44, 0.43, 0.39, 0.32, 0.34, 0.43, 0.69, 0.54, 0.84, 0.94, 0.99),
    "value": (0.28, 0.36, 0.38, 0.33, 0.31, 0.34, 0.33, 0.31, 0.63, 0.40, 0.47, 0.54),
}
"""The share of the largest singular value in |BA|^2 of the authors' released RoBERTa base adapter for MNLI, r = 8."""
PAPER_TABLE_7 = (
    ("r = 4", "0.32", "21.67", "0.02", "6.91", "21.5"),
    ("r = 64", "1.90", "37.71", "0.33", "3.57", "about 2"),
)
Layer = Mapping[str, Any]


def contents(grid: Grid, measurement: Measurement | None) -> Contents:
    """Return the tables, heat maps and verdicts of a measurement; without one only the paper's own numbers."""
    paper = Table(
        name="subspaces-paper",
        title="Table 7 as the paper prints it: GPT-3, layer 48, |W_q| = 61.95",
        columns=("Rank", "Update's directions", "W_q's own", "Random", "|update|", "Amplification"),
        rows=PAPER_TABLE_7,
        notes=(
            "Norms of U^T W_q V, U and V the top singular vectors of the update, of W_q itself, of a random matrix.",
        ),
    )
    layers: list[Layer] = list(measurement["layers"]) if measurement else []
    if not layers:
        return Contents(tables=(paper,), verdicts=_verdicts([], quick=False))
    assert measurement is not None
    return Contents(
        tables=(_norms(layers), _spectra(layers), paper),
        figures=_figures(layers, measurement),
        verdicts=_verdicts(layers, quick=bool(measurement["quick"])),
    )


def _of(layer: Layer, r: int, figure: str) -> float:
    """Return a figure of the layer's updates of rank r, the mean over seeds."""
    return fmean(update[figure] for update in layer["adapters"] if update["r"] == r)


def _factor(layer: Layer, r: int) -> float:
    return fmean(update["delta_norm"] / update["own"] for update in layer["adapters"] if update["r"] == r)


def _label(layer: Layer) -> str:
    number = re.search(r"\d+", layer["name"])
    return f"{SYMBOLS[layer['weight']]}, layer {number.group() if number else '?'}"


def _norms(layers: Sequence[Layer]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            _label(layer),
            r,
            *(Number(value=_of(layer, r, figure), digits=2) for figure in ("own", "base", "random", "delta_norm")),
            Number(value=layer["base_norm"], digits=2),
            Number(value=_factor(layer, r), digits=3),
        )
        for layer in layers
        for r in (SMALL, LARGE)
    ]
    return Table(
        name="subspaces-table7",
        title="Table 7 on MiniLM, every layer",
        columns=("Layer", "Rank", "Update's directions", "W's own", "Random", "|update|", "|W|", "Amplification"),
        rows=tuple(rows),
        notes=(
            "Norms of U^T W V; means over two seeds. Random is the expectation (r / d) |W|, which the paper's column "
            "follows too. The update includes alpha / r.",
        ),
    )


def _spectra(layers: Sequence[Layer]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            _label(layer),
            *(Number(value=_of(layer, r, "top_share"), digits=2) for r in (SMALL, LARGE)),
            *(Number(value=_of(layer, r, "effective_rank"), digits=1) for r in (SMALL, LARGE)),
            *(Number(value=_of(layer, r, "intruders"), digits=1) for r in (SMALL, LARGE)),
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
    random = Panel(title="random", values=_values(measurement["random"]))

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

    chance = random_similarity(LARGE, LARGE, measurement["width"])
    return (
        HeatMaps(
            name="subspaces-ranks",
            title=f"Figures 3 and 6: what A of r = {SMALL} and of r = {LARGE} have in common",
            y_label=f"i, of r = {SMALL}",
            x_label=f"j, of r = {LARGE}",
            panels=panels("ranks"),
            caption="phi of the top i and the top j right singular vectors: 1 where one span contains the other. The "
            "two adapters have different seeds.",
        ),
        HeatMaps(
            name="subspaces-seeds",
            title=f"Figures 4 and 7: what two seeds have in common, r = {LARGE}",
            y_label="i, first seed",
            x_label="j, second seed",
            panels=panels("seeds", random),
            caption='The panel "random" is of two Gaussian matrices; where i = j = 64 their expectation is '
            f"{chance:.3f}.",
        ),
        HeatMaps(
            name="subspaces-base",
            title="Figure 8: what the update and W have in common",
            y_label=f"i, of update, r = {SMALL}",
            x_label="j, of W",
            panels=panels("base"),
            caption="phi of the top i directions of the update and the top j of W.",
        ),
    )


def _values(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in rows)


def _verdicts(layers: Sequence[Layer], *, quick: bool) -> tuple[Verdict, ...]:
    query = [layer for layer in layers if layer["weight"] == "query"]
    value = [layer for layer in layers if layer["weight"] == "value"]
    claims: tuple[tuple[str, str, str, list[tuple[float, bool]]], ...] = (
        (
            "The update amplifies directions of W, and far more at a small rank (21.5 against about 2)",
            "Table 7, section 7.3",
            f"amplification at r = {SMALL} over that at r = {LARGE}",
            _told(query, lambda layer: _factor(layer, SMALL) / _factor(layer, LARGE), lambda ratio: ratio > 1),
        ),
        (
            "The update's directions have more of W in them than random ones (0.32 against 0.02)",
            "Table 7, section 7.3",
            "|U^T W V| over its expectation for random directions",
            _told(query, lambda layer: _of(layer, SMALL, "own") / _of(layer, SMALL, "random"), lambda x: x > 1),
        ),
        (
            "The update does not repeat the top directions of W (0.32 against 21.67)",
            "Table 7, section 7.3",
            "|U^T W V| over that of W's own directions, which must be below a half",
            _told(query, lambda layer: _of(layer, SMALL, "own") / _of(layer, SMALL, "base"), lambda x: x < 0.5),
        ),
        (
            f"The top direction is the same for r = {SMALL} and r = {LARGE} (phi above 0.5)",
            "Figure 3, section 7.2",
            "phi of the top direction of each A",
            _told([*query, *value], lambda layer: layer["ranks"][0][0], lambda phi: phi > 0.5),
        ),
        (
            "Two seeds share more directions in the update of W_q than in that of W_v",
            "Figure 4, section 7.2",
            f"phi of the top {SMALL} directions, W_q's minus W_v's",
            [
                (gap, gap > 0)
                for one, other in zip(query, value, strict=True)
                for gap in [one["seeds"][SMALL - 1][SMALL - 1] - other["seeds"][SMALL - 1][SMALL - 1]]
            ],
        ),
        (
            "The update's top 4 directions are hardly among W's top tenth (phi barely above 0.2)",
            "Figure 8, appendix H",
            "phi, which must be at most 0.25",
            _told(query, lambda layer: layer["base"][3][TENTH - 1], lambda phi: phi <= 0.25),
        ),
    )
    return tuple(_verdict(*claim, quick=quick) for claim in claims)


def _told(
    layers: Sequence[Layer], read: Callable[[Layer], float], agrees: Callable[[float], bool]
) -> list[tuple[float, bool]]:
    """Return a figure of each layer and whether it agrees with the claim."""
    return [(figure, agrees(figure)) for layer in layers for figure in [read(layer)]]


def _verdict(claim: str, source: str, what: str, told: list[tuple[float, bool]], *, quick: bool) -> Verdict:
    if quick or not told:
        return untested(claim, source, "Only a quick measurement was made." if quick else "Not measured yet.")
    agreeing = sum(agrees for _, agrees in told)
    outcome: Outcome = "held" if agreeing >= ENOUGH * len(told) else "not held"
    figures = [figure for figure, _ in told]
    because = (
        f"It is so in {agreeing} of {len(told)} layers: {what} is {min(figures):.2f} to {max(figures):.2f}, "
        f"{fmean(figures):.2f} on average."
    )
    return Verdict(claim=claim, source=source, outcome=outcome, because=because)


EXHIBIT = Exhibit(
    name="subspaces",
    title="What the updates learn",
    shows="Table 7 and Figures 3, 4, 6, 7 and 8 (section 7, appendix H): updates of GPT-3 have a very low rank, and "
    "amplify directions that W has but does not stress.",
    contents=contents,
    measure=measure,
    scaled_down=(
        "Model: MiniLM, d = 384 and 6 layers, instead of GPT-3, d = 12,288 and 96 layers; all layers are shown.",
        f"Ranks: {SMALL} and {LARGE} throughout, where Table 7 has 4 and 64.",
        f"Training: {ROWS:,} film reviews, 3 epochs, so that the four adapters take minutes.",
    ),
)
