"""Chips by name: what a pod or node is made of, and described devices to compile for.

    v5p:8x8x16    a slice of TPU v5p, the torus of its chips
    v5p:4x4x4+4x4x4    two such slices, joined by the data-centre network
    h200:8        eight GPUs of one node; h200:64 eight nodes
    cpu:8         virtual devices of this host

Rates are a vendor's, dense, as of `DATE`; GB and GB/s are 1e9 bytes.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from m4.errors import ConfigError

DATE = "2026-11"
VIRTUAL = 1024  # most virtual devices that the CPU's compiler is asked for
TRIED = "libtpu 0.0.48"
INSTALL = "pip install 'm4-moe[tpu]'"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip. Bandwidths go one way; `links` of one `link` each leave it inside a slice."""

    platform: str
    bfloat16: float  # FLOP/s of matrix products
    float32: float
    memory: float  # bytes
    bandwidth: float  # of that memory, bytes/s
    link: float  # bytes/s
    links: int  # of a torus: 2 a dimension
    network: float  # share of a chip in the network between slices or nodes, bytes/s
    node: int = 0  # chips of a node; 0: a slice is as large as it is said to be
    source: str = ""


# JAX multiplies float32 on a TPU in one bfloat16 pass unless told otherwise, on a GPU in TF32.
CHIPS: Mapping[str, Chip] = {
    "v4": Chip("tpu", 275e12, 275e12, 32e9, 1.2e12, 45e9, 6, 6.25e9, source="Cloud TPU docs"),
    "v5e": Chip("tpu", 197e12, 197e12, 16e9, 0.82e12, 45e9, 4, 6.25e9, source="Cloud TPU docs"),
    "v5p": Chip("tpu", 459e12, 459e12, 95e9, 2.77e12, 90e9, 6, 6.25e9, source="Cloud TPU docs"),
    "v6e": Chip("tpu", 918e12, 918e12, 32e9, 1.64e12, 90e9, 4, 12.5e9, source="Cloud TPU docs"),
    "a100": Chip("cuda", 312e12, 156e12, 80e9, 2.04e12, 300e9, 1, 25e9, 8, "data sheet, SXM"),
    "h100": Chip("cuda", 989e12, 495e12, 80e9, 3.35e12, 450e9, 1, 50e9, 8, "data sheet, SXM"),
    "h200": Chip("cuda", 989e12, 495e12, 141e9, 4.8e12, 450e9, 1, 50e9, 8, "data sheet, SXM"),
    "b200": Chip("cuda", 2250e12, 1100e12, 180e9, 7.7e12, 900e9, 1, 50e9, 8, "data sheet, HGX"),
    "cpu": Chip("cpu", 50e9, 50e9, math.inf, 20e9, 10e9, 1, 1e9, source="a guess, to rank by"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Described chips."""

    name: str
    kind: str
    count: int  # chips in all
    slices: int  # parts with a slow network between them
    shape: str = ""  # of one slice of a TPU: "4x4x4"
    partitioned: bool = False  # compiled for virtual devices though the chips' compiler is here

    @property
    def chip(self) -> Chip:
        """Of which it is made."""
        return CHIPS[self.kind]

    @property
    def compiler(self) -> str:
        """Whose program is looked at: 'tpu', or 'cpu' where the chips' compiler isn't here."""
        if self.chip.platform != "tpu" or self.partitioned:
            return "cpu"
        return "tpu" if importlib.util.find_spec("libtpu") is not None else "cpu"

    @property
    def virtual(self) -> int:
        """Devices that the program is compiled for."""
        return self.count if self.compiler == "tpu" else min(self.count, VIRTUAL)

    def note(self) -> str:
        """What has to be said of the compiler; empty if the program is the chips' own."""
        if self.compiler == "tpu" or self.chip.platform == "cpu":
            return ""
        few = f", {self.virtual} of them" if self.virtual < self.count else ""
        why = f"no libtpu ({INSTALL})" if self.chip.platform == "tpu" else "no compiler for GPUs"
        return (
            f"{why}: compiled for virtual CPU devices{few}. FLOPs, state and collectives are those"
            " of the same partitioned program; temporary bytes are the CPU compiler's"
        )

    def environment(self) -> dict[str, str]:
        """What a process that compiles for it needs to have set."""
        flag = "--xla_force_host_platform_device_count"
        flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(flag)]
        flags += [f"{flag}={self.virtual}"] if self.compiler == "cpu" else []
        return {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": " ".join(flags),
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing runs, so nothing needs to be locked
        }

    def devices(self) -> Sequence[Any]:
        """The devices to compile for, in a process with `environment`. Raises ConfigError."""
        if self.compiler == "cpu":
            return jax.devices()[: self.virtual]
        several = {"num_slices": self.slices} if self.slices > 1 else {}
        try:
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{self.kind}:{self.shape}", **several
            )
        except Exception as error:  # what libtpu raises is not documented
            said = (str(error).splitlines() or ["?"])[0]
            raise ConfigError(
                f"--topology={self.name}: libtpu has no such slice ({said})"
            ) from None
        return found.devices


