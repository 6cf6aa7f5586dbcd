"""Mesh, logical axis rules, and where state and batch live.

Axes: `data` replicates parameters, `fsdp` splits them, `expert` splits experts, `tensor` splits
hidden dimensions. Rows of a batch are split over data x fsdp x expert.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from m4 import placement
from m4.errors import ConfigError

AXES = ("data", "fsdp", "expert", "tensor")
ROWS = ("data", "fsdp", "expert")
# Logical name of a dimension -> mesh axis. Parameters and activations use the same names.
RULES: tuple[tuple[str, Any], ...] = (
    ("batch", ROWS),
    ("expert", "expert"),
    ("embed", "fsdp"),
    ("hidden", "tensor"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
)
FSDP_SIZE = 2**16  # smaller parameters are not worth splitting


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

    Logical names given by the module win; without them a large parameter is split over `fsdp`
    along its largest divisible dimension. A mesh axis that doesn't divide a dimension leaves
    it whole.
    """

    def sharding(leaf):
        if isinstance(leaf, meta.Partitioned):
            spec = _mesh_axes(_bare(leaf).shape, leaf.names, mesh)
        else:
            spec = _fsdp_axes(leaf.shape, mesh)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, boxed, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))


def state_shardings(state: Any, params: Any, tx: optax.GradientTransformation, mesh: Mesh) -> Any:
    """Shardings of an (abstract) train state: optimiser moments and average follow `params`."""
    opt = optax.tree_map_params(
        tx, lambda _, s: s, state.opt, params, transform_non_params=lambda _: replicated(mesh)
    )
    whole = replicated(mesh)
    return state.replace(
        step=whole,
        params=params,
        opt=opt,
        ema=None if state.ema is None else params,
        bad=whole,
        skipped=whole,
        history=jax.tree.map(lambda _: whole, state.history),
    )


def _mesh_axes(shape: tuple[int, ...], names: tuple[str | None, ...], mesh: Mesh) -> list:
    """Mesh axis per dimension: by rule, used once, and only where it divides the dimension."""
    axes: list[str | None] = []
    for size, name in zip(shape, names, strict=True):
        axis = dict(RULES).get(name or "")
        fits = isinstance(axis, str) and axis not in axes and size % mesh.shape[axis] == 0
        axes.append(axis if fits else None)
    return axes


def _fsdp_axes(shape: tuple[int, ...], mesh: Mesh) -> list:
    size = mesh.shape["fsdp"]
    dims = [d for d in range(len(shape)) if shape[d] % size == 0]
    if size == 1 or not dims or math.prod(shape) < FSDP_SIZE:
        return []
    largest = max(dims, key=lambda d: shape[d])
    return ["fsdp" if d == largest else None for d in range(len(shape))]
