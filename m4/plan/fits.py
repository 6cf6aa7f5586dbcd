"""Does it fit, does the mesh pay, does the compiler agree with the closed form; and what helps.

A change of the configuration is a remedy only once it was planned itself.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from m4 import config as configs
from m4.errors import ConfigError
from m4.plan import facts as plans
from m4.plan import roofline
from m4.plan.topology import Topology

AGREE = 0.10  # largest difference from the closed form
AGREE_PEAK = 0.25  # where the compiler has a choice
SMALL = 1e6  # bytes below which a program is mostly alignment
USABLE = 0.95  # of a chip's memory
REMEDIES = 3  # that are sought
TRIES = 6


@dataclasses.dataclass(frozen=True)
class Remedy:
    """A change that was planned, and the peak that it leads to."""

    change: str
    peak_bytes: int


def too_large(found: plans.Facts | str, chips: Topology) -> str | None:
    """Why it does not fit, in words."""
    if isinstance(found, str):
        return f"{chips.kind} has {gigabytes(chips.chip.memory)}: {found}"
    if found.peak_bytes <= chips.chip.memory * USABLE:
        return None
    rest = found.peak_bytes - found.state_bytes
    return (
        f"{chips.kind} has {gigabytes(chips.chip.memory)}, this needs"
        f" {gigabytes(found.peak_bytes)} (state {gigabytes(found.state_bytes)}, activations and"
        f" all else {gigabytes(rest)})"
    )


def gigabytes(size: float) -> str:
    """Bytes in words."""
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def remedies(config: ml_collections.ConfigDict, chips: Topology) -> list[Remedy]:
    """The cheapest changes that make it fit, in the order of their cost in speed."""
    found = []
    for number, change in enumerate(_changes(config, chips)):
        if len(found) == REMEDIES or number == TRIES:
            break
        try:
            answer = plans.ask(changed(config, change), chips)
        except ConfigError:
            continue
        if not isinstance(answer, str) and too_large(answer, chips) is None:
            words = " ".join(f"--config.{path}={value}" for path, value in change.items())
            found.append(Remedy(words, answer.peak_bytes))
    return found


def changed(
    config: ml_collections.ConfigDict, change: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """A configuration with other values. Raises ConfigError if they don't go together."""
    return configs.check(config.to_dict(), {k: str(v) for k, v in change.items()}, "plan")


def _changes(config: ml_collections.ConfigDict, chips: Topology) -> Iterator[dict[str, Any]]:
    """What costs least first: splitting, then computing again, then fewer rows at once."""
    split: dict[str, Any] = {"mesh.data": 1, "mesh.fsdp": -1} if chips.count > 1 else {}
    whole = config.mesh.fsdp == 1 and split
    if whole:
        yield split
    elif split and config.mesh.fsdp not in (-1, chips.count):
        yield {"mesh.data": 1, "mesh.fsdp": -1, "mesh.expert": 1, "mesh.tensor": 1}
    again: dict[str, Any] = {} if config.train.remat == "layer" else {"train.remat": "layer"}
    if again:
        yield again
    parts = {"train.accumulate": 4 * config.train.accumulate}
    yield parts
    if whole and again:
        yield split | again
    yield (split if whole else {}) | again | parts
    fewer = max(1, config.train.batch_size // 4)
    yield (split if whole else {}) | again | {"train.batch_size": fewer}


def disagreements(found: plans.Facts, chips: Topology) -> list[str]:
    """Figures that are further from the closed form than they may be, with a likely reason."""
    lines = []
    for row in compared(found, chips):
        ratio = row.ratio
        if ratio is None or ratio < 1 and row.above:
            continue
        if 1 / (1 + row.most) <= ratio <= 1 + row.most:
            continue
        words = (
            f"the compiler's is {ratio:.2f} of the closed form, more than {row.most:.0%} from it"
        )
        lines.append(f"{row.name}: {words}")
    excess = found.flops / found.model["flops"] if found.model["flops"] else 1.0
    for axis in ("tensor", "expert"):
        n = found.mesh[axis]
        if found.program != "none" and n > 1 and excess > 1 + AGREE:
            share = max(0.0, 1 - (excess - 1) / (n - 1))
            lines.append(
                f"mesh.{axis}={n}: splits {100 * share:.0f} % of the FLOPs that data={n} would;"
                f" --config.mesh.{axis}=1 gives its chips to data"
            )
    return lines


@dataclasses.dataclass(frozen=True)
class Compared:
    """A figure of the compiler's program beside the closed form's, and how far it may be off."""

    name: str
    compiler: float
    expected: float
    most: float
    above: bool = False  # less is no fault

    @property
    def ratio(self) -> float | None:
        """The compiler's over the closed form's."""
        return self.compiler / self.expected if self.expected else None


def compared(found: plans.Facts, chips: Topology) -> list[Compared]:
    """What must agree.

    A compiler writes products of single rows as sums, so it may multiply less. What it keeps at
    the peak depends on its schedule. What it sends is only determined where a mesh has the axis
    `data` alone: elsewhere it chooses between moving weights and moving activations. Without a
    program's text the FLOPs are a sum with elementwise arithmetic, which is not comparable.
    """
    model = found.model
    rows = [
        Compared("arguments", found.argument_bytes, model["argument_bytes"], AGREE),
        Compared("peak", found.peak_bytes, model["peak_bytes"], AGREE_PEAK),
    ]
    if found.program != "none":
        rows.insert(0, Compared("matrix FLOPs", found.flops, model["flops"], AGREE, above=True))
        sent = sum(roofline.wire(found.collectives).values())
        if {axis for axis, n in found.mesh.items() if n > 1} == {"data"}:
            rows.append(Compared("sent along data", sent, model["wire_bytes"]["data"], AGREE_PEAK))
    least = {"matrix FLOPs": 0.0}
    if math.isfinite(chips.chip.memory):
        least["peak"] = 0.01 * chips.chip.memory
    return [row for row in rows if row.expected >= least.get(row.name, SMALL)]
