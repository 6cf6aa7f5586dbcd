"""Command line and configuration file -> one checked, locked ConfigDict. Free of JAX.

A configuration file is a Python program with `get_config(variant)`. Whatever it leaves out is
filled in from the defaults in `m4.config.rules` and the method's own; whatever it or the
command line gets wrong is reported at once, one line per problem.
"""

import ast
import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from m4.config import rules, schema
from m4.config.files import load_file
from m4.config.flags import Flags, parse
from m4.config.rules import REQUIRED, Rule, nearest
from m4.errors import ConfigError

__all__ = ["Flags", "check", "diff", "flatten", "load", "parse", "read_json", "to_json"]

# Fields that may change between a run and its continuation: they do not touch the mathematics.
HARMLESS = ("data.raw_dir", "data.dir", "train.*_every", "train.keep", "train.max_bad")
HARMLESS += ("eval.*", "mesh.*")


def load(flags: Flags) -> ml_collections.ConfigDict:
    """The configuration that the flags ask for, checked.

    Without `--config` it is the one stored in the work directory. Raises ConfigError with every
    problem found.
    """
    stored = flags.workdir / "config.json" if flags.workdir else None
    if flags.config_json is not None:
        return check(read_json(flags.config_json), flags.overrides, str(flags.config_json))
    if flags.config is None and stored and stored.is_file():
        return check(read_json(stored), flags.overrides, str(stored))
    return check(load_file(flags.config), flags.overrides, flags.config)


def check(
    config: Mapping[str, Any], overrides: Mapping[str, str], source: str
) -> ml_collections.ConfigDict:
    """Applies overrides and defaults, then checks every field and every rule between fields."""
    config = ml_collections.ConfigDict(config, convert_dict=True)
    fields, problems = _fields(config, overrides)
    for path, text in overrides.items():
        problems += _override(config, path, text, fields)
    values = flatten(config.to_dict())
    for path, rule in fields.items():
        if path not in values and not any(k.startswith(path + ".") for k in values):
            if rule.default is REQUIRED:
                problems.append(f"{path}: is missing from {source}; it {_must(rule)}")
            elif rule.default is not ...:
                _set(config, path, rule.default)
    for path, value in flatten(config.to_dict()).items():
        if path in fields and fields[path].kind is int and _integral_float(value):
            _set(config, path, int(value))
    values = flatten(config.to_dict())
    for path, value in values.items():
        problems += _field_problems(path, value, fields)
    if not problems:
        problems = rules.cross_problems(values)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return config.lock()


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"a.b": value}; an empty mapping is kept as a value."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_json(config: ml_collections.ConfigDict) -> str:
    """Canonical text of a configuration."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """The inverse of `to_json` (lists are tuples again). Raises ConfigError if damaged."""

    def tuples(value):
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    try:
        found = tuples(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno} is not JSON: {error.msg}"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must hold an object {{...}} of sections, as in config.json")
    return found


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Fields that change the mathematics and differ: "optim.lr: 0.001 -> 0.01"."""
    old, new = flatten(old), flatten(new)
    return [
        f"{path}: {old.get(path, '(absent)')!r} -> {new.get(path, '(absent)')!r}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path, REQUIRED) != new.get(path, REQUIRED)
        and not any(fnmatch.fnmatch(path, pattern) for pattern in HARMLESS)
    ]


def _fields(
    config: ml_collections.ConfigDict, overrides: Mapping[str, str]
) -> tuple[dict[str, Rule], list[str]]:
    """The rule of every field, given the method and data set that were chosen."""
    fields, problems = dict(rules.FIELDS), []
    method = overrides.get("method.name", config.get("method", {}).get("name"))
    if isinstance(method, str) and fields["method.name"].problem(method) is None:
        known = schema.method_fields(method)
        if known is None:
            known = {k: schema.Field(object, ..., (), True) for k in config.method}
        for name, field in known.items():
            fields.setdefault(f"method.{name}", _method_rule(name, field))
    else:
        for name in config.get("method", {}):
            fields.setdefault(f"method.{name}", Rule(optional=True))
    data = overrides.get("data.name", config.get("data", {}).get("name"))
    options = schema.data_options(data) if isinstance(data, str) else None
    if options is not None:
        for name in options:
            fields[f"data.options.{name}"] = Rule(default=..., optional=True)
    return fields, problems


