"""What can be wrong with the fields of a study, a line each; nothing is run or built for it."""

import collections
import difflib
import itertools
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from m4.errors import ConfigError, printable
from m4.lab.nulls import NULLS
from m4.specs import METRICS

MATCHED = ("router", "active", "total", "flops")
TOGETHER = ("loop", "map", "vmap")
UNITS = {"s": 1, "min": 60, "h": 3600}


def problems(
    given: Mapping[str, Any], *, known: Sequence[str], needed: Sequence[str], source: str
) -> list[str]:
    """Every problem of the fields on their own and with each other."""
    found = [
        f"{name}: no such field of a study{_hint(name, known)}; it has: {', '.join(known)}"
        for name in sorted({*given} - {*known}, key=str)
    ]
    found += [f"{n}: is missing from {source}" for n in needed if n not in given and n != "margin"]
    found += _margin(given.get("margin"))
    found += [f"{n}={given[n]!r}: must be {KINDS[n][0]}" for n in given if not _fits(n, given[n])]
    return found or _related(given)


def seconds(budget: str) -> float:
    """A budget of time. Raises ConfigError for what is no time."""
    if not budget:
        return math.inf
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(s|min|h)", budget)
    if not found:
        raise ConfigError(f"budget={budget!r}: must be a time such as 90s, 30min or 2h")
    return float(found[1]) * UNITS[found[2]]


def twice(names: Iterable[str]) -> list[str]:
    """Names that come more than once."""
    return [name for name, count in collections.Counter(names).items() if count > 1]


def label_problems(
    labels: Sequence[str], by_arm: Mapping[str, Any], match: Mapping[str, Any]
) -> list[str]:
    """Arms of one name, and names that no arm has."""
    found = [f"axes, nulls: two arms are called {name}" for name in twice(labels)]
    found += [
        f"axes: {printable(name)}: is called by characters that cannot be shown"
        for name in labels
        if name != printable(name)
    ]
    named = [("by_arm", name) for name in by_arm]
    named += [("match.unmatched", name) for name in match.get("unmatched", ())]
    return found + [
        f"{field}: {name!r} is no arm{_hint(name, labels)}; they are {', '.join(labels)}"
        for field, name in named
        if name not in labels
    ]


def _list(value: Any) -> bool:
    """A sequence of values; a NaN is none, as it does not even equal itself."""
    return isinstance(value, tuple) and len(value) > 0 and not any(v != v for v in value)


def _names(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(name, str) for name in value)


def _numbers(value: Any) -> bool:
    return _list(value) and all(type(seed) is int and 0 <= seed < 2**31 for seed in value)


