"""What a study asks: a base, axes, arms, seeds, and a margin that was written down before.

A study is a configuration file whose `get_config(variant)` returns a mapping with the fields of
`Study`. Its axes go over any field of the base; one of them is compared (`compare`), the values of
the others are the families within which arms are ranked and p-values are corrected.

An *arm* is one point of the grid without its seed; a *cell* is an arm with its seed. Both are known
by a hash of their whole resolved configuration and of the plan (metric, margin, reason, tuning,
matching), so a margin that is moved makes another study, whose rows are others.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from m4 import config as configs
from m4.config import rules
from m4.config.plain import nested
from m4.config.program import load_file
from m4.data import data_sets
from m4.errors import ConfigError
from m4.lab import fields
from m4.lab.nulls import NULLS
from m4.run import preflight

LAYER = "method.moe"
UNFOLLOWED = ("train.from", "train.until", "optim.halve", "data.also_train")  # by a cell's training
DENSE_UP_TO = 64  # experts of which `dense_mean` runs every one; 256 take longer than ten gates
UNNAMED = ("seed", "data.raw_dir", "data.dir", "train.log_every", "train.save_every")
UNNAMED += ("train.watchdog",)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A point of the grid without its seed."""

    label: str  # what is compared: a gate's name, a null's
    family: dict[str, Any]  # the values of the other axes
    config: dict[str, Any]  # whole and checked, with seed 0
    null: bool
    reference: bool
    plan: str  # digest of the plan

    @property
    def key(self) -> str:
        """Its hash. Where files lie and how often a run logs or saves are no part of it."""
        flat = configs.flatten(self.config)
        own = {name: value for name, value in flat.items() if name not in UNNAMED}
        return digest({"label": self.label, "plan": self.plan, "config": nested(own)})[:16]

    def at(self, seed: int) -> ml_collections.ConfigDict:
        """The configuration of a cell: that of `m4.main --config_json`."""
        return ml_collections.ConfigDict(self.config | {"seed": seed}).lock()

    def cell(self, seed: int) -> str:
        """The name of a cell, and of its files."""
        return f"{self.key}-s{seed}"


@dataclasses.dataclass(frozen=True)
class Study:
    """The fields of a study's configuration."""

    base: str | Mapping[str, Any]  # 'configs/x.py:variant', or a configuration
    axes: Mapping[str, Sequence[Any]]  # field -> values; a value may be {field: value, ...}
    margin: Mapping[str, Any]  # value, reason
    compare: str = f"{LAYER}.gate"
    reference: Any = "linear"
    nulls: Sequence[str] = ()  # of `m4.lab.nulls.NULLS`
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    set: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of the base, changed
    by_arm: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)  # of an arm
    tune: Mapping[str, Any] | None = None  # axes, seeds: the same for every arm, on validation
    match: Mapping[str, Any] | None = (
        None  # what (of `fields.MATCHED`), unmatched: arms that may differ
    )
    metric: str = ""  # 'task/metric'; '': train.select
    budget: str = ""  # '30min': no cell is begun after that
    together: str = "loop"  # 'map': some steps a call (same bits); 'vmap': all seeds in a program

    def plan(self) -> dict[str, Any]:
        """What must not change once there are rows."""
        fields = ("compare", "reference", "margin", "metric", "tune", "match")
        return json.loads(json.dumps({f: plain(getattr(self, f)) for f in fields}))

    def seconds(self) -> float:
        """The budget."""
        return fields.seconds(self.budget)


