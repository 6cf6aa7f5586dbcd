"""Parameters of an arm, and rank or width that give it as many as the reference.

`router`: what gate and router learn. `active`: everything but the experts that a token does not
visit. `flops`: of a prediction, as XLA counts them before it compiles.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from m4 import sharding
from m4.data.batch import empty
from m4.errors import ConfigError
from m4.lab.study import LAYER, Arm, Study
from m4.run import preflight
from m4.run.method import method_of
from m4.train.digest import named
from m4.train.step import init_params

TOLERANCE = 0.02
MOST = 4096  # rank or width that is tried
ROUTER = ("gate_", "outer_", "router_")
EXPERTS = ("w1", "b1", "w2", "b2")


def parameters(shapes: Any, layer: Mapping[str, Any]) -> dict[str, int]:
    """{total, active, router} of a tree of (abstract) parameters."""
    sizes = {name: int(np.prod(leaf.shape)) for name, leaf in named(shapes).items()}
    last = {name: name.rpartition(".")[2] for name in sizes}
    router = sum(n for name, n in sizes.items() if last[name].startswith(ROUTER))
    num = layer.get("num_experts", 0)
    experts = {
        name
        for name, leaf in named(shapes).items()
        if last[name] in EXPERTS and leaf.ndim and leaf.shape[0] == num and ".shared" not in name
    }
    idle = sum(sizes[name] * (1 - min(layer.get("top_k", num), num) / num) for name in experts)
    total = sum(sizes.values())
    return {"total": total, "active": round(total - idle), "router": router}


def of_config(config: Mapping[str, Any]) -> dict[str, int]:
    """{total, active, router} of a configuration; nothing is computed."""
    method, batch = _method(config)
    shapes = jax.eval_shape(lambda: sharding.unbox(init_params(method, batch, seed=0)))
    return parameters(shapes, config["method"].get("moe", {}))


def flops(config: Mapping[str, Any]) -> int:
    """Of the prediction of one row."""
    method, batch = _method(config)
    shapes = jax.eval_shape(lambda: sharding.unbox(init_params(method, batch, seed=0)))
    rows = len(batch.weight)

    def predict(params):
        return method.apply({"params": params}, batch, train=False)

    cost: Any = jax.jit(predict).lower(shapes).cost_analysis()
    return round(cost["flops"] / rows)


def matched(study: Study, arms: list[Arm]) -> list[Arm]:
    """The arms with rank or width such that they match the reference of their family.

    Raises ConfigError that names every arm which cannot.
    """
    if study.match is None:
        return arms
    what, spared = study.match["what"], {*study.match.get("unmatched", ())}
    count: Callable[[Any], int]
    count = flops if what == "flops" else lambda config: of_config(config)[what]
    field = "rank" if what == "router" else "hidden"
    references = [arm for arm in arms if arm.reference]
    wanted_of = {str(arm.family): count(arm.config) for arm in references}
    out, problems = [], []
    for arm in arms:
        if arm.reference or arm.label in spared or (arm.null and what == "router"):
            out.append(arm)
            continue
        wanted = wanted_of[str(arm.family)]
        try:
            value = solve(lambda n, c=arm.config: count(_with(c, field, n)), wanted)
        except ValueError as error:
            problems.append(
                f"match: {what} of {arm.label} {arm.family or ''}: {error}, the reference has"
                f" {wanted:,}; name it in match.unmatched to run it as it is"
            )
            continue
        out.append(dataclasses.replace(arm, config=_with(arm.config, field, value)))
    if problems:
        raise ConfigError(*problems)
    return out


def solve(count: Callable[[int], int], wanted: int) -> int:
    """The least size of which `count` is nearest to `wanted`; it must not decrease.

    Raises ValueError where that is more than 2 % off.
    """
    count = functools.cache(count)  # a size costs a trace of the model
    step = count(2) - count(1)  # most counts grow by as much with each
    guess = 1 - (count(1) - wanted) // step if step else 1
    low, high = 1, MOST if step else 1
    for n in (guess - 1, guess):
        if low <= n < high:
            low, high = (low, n) if count(n) >= wanted else (n + 1, high)
    while low < high:  # the least size that has as many
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) >= wanted else (middle + 1, high)
    near = min((n for n in (low - 1, low) if n > 0), key=lambda n: abs(count(n) - wanted))
    if abs(count(near) - wanted) > TOLERANCE * wanted:
        raise ValueError(f"nearest is {count(near):,} at {near}")
    return near


def _with(config: Mapping[str, Any], field: str, value: int) -> dict[str, Any]:
    section = LAYER.partition(".")[2]
    method = config["method"]
    return {**config, "method": {**method, section: {**method[section], field: value}}}


def _method(config: Mapping[str, Any]):
    found = ml_collections.ConfigDict(config)
    spec = preflight.schema(found)
    method = method_of(found, spec)
    return method, empty(spec, 8)


def table(arms: list[Arm]) -> list[str]:
    """Arms with their parameters, a line each."""
    lines = [f"{'arm':40} {'router':>10} {'active':>12} {'total':>14}"]
    for arm in arms:
        found = of_config(arm.config)
        name = f"{arm.label} {arm.family or ''}".strip()
        lines.append(
            f"{name:40} {found['router']:>10,} {found['active']:>12,} {found['total']:>14,}"
        )
    return lines