def _method_rule(name: str, field: schema.Field) -> Rule:
    limits = {}
    for pattern, limit in rules.METHOD_LIMITS.items():
        if fnmatch.fnmatch(name, pattern):
            limits = limit
    if field.choices:
        limits = {"names": lambda: field.choices}
    kind = field.kind
    if kind not in (int, float) and not {"low", "above"}.isdisjoint(limits):
        limits = {}
    if kind is not str and "names" in limits:
        limits = {}
    default = REQUIRED if field.default is schema.NO_DEFAULT else field.default
    return Rule(kind, default, optional=field.optional, **limits)


def _rule(path: str, fields: Mapping[str, Rule]) -> Rule | None:
    """The rule of a path; what lies inside a dict field is free unless its entries are listed."""
    if path in fields:
        return fields[path]
    parent = path.rpartition(".")[0]
    if not parent or any(name.startswith(f"{parent}.") for name in fields):
        return None
    rule = _rule(parent, fields)
    return Rule(optional=True) if rule and rule.kind in (dict, object) else None


def _field_problems(path: str, value: Any, fields: Mapping[str, Rule]) -> list[str]:
    rule = _rule(path, fields)
    if rule is None:
        return [_unknown(path, fields)]
    problem = rule.problem(value)
    if problem is None and isinstance(value, float) and value - value != 0:
        problem = "must be a finite number"
    return [f"{path}={value!r}: {problem}"] if problem else []


def _unknown(path: str, fields: Mapping[str, Rule]) -> str:
    section, _, name = path.rpartition(".")
    siblings = [f.rpartition(".")[2] for f in fields if f.rpartition(".")[0] == section]
    if not siblings:
        known = sorted({f.partition(".")[0] for f in fields if "." in f})
        hint = nearest(path.partition(".")[0], known)
        return f"{path}: no such section; sections: {', '.join(known)}{hint}"
    elsewhere = [f for f in fields if f.rpartition(".")[2] == name]
    hint = f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else nearest(name, siblings)
    listed = "" if hint else f"; {section or 'the top level'} has: {', '.join(sorted(siblings))}"
    return f"{path}: no such field{hint or listed}"


def _override(
    config: ml_collections.ConfigDict, path: str, text: str, fields: Mapping[str, Rule]
) -> list[str]:
    rule = _rule(path, fields)
    if rule is None:
        return [_unknown(path, fields)]
    try:
        value = _parse(text, rule)
    except (ValueError, SyntaxError, OverflowError):
        return [f"{path}={text}: {_must(rule)}"]
    _set(config, path, value)
    return []


def _integral_float(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def _must(rule: Rule) -> str:
    return f"must be {rule.allowed()}" if rule.kind is not object else "must be a Python literal"


def _parse(text: str, rule: Rule) -> Any:
    """Command-line text -> value of the field's type. `1e3` is an integer too."""
    if rule.optional and text.lower() == "none":
        return None
    if rule.kind is str:
        return text
    if rule.kind is float:
        return float(text)
    if rule.kind is int:
        number = float(text)
        if number != int(number):
            raise ValueError(text)
        return int(text) if text.lstrip("+-").isdigit() else int(number)
    if rule.kind is bool:
        if text.lower() not in ("true", "1", "false", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "1")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if rule.kind is not object:
            raise
        return text


def _set(config: ml_collections.ConfigDict, path: str, value: Any) -> None:
    """Sets a nested value, creating sections; the type was checked by the field's rule."""
    *sections, name = path.split(".")
    with config.unlocked(), config.ignore_type():
        for section in sections:
            if section not in config:
                config[section] = ml_collections.ConfigDict()
            config = config[section]
        if isinstance(value, Mapping):
            value = ml_collections.ConfigDict(value)
        with config.unlocked(), config.ignore_type():
            config[name] = value
