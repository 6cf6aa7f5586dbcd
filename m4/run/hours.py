"""How long a run took, by its log: steps, evaluations and saves, without compiling. Free of JAX."""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from m4 import config as configs
from m4 import seal
from m4.errors import ConfigError

LOG = "metrics.jsonl"


def seconds(place: Path) -> float | None:
    """Of one work directory; None without a log of steps."""
    try:
        rows = configs.read_json(place / "config.json")["train"]["batch_size"]
    except (ConfigError, LookupError, TypeError):
        return None
    if not isinstance(rows, int):
        return None
    total, before = 0.0, 0.0
    for line in seal.sound_lines(place / LOG)[0]:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):  # a log without seals may hold anything
            continue
        if not isinstance(found, dict):
            continue
        total += sum(_number(found, f"time/{name}_s") for name in ("eval", "save"))
        speed, step = _number(found, "time/examples_per_s"), _number(found, "step")
        if speed and step > before:
            total += (step - before) * rows / speed
            before = step
    return total if before and math.isfinite(total) else None


def _number(row: dict[str, Any], name: str) -> float:
    """A number of a log's row; 0 for what is none."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 < value <= sys.float_info.max else 0.0


def of(places: Iterable[Path]) -> float | None:
    """Hours of several work directories together; None if one has no log."""
    found = [seconds(place) for place in places]
    return None if None in found or not found else sum(one or 0.0 for one in found) / 3600
