"""How the report writes a number, a size, a duration and a name.

One home for every figure's look, so that the page, the plots and the console never disagree. A value keeps about
three significant digits. Sizes are decimal: 1 kB = 1000 bytes, 1 MB = 1000 kB. Nothing here escapes HTML: that is the
template's job.
"""

import json
from collections.abc import Mapping

ELLIPSIS = "…"
UNKNOWN = "\N{EN DASH}"
_CONTROL_CODES = 0x20
_SURROGATES = range(0xD800, 0xE000)
_NON_CHARACTERS = (0xFFFE, 0xFFFF)


def plain(text: str) -> str:
    """Return `text` on one line, with each character that XML or UTF-8 cannot hold replaced by U+FFFD."""
    return "".join(_printable(character) for character in text)


def _printable(character: str) -> str:
    code = ord(character)
    if character.isspace():
        return " "
    if code < _CONTROL_CODES or 0x7F <= code < 0xA0 or code in _SURROGATES or code in _NON_CHARACTERS:
        return "\N{REPLACEMENT CHARACTER}"
    return character


def shorten(text: str, limit: int) -> str:
    """Return `text` cut to at most `limit` characters, the last one an ellipsis where something is missing."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + ELLIPSIS


def short_names(names: list[str], limit: int) -> list[str]:
    """Return the names cut to `limit` characters; those that the cut makes alike begin with their number, from 1."""
    cut = [shorten(plain(name), limit) for name in names]
    return [
        shorten(f"{number} {plain(name)}", limit) if cut.count(short) > 1 else short
        for number, (name, short) in enumerate(zip(names, cut, strict=True), start=1)
    ]


def score(mean: float, sd: float | None = None) -> str:
    """Return a score with three decimals, with `± sd` where the spread over runs is known."""
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}"


def percent(share: float) -> str:
    """Return a share of 0 to 1 in per cent; what is not the whole is never rounded up to 100 %."""
    value = 100 * share
    if value >= 99.95:
        return "100 %" if share >= 1 else "> 99.9 %"
    if value >= 10:
        return f"{value:.1f} %"
    if value >= 0.1 or value == 0:
        return f"{value:.2f} %"
    return f"{value:.4f} %" if value >= 0.0001 else "< 0.0001 %"


def _three_digits(value: float) -> str:
    """Return a positive value below 1000 with three significant digits, never in exponents."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """Return `value` in the largest of the units (each 1000 of the one before) that leaves at least one whole."""
    for unit in units[:-1]:
        if value < 999.5:
            return f"{value:.0f} {unit}".rstrip() if unit == units[0] else f"{_three_digits(value)} {unit}"
        value /= 1000
    return f"{_three_digits(value)} {units[-1]}"


def size(num_bytes: float) -> str:
    """Return a size in decimal units: 912 kB, 1.18 MB, 90.9 MB."""
    return _scaled(num_bytes, ("B", "kB", "MB", "GB", "TB"))


def compact_count(number: float) -> str:
    """Return a count in thousands, millions or billions: 385, 74.1 k, 22.7 M."""
    return _scaled(number, ("", "k", "M", "G"))


def count(number: int) -> str:
    """Return a whole number with a comma between thousands."""
    return f"{number:,}"


def duration(seconds: float) -> str:
    """Return a duration in seconds below ten minutes, in minutes below two hours, else in hours."""
    if seconds < 600:
        return f"{_three_digits(seconds)} s"
    return f"{_three_digits(seconds / 60)} min" if seconds < 7200 else f"{_three_digits(seconds / 3600)} h"


def number(value: float) -> str:
    """Return a setting's number as a user would type it: 2e-5, 0.1, 16."""
    if not value or abs(value) >= 1e-3:
        return f"{value:.6g}"
    mantissa, _, exponent = f"{value:.5e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def setting(value: object) -> str:
    """Return one value of a configuration in words a reader can take in."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value) if isinstance(value, float) else str(value)
    if isinstance(value, Mapping):
        return plain(json.dumps(value, ensure_ascii=False, sort_keys=True, default=str))
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value) or UNKNOWN
    return plain(str(value))


def listed(parts: list[str]) -> str:
    """Return the parts as an English list: a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
