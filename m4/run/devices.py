"""The mesh of a configuration on the devices at hand, or on described ones."""

from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from m4 import sharding
from m4.config import flatten, rules
from m4.errors import ConfigError
from m4.train import processes


def make_mesh(
    config: ml_collections.ConfigDict, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
    """The mesh that `config.mesh` asks for, an axis of -1 as large as batches and experts allow.

    One line of warning if devices stay idle. Raises ConfigError where the configuration doesn't
    fit the mesh, and for several processes of which not all would have work.
    """
    here = devices is None
    devices = jax.devices() if devices is None else devices
    values = flatten(config.to_dict())

    def problems(sizes: dict[str, int]) -> list[str]:
        return rules.cross_problems(values | {f"mesh.{axis}": n for axis, n in sizes.items()})

    mesh = sharding.make_mesh(config.mesh.to_dict(), devices, fits=lambda s: not problems(s))
    if wrong := problems(dict(mesh.shape)):
        raise ConfigError(*wrong)
    idle = len(devices) - mesh.size
    if idle and here:
        why = _why(config, dict(mesh.shape), len(devices))
        if processes.several():
            raise ConfigError(
                f"mesh: {idle} of {len(devices)} devices would be idle, which several processes"
                f" cannot have: {why}"
            )
        print(f"warning  {idle} of {len(devices)} devices are idle: {why}", flush=True)
    return mesh


def _why(config: ml_collections.ConfigDict, sizes: dict[str, int], count: int) -> str:
    used = "*".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "data=1"
    if -1 not in (config.mesh[axis] for axis in sharding.AXES):
        return f"the mesh is {used}; --config.mesh.data=-1 takes the rest"
    rows = {f"{s}.batch_size={config[s].batch_size}" for s in ("train", "eval")}
    return (
        f"{' and '.join(sorted(rows, reverse=True))} can be split as {used} at most;"
        f" multiples of {count} rows use all"
    )
