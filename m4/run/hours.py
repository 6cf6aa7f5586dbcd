"""How long a run took, by its log: steps, evaluations and saves, without compiling. Free of JAX."""

import json
from collections.abc import Iterable
from pathlib import Path

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
    total, before = 0.0, 0
    for line in seal.sound_lines(place / LOG)[0]:
        found = json.loads(line)
        total += sum(found.get(f"time/{name}_s", 0.0) for name in ("eval", "save"))
        if speed := found.get("time/examples_per_s"):
            total += (found["step"] - before) * rows / speed
            before = found["step"]
    return total if before else None


def of(places: Iterable[Path]) -> float | None:
    """Hours of several work directories together; None if one has no log."""
    found = [seconds(place) for place in places]
    return None if None in found or not found else sum(one or 0.0 for one in found) / 3600
