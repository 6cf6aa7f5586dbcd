"""Command line and configuration file -> one checked, locked ConfigDict.

A configuration file is a Python program with `get_config(variant)`. Whatever it leaves out is
filled in from the defaults in `m4.config.rules` and the method's own; whatever it or the
command line gets wrong is reported at once, one line per problem.
"""

import ast
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from m4 import local
from m4.config import code, rules, trust
from m4.config.flags import Flags, parse, workdir_of
from m4.config.hints import elsewhere, switched, twin, unknown
from m4.config.plain import diff, flatten, nested, read_json, to_json, tuples
from m4.config.program import load_file, shipped
from m4.config.rules import REQUIRED, Rule
from m4.data import data_sets
from m4.errors import ConfigError

__all__ = ["Flags", "check", "diff", "flatten", "load", "parse", "read_json", "stored", "to_json"]
__all__ += ["workdir_of"]

MOST = 10**18  # of whole numbers: what 64 bits take

# What parsing a value from the command line can end in.
_NOT_PARSED = (ValueError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError)


def load(flags: Flags) -> ml_collections.ConfigDict:
    """The configuration that the flags ask for, checked.

    Without `--config` it is the one stored in the work directory. Raises ConfigError with every
    problem found.
    """
    kept = flags.workdir / "config.json" if flags.workdir else None
    if flags.config_json is not None:
        if "://" in flags.config_json:
            raise ConfigError(f"--config_json={flags.config_json}: must be a local file")
        found, source = read_json(Path(flags.config_json)), flags.config_json
    elif flags.config is None and kept and kept.is_file():
        found, source = read_json(kept), str(kept)
    elif flags.config is None and (flags.workdir or flags.mode in ("eval", "predict")):
        raise ConfigError(_no_run(flags))
    else:
        found, source = load_file(flags.config), str(flags.config)
    return check(found, flags.overrides, source, say=print)


def check(
    config: Mapping[str, Any],
    overrides: Mapping[str, str],
    source: str,
    *,
    say: Callable[[str], Any] = lambda line: None,
) -> ml_collections.ConfigDict:
    """Applies overrides and defaults, then checks every field and every rule between fields.

    A field that the configuration gives for another fidelity of the method than the chosen one is
    left out, and `say` is told so; an override of one is an error, like all else that is wrong.
    """
    _check_structure(config, source)
    before = {section: config.get(section, {}).get("name") for section in ("method", "data")}
    whole = ml_collections.ConfigDict(config, convert_dict=True)
    fields, having = _fields(whole, overrides)
    for line in _adopted(whole, before["method"], overrides, fields, source):
        say(line)
    problems, refused = [], set()
    for path, text in overrides.items():  # here, because fields may refer to each other
        problem = _override(whole, path, text, fields, having)
        refused |= {path} if problem else set()
        problems += problem
    values = flatten(whole.to_dict())
    for path in [p for p in values if p not in fields and _section(p, fields)]:
        value = values.pop(path)
        problems += [f"{path}={value!r}: must be a section of fields"] if value != {} else []
    lacking = {p: having(p) for p in values if p not in overrides and not _rule(p, fields)}
    lacking = {path: others for path, others in lacking.items() if others}
    if lacking:
        chosen, others = values.get("method.fidelity", "m4"), " or ".join(min(lacking.values()))
        say(f"left out, fields of fidelity {others} that {chosen} hasn't: {', '.join(lacking)}")
    for line, stray in _switched(before, overrides, values, fields, source):
        lacking |= dict.fromkeys(stray, [])
        problems.append(line)
    values = {path: value for path, value in values.items() if path not in lacking}
    problems += _fill(values, fields, source)
    for path, value in values.items():
        kind = fields[path].kind if path in fields else None
        if kind is int and isinstance(value, float) and value.is_integer():
            values[path] = int(value)
        elif kind is tuple and isinstance(value, list):
            values[path] = tuple(value)
    values = flatten(nested(values))
    for path, value in values.items():
        problems += [] if path in refused else _field_problems(path, value, fields)
    problems += rules.loss_problems(values, fields)
    method = nested(values).get("method", {})
    others = [p for p in problems if not p.startswith("method.aux_weights.")]
    right = "name" in method and not any(p.startswith("method") for p in others)
    problems += [] if problems else rules.cross_problems(values)
    if right:
        cls = code.method_class(method["name"], method.get("fidelity", "m4"))
        told = {problem.partition("=")[0] for problem in problems}
        layer = rules.layer_problems(method, cls)
        problems += [p for p in layer if p.replace(" ", "=").partition("=")[0] not in told]
    if problems:
        raise ConfigError(*_with_tasks(values, problems))
    return ml_collections.ConfigDict(nested(values)).lock()


