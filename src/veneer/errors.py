"""Every error Veneer raises on purpose.

    VeneerError
    ├── ConfigError          (ValueError)    a setting is outside what is allowed
    ├── TargetError          (LookupError)   a selector matches no module, or a module that cannot be adapted
    ├── AdapterStateError    (RuntimeError)  the model is adapted already, or is not, or cannot be merged
    ├── AdapterFormatError   (ValueError)    an adapter file is broken, unsafe or asks for what is not supported
    ├── AdapterMismatchError (ValueError)    an adapter does not fit the model it is loaded onto
    ├── DataError            (ValueError)    labelled text that cannot be used as it is
    ├── UnknownNameError     (LookupError)   a model, data set, column or method that does not exist
    ├── OutputExistsError    (FileExistsError)  a file or folder that would have to be overwritten
    └── DownloadError        (OSError)       a file could not be fetched, verified or stored

Each also inherits the standard library's class that fits, so `except ValueError` keeps working. A message says what
was given, what is allowed and what to do; several problems are gathered into one error with `gathered`.

A user's mistake ends the command with exit code 2. A `DownloadError` is the world's, not the user's: exit code 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches


class VeneerError(Exception):
    """The root of all errors raised on purpose; its text is meant for the user as it stands."""


class ConfigError(VeneerError, ValueError):
    """A setting is outside what is allowed."""


class TargetError(VeneerError, LookupError):
    """A selector matches no module, or matches one that cannot be adapted."""


class AdapterStateError(VeneerError, RuntimeError):
    """The call does not fit the model's state: adapted already, not adapted, or not mergeable."""


class AdapterFormatError(VeneerError, ValueError):
    """An adapter file is broken, unsafe, or asks for something that is not supported."""


class AdapterMismatchError(VeneerError, ValueError):
    """An adapter does not fit the model it is loaded onto."""


class DataError(VeneerError, ValueError):
    """Labelled text that cannot be used as it is."""


class UnknownNameError(VeneerError, LookupError):
    """A model, data set, column or method that does not exist."""


class OutputExistsError(VeneerError, FileExistsError):
    """A file or folder that would have to be overwritten."""


class DownloadError(VeneerError, OSError):
    """A file could not be fetched, verified or stored."""


def gathered(headline: str, problems: Sequence[str], *, shown: int = 20) -> str:
    """Return one message for many problems: the headline, then a line each, the list cut after `shown`."""
    lines = ["  - " + problem.replace("\n", "\n    ") for problem in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  - and {len(problems) - shown} more")
    return "\n".join([headline, *lines])


def together(errors: Sequence[VeneerError], headline: str) -> VeneerError:
    """Return one error for one or more, of their kind where that is the same; the headline is for several."""
    kind, *others = {type(error) for error in errors}
    message = str(errors[0]) if len(errors) == 1 else gathered(headline, [str(error) for error in errors])
    return (VeneerError if others else kind)(message)


def first_line(error: BaseException) -> str:
    """Return the first line of somebody else's error, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def require_type(values: Mapping[str, object], kind: type, advice: str) -> None:
    """Raise a `ConfigError` that names each value that is of another type.

    Args:
        values: what was given, by the names that the caller knows.
        kind: what each of them must be.
        advice: what to give instead.
    """
    wanted = f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
    problems = [
        f"{name} is of type {type(value).__name__}; it must be {wanted}"
        for name, value in values.items()
        if not isinstance(value, kind)
    ]
    if problems:
        raise ConfigError(gathered(f"{advice}:", problems))


def unknown_name(kind: str, given: str, known: Iterable[str], *, advice: str = "") -> UnknownNameError:
    """Return the error for a name that is not among `known`: it names the nearest, the choices and the advice."""
    choices = list(known)
    nearest = get_close_matches(given, choices, n=1)
    guess = f" Did you mean {nearest[0]!r}?" if nearest else ""
    known_list = ", ".join(choices) if choices else "none"
    return UnknownNameError(f"unknown {kind} {given!r}.{guess} Known: {known_list}.{' ' + advice if advice else ''}")
