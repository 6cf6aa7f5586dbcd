"""Mesh, and where state and batch live on it; the table of rules is `m4.axes`."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from m4 import placement
from m4.axes import AXES, LAYERS, PARAMETERS, ROWS, RULES, SPLIT_SIZE
from m4.errors import ConfigError


def make_mesh(
    asked: Mapping[str, Any] | None = None,
    devices: Sequence[Any] | None = None,
    *,
    fits: Callable[[dict[str, int]], bool] = lambda sizes: True,
) -> Mesh:
    """Mesh over the first devices, placed as `m4.placement` says; axes left out have size 1.

    `asked` has sizes, one of which may be -1, the rest (as far as it `fits`), and `slices` and
    `across` of `placement.grid`. Raises ConfigError when there are fewer devices.
    """
    asked, devices = asked or {}, jax.devices() if devices is None else devices
    sizes = {axis: asked.get(axis, 1) for axis in AXES}
    sizes = placement.sizes(sizes, len(devices), fits=fits)
    how = {name: asked[name] for name in ("slices", "across") if name in asked}
    grid = placement.grid(sizes, devices, **how)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def compiler_options(mesh: Mesh) -> dict[str, str | bool] | None:
    """Options for programs on `mesh`: devices of one host's CPU run one thread each.

    They share its cores, where threads of several would take turns (docs/performance.md).
    """
    shared = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return {"xla_cpu_multi_thread_eigen": False} if shared else None


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """First dimension split over data x fsdp x expert."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def row_block(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process holds the index-th of `count` equal blocks of a batch's rows.

    Raises ConfigError where its rows are not one block.
    """
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    held = rows(mesh).addressable_devices_indices_map((parts,)).values()
    held = sorted({index[0].indices(parts)[0] for index in held if index})
    start, size = (held[0], len(held)) if held else (0, 0)
    if not held or held[-1] - start + 1 != size or parts % size or start % size:
        raise ConfigError(
            f"mesh: process {jax.process_index()} of {jax.process_count()} would hold parts"
            f" {held} of {parts} of a batch, which are not one equal block; make the mesh use all"
            " devices, and data*fsdp*expert a multiple of the processes or a divisor of them"
        )
    return start // size, parts // size


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's block of rows (numpy, see `row_block`) -> global arrays, split by rows."""
    sharding = rows(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    _, count = row_block(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(
            sharding, x, (x.shape[0] * count, *x.shape[1:])
        ),
        batch,
    )


def put_whole(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays that every process has whole (numpy) -> global arrays."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda i: np.asarray(x)[i]),
        tree,
    )


def micro_batches(batch: Any, number: int) -> Any:
    """A batch [B, ...], inside a program, as [number, B / number, ...].

    Each has rows of every device, which stay where they are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = math.prod(dict(mesh.shape).get(axis, 1) for axis in ROWS)

    def cut(x):
        x = jnp.reshape(x, (parts, number, -1, *x.shape[1:])).swapaxes(0, 1)
        x = x.reshape(number, -1, *x.shape[3:])
        if parts == 1:
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(None, ROWS))

    return jax.tree.map(cut, batch)


def unbox(tree: Any) -> Any:
    """Parameters without Linen's metadata boxes."""
    return meta.map_axis_meta(_bare, tree)


def _bare(box: Any) -> Any:
    return box.unbox(apply_constraint=False)


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Shardings of parameters, given their (abstract) boxed tree.

    By the names that the module gives, else by those of the table. What is left of fsdp, expert and
    tensor then splits the largest dimension that it divides, so that no device has a large
    parameter whole for want of a name. Parameters without names of their own are whole below
    `SPLIT_SIZE` numbers. Those of a loop over layers lie as each layer's would.
    """

    def sharding(path, leaf):
        named = isinstance(leaf, meta.Partitioned)
        shape = (_bare(leaf) if named else leaf).shape
        names = leaf.names if named else names_of(path, leaf)
        layers = [None] * in_layers(path)
        shape, names = shape[len(layers) :], names[len(layers) :]
        if not named and math.prod(shape) < SPLIT_SIZE:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*layers, *_mesh_axes(shape, names, mesh)))

    is_box = lambda x: isinstance(x, meta.AxisMetadata)  # noqa: E731
    return jax.tree.map_with_path(sharding, boxed, is_leaf=is_box)


def gatherer(boxed: Any, mesh: Mesh) -> Callable[[Any], Any]:
    """What makes of (unboxed) parameters those that a forward pass uses.

    Split over fsdp and expert they lie, whole over both they are used, their gradients are split
    again: asked for nothing, the compiler may gather the batch's activations instead. Experts stay
    where they are, and hidden units on tensor.
    """

    def used(leaf, placed):
        named = isinstance(leaf, meta.Partitioned) and "expert" in leaf.names
        spec = [_only(axes, ("tensor",)) for axes in placed.spec]
        if named or spec == [*placed.spec]:
            return lambda x: x
        return _gather(placed, NamedSharding(mesh, PartitionSpec(*spec)))

    is_box = lambda x: isinstance(x, meta.AxisMetadata)  # noqa: E731
    each = jax.tree.map(used, boxed, param_shardings(boxed, mesh), is_leaf=is_box)
    return lambda params: jax.tree.map(lambda gather, x: gather(x), each, params)


def _only(axes, kept):
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return next((axis for axis in axes if axis in kept), None)


def _gather(split: NamedSharding, whole: NamedSharding) -> Callable[[Any], Any]:
    """The identity, whose argument and gradient lie as `split` and whose result as `whole`."""
    place = jax.lax.with_sharding_constraint
    gather = jax.custom_vjp(lambda x: place(x, whole))
    # Whole first: of sum and slice compilers make one reduce-scatter; of a table's gradient that is
    # asked for in parts they make a gather of the batch.
    gather.defvjp(lambda x: (gather(x), None), lambda _, g: (place(place(g, whole), split),))
    return gather


def in_layers(path: tuple) -> bool:
    """Whether a parameter has a leading dimension of layers, by its place in the tree."""
    return any(str(getattr(part, "key", part)).endswith(LAYERS) for part in path)


def names_of(path: tuple, leaf: Any) -> tuple[str | None, ...]:
    """Names of a parameter's dimensions by its place in the tree (`m4.axes.PARAMETERS`)."""
    place = jax.tree_util.keystr(path, simple=True, separator="/")
    fits = (n for p, n in PARAMETERS if re.search(rf"(^|/)({p})$", place) and len(n) <= leaf.ndim)
    names = next(fits, ())
    return (None,) * (leaf.ndim - len(names)) + names


def state_shardings(
    state: Any,
    params: Any,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    shard: bool = False,
) -> Any:
    """Shardings of an (abstract) train state: optimiser moments and average follow `params`.

    With `shard` they are split over data, too (`over_data`).
    """
    kept = over_data(state.params, params) if shard else params
    opt = optax.tree_map_params(
        tx, lambda _, s: s, state.opt, kept, transform_non_params=lambda _: replicated(mesh)
    )
    whole = replicated(mesh)
    return state.replace(
        step=whole,
        params=params,
        opt=opt,
        ema=None if state.ema is None else kept,
        bad=whole,
        skipped=whole,
        history=jax.tree.map(lambda _: whole, state.history),
    )


def over_data(shapes: Any, placed: Any) -> Any:
    """Shardings of parameters, `placed`, of which data splits the dimension with most left, too.

    Arrays below `SPLIT_SIZE` and those that no dimension of can be split so stay as they are.
    ZeRO's first stage (Rajbhandari et al., SC 2020): what only the update reads is kept once over
    the replicas of data, instead of once on each.
    """

    def spread(shape: Any, sharding: NamedSharding) -> NamedSharding:
        mesh, size = sharding.mesh, sharding.mesh.shape["data"]
        axes: list[tuple[str, ...]] = [
            (a,) if isinstance(a, str) else tuple(a or ()) for a in sharding.spec
        ]
        axes += [()] * (len(shape.shape) - len(axes))
        parts = [math.prod(mesh.shape[a] for a in there) for there in axes]
        left = [n // count for n, count in zip(shape.shape, parts, strict=True)]
        fits = [d for d, n in enumerate(left) if n % size == 0]
        if size == 1 or math.prod(shape.shape) < SPLIT_SIZE or not fits:
            return sharding
        axes[max(fits, key=lambda d: left[d])] += ("data",)
        return NamedSharding(mesh, PartitionSpec(*(a or None for a in axes)))

    return jax.tree.map(spread, shapes, placed)


def _mesh_axes(shape: tuple[int, ...], names: tuple[str | None, ...], mesh: Mesh) -> list:
    """Mesh axes per dimension: by rule, each used once, and only where they divide it.

    Then the rest, where the array is large, each on the dimension of which most is left.
    """
    axes: list[tuple[str, ...]] = [() for _ in shape]

    def place(d: int, axis: str) -> None:
        parts = math.prod(mesh.shape[a] for a in (*axes[d], axis))
        if mesh.shape[axis] > 1 and not any(axis in a for a in axes) and shape[d] % parts == 0:
            axes[d] += (axis,)

    for d, name in enumerate(names):
        for axis in dict(RULES).get(name or "", ()):
            place(d, axis)
    if math.prod(shape) >= SPLIT_SIZE:
        for axis in ("fsdp", "expert", "tensor"):
            parts = [math.prod(mesh.shape[a] for a in there) for there in axes]
            left = [size / number for size, number in zip(shape, parts, strict=True)]
            for d in np.argsort(np.negative(left), stable=True):
                place(int(d), axis)
    return [None if not a else a[0] if len(a) == 1 else a for a in axes]
