"""Labelled text as a value, and how it is divided into train, validation and test.

`make_splits` holds out what is missing, each class in proportion and every class on every side. Rows with the same
text are one piece that is never torn apart, so what is held out is never learned. `Splits.notes` says what was done.

This module reads no file (`tables` does), drops no row and changes no text: doubles and contradictions are counted.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from veneer.errors import ConfigError, DataError, gathered

Task = Literal["classification", "regression"]
"""Whether a row's answer is a class or a number."""

SPLITS = ("train", "validation", "test")
"""The names of the parts that rows are divided into."""

_FEWEST_ROWS = 10  # below this a held-out tenth would be less than one row
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")
_Pieces = list[list[int]]  # the 0-based rows of each text: a text's rows are never torn apart
_Strata = dict[str, _Pieces]  # class name -> its pieces


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Rows of labelled (or unlabelled) text."""

    texts: tuple[str, ...]
    """The text to classify, or the first of two."""
    pairs: tuple[str, ...] | None = None
    """The second text of each row where the task is about two texts."""
    labels: tuple[str, ...] | None = None
    """The class name of each row; None for text without labels, and for regression."""
    targets: tuple[float, ...] | None = None
    """The number to predict of each row; None but for regression."""

    def __post_init__(self) -> None:
        for name, column in (("pairs", self.pairs), ("labels", self.labels), ("targets", self.targets)):
            if column is not None and len(column) != len(self.texts):
                raise DataError(f"{len(self.texts)} texts but {len(column)} {name}: give one for each text")

    @property
    def answers(self) -> tuple[str, ...] | tuple[float, ...] | None:
        """The labels or the targets, whichever there are."""
        return self.targets if self.labels is None else self.labels

    @property
    def strata(self) -> tuple[str, ...]:
        """What rows are divided in proportion to: their labels, or the same for all of them."""
        return ("",) * len(self) if self.labels is None else self.labels

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Iterable[int]) -> "Examples":
        """Return the rows at `indices` (0-based), in that order."""
        chosen = list(indices)
        return Examples(
            texts=tuple(self.texts[index] for index in chosen),
            pairs=None if self.pairs is None else tuple(self.pairs[index] for index in chosen),
            labels=None if self.labels is None else tuple(self.labels[index] for index in chosen),
            targets=None if self.targets is None else tuple(self.targets[index] for index in chosen),
        )


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What a run learns from, chooses by and is measured on."""

    train: Examples
    validation: Examples
    test: Examples | None
    labels: tuple[str, ...]
    """The class names of train, in the order of the model's outputs; none for regression."""
    notes: tuple[str, ...]
    """How the splits came about and what is odd about them, a line each, for the user."""


def make_splits(
    train: Examples,
    *,
    validation: Examples | None,
    test: Examples | None,
    test_share: float = 0.0,
    validation_share: float = 0.1,
    seed: int,
    name: str,
) -> Splits:
    """Hold out of train what is missing, check all parts, and say what was done.

    Args:
        train: All labelled rows that are not in `validation` or `test`.
        validation: Rows to choose by; None to hold them out of train.
        test: Rows to measure on; None to hold them out of train where `test_share` is above 0.
        test_share: Share of the rows of `train`, 0 (no test) to below 1.
        validation_share: Share of the rows of `train`, between 0 and 1.
        seed: The same seed gives the same split.
        name: The data's name for messages.

    Raises:
        ConfigError: A share is outside what is allowed.
        DataError: The data cannot be used or divided; the message lists every problem.
    """
    if not (0 < validation_share < 1 and 0 <= test_share < 1 and validation_share + test_share < 1):
        allowed = "validation_share must be above 0, test_share 0 or more, and both together below 1"
        raise ConfigError(f"validation_share {validation_share} and test_share {test_share}: {allowed}")
    missing = {"validation": (validation, validation_share), "test": (test, test_share)}
    shares = {side: share for side, (part, share) in missing.items() if part is None and share > 0}
    asked = {"train": train, "validation": validation, "test": test}
    given = {side: part for side, part in asked.items() if part is not None}
    strata = _strata(train) if train.answers is not None else {}
    problems = _problems(given, strata, sides=1 + len(shares))
    if problems:
        raise DataError(gathered(f"{name}: this data cannot be used as it is", problems))
    parts = {**given, **_held_out(train, strata, shares, seed)}
    notes = [_origin(side, parts[side], train, shares, seed) for side in ("validation", "test") if side in parts]
    notes += _oddities(given, parts, divided=bool(shares))
    return Splits(
        train=parts["train"],
        validation=parts["validation"],
        test=parts.get("test"),
        labels=_sorted_names(train.labels or ()),
        notes=tuple(notes),
    )


