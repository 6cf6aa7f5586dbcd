"""What a step must cost, counted without a compiler: from the traced program and the rules.

The compiler's program is compared with it (`m4.plan.facts`): work that a mesh does not split, or
bytes that it does not have to hold or send, show as a ratio above 1.

- FLOPs: matrix products of the traced step, split evenly over the chips.
- State: every array over the devices that its sharding splits it over.
- Wire: over the axes that hold copies of a parameter its gradient is summed (2 (n-1)/n bytes a
  byte on a ring); a parameter split over `fsdp` is gathered for the forward and backward passes
  and its gradient scattered. What travels between layers is not in it.
- Peak: state, gradients, batch, and the largest set of arrays alive at once, split evenly.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from m4.sharding import ROWS

PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general")


@dataclasses.dataclass(frozen=True)
class Model:
    """Of one chip in one step."""

    flops: float
    argument_bytes: int  # state, batch, totals
    wire_bytes: dict[str, float]  # by axis, or axes, for parameters and gradients
    peak_bytes: float
    products: dict[str, float]  # FLOPs by dtype of the operands


def count(step: Any, args: tuple[Any, ...], mesh: jax.sharding.Mesh, params: Any) -> Model:
    """The model of `step(*args)` for shapes with shardings, of which the first is the state."""
    jaxpr = needed(step, args)
    products: dict[str, float] = {}
    for equation, times in walk(jaxpr, 1.0):
        dtype = str(equation.invars[0].aval.dtype)
        products[dtype] = products.get(dtype, 0.0) + times * flops(equation)
    products = {dtype: n / mesh.size for dtype, n in products.items()}
    tiled = mesh.devices.flat[0].platform == "tpu"
    held = sum(local_bytes(leaf, tiled=tiled) for leaf in jax.tree.leaves(args))
    alive = live_bytes(jaxpr, functools.partial(share_of, parts=mesh.size, tiled=tiled))
    gradients = sum(local_bytes(leaf, tiled=tiled) for leaf in jax.tree.leaves(params))
    return Model(
        flops=sum(products.values()),
        argument_bytes=held,
        wire_bytes=wire(params, mesh),
        peak_bytes=held + gradients + alive,
        products=products,
    )


def needed(function: Any, args: tuple[Any, ...]) -> Any:
    """The jaxpr of a function of shapes without what no result needs."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def walk(jaxpr: Any, times: float) -> Iterator[tuple[Any, float]]:
    """Matrix products of a jaxpr and how often each runs, on all devices together."""
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in PRODUCTS:
            yield equation, times
        elif name == "while":  # of unknown length: m4's run only for what overflows
            continue
        elif name == "cond":
            branches = [[*walk(b.jaxpr, times)] for b in params["branches"]]
            yield from max(branches, key=lambda found: sum(t * flops(e) for e, t in found))
        else:
            inner = times
            if name == "scan":
                inner *= params["length"]
            elif name == "shard_map":  # shapes inside are those of one device
                sizes = dict(params["mesh"].shape)
                manual = params.get("manual_axes") or sizes
                inner *= math.prod(sizes[axis] for axis in manual)
            for part in parts(params):
                yield from walk(part, inner)


def parts(params: Mapping[str, Any]) -> Iterator[Any]:
    """Jaxprs inside an equation; of a custom rule the function, not its derivatives."""
    for value in params.values():
        items: Any = value if isinstance(value, (tuple, list)) else (value,)
        for item in items:
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def flops(equation: Any) -> float:
    """Of one matrix product."""
    left, right = (v.aval.shape for v in equation.invars[:2])
    result = math.prod(equation.outvars[0].aval.shape)
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * result * math.prod(left[d] for d in contracted)
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        return 2.0 * result * math.prod(right) / right[numbers.rhs_spec[0]]
    numbers = params.get("ragged_dot_dimension_numbers")
    contracted = numbers.dot_dimension_numbers[0][0] if numbers else (1,)
    return (
        2.0
        * math.prod(left)
        * math.prod(right)
        / math.prod(left[d] for d in contracted)
        / (right[0] if len(right) == 3 else 1)
    )


