"""Command line and configuration file -> one checked, locked ConfigDict. Free of JAX.

A configuration file is a Python program with `get_config(variant)`. Whatever it leaves out is
filled in from the defaults in `m4.config.rules` and the method's own; whatever it or the
command line gets wrong is reported at once, one line per problem.
"""

import ast
import fnmatch
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from m4.config import rules, schema
from m4.config.files import load_file
from m4.config.flags import Flags, parse
from m4.config.hints import unknown
from m4.config.rules import REQUIRED, Rule
from m4.errors import ConfigError

__all__ = ["Flags", "check", "diff", "flatten", "load", "parse", "read_json", "stored", "to_json"]

# Fields that may change between a run and its continuation: they do not touch the mathematics.
HARMLESS = ("data.raw_dir", "data.dir", "train.*_every", "train.keep", "train.max_bad")
HARMLESS += ("eval.*", "mesh.*")
# What parsing a value from the command line can end in.
_NOT_PARSED = (ValueError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError)


def load(flags: Flags) -> ml_collections.ConfigDict:
    """The configuration that the flags ask for, checked.

    Without `--config` it is the one stored in the work directory. Raises ConfigError with every
    problem found.
    """
    stored = flags.workdir / "config.json" if flags.workdir else None
    if flags.config_json is not None:
        if "://" in flags.config_json:
            raise ConfigError(f"--config_json={flags.config_json}: must be a local file")
        plain = read_json(Path(flags.config_json))
        return check(plain, flags.overrides, flags.config_json)
    if flags.config is None and stored and stored.is_file():
        return check(read_json(stored), flags.overrides, str(stored))
    return check(load_file(flags.config), flags.overrides, flags.config)


def check(
    config: Mapping[str, Any], overrides: Mapping[str, str], source: str
) -> ml_collections.ConfigDict:
    """Applies overrides and defaults, then checks every field and every rule between fields."""
    _check_structure(config, source)
    config = ml_collections.ConfigDict(config, convert_dict=True)
    fields = _fields(config, overrides)
    problems = []
    for path, text in overrides.items():  # here, because fields may refer to each other
        problems += _override(config, path, text, fields)
    values = flatten(config.to_dict())
    problems += _fill(values, fields, source)
    for path, value in values.items():
        kind = fields[path].kind if path in fields else None
        if kind is int and isinstance(value, float) and value.is_integer():
            values[path] = int(value)
        elif kind is tuple and isinstance(value, list):
            values[path] = tuple(value)
    values = flatten(_nested(values))
    for path, value in values.items():
        problems += _field_problems(path, value, fields)
    if not problems:
        problems = rules.cross_problems(values)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return ml_collections.ConfigDict(_nested(values)).lock()


def _check_structure(config: Any, source: str) -> None:
    """Refuses what is no nested mapping of names, before anything relies on it."""
    problems = []
    for section in sorted({path.partition(".")[0] for path in rules.FIELDS if "." in path}):
        if section in config and not hasattr(config[section], "keys"):
            problems.append(f"{section}={config[section]!r}: must be a section of fields")
    stack = [("", config)]
    while stack:
        prefix, mapping = stack.pop()
        for key in mapping:
            if not isinstance(key, str) or not key or "." in key:
                problems.append(f"{prefix}{key!r}: a field's name must be text without a dot")
            elif hasattr(mapping[key], "keys"):
                stack.append((f"{prefix}{key}.", mapping[key]))
    if problems:
        raise ConfigError(*(f"{problem} (in {source})" for problem in problems))


def _fill(values: dict[str, Any], fields: Mapping[str, Rule], source: str) -> list[str]:
    """Adds defaults to a flat configuration; returns what is missing, in one line if much is."""
    given = {path.rsplit(".", n)[0] for path in values for n in range(path.count(".") + 1)}
    missing = []
    for path, rule in fields.items():
        if path not in given:
            if rule.default is REQUIRED:
                missing.append(path)
            elif rule.default is not ...:
                values[path] = rule.default
    if len(missing) > 2:
        return [f"{', '.join(missing)}: are missing from {source}"]
    return [f"{path}: is missing from {source}; it {_must(fields[path])}" for path in missing]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"a.b": value}; an empty mapping is kept as a value."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    whole: dict[str, Any] = {}
    for path, value in values.items():
        *sections, name = path.split(".")
        place = whole
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return whole


def to_json(config: ml_collections.ConfigDict) -> str:
    """Canonical text of a configuration."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """The inverse of `to_json` (lists are tuples again). Raises ConfigError if damaged."""
    try:
        found = _tuples(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno} is not JSON: {error.msg}"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must hold an object {{...}} of sections, as in config.json")
    return found


def stored(path: Path) -> dict[str, Any]:
    """A work directory's configuration, `completed`."""
    return completed(read_json(path), str(path))


def completed(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A stored configuration, lists as tuples, with defaults for fields younger than it."""
    whole = _tuples(found)
    try:
        return check(whole, {}, name).to_dict()
    except ConfigError:  # written by a version with other rules
        return whole


def _tuples(value: Any) -> Any:
    """Tuples for the lists of JSON."""
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def diff(
    old: Mapping[str, Any], new: Mapping[str, Any], *, harmless: Sequence[str] = HARMLESS
) -> list[str]:
    """Fields that change the mathematics and differ: "optim.lr: 0.001 -> 0.01"."""
    old, new = flatten(old), flatten(new)
    return [
        f"{path}: {old.get(path, '(absent)')!r} -> {new.get(path, '(absent)')!r}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path, REQUIRED) != new.get(path, REQUIRED)
        and not any(fnmatch.fnmatch(path, pattern) for pattern in harmless)
    ]


def _fields(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> dict[str, Rule]:
    """The rule of every field, given the method and data set that were chosen."""
    fields = dict(rules.FIELDS)
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
        for name, field in options.items():
            optional = field.optional or field.kind is object
            fields[f"data.options.{name}"] = Rule(field.kind, ..., optional=optional)
    return fields


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
        return [unknown(path, fields)]
    problem = rule.problem(value)
    if problem is None and isinstance(value, float) and value - value != 0:
        problem = "must be a finite number"
    if problem is None and not _plain(value):
        problem = "must be plain data: numbers, text, true, false, None, tuples, dicts"
    return [f"{path}={value!r}: {problem}"] if problem else []


def _plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return "\0" not in value
    return value is None or isinstance(value, bool | int)


def _override(
    config: ml_collections.ConfigDict, path: str, text: str, fields: Mapping[str, Rule]
) -> list[str]:
    rule = _rule(path, fields)
    if rule is None:
        return [unknown(path, fields)]
    try:
        value = _parse(text, rule)
    except _NOT_PARSED:
        return [f"{path}={text}: {_must(rule)}"]
    try:
        _set(config, path, value)
    except (TypeError, ValueError, AttributeError, KeyError):
        return [f"{path}: no such field; {path.rpartition('.')[0]} is a value"]
    return []


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
    except _NOT_PARSED:
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
