"""The check that the methods' settings share: numbers of things are whole and not too small."""

from collections.abc import Mapping

from veneer.errors import ConfigError, gathered


def require_counts(config: object, minimum: Mapping[str, int]) -> None:
    """Raise a `ConfigError` that names every setting which is no whole number, or less than its minimum."""
    given = {name: getattr(config, name) for name in minimum}
    problems = [
        f"{name} is {value!r}; it must be a whole number of at least {minimum[name]}"
        for name, value in given.items()
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum[name]
    ]
    if problems:
        raise ConfigError(gathered(f"{type(config).__name__} cannot be built:", problems))