def _of(problem: str) -> str:
    """The field that a problem is told of."""
    return problem.partition(":")[0].partition("=")[0]


def _no_run(flags: Flags) -> str:
    """Why there is no configuration to take from the work directory."""
    if flags.workdir is None:
        return f"--workdir: is missing; --mode={flags.mode} needs that of a run"
    what = "holds no run (no config.json)" if flags.workdir.is_dir() else "no such work directory"
    return f"--workdir={flags.workdir}: {what}; --config=... trains one there (--list)"


def stored(path: Path) -> dict[str, Any]:
    """A work directory's configuration, `completed`."""
    return completed(read_json(path), str(path))


def completed(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A stored configuration, lists as tuples, with defaults for fields younger than it."""
    whole = tuples(found)
    if not trust.imported(whole):  # nobody has asked for that code, and it is not run for this
        return whole
    try:
        return check(whole, {}, name).to_dict()
    except ConfigError:  # written by a version with other rules
        return whole


def _with_tasks(values: Mapping[str, Any], told: Sequence[str]) -> list[str]:
    """Each problem `told` once, and what does not fit the tasks of the data set.

    Of a field that both speak of the latter is said: it has the names that can be chosen.
    """
    more, whole = [], nested(values)
    if "train.select" in values and not any(p.startswith("data.") for p in told):
        with contextlib.suppress(Exception):  # of foreign code; said once the rest is right
            spec = data_sets.find(whole["data"]["name"]).spec(**whole["data"].get("options", {}))
            more = rules.data_problems(whole, spec)
    fields = {_of(problem) for problem in more}
    return [*dict.fromkeys(p for p in told if _of(p) not in fields), *more]


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


def _fields(
    config: ml_collections.ConfigDict, overrides: Mapping[str, str]
) -> tuple[dict[str, Rule], Callable[[str], list[str]]]:
    """The rule of every field, given the method and data set that were chosen.

    And a function that says which other fidelities of the method have a field.
    """

    def given(section: str, name: str) -> Any:
        return overrides.get(f"{section}.{name}", config.get(section, {}).get(name))

    fields, others = dict(rules.FIELDS), {}
    method, data = given("method", "name"), given("data", "name")
    if isinstance(method, str) and fields["method.name"].problem(method) is None:
        known = {"m4": method} if ":" in method else code.method_modules(method)
        chosen = given("method", "fidelity") or "m4"
        others = {fidelity: method for fidelity in known if fidelity != chosen}
        if ":" not in method:
            fields["method.fidelity"] = Rule(str, "m4", names=lambda: tuple(known))
        cls = code.method_class(method, chosen if chosen in known else "m4")
        fields |= rules.method_rules(cls)
    else:
        for path in flatten({"method": config.to_dict().get("method", {})}):
            if not path.startswith("method.name."):
                fields.setdefault(path, Rule(optional=True))
    if isinstance(data, str) and fields["data.name"].problem(data) is None:
        for name, field in (code.data_options(data) or {}).items():
            optional = field.optional or field.kind is object
            fields[f"data.options.{name}"] = Rule(field.kind, ..., optional=optional)

    def elsewhere(path: str) -> list[str]:
        return [
            fidelity
            for fidelity, name in others.items()
            if path.startswith("method.")
            and _rule(path, rules.method_rules(code.method_class(name, fidelity)))
        ]

    return fields, elsewhere


def _adopted(
    config: ml_collections.ConfigDict,
    old: Any,
    overrides: Mapping[str, str],
    fields: Mapping[str, Rule],
    source: str,
) -> Iterator[str]:
    """Makes room where an override names a method that no configuration has on these data.

    It takes what it shares with the one that the configuration is made for (width, dropout) and has
    its own defaults for the rest: which fields went, in a line. Where there is a configuration,
    `_switched` names it.
    """
    new = overrides.get("method.name", "")
    if not new or new == old or fields["method.name"].problem(new) or twin(source, new, shipped()):
        return
    section = config.get("method", {}).to_dict()
    weights = [f"method.aux_weights.{name}" for name in section.pop("aux_weights", {})]
    mine = flatten({"method": section})
    gone = [p for p in mine if p == "method.fidelity" or not _rule(p, fields)]
    config.method = nested({p: v for p, v in mine.items() if p not in gone})["method"]
    if gone := gone + weights:
        yield f"left out, fields for {old} that {new} hasn't: {', '.join(gone)}"


def _switched(
    before: Mapping[str, Any],
    overrides: Mapping[str, str],
    values: Mapping[str, Any],
    fields: Mapping[str, Rule],
    source: str,
) -> Iterator[tuple[str, list[str]]]:
    """Where an override names another method or data set, what is left of the first: line, fields.

    Nothing if all fields that the configuration sets are those of the other one, too.
    """
    for section, inside in (("method", "method."), ("data", "data.options.")):
        key = f"{section}.name"
        old, new = before[section], overrides.get(key, "")
        if not new or new == old or fields[key].problem(new):
            continue
        mine = [p for p in values if p.startswith(inside) and p not in overrides]
        if stray := [p for p in mine if not _rule(p, fields)]:
            told = {"source": source, "stray": stray, "shipped": shipped()}
            yield switched(key, str(old), new, **told), stray


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


def _section(path: str, fields: Mapping[str, Rule]) -> bool:
    """Whether fields lie inside a path."""
    return any(name.startswith(f"{path}.") for name in fields)


def _rule(path: str, fields: Mapping[str, Rule]) -> Rule | None:
    """The rule of a path; what lies inside a dict field is free unless its entries are listed."""
    if path in fields:
        return fields[path]
    parent = path.rpartition(".")[0]
    if not parent or _section(parent, fields):
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
    if problem is None and _beyond(value):
        problem = f"must hold no number beyond {MOST:.0e}"
    if problem is None:
        problem = _not_local(value)
    if problem is None and not _plain(value):
        problem = "must be plain data: numbers, text, true, false, None, tuples, dicts"
    if problem and rule.names and isinstance(value, str) and not problem.endswith(("?", "here")):
        choices = {
            p: r.names() for p, r in fields.items() if p.startswith("method.moe.") and r.names
        }
        problem += elsewhere(path, value, choices)
    return [f"{path}={value!r}: {problem}"] if problem else []


def _beyond(value: Any) -> bool:
    """Whether a value, or a part of it, is a whole number that no computer takes."""
    if isinstance(value, Mapping):
        return any(_beyond(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return any(map(_beyond, value))
    return isinstance(value, int) and abs(value) > MOST


def _not_local(value: Any) -> str | None:
    """Why a value, or a part of it, names a place that is not on this machine."""
    if isinstance(value, str):
        return local.problem(value)
    parts = value.values() if isinstance(value, Mapping) else value
    found = map(_not_local, parts) if isinstance(value, list | tuple | Mapping) else ()
    return next(filter(None, found), None)


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
    config: ml_collections.ConfigDict,
    path: str,
    text: str,
    fields: Mapping[str, Rule],
    elsewhere: Callable[[str], list[str]],
) -> list[str]:
    """Sets one field to what the command line says; returns what is wrong with it."""
    rule = _rule(path, fields)
    if rule is None and elsewhere(path):
        has = elsewhere(path)
        hint = f"try --config.method.fidelity={has[0]}"
        return [f"{path}: no such field, but fidelity {' and '.join(has)} has it; {hint}"]
    if rule is None:
        return [unknown(path, fields)]
    try:
        value = _parse(text, rule)
    except _NOT_PARSED:
        several = "; --mode=sweep takes several --seeds" if path == "seed" and "," in text else ""
        return [f"{path}={text}: {_must(rule)}{several}"]
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
        if rule.also and rule.problem(text) is None:
            return text
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
