"""Do gates learn: are there any, does routing follow inputs, did training move them?"""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, get_origin, get_type_hints

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from m4.audit.laws import require
from m4.audit.probe import Probe, path_of
from m4.audit.random_rows import random_batch
from m4.moe import route
from m4.moe.layer import MoE
from m4.moe.soft import SoftExperts

OWN_EXPERTS = "product_keys"  # a router in the place of gate and router


def gates_are_parameters(probe: Probe):
    """What a layer's gate and router declare as learned is in the parameters."""
    missing = []
    known = {path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(probe.params)}
    for place, options in _layers(probe.method):
        for part, function in _functions(options).items():
            names = [f"{place}/{part}_{route.stem(name)}" for name in _learned(function)]
            missing += [f"{options.gate if part == 'gate' else options.router} at {name}"
                        for name in names if name not in known]  # fmt: skip
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    require(not missing, f"declared, but no parameter: {', '.join(missing[:3])}{more}")


def _layers(method: Any) -> list[tuple[str, Any]]:
    """Path and options of every mixture that a call makes; nothing is computed."""
    found: dict[str, Any] = {}

    def watch(call, args, kwargs, context):
        module = context.module
        if isinstance(module, MoE | SoftExperts) and context.method_name == "__call__":
            found["/".join(module.path)] = module.options
        return call(*args, **kwargs)

    batch = random_batch(method.data)
    rngs = {name: jax.random.key(0) for name in ("params", "dropout", "gate")}
    with nn.intercept_methods(watch):
        jax.eval_shape(lambda: method.init(rngs, batch, train=False))
    return [*found.items()]


def _functions(options: Any) -> dict[str, Any]:
    """Part of a layer -> the function that declares its parameters."""
    router = getattr(options, "router", None)
    if router == OWN_EXPERTS:
        return {}
    functions = {"gate": route.named("gate", options.gate, "gates")}
    if router is not None:
        functions["router"] = route.named("router", router, "routers")
    return functions


def _learned(function: Any) -> list[str]:
    """Arguments that are annotated with an initialiser."""
    hints = get_type_hints(function, include_extras=True)
    return [
        n for n in inspect.signature(function).parameters if get_origin(hints.get(n)) is Annotated
    ]


def routing_follows_inputs(probe: Probe) -> str | None:
    """Other values of the same modalities are routed otherwise, if a gate has parameters."""
    learned = [_learned(_functions(o)["gate"]) for _, o in _layers(probe.method) if _functions(o)]
    if learned and not any(learned):
        return "its gates have no parameter"
    first = probe.routing(probe.batch)
    if not first:
        return "it reports no routing"
    # the same presence, lengths and times, other values
    second = probe.routing(_other_values(probe.batch))
    for layer, stats in first.items():
        pairs = [(np.asarray(x), np.asarray(second[layer][name])) for name, x in stats.items()]
        moved = any(not np.allclose(x, y, rtol=1e-5, atol=1e-7, equal_nan=True) for x, y in pairs)
        require(moved, f"{layer}: its routing is the same whatever the values")
    return None


def _other_values(batch: Any) -> Any:
    """Other values wherever there are any; lengths, times and presence stay."""
    rng = np.random.default_rng(2)

    def stream(s):
        values = np.array(s.values)
        if values.dtype.kind == "f":
            drawn = rng.normal(size=values.shape).astype(values.dtype)
            return s.replace(values=np.where(values != 0, drawn, values))
        high = max(2, int(values.max()) + 1)
        drawn = rng.integers(0, high, values.shape).astype(values.dtype)
        return s.replace(values=np.where(values != 0, drawn, values))

    return batch.replace(inputs={name: stream(s) for name, s in batch.inputs.items()})


def training_moved_the_gates(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """No gate or router stayed where it began. What else did is named, too."""
    one, two = (traverse_util.flatten_dict(dict(tree), sep="/") for tree in (before, after))
    still = [
        name
        for name, x in one.items()
        if name in two and np.array_equal(np.asarray(x), np.asarray(two[name]), equal_nan=True)
    ]
    gates = [n for n in still if n.rpartition("/")[2].startswith(("gate_", "router_", "outer_"))]
    require(not gates, f"as before training: {', '.join(gates[:3])}")
    if len(still) == len(one):
        require(False, "no parameter has moved")
    return f"as before training: {', '.join(still[:3])}" if still else None
