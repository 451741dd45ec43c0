"""How names select modules, and how a name finds its own rank: the one matching grammar.

A selector is a list of names or one regular expression. A name matches a module whose full name equals it or ends in
`.` + name. A regular expression is matched against the full name. The keys of a pattern (`rank_pattern`) match like
PEFT's: as regular expressions for the full name or for its end after a `.`; the first key that matches decides.

Names are looked up by their ends, so that thousands of modules cost one pass and not one pass for each term.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches

Terms = str | Sequence[str]
"""Names matched at a `.` boundary, or one regular expression matched in full."""

PLAIN_KEY = re.compile(r"(?:\w|\\?[.\-])+")
"""A pattern key without any operator of regular expressions but the dot: looked up instead of matched."""
_LETTER = re.compile(r"\\?.")


class Selector:
    """A compiled choice of names.

    Args:
        terms: a list of names, or one regular expression.
        whole: full names that stand for themselves alone: a term that is one of them selects no ends.
    """

    def __init__(self, terms: Terms, whole: Collection[str] = ()) -> None:
        self.terms = (terms,) if isinstance(terms, str) else tuple(terms)
        self.is_regex = isinstance(terms, str)
        self._regex = re.compile(terms) if isinstance(terms, str) else None
        self._names = frozenset(self.terms)
        self._longest = max(map(len, self.terms), default=0)
        self._whole = self._names.intersection(whole)

    def __call__(self, name: str) -> bool:
        """Return whether a module's full name is selected."""
        return self.term_for(name) is not None

    def term_for(self, name: str) -> str | None:
        """Return the term that selects `name`, the longest where several do, or None."""
        if self._regex is not None:
            return self.terms[0] if self._regex.fullmatch(name) else None
        for end in name_ends(name, self._longest) if self._names else ():
            if end in self._names and (end == name or end not in self._whole):
                return end
        return None

    def idle(self, names: Iterable[str]) -> list[str]:
        """Return the terms that match none of `names`."""
        if self._regex is not None:
            return [] if any(self._regex.fullmatch(name) for name in names) else list(self.terms)
        if not self.terms:
            return []
        present = {end for name in names for end in name_ends(name)}
        return [term for term in self.terms if term not in present]


def compiled_key(key: str) -> re.Pattern[str]:
    """Return a pattern's key as it is matched, for a full name or for its end after a `.`."""
    return re.compile(rf"(?:.*\.)?(?:{key})")


class Pattern:
    """A compiled mapping from names to values, such as `rank_pattern`.

    Args:
        entries: regular expression -> value, in order of precedence.
    """

    def __init__(self, entries: Mapping[str, float]) -> None:
        self._keys = list(entries)
        self._plain: dict[tuple[bool, int, tuple[int, ...]], dict[str, tuple[int, float]]] = {}
        self._regexes: list[tuple[int, re.Pattern[str], float]] = []
        for position, (key, value) in enumerate(entries.items()):
            is_whole = key.startswith("^")
            text = key[is_whole:]
            if not PLAIN_KEY.fullmatch(text):
                self._regexes.append((position, compiled_key(key), value))
                continue
            letters = _LETTER.findall(text)
            dots = tuple(place for place, letter in enumerate(letters) if letter == ".")
            name = "".join(letter[-1] for letter in letters)
            self._plain.setdefault((is_whole, len(name), dots), {}).setdefault(name, (position, value))

    def value_for(self, name: str) -> float | None:
        """Return the value of the first key that matches `name`, or None."""
        return min(found)[1] if self._keys and (found := list(self._matches(name))) else None

    def idle(self, names: Iterable[str]) -> list[str]:
        """Return the keys that match none of `names`."""
        if not self._keys:
            return []
        served = {position for name in names for position, _ in self._matches(name)}
        return [key for position, key in enumerate(self._keys) if position not in served]

    def _matches(self, name: str) -> Iterator[tuple[int, float]]:
        """Yield the position and the value of each key that matches `name`."""
        for (is_whole, length, dots), entries in self._plain.items():
            start = len(name) - length
            if start < 0 or (start and (is_whole or name[start - 1] != ".")):
                continue
            end = name[start:]
            for dot in dots:  # to a regular expression it is any letter
                end = f"{end[:dot]}.{end[dot + 1 :]}"
            if end in entries:
                yield entries[end]
        for position, regex, value in self._regexes:
            if regex.fullmatch(name):
                yield position, value


def exact_terms(chosen: Sequence[str], names: Sequence[str]) -> str | tuple[str, ...]:
    """Return the full names, or where one is the end of another's a regular expression that selects no more."""
    selects = Selector(tuple(chosen))
    if [name for name in names if selects(name)] == list(chosen):
        return tuple(chosen)
    return "|".join(map(re.escape, chosen))


def name_ends(name: str, longest: int | None = None) -> Iterator[str]:
    """Yield a name and what is left of it after each `.`, the longest first; any above `longest` may be missing."""
    start = 0 if longest is None or len(name) <= longest else name.find(".", len(name) - longest - 1) + 1
    yield name[start:]
    while start := name.find(".", start) + 1:
        yield name[start:]


class Inside:
    """Whether a name is one of some containers, or lies inside one."""

    def __init__(self, containers: Iterable[str]) -> None:
        self._containers = frozenset(containers)

    def __call__(self, name: str) -> bool:
        """Return whether `name` is one of the containers or lies inside one."""
        if not self._containers:
            return False
        return name in self._containers or any(
            name[:end] in self._containers for end, letter in enumerate(name) if letter == "."
        )


def nearest(term: str, names: Iterable[str]) -> str:
    """Return "; nearest: ..." for a term that matched nothing, or "" where nothing is near."""
    last = {name.rsplit(".", 1)[-1]: name for name in names}
    close = get_close_matches(term, {*last.values(), *last}, n=3, cutoff=0.6)
    return f"; nearest: {', '.join(repr(name) for name in close)}" if close else ""
