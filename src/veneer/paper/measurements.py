"""What exhibits measure themselves, as files: `<folder>/measurements/<exhibit>.json`, written whole or not at all."""

import json
from pathlib import Path

from veneer.errors import ConfigError, VeneerError
from veneer.files import write_text
from veneer.paper.exhibit import Measurement

FOLDER = "measurements"
MEASUREMENT_SCHEMA = 1


def place(folder: Path, exhibit: str) -> Path:
    """Return the file of an exhibit's measurement below the results folder."""
    return folder / FOLDER / f"{exhibit}.json"


def read_measurement(folder: Path, exhibit: str) -> Measurement | None:
    """Return the exhibit's measurement, or None where none was made.

    Raises:
        ConfigError: the file is no measurement.
    """
    file = place(folder, exhibit)
    if not file.is_file():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if value["schema"] == MEASUREMENT_SCHEMA:
            for key, kind in {"quick": bool, "machine": dict, "versions": dict}.items():
                if not isinstance(value[key], kind):
                    raise TypeError(f"{key} is {value[key]!r}")
            return {key: entry for key, entry in value.items() if key != "schema"}
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file} is no measurement: {error}; delete it to measure again") from None
    raise ConfigError(f"{file} has schema {value['schema']!r}, but this version reads {MEASUREMENT_SCHEMA}")


def write_measurement(folder: Path, exhibit: str, measurement: Measurement) -> Path:
    """Write a measurement, a line for each of its entries, and return its path.

    Raises:
        VeneerError: a number in it is not finite.
    """
    file = place(folder, exhibit)
    entries = {"schema": MEASUREMENT_SCHEMA, **measurement}
    try:
        lines = [
            f"{json.dumps(key)}: {json.dumps(value, allow_nan=False, separators=(',', ':'))}"
            for key, value in entries.items()
        ]
    except ValueError:
        raise VeneerError(f"what was measured for {exhibit} has a number that is not finite, and is not kept") from None
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "{\n" + ",\n".join(lines) + "\n}\n")
    return file
