"""What a run is made by: compared between its processes, kept in checkpoints, asked at a resume.

All processes must have the same configuration, flags, environment, code and versions before they
join; the same data once those are built; the same devices and the same program before the first
step. A later start may have other code and versions, which is said, but not another program.
"""

import functools
import hashlib
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib.version
import ml_collections

import m4
from m4.config import Flags, flatten
from m4.data import manifest as manifests
from m4.errors import CheckpointError
from m4.remote import places
from m4.train import processes

# What may differ between processes: places of one machine. The data themselves are compared.
FIELDS = ("data.raw_dir", "data.dir")
PLACES = ("M4_PROCESS_ID", "M4_COORDINATOR", "M4_DATA_DIR", "M4_RAW_DIR", "M4_CACHE")
PLACES += (places.HOME,)
PLACES += ("JAX_COMPILATION_CACHE_DIR", "JAX_LOCAL_DEVICE_IDS", "JAX_COORDINATOR_BIND_ADDRESS")
PLACES += ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID")
PLACES += ("TF_CONFIG",)  # by which some platforms tell every process its number
# What of the environment changes numbers, programs or waiting.
PREFIXES = ("M4_", "JAX_", "XLA_", "LIBTPU_", "FLAX_", "TF_", "CUBLAS_", "NVIDIA_TF32")
DISTRIBUTIONS = ("optax", "orbax-checkpoint", "grain", "numpy", "scikit-learn")
Made = dict[str, Any]


def at_start(config: ml_collections.ConfigDict | None, flags: Flags) -> dict[str, str]:
    """What is known before anything is read."""
    fields = {} if config is None else flatten(config.to_dict())
    facts = {f"config.{k}": repr(v) for k, v in fields.items() if k not in FIELDS}
    given = {k: v for k, v in vars(flags).items() if k not in ("overrides", "workdir")}
    facts |= {f"--{k}": str(v) for k, v in given.items()}
    facts["--workdir"] = places.shown(flags.workdir and flags.workdir.absolute())
    facts |= {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PREFIXES) and name not in PLACES
    }
    facts |= {f"version of {name}": version for name, version in versions().items()}
    return facts | {"python": platform.python_version(), "code of m4": code()}


def of_data(folder: Path) -> dict[str, str]:
    """The built data set, and the devices, which JAX has found by now."""
    manifest = manifests.unchecked(folder)
    devices = jax.local_devices()
    return {
        "data": f"{folder.name} ({str(manifest.get('sha256'))[:12]})",
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def versions() -> dict[str, str]:
    """Of what computes; of each module the one that is imported."""
    found = {"m4": m4.__version__, "jax": jax.__version__, "jaxlib": jaxlib.version.__version__}
    return found | {"flax": flax.__version__, **{d: metadata.version(d) for d in DISTRIBUTIONS}}


@functools.cache
def code() -> str:
    """A digest of m4's source."""
    root, found = Path(m4.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def program(texts: Iterable[str]) -> str:
    """A digest of lowered programs."""
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode() + b"\0")
    return found.hexdigest()[:16]


def made(mesh: jax.sharding.Mesh) -> Made:
    """What a checkpoint says of its making; `program` is added when it is known."""
    device = mesh.devices.flat[0]
    return {
        "code": code(),
        "versions": versions(),
        "device": f"{device.platform} {device.device_kind}",
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """'jax 0.10.2 -> 0.11.0' for code and versions that differ."""
    lines = [] if before.get("code") == now["code"] else ["code of m4"]
    old = before.get("versions") or {}
    return lines + [
        f"{name} {old.get(name, 'unknown')} -> {version}"
        for name, version in now["versions"].items()
        if old.get(name) != version
    ]


def accept(
    before: Mapping[str, Any] | None, now: Made, step: int, *, force: bool
) -> Callable[[list[str]], None]:
    """A function of the lowered programs' texts, which must be those of the checkpoint.

    It keeps their digest in `now`; all processes must call it. It raises ConfigError where theirs
    differ, and CheckpointError for another program than `before` unless `force`. On another mesh
    or device every program is another: that is not asked then.
    """

    def check(texts: list[str]) -> None:
        now["program"] = digest = program(texts)
        processes.agree({"program": digest, "step": str(step)})
        if not before or "program" not in before:
            if step and processes.first():
                print(
                    f"m4: warning: step {step} was made by an older version, which did not say by"
                    " what program; this one may draw other numbers",
                    flush=True,
                )
            return
        changed = changes(before, now)
        if changed and processes.first():
            print(f"m4: warning: step {step} was made by other: {', '.join(changed)}", flush=True)
        place = ("device", "mesh")
        alike = all(before.get(key) == now[key] for key in place)
        if alike and before["program"] != digest and not force:
            why = ", ".join(changed) or "an environment variable, or a module outside m4"
            raise CheckpointError(
                f"the program that trains is not the one that made step {step} (changed: {why});"
                " go back to that, choose another --workdir, or --force=program to go on with this"
            )

    return check