def sample(examples: Examples, count: int, *, seed: int) -> Examples:
    """Return about `count` rows in their original order, each class in proportion.

    Every class keeps a row, so more classes than `count` give one row each. An input of `count` rows or fewer comes
    back itself.
    """
    if count < 1:
        raise ConfigError(f"a sample of {count} rows was asked for: ask for 1 or more")
    if count >= len(examples):
        return examples
    classes: dict[str, list[int]] = {}
    for index, label in enumerate(examples.strata):
        classes.setdefault(label, []).append(index)
    generator = random.Random(seed)
    chosen: list[int] = []
    quotas = _proportional([len(rows) for rows in classes.values()], count)
    for rows, quota in zip(classes.values(), quotas, strict=True):
        chosen += generator.sample(rows, quota)
    return examples.select(sorted(chosen))


def _sorted_names(labels: Iterable[str]) -> tuple[str, ...]:
    """Sort class names: those that look like numbers first, by number, then the others by their letters."""
    numbers = {label: float(label) for label in set(labels) if _NUMBER.fullmatch(label)}
    return tuple(sorted(set(labels), key=lambda label: (label not in numbers, numbers.get(label, 0.0), label)))


def _keys(examples: Examples) -> Sequence[object]:
    """Return what makes two rows the same text: the text, or both texts of a pair, white space folded."""
    columns = [examples.texts] if examples.pairs is None else [examples.texts, examples.pairs]
    return list(zip(*([" ".join(text.split()) for text in column] for column in columns), strict=True))


def _strata(train: Examples) -> _Strata:
    """Return the pieces of each class; a text with several labels goes to the rarest, which needs it most."""
    labels = train.strata
    counts = Counter(labels)
    pieces: dict[object, list[int]] = {}
    for index, text in enumerate(_keys(train)):
        pieces.setdefault(text, []).append(index)
    strata: _Strata = {label: [] for label in sorted(counts)}
    for piece in pieces.values():
        rarest = min((labels[index] for index in piece), key=lambda label: (counts[label], label))
        strata[rarest].append(piece)
    return strata


def _problems(given: Mapping[str, Examples], strata: _Strata, *, sides: int) -> list[str]:
    """Return everything that keeps these parts from being used, one line each; `sides` is 1 where none is held out."""
    train = given["train"]
    problems = [f"{side}: the rows have no labels" for side, part in given.items() if part.answers is None]
    problems += [f"{side}: there are no rows" for side, part in given.items() if not len(part)]
    counts, answers = Counter(train.labels or ()), set(train.answers or ())
    if len(answers) == 1:
        wanted = "classes" if train.targets is None else "numbers"
        problems.append(f"train: all rows have the one label {answers.pop()!r}; at least two {wanted} are needed")
    if sides > 1 and 0 < len(train) < _FEWEST_ROWS:
        problems.append(f"train: {_rows(len(train))} in total; to hold some out, give at least {_FEWEST_ROWS}")
    too_few = [label for label, pieces in strata.items() if len(pieces) < sides] if sides > 1 else []
    if too_few:
        sizes = Counter(train.strata)
        listed = ", ".join(f"{label!r} ({_rows(sizes[label])}, {len(strata[label])} different)" for label in too_few)
        advice = f"a class needs {sides} different texts or more: add rows, merge the class or drop it"
        problems.append(f"train: too few to be split: {listed}; {advice}")
    for side, part in given.items():
        foreign = Counter(label for label in part.labels or () if label not in counts)
        if counts and foreign:
            listed = ", ".join(f"{label!r} ({_rows(foreign[label])})" for label in _sorted_names(foreign))
            problems.append(f"{side}: labels that train lacks: {listed}. Correct them, or add such rows to train")
    return problems


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _proportional(sizes: Sequence[int], total: int) -> list[int]:
    """Divide `total` (at most their sum) over classes of these sizes: by largest remainder, at least 1 for each."""
    exact = [size * total / sum(sizes) for size in sizes]
    counts = [max(1, int(share)) for share in exact]
    while sum(counts) < total:
        counts[max(range(len(sizes)), key=lambda index: exact[index] - counts[index])] += 1
    while sum(counts) > max(total, len(sizes)):
        above_one = [index for index, count in enumerate(counts) if count > 1]
        counts[max(above_one, key=lambda index: counts[index] - exact[index])] -= 1
    return counts