def _fields(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _axes(value: Any) -> bool:
    return _fields(value) and len(value) > 0 and all(map(_list, value.values()))


def _metric(value: Any) -> bool:
    task, _, name = value.rpartition("/") if isinstance(value, str) else ("", "", "")
    return value == "" or bool(task) and name in {n for names in METRICS.values() for n in names}


def _budget(value: Any) -> bool:
    try:
        return isinstance(value, str) and seconds(value) > 0
    except ConfigError:
        return False


# Field -> what it must be, and whether a value (sequences as tuples) is that.
KINDS = {
    "base": (
        "'configs/x.py:variant' or a configuration",
        lambda v: isinstance(v, str) or _fields(v),
    ),
    "axes": ("{field: (value, value, ...)}", _axes),
    "compare": ("a field, as 'method.moe.gate'", lambda v: isinstance(v, str)),
    "nulls": (f"names of {', '.join(NULLS)}", _names),
    "seeds": ("two or more different numbers from 0 on", lambda v: _numbers(v) and not twice(v)),
    "set": ("{field: value}", _fields),
    "by_arm": ("{arm: {field: value}}", lambda v: _fields(v) and all(map(_fields, v.values()))),
    "metric": ("'task/metric'", _metric),
    "budget": ("a time such as 90s, 30min or 2h", _budget),
    "together": (f"one of {', '.join(TOGETHER)}", lambda v: v in TOGETHER),
    "tune": (
        "dict(axes={field: (value, ...)}, seeds=(...))",
        lambda v: (
            v is None
            or (
                _fields(v)
                and {*v} == {"axes", "seeds"}
                and _axes(v["axes"])
                and _numbers(v["seeds"])
                and not twice(v["seeds"])
            )
        ),
    ),
    "match": (
        f"dict(what=one of {', '.join(MATCHED)}, unmatched=(...))",
        lambda v: (
            v is None
            or (_fields(v) and {"what"} <= {*v} <= {"what", "unmatched"})
            and (v["what"] in MATCHED and _names(v.get("unmatched", ())))
        ),
    ),
}


def _fits(name: str, value: Any) -> bool:
    return name not in KINDS or KINDS[name][1](value)


def _margin(margin: Any) -> list[str]:
    if not isinstance(margin, Mapping) or {*margin} - {"value", "reason"}:
        return [f"margin={margin!r}: must be dict(value=..., reason='...')"]
    value, reason = margin.get("value"), margin.get("reason")
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else 0
    if 0 < number <= sys.float_info.max and isinstance(reason, str) and len(reason.split()) >= 3:
        return []
    return [
        f"margin: value={value!r}, reason={reason!r}: write down before a run which difference"
        " would not matter, a number above 0, and why, in a sentence"
    ]


def _related(given: Mapping[str, Any]) -> list[str]:
    found, axes = [], given["axes"]
    compare, reference = given.get("compare", "method.moe.gate"), given.get("reference", "linear")
    if any(field.startswith("data.") for field in _touched({compare: axes.get(compare, ())})):
        found.append(f"compare={compare!r}: arms on other data have no rows in common to pair")
    if compare not in axes:
        found.append(f"compare={compare!r}: is no axis; axes are {', '.join(axes)}")
    elif reference not in (named := [_called(value) for value in axes[compare]]):
        found.append(f"reference={reference!r}: is none of {', '.join(map(str, named))}")
    if "seed" in axes:
        found.append("axes: seed: is no axis; every arm has the same `seeds`")
    found += _seeds_elsewhere(given)
    found += [
        f"axes: {axis}: called={value['called']!r}: must be a text"
        for axis, values in axes.items()
        for value in values
        if isinstance(value, Mapping) and not isinstance(value.get("called", ""), str)
    ]
    unknown = [name for name in given.get("nulls", ()) if name not in NULLS]
    found += [f"nulls: {n!r} is none of {', '.join(NULLS)}{_hint(n, [*NULLS])}" for n in unknown]
    seeds, tune = given.get("seeds", range(5)), given.get("tune")
    if len(seeds) < 2:
        found.append(f"seeds={seeds}: must be {KINDS['seeds'][0]}")
    if tune and {*tune["seeds"]} & {*seeds}:
        found.append(f"tune.seeds={tune['seeds']}: must be other seeds than the runs'")
    return found + _tuned(given)


def _seeds_elsewhere(given: Mapping[str, Any]) -> list[str]:
    """A seed that a value sets would not be followed."""
    named = {"set": given.get("set", {})}
    named |= {f"by_arm: {arm}": own for arm, own in given.get("by_arm", {}).items()}
    for axis, values in given["axes"].items():
        named |= {f"axes: {axis}: {v}": v for v in values if isinstance(v, Mapping)}
    return [f"{name}: seed: is set by `seeds`" for name, own in named.items() if "seed" in own]


def _tuned(given: Mapping[str, Any]) -> list[str]:
    """Tuning may change nothing of what is compared, matched or measured on."""
    if not given.get("tune"):
        return []
    fixed = dict.fromkeys(_touched(given["axes"]), "is set by an axis")
    fixed |= dict.fromkeys(given["axes"], "is an axis")
    for null in given.get("nulls", ()):
        fixed |= {f"method.moe.{field}": f"is set by {null}" for field in NULLS.get(null, {})}
    for arm, own in given.get("by_arm", {}).items():
        fixed |= dict.fromkeys(own, f"is set by by_arm of {arm}")
    matched = bool(given.get("match"))
    if matched:
        size = "rank" if given["match"]["what"] == "router" else "hidden"
        fixed[f"method.moe.{size}"] = "is what `match` solves for"
    return [
        f"tune: {field}: {why}"
        for field in _touched(given["tune"]["axes"])
        if (why := fixed.get(field) or _not_tuned(field, matched))
    ]


def _touched(axes: Mapping[str, Sequence[Any]]) -> list[str]:
    """The axes and all fields that a value of one sets."""
    inner = [v for values in axes.values() for v in values if isinstance(v, Mapping)]
    return [field for field in dict.fromkeys(itertools.chain(axes, *inner)) if field != "called"]


def _not_tuned(field: str, matched: bool) -> str:
    if field == "seed":
        return "is set by tune.seeds"
    if field.split(".")[0] in ("data", "eval") or field in ("train.select", "train.choose"):
        return "would change what is measured"
    sized = field == "train.batch_size" or field.startswith("method.")
    free = field.startswith("method.aux_weights.") or field.endswith("dropout")
    return (
        "would change the sizes that `match` solves for" if matched and sized and not free else ""
    )


def _called(value: Any) -> Any:
    return value.get("called", value) if isinstance(value, Mapping) else value


def _hint(name: Any, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), list(names), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
