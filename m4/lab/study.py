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
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from m4 import config as configs
from m4.config.plain import nested
from m4.config.program import load_file
from m4.errors import ConfigError
from m4.lab.nulls import NULLS
from m4.specs import METRICS

LAYER = "method.moe"
DENSE_UP_TO = 256  # experts of which `dense_mean` runs every one
MATCHED = ("router", "active", "total", "flops")
UNITS = {"s": 1, "min": 60, "h": 3600}


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
        """Its hash. Where files lie and how often a run logs are no part of it."""
        plain = {k: v for k, v in self.config.items() if k != "seed"}
        data = {k: v for k, v in plain["data"].items() if k not in ("raw_dir", "dir")}
        named = {"label": self.label, "plan": self.plan, "config": plain | {"data": data}}
        return digest(named)[:16]

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
    match: Mapping[str, Any] | None = None  # what (of `MATCHED`), unmatched: arms that may differ
    metric: str = ""  # 'task/metric'; '': train.select
    budget: str = ""  # '30min': no cell is begun after that

    def plan(self) -> dict[str, Any]:
        """What must not change once there are rows."""
        fields = ("compare", "reference", "margin", "metric", "tune", "match")
        return json.loads(json.dumps({f: plain(getattr(self, f)) for f in fields}))

    def seconds(self) -> float:
        """The budget. Raises ConfigError for what is no time."""
        if not self.budget:
            return math.inf
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)", self.budget)
        if not found:
            raise ConfigError(f"budget={self.budget!r}: must be a time such as 90s, 30min or 2h")
        return float(found[1]) * UNITS[found[2]]


def load(target: str, **changes: Any) -> Study:
    """The study of a configuration file, with single fields replaced.

    Raises ConfigError with every problem found in its fields; the arms' are found by `arms`.
    """
    given = load_file(target)
    given = given.to_dict() if isinstance(given, ml_collections.ConfigDict) else dict(given)
    given |= changes
    fields = {field.name: field for field in dataclasses.fields(Study)}
    problems = [
        f"{name}: no such field of a study; it has: {', '.join(fields)}"
        for name in sorted({*given} - {*fields})
    ]
    lacking = [
        name
        for name, field in fields.items()
        if name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    margin = given.get("margin")
    if not isinstance(margin, Mapping) or "margin" in lacking:
        problems.append(f"margin={margin!r}: must be dict(value=..., reason='...')")
    else:
        value, reason = margin.get("value"), margin.get("reason")
        number = isinstance(value, int | float) and math.isfinite(value) and value > 0
        if not number or not isinstance(reason, str) or len(reason.split()) < 3:
            problems.append(
                f"margin: value={value!r}, reason={reason!r}: write down before a run which"
                " difference would not matter, a number above 0, and why, in a sentence"
            )
    problems += [f"{name}: is missing from {target}" for name in lacking if name != "margin"]
    problems += [] if problems else _problems(given)
    if problems:
        raise ConfigError(*problems)
    return Study(**given)


def _problems(given: Mapping[str, Any]) -> list[str]:
    problems = []
    axes, compare = given["axes"], given.get("compare", f"{LAYER}.gate")
    if not isinstance(axes, Mapping) or any(isinstance(v, str) for v in axes.values()):
        return ["axes: must be {field: (value, value, ...)}"]
    if compare not in axes:
        problems.append(f"compare={compare!r}: is no axis; axes are {', '.join(axes)}")
    elif given.get("reference", "linear") not in list(axes[compare]):
        found = ", ".join(map(str, axes[compare]))
        problems.append(f"reference={given.get('reference', 'linear')!r}: is none of {found}")
    unknown = [name for name in given.get("nulls", ()) if name not in NULLS]
    problems += [f"nulls: {name!r} is none of {', '.join(NULLS)}" for name in unknown]
    seeds = list(given.get("seeds", range(5)))
    if (
        len(set(seeds)) < 2
        or len(set(seeds)) != len(seeds)
        or any(type(s) is not int for s in seeds)
    ):
        problems.append(f"seeds={seeds}: must be two or more different numbers")
    metric = given.get("metric", "")
    if metric and metric.rpartition("/")[2] not in {n for names in METRICS.values() for n in names}:
        problems.append(f"metric={metric!r}: must be 'task/metric'")
    tune = given.get("tune")
    if tune is not None:
        if not isinstance(tune, Mapping) or not tune.get("axes") or not tune.get("seeds"):
            problems.append("tune: must be dict(axes={field: values}, seeds=(...))")
        elif {*tune["seeds"]} & {*seeds}:
            problems.append(f"tune.seeds={tune['seeds']}: must be other seeds than the runs'")
    match = given.get("match")
    if match is not None and (not isinstance(match, Mapping) or match.get("what") not in MATCHED):
        problems.append(f"match: must be dict(what=one of {', '.join(MATCHED)}, unmatched=(...))")
    return problems


def arms(study: Study) -> tuple[list[Arm], dict[str, str]]:
    """Every arm of a study, and why some nulls are not among them: label -> reason.

    Raises ConfigError with the problems of all arms.
    """
    base = study.base
    source = base if isinstance(base, str) else "base"
    found = load_file(base) if isinstance(base, str) else base
    found = found.to_dict() if isinstance(found, ml_collections.ConfigDict) else plain(found)
    flat = configs.flatten(found) | dict(study.set)
    plan, problems = digest(study.plan()), []
    compared = [
        (str(_name(study.compare, value)), value, False) for value in study.axes[study.compare]
    ]
    compared += [(name, NULLS[name], True) for name in study.nulls]
    others = {axis: values for axis, values in study.axes.items() if axis != study.compare}
    out, left = [], {}
    for family in _points(others):
        for label, value, null in compared:
            changes = _changes(others, family)
            own = {f"{LAYER}.{k}": v for k, v in value.items()} if null else None
            changes |= own if own is not None else _changed(study.compare, value)
            changes |= study.by_arm.get(label, {})
            number = (flat | changes).get(f"{LAYER}.num_experts")
            changes = {k: number if v == "E" else v for k, v in changes.items()}
            name = _named(label, family)
            if label == "dense_mean" and number and number > DENSE_UP_TO:
                left[name] = f"runs every expert on every token; up to {DENSE_UP_TO} experts"
                continue
            try:
                config = configs.check(nested(flat | changes), {}, source).to_dict()
            except ConfigError as error:
                problems += [f"{name}: {line}" for line in error.args]
                continue
            reference = not null and value == study.reference
            out.append(Arm(label, family, config | {"seed": 0}, null, reference, plan))
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return out, left


def metric_of(study: Study, arm: Arm) -> str:
    """'task/metric' that decides."""
    return study.metric or arm.config["train"]["select"]


def plain(value: Any) -> Any:
    """ConfigDicts as dicts, all sequences as tuples."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
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
    """What a value is called: itself, or of {field: value} that of the axis."""
    return value.get(axis, str(value)) if isinstance(value, Mapping) else value


def _changes(axes: Mapping[str, Sequence[Any]], point: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for axis, values in axes.items():
        value = next(v for v in values if _name(axis, v) == point[axis])
        found |= _changed(axis, value)
    return found


def _changed(axis: str, value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {axis: value}


def _named(label: str, family: Mapping[str, Any]) -> str:
    where = ", ".join(f"{axis.rpartition('.')[2]}={value}" for axis, value in family.items())
    return f"{label} ({where})" if where else label