# What JAX calls a device -> kind.
DEVICES = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5p": "v5p"}
DEVICES |= {"TPU v5": "v5p", "TPU v6": "v6e", "H100": "h100", "H200": "h200", "A100": "a100"}
DEVICES |= {"B200": "b200"}


def kind_of(device: Any) -> str | None:
    """The kind in the table that a device is; None for one that is not in it."""
    if device.platform == "cpu":
        return "cpu"
    return next((kind for words, kind in DEVICES.items() if words in device.device_kind), None)


def of_count(kind: str, count: int) -> Topology:
    """So many chips of a kind; of a TPU in a torus as even as can be. Raises ConfigError."""
    dims = [1] * (CHIPS[kind].links // 2) if kind in CHIPS and CHIPS[kind].links > 1 else []
    rest, factor = count, 2
    while dims and rest > 1:
        while rest % factor:
            factor += 1
        dims[dims.index(min(dims))] *= factor
        rest //= factor
    return parse(f"{kind}:{'x'.join(map(str, sorted(dims))) or count}")


def parse(name: str) -> Topology:
    """`kind:size` -> Topology. Raises ConfigError with what can be said instead."""
    kind, _, size = name.partition(":")
    kinds = ", ".join(CHIPS)
    if kind not in CHIPS:
        raise ConfigError(f"--topology={name}: must begin with one of {kinds} and a colon")
    chip, parts = CHIPS[kind], size.split("+")
    if chip.platform != "tpu":
        if not re.fullmatch(r"[1-9]\d{0,5}", size):
            raise ConfigError(f"--topology={name}: must be {kind}:NUMBER, such as {kind}:8")
        count = int(size)
        if chip.node and count > chip.node and count % chip.node:
            raise ConfigError(f"--topology={name}: must be whole nodes of {chip.node}")
        return Topology(name, kind, count, math.ceil(count / chip.node) if chip.node else 1)
    dims = chip.links // 2
    shape = re.fullmatch(r"[1-9]\d{0,2}(x[1-9]\d{0,2})*", parts[0])
    if not shape or parts[0].count("x") != dims - 1 or {*parts} != {parts[0]}:
        example = "x".join(["4"] * dims)
        raise ConfigError(
            f"--topology={name}: must be {kind}:{example}, the torus of a slice's chips, or equal"
            f" slices: {kind}:{example}+{example}"
        )
    each = math.prod(int(n) for n in parts[0].split("x"))
    return Topology(name, kind, each * len(parts), len(parts), parts[0])


def died(code: int) -> str:
    """What to say of a libtpu that took its process with it, `code` minus the signal."""
    try:
        version = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        version = "of an unknown version"
    return (
        f"libtpu {version} died of {signal.Signals(-code).name} in this program; {TRIED} compiles"
        " every method, and without libtpu virtual devices are planned"
    )
