"""Which device stands where in a mesh: sizes of its axes, the torus, slices of a pod.

Neighbours in the mesh are neighbours in the machine as far as its links allow
(`jax.experimental.mesh_utils`). Between slices of a TPU pod, and between nodes of GPUs, lies the
data-centre network: one axis of the mesh, `across`, is laid over it, the others stay inside.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils

from m4.errors import ConfigError

REST = -1  # size of an axis that takes the devices which the others leave


def sizes(
    asked: Mapping[str, int],
    count: int,
    *,
    fits: Callable[[dict[str, int]], bool] = lambda sizes: True,
) -> dict[str, int]:
    """Sizes of the axes on `count` devices, -1 replaced.

    An axis of -1 gets as many of the remaining devices as `fits` accepts; `data`, whose default is
    -1, is 1 beside another. Raises ConfigError for two others and where devices are too few.
    """
    found, rest = dict(asked), [axis for axis, size in asked.items() if size == REST]
    if len(rest) > 1 and "data" in rest:
        rest.remove("data")
        found["data"] = 1
    if len(rest) > 1:
        raise ConfigError(
            " and ".join(f"mesh.{axis}=-1" for axis in rest)
            + ": only one axis can take the rest of the devices"
        )
    known = math.prod(size for size in found.values() if size != REST)
    if known > count:
        words = "*".join(f"{axis}={size}" for axis, size in found.items() if size != REST)
        raise ConfigError(
            f"mesh {words} needs {known} devices, found {count}; on a CPU"
            " XLA_FLAGS=--xla_force_host_platform_device_count=N makes N of one"
        )
    for axis in rest:
        choices = range(count // known, 0, -1)
        found[axis] = next((n for n in choices if fits(found | {axis: n})), 1)
    return found


def grid(
    axes: Mapping[str, int], devices: Sequence[Any], *, slices: int = REST, across: str = "data"
) -> np.ndarray:
    """The first devices in the shape of the axes.

    Args:
      axes: sizes by name, none -1.
      devices: of one platform, here or described.
      slices: groups of devices with slow links between them; -1: as the devices say.
      across: the axis that is laid over them.

    Raises ConfigError where the devices, or this axis, are not so many equal slices.
    """
    shape, needed = tuple(axes.values()), math.prod(axes.values())
    groups = _groups(devices[:needed], slices)
    if len(groups) == 1:
        return in_blocks(_inside(shape, groups[0]), devices[:needed])
    each = {len(group) for group in groups}
    if len(each) > 1 or axes[across] % len(groups):
        held = " and ".join(map(str, sorted(each)))
        raise ConfigError(
            f"mesh.{across}={axes[across]}: lies across {len(groups)} slices or nodes of {held}"
            f" devices, so it must be a multiple of {len(groups)}; mesh.across names another axis,"
            " and mesh.slices=1 takes them for one"
        )
    inner = {axis: n // len(groups) if axis == across else n for axis, n in axes.items()}
    parts = [_inside(tuple(inner.values()), group) for group in groups]
    return in_blocks(np.concatenate(parts, axis=[*axes].index(across)), devices[:needed])


def _groups(devices: Sequence[Any], slices: int) -> list[list[Any]]:
    """Devices by slice of a TPU pod or node of GPUs; virtual ones in equal blocks."""
    nodes = {} if devices[0].platform in ("cpu", "tpu") else {d: d.process_index for d in devices}
    found: dict[int, list[Any]] = {}
    for device in devices:
        key = getattr(device, "slice_index", nodes.get(device, 0))
        found.setdefault(key, []).append(device)
    groups = [found[key] for key in sorted(found)]
    if slices in (REST, len(groups)):
        return groups
    if slices == 1:  # one network for all, by declaration
        return [list(devices)]
    if len(groups) > 1 or devices[0].platform == "tpu" or len(devices) % slices:
        raise ConfigError(
            f"mesh.slices={slices}: the {len(devices)} devices are {len(groups)} slices or nodes;"
            " -1 takes them as they are"
        )
    return [group.tolist() for group in np.asarray(devices, object).reshape(slices, -1)]


def _inside(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """A part with fast links everywhere, in the order that its torus likes.

    A mesh that takes a part of a torus has no such order and stands in the order of the devices.
    """
    try:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (NotImplementedError, ValueError, AssertionError):
        return np.asarray(devices, object).reshape(shape)


def in_blocks(placed: np.ndarray, devices: Sequence[Any]) -> np.ndarray:
    """`placed`, unless a process would then hold rows of a batch that are not one block.

    The last axis, `tensor`, splits no rows. Files are read by processes in blocks of rows.
    """
    processes = np.vectorize(lambda device: device.process_index, otypes=[int])(placed)
    rows = processes.reshape(-1, placed.shape[-1])
    for process in np.unique(processes):
        (held,) = np.nonzero((rows == process).any(axis=1))
        size = held[-1] - held[0] + 1
        if size != len(held) or held[0] % size:
            in_order = sorted(devices, key=lambda device: (device.process_index, device.id))
            return np.asarray(in_order, object).reshape(placed.shape)
    return placed
