"""Time of a step, its bound, and goodput, from facts and a chip's rates.

A step takes at least the longest of its arithmetic, its memory traffic and its messages, where all
three go on at once, and at most the sum of the first two's longest and the messages. Arithmetic
runs at `EFFICIENCY` of the vendor's rate. Bytes travel on a ring along each axis.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from m4.plan.topology import Chip, Topology

EFFICIENCY = 0.9
CHIP_HOURS = 50_000.0  # between failures of a chip: Llama 3's 54 days on 16,384 H100s
SAVE_BANDWIDTH = 1e9  # bytes/s that a chip's host writes
RESTART_S = 120.0  # until a gang stands again, without its compiling


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of a step."""

    arithmetic: float
    memory: float
    messages: dict[str, float]  # by axis, or axes
    best: float
    worst: float
    bound: str
    mfu: float  # model FLOPs over the rate, in the worst case


def time(facts: Any, chips: Topology, *, across: str = "data") -> Time:
    """Of one step of `facts` on these chips; `across` is the axis between slices."""
    chip = chips.chip
    arithmetic = sum(n / rate(chip, dtype) for dtype, n in by_dtype(facts).items()) / EFFICIENCY
    memory = facts.memory_traffic / chip.bandwidth
    messages: dict[str, float] = {}
    sent = wire(facts.collectives) or facts.model["wire_bytes"]
    for axes, size in sent.items():
        slow = chips.slices > 1 and across in axes.split("*")
        bandwidth = chip.network if slow else chip.link * min(chip.links, 2)
        messages[axes] = size / bandwidth
    together = sum(messages.values())
    parts = {"arithmetic": arithmetic, "memory": memory}
    parts |= {f"messages on {axes}": seconds for axes, seconds in messages.items()}
    best, worst = max(*parts.values(), together), max(arithmetic, memory) + together
    ideal = sum(n / rate(chip, dtype) for dtype, n in facts.model["products"].items())
    bound = max(parts, key=lambda name: parts[name])
    return Time(arithmetic, memory, messages, best, worst, bound, ideal / worst if worst else 0.0)


def by_dtype(facts: Any) -> dict[str, float]:
    """FLOPs by dtype; a compiler that gives one sum multiplies as the trace does."""
    if facts.products:
        return facts.products
    total = sum(facts.model["products"].values()) or 1.0
    return {d: facts.flops * n / total for d, n in facts.model["products"].items()}


def rate(chip: Chip, dtype: str) -> float:
    """FLOP/s of products of a dtype, in JAX's words or the compiler's."""
    return chip.bfloat16 if dtype in ("bfloat16", "bf16", "f16", "float16") else chip.float32


def wire(collectives: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Bytes that a chip sends, by the axes along which it does."""
    found: dict[str, float] = {}
    for one in collectives:
        axes = "*".join(one["axes"])
        found[axes] = found.get(axes, 0.0) + one["times"] * one["wire"]
    return found


def goodput(facts: Any, chips: Topology, step_s: float, save_every: int) -> dict[str, float]:
    """The share of time that ends in steps that count, and what takes the rest."""
    interval = max(save_every * step_s, 1e-9)
    save = facts.state_bytes / SAVE_BANDWIDTH
    failures = chips.count / (CHIP_HOURS * 3600.0)  # per second
    restart = RESTART_S + facts.compile_s
    saving, lost = save / interval, failures * (restart + interval / 2)
    best = math.sqrt(2 * save / failures) / step_s if step_s else 0.0  # Young's interval
    return {
        "goodput": 1.0 / (1.0 + saving + lost),
        "saving": saving,
        "failures": lost,
        "best_save_every": max(1.0, best),
    }
