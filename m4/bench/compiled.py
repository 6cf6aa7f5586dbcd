"""What a compiled program says about itself: collectives, FLOPs, bytes."""

import re
from collections import Counter
from typing import Any

import numpy as np

KINDS = "all-to-all|ragged-all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute"
BITS = {"pred": 8, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32, "f64": 64, "s64": 64}


def collectives(compiled: Any, *, loops: bool = False) -> list[tuple[str, str, int]]:
    """(kind, shapes, bytes) of every collective, in program order.

    `bytes` is the size of the result on one device. Without `loops` only those that run
    whatever the data: the entry computation.
    """
    text = compiled.as_text()
    if not loops:
        text = text.split("\nENTRY ")[1].split("\n}")[0]
    found = []
    for shapes, kind in re.findall(rf"= (.*?) ({KINDS})(?:-start)?\(", text):
        parts = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        size = sum(_bytes(dtype, dims) for dtype, dims in parts)
        counted = Counter(f"{dtype}[{dims}]" for dtype, dims in parts)
        names = [name if n == 1 else f"{n} x {name}" for name, n in counted.items()]
        found.append((kind, " + ".join(names), size))
    return found


def _bytes(dtype, dims):
    return BITS[dtype] // 8 * int(np.prod([int(n) for n in dims.split(",") if n]))


def flops(compiled: Any) -> float | None:
    """FLOPs of one device as the compiler counts them (loop bodies once); None if it doesn't."""
    analysis = compiled.cost_analysis() or {}
    return analysis.get("flops")


def peak_bytes(compiled: Any) -> int:
    """Peak memory of one device: arguments, results and temporaries."""
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    # Backends that do not track the peak report 0 or the arguments alone.
    return max(getattr(memory, "peak_memory_in_bytes", 0), total + memory.temp_size_in_bytes)
