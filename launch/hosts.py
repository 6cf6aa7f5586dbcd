"""What a topology needs from a cluster: hosts, chips on each, and the labels that find them.

    h200:64          eight nodes of eight GPUs
    v5p:4x4x4        a slice of 64 chips on 16 hosts
    v6e:16x16+16x16  two slices, joined by the data-centre network

The names are those of `--mode=plan --topology=...`. Standard library only.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

GPUS_OF_A_NODE = 8


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A node's accelerators. `label` is GKE's value of cloud.google.com/gke-accelerator."""

    label: str


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A generation of TPUs.

    `label` is GKE's value of cloud.google.com/gke-tpu-accelerator, `slices` what the name of a
    Cloud TPU slice begins with, `cores` what that name counts of a chip, `alone` the largest number
    of chips that one host has by itself; a larger slice has hosts of four.
    """

    label: str
    slices: str
    cores: int
    alone: int
    runtime: str
    dims: int


GPUS: Mapping[str, Gpu] = {
    "a100": Gpu("nvidia-a100-80gb"),
    "h100": Gpu("nvidia-h100-80gb"),
    "h200": Gpu("nvidia-h200-141gb"),
    "b200": Gpu("nvidia-b200"),
}
TPUS: Mapping[str, Tpu] = {
    "v4": Tpu("tpu-v4-podslice", "v4", 2, 4, "tpu-ubuntu2204-base", 3),
    "v5e": Tpu("tpu-v5-lite-podslice", "v5litepod", 1, 8, "v2-alpha-tpuv5-lite", 2),
    "v5p": Tpu("tpu-v5p-slice", "v5p", 2, 4, "v2-alpha-tpuv5", 3),
    "v6e": Tpu("tpu-v6e-slice", "v6e", 1, 8, "v2-alpha-tpuv6e", 2),
}


@dataclasses.dataclass(frozen=True)
class Hosts:
    """One m4 process a host."""

    count: int  # of one slice
    slices: int = 1
    chips: int = 0  # of one host; 0: not said
    resource: str = ""  # Kubernetes' name of a chip
    selector: Mapping[str, str] = dataclasses.field(default_factory=dict)
    accelerator: str = ""  # Cloud TPU's name of a slice
    runtime: str = ""

    @property
    def gpus(self) -> int:
        """GPUs of a host; 0 for a TPU."""
        return self.chips if self.resource == "nvidia.com/gpu" else 0


def of(topology: str) -> Hosts:
    """Hosts of 'KIND:NUMBER' or 'KIND:AxB[xC][+AxB[xC]...]'; ValueError with what is wrong."""
    kind, _, shape = topology.partition(":")
    if kind in GPUS:
        if not re.fullmatch(r"[1-9]\d*", shape):
            raise ValueError(f"{topology}: {kind}:NUMBER of GPUs")
        count, chips = int(shape), min(int(shape), GPUS_OF_A_NODE)
        if count % chips:
            raise ValueError(f"{topology}: whole nodes of {GPUS_OF_A_NODE}")
        selector = {"cloud.google.com/gke-accelerator": GPUS[kind].label}
        return Hosts(count // chips, 1, chips, "nvidia.com/gpu", selector)
    if kind not in TPUS:
        known = ", ".join([*GPUS, *TPUS])
        raise ValueError(f"{topology}: no such chip; known are {known}")
    tpu, slices = TPUS[kind], shape.split("+")
    if len(set(slices)) > 1 or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", slices[0]):
        raise ValueError(
            f"{topology}: {kind}:{'x'.join('AB' + 'C' * (tpu.dims > 2))}, slices alike"
        )
    dims = [int(d) for d in slices[0].split("x")]
    if len(dims) != tpu.dims:
        raise ValueError(f"{topology}: a slice of {kind} has {tpu.dims} dimensions")
    total = math.prod(dims)
    chips = total if total <= tpu.alone else 4
    if total % chips:
        raise ValueError(f"{topology}: hosts have {chips} chips, which do not divide {total}")
    selector = {
        "cloud.google.com/gke-tpu-accelerator": tpu.label,
        "cloud.google.com/gke-tpu-topology": slices[0],
    }
    name = f"{tpu.slices}-{total * tpu.cores}"
    return Hosts(total // chips, len(slices), chips, "google.com/tpu", selector, name, tpu.runtime)