def local_bytes(leaf: Any, *, tiled: bool = False) -> int:
    """Bytes of an array on one device."""
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
    return stored(tuple(shape), max(1, np.dtype(leaf.dtype).itemsize), tiled=tiled)


def stored(shape: tuple[int, ...], itemsize: int, *, tiled: bool) -> int:
    """Bytes that an array takes.

    A TPU keeps the two innermost dimensions in tiles of 8 x 128 numbers of 32 bits and fills them
    up; its compiler chooses the dimensions that waste least.
    """
    if not tiled:
        return math.prod(shape) * itemsize
    if not shape:
        return 512
    line = 128 * 4 // itemsize
    if len(shape) == 1:
        while line < 8 * 128 * 4 // itemsize and line < shape[0]:
            line *= 2
        return -(-shape[0] // line) * line * itemsize
    whole = max(1, math.prod(shape))
    pairs = itertools.permutations([max(1, n) for n in shape], 2)
    return min(whole // (a * b) * _tiles(a, b, 32 // itemsize) for a, b in pairs) * itemsize


def _tiles(rows: int, columns: int, height: int) -> int:
    """Numbers in the tiles that cover `rows` x `columns`; few rows have lower ones."""
    while height > 1 and height // 2 >= rows:
        height //= 2
    return -(-rows // height) * height * -(-columns // 128) * 128


def wire(params: Any, mesh: jax.sharding.Mesh) -> dict[str, float]:
    """Bytes that a device sends along each axis for parameters and their gradients."""
    found: dict[str, float] = {}
    for leaf in jax.tree.leaves(params):
        named: list[Any] = [part for part in leaf.sharding.spec if part]
        split = {axis for part in named for axis in ([part] if isinstance(part, str) else part)}
        size = local_bytes(leaf)
        copies = [axis for axis in ROWS if mesh.shape[axis] > 1 and axis not in split]
        if "fsdp" in split and mesh.shape["fsdp"] > 1:  # gathered twice, scattered once
            found["fsdp"] = found.get("fsdp", 0.0) + 3 * (mesh.shape["fsdp"] - 1) * size
        if copies:
            n, axes = math.prod(mesh.shape[axis] for axis in copies), "*".join(copies)
            found[axes] = found.get(axes, 0.0) + 2 * (n - 1) / n * size
    return found


def live_bytes(jaxpr: Any, size_of: Callable[[Any], int]) -> int:
    """Bytes of the largest set of intermediate arrays alive at once, in the order of the trace.

    Arguments are not counted; an equation with a program inside counts with what that needs.
    """
    last: dict[Any, int] = {}
    for number, equation in enumerate(jaxpr.eqns):
        for var in equation.invars:
            if isinstance(var, core.Var):
                last[var] = number
    kept = {v for v in jaxpr.outvars if isinstance(v, core.Var)}
    alive, most, sizes = 0, 0, {}
    for number, equation in enumerate(jaxpr.eqns):
        inner = max((live_bytes(p, size_of) for p in parts(equation.params)), default=0)
        made = {v: size_of(v) for v in equation.outvars if v in last or v in kept}
        most = max(most, alive + max(inner, sum(made.values())))
        sizes |= made
        alive += sum(made.values())
        for var in {v for v in equation.invars if isinstance(v, core.Var)}:
            if last[var] == number and var in sizes and var not in kept:
                alive -= sizes.pop(var)
    return most


def share_of(var: Any, *, parts: int, tiled: bool) -> int:
    """Bytes of a variable on one of `parts` devices, its rows split if they can be."""
    aval: Any = var.aval
    shape: tuple[int, ...] = (*getattr(aval, "shape", ()),)
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 0) or 4
    if shape and shape[0] % parts == 0:
        return stored((shape[0] // parts, *shape[1:]), itemsize, tiled=tiled)
    return stored(shape, itemsize, tiled=tiled) // parts
