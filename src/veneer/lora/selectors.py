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

_PLAIN = re.compile(r"(?:\w|\\?[.\-])+")
"""A pattern key without any operator of regular expressions: looked up instead of matched."""


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


class Pattern:
    """A compiled mapping from names to values, such as `rank_pattern`.

    Args:
        entries: regular expression -> value, in order of precedence.
    """

    def __init__(self, entries: Mapping[str, float]) -> None:
        self._keys = list(entries)
        self._plain: dict[str, tuple[int, float]] = {}
        self._exact: dict[str, tuple[int, float]] = {}
        self._regexes: list[tuple[int, re.Pattern[str], float]] = []
        for position, (key, value) in enumerate(entries.items()):
            if key.startswith("^") and _PLAIN.fullmatch(key[1:]):
                self._exact.setdefault(key[1:].replace("\\", ""), (position, value))
            elif _PLAIN.fullmatch(key):
                self._plain.setdefault(key.replace("\\", ""), (position, value))
            else:
                self._regexes.append((position, re.compile(rf"(?:.*\.)?(?:{key})"), value))

    def value_for(self, name: str) -> float | None:
        """Return the value of the first key that matches `name`, or None."""
        if not self._keys:
            return None
        found = [self._plain[end] for end in name_ends(name) if end in self._plain]
        found += [self._exact[name]] if name in self._exact else []
        found += [(position, value) for position, regex, value in self._regexes if regex.fullmatch(name)]
        return min(found)[1] if found else None

    def idle(self, names: Iterable[str]) -> list[str]:
        """Return the keys that match none of `names`."""
        if not self._keys:
            return []
        known = list(names)
        ends = {end for name in known for end in name_ends(name)}
        unmatched = [(place, key) for key, (place, _) in self._plain.items() if key not in ends]
        unmatched += [(place, key) for key, (place, _) in self._exact.items() if key not in set(known)]
        unmatched += [(place, r.pattern) for place, r, _ in self._regexes if not any(map(r.fullmatch, known))]
        return [self._keys[place] for place, _ in sorted(unmatched)]


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