def _held_out(train: Examples, strata: _Strata, shares: Mapping[str, float], seed: int) -> dict[str, Examples]:
    """Return train and each side of `shares`, rows in their original order."""
    generator = random.Random(seed)
    left = {label: generator.sample(pieces, len(pieces)) for label, pieces in strata.items()}
    sizes = [sum(map(len, pieces)) for pieces in strata.values()]
    parts: dict[str, Examples] = {}
    for sides_after, (side, share) in zip(range(len(shares), 0, -1), shares.items(), strict=True):
        rows: list[int] = []
        for label, quota in zip(strata, _proportional(sizes, round(share * len(train))), strict=True):
            taken, left[label] = _take(left[label], quota, leave=sides_after)
            rows += [index for piece in taken for index in piece]
        parts[side] = train.select(sorted(rows))
    kept = sorted(index for pieces in left.values() for piece in pieces for index in piece)
    return {**parts, "train": train.select(kept)}


def _take(pieces: _Pieces, quota: int, *, leave: int) -> tuple[_Pieces, _Pieces]:
    """Take pieces while their rows fit the quota, one at the least, and leave `leave` pieces; return (taken, left)."""
    taken: _Pieces = []
    rest: _Pieces = []
    for piece in pieces:
        fits = len(piece) <= quota and len(taken) < len(pieces) - leave
        (taken if fits else rest).append(piece)
        quota -= len(piece) if fits else 0
    if not taken:
        taken.append(rest.pop(rest.index(min(rest, key=len))))
    return taken, rest


def _origin(side: str, part: Examples, train: Examples, shares: Mapping[str, float], seed: int) -> str:
    """Return the line that says where a side's rows come from."""
    if side not in shares:
        return f"{side}: {_rows(len(part))}, as given"
    percent = 100 * len(part) / len(train)
    how = "at random" if train.labels is None else "stratified by label"
    return f"{side}: {_rows(len(part))} ({percent:.3g} %), held out of train, {how}, seed {seed}"


def _oddities(given: Mapping[str, Examples], parts: Mapping[str, Examples], *, divided: bool) -> list[str]:
    """Return the lines about texts that stand more than once: with several labels or sides."""
    named = {row for part in given.values() for row in zip(_keys(part), part.answers or (), strict=True)}
    num_mixed = sum(count > 1 for count in Counter(text for text, _ in named).values())
    notes = [f"labels: {num_mixed:,} different texts stand with more than one label"] if num_mixed else []
    num_repeats = len(given["train"]) - len(set(_keys(given["train"])))
    if num_repeats:
        kept = "; all copies of a text are kept on one side" if divided else ""
        notes.append(f"train: the text of an earlier row is repeated in {_rows(num_repeats)}{kept}")
    for side, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        if side in parts:
            known = set(_keys(parts[other]))
            num_shared = sum(text in known for text in _keys(parts[side]))
            if num_shared:
                notes.append(f"{side}: {_rows(num_shared)} with a text that {other} has too: scores may flatter")
    return notes
