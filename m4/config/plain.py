"""Configurations as plain data: flat and nested, as JSON, and how two differ."""

import fnmatch
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from m4 import seal
from m4.errors import ConfigError

# Fields that may change between a run and its continuation: they do not touch the mathematics.
HARMLESS = ("data.raw_dir", "data.dir", "train.*_every", "train.keep", "train.max_bad")
HARMLESS += ("train.profile",)
HARMLESS += ("eval.*", "mesh.*")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"a.b": value}; an empty mapping is kept as a value."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`. Raises ConfigError for a section that is a value, too."""
    whole: dict[str, Any] = {}
    for path, value in values.items():
        *sections, name = path.split(".")
        place = whole
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{path}: {section} is a value, no section")
        place[name] = value
    return whole


def to_json(config: ml_collections.ConfigDict) -> str:
    """Canonical text of a configuration."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """The inverse of `to_json` (lists are tuples again). Raises ConfigError if damaged."""
    try:
        found = tuples(seal.load(path))
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno} is not JSON: {error.msg}"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition(":")[0]
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must hold an object {{...}} of sections, as in config.json")
    return found


def tuples(value: Any) -> Any:
    """Tuples for the lists of JSON."""
    if isinstance(value, Mapping):
        return {k: tuples(v) for k, v in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, (list, tuple)) else value


def diff(
    old: Mapping[str, Any], new: Mapping[str, Any], *, harmless: Sequence[str] = HARMLESS
) -> list[str]:
    """Fields that change the mathematics and differ: "optim.lr: 0.001 -> 0.01"."""
    old, new, absent = flatten(old), flatten(new), object()
    return [
        f"{path}: {old.get(path, '(absent)')!r} -> {new.get(path, '(absent)')!r}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path, absent) != new.get(path, absent)
        and not any(fnmatch.fnmatch(path, pattern) for pattern in harmless)
    ]