def load(target: str, **changes: Any) -> Study:
    """The study of a configuration file, with single fields replaced.

    Raises ConfigError with every problem found in its fields; the arms' are found by `arms`.
    """
    given = load_file(target, studies=True)
    given = given.to_dict() if isinstance(given, ml_collections.ConfigDict) else dict(given)
    given = {name: plain(value) for name, value in (given | changes).items()}
    known = {field.name: field for field in dataclasses.fields(Study)}
    needed = [
        name
        for name, field in known.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    problems = fields.problems(given, known=tuple(known), needed=needed, source=target)
    if problems:
        raise ConfigError(*problems)
    return Study(**given)


def arms(study: Study) -> tuple[list[Arm], dict[str, str]]:
    """Every arm of a study, and why some nulls are not among them: label -> reason.

    Raises ConfigError with the problems of all arms.
    """
    base = study.base
    source = base if isinstance(base, str) else "base"
    found = load_file(base) if isinstance(base, str) else base
    found = found.to_dict() if isinstance(found, ml_collections.ConfigDict) else plain(found)
    flat = configs.flatten(found) | dict(study.set)
    plan, problems = digest(study.plan()), list[str]()
    compared = [
        (str(_name(study.compare, value)), value, False) for value in study.axes[study.compare]
    ]
    compared += [(name, NULLS[name], True) for name in study.nulls]
    labels = [label for label, _, _ in compared]
    problems += fields.label_problems(labels, study.by_arm, study.match or {})
    others = {axis: values for axis, values in study.axes.items() if axis != study.compare}
    problems += [
        f"axes: {axis}: {name} twice; give one of them another name"
        for axis, values in others.items()
        for name in fields.twice([str(_name(axis, value)) for value in values])
    ]
    if problems:
        raise ConfigError(*problems)
    out, left = [], {}
    for family in _points(others):
        for label, value, null in compared:
            name = full_name(label, family)
            own = {f"{LAYER}.{k}": v for k, v in value.items()} if null else None
            own = _changed(study.compare, value) if own is None else own
            sources = {**_by_axis(others, family), study.compare: own}
            changes, clashes = _merged(sources | {"by_arm": study.by_arm.get(label, {})})
            if clashes:
                problems += [f"{name}: {line}" for line in clashes]
                continue
            number = (flat | changes).get(f"{LAYER}.num_experts")
            if null:
                changes = {k: number if v == "E" else v for k, v in changes.items()}
            if label == "dense_mean" and number and number > DENSE_UP_TO:
                left[name] = f"runs every expert on every token; up to {DENSE_UP_TO} experts"
                continue
            try:
                config = configs.check(nested(flat | changes), {}, source).to_dict()
                ignored = preflight.unfollowed(config, "m4.lab", UNFOLLOWED)
                problems += [f"{name}: {line}" for line in ignored]
                for more in _asked_later(study):
                    configs.check(nested(flat | changes | more), {}, source)
            except ConfigError as error:
                problems += [f"{name}: {line}" for line in error.args]
                continue
            reference = not null and study.reference in (value, label)
            out.append(Arm(label, family, config | {"seed": 0}, null, reference, plan))
    problems += [] if problems else [*_same_runs(out), *_metric_problems(study, out)]
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return out, left


def _same_runs(arms: list[Arm]) -> Iterator[str]:
    """Arms with one key: their rows would be one file."""
    names: dict[str, str] = {}
    for arm in arms:
        name = full_name(arm.label, arm.family)
        if arm.key in names:
            yield (
                f"axes: {names[arm.key]} and {name} are the same run: other values, please; of"
                f" {', '.join(UNNAMED)} none makes another"
            )
        names[arm.key] = name


def _metric_problems(study: Study, arms: list[Arm]) -> Iterator[str]:
    """What is wrong with the metric, which may be another than the one that picks a step."""
    first, asked = metric_of(study, arms[0]), set[str]()
    for arm in arms:
        config, data, metric = arm.config, arm.config["data"], metric_of(study, arm)
        if metric != first:
            name = full_name(arm.label, arm.family)
            yield f"metric: {name} would be judged by {metric}, others by {first}: give one for all"
        if (key := digest([data, metric])) in asked:
            continue
        asked.add(key)
        config = config | {"train": config["train"] | {"select": metric}}
        spec = data_sets.find(data["name"]).spec(**data["options"])
        for problem in rules.data_problems(config, spec):
            yield problem.replace("train.select", "metric")


def _asked_later(study: Study) -> Iterator[dict[str, Any]]:
    """Changes of an arm, of its tuning, that must be right before anything runs."""
    for axis, values in (study.tune or {}).get("axes", {}).items():
        yield from (_changed(axis, value) for value in values)


def metric_of(study: Study, arm: Arm) -> str:
    """'task/metric' that decides."""
    return study.metric or arm.config["train"]["select"]


def plain(value: Any) -> Any:
    """ConfigDicts as dicts, all sequences as tuples."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return tuple(map(plain, value)) if isinstance(value, list | tuple | range) else value


def digest(value: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def points(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """What each point of a grid changes: field -> value."""
    return [_changes(axes, point) for point in _points(axes)]


def _points(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The points, by what a value is called."""
    named = [[(axis, _name(axis, v)) for v in values] for axis, values in axes.items()]
    return [dict(point) for point in itertools.product(*named)]


def _name(axis: str, value: Any) -> Any:
    """What a value is called: itself, or of {field: value} its `called` or that of the axis."""
    if not isinstance(value, Mapping):
        return value
    return value.get("called", value.get(axis, str(value)))


def _changes(axes: Mapping[str, Sequence[Any]], point: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for own in _by_axis(axes, point).values() for k, v in own.items()}


def _by_axis(
    axes: Mapping[str, Sequence[Any]], point: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Axis -> the fields that its value at a point sets."""
    return {
        axis: _changed(axis, next(v for v in values if _name(axis, v) == point[axis]))
        for axis, values in axes.items()
    }


def _changed(axis: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {axis: value}
    return {field: own for field, own in value.items() if field != "called"}


def _merged(sources: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The fields that all sources set, and a line for each that two set otherwise.

    Else an arm would be filed under a value that it does not have.
    """
    found: dict[str, Any] = {}
    clashes: list[str] = []
    for name, own in sources.items():
        for field, value in own.items():
            for other in found:
                same = other == field and found[other] == value
                inside = f"{other}.".startswith(f"{field}.") or f"{field}.".startswith(f"{other}.")
                if inside and not same:
                    clashes.append(f"{field}: is set by {name}, and {other} by another axis or arm")
        found |= own
    return found, clashes


def full_name(label: str, family: Mapping[str, Any]) -> str:
    """An arm in words: its label and the values of its family."""
    where = ", ".join(f"{axis.rpartition('.')[2]}={value}" for axis, value in family.items())
    return f"{label} ({where})" if where else label
