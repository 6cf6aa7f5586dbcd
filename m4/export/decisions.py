"""What goes with a prediction: the cut chosen in validation.

Cuts are read from the results of the test split, which were made with them. For thresholds of
prediction sets see `m4.eval.calibrated`.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m4 import seal
from m4.specs import TaskSpec


def results(folder: Path) -> dict[str, Any] | None:
    """The results document of the test split; None if there is none, or it is damaged."""
    try:
        if seal.problem(folder, "results/test.json"):
            return None
        found = json.loads((folder / "results/test.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("tasks"), dict) else None


def cuts(task: TaskSpec, document: Mapping[str, Any] | None) -> dict[str, Any]:
    """{'threshold': a cut per label}, {} where none was chosen."""
    found = ((document or {}).get("tasks", {}).get(task.name) or {}).get("threshold")
    if task.kind not in ("binary", "multilabel") or not isinstance(found, list):
        return {}
    known = [c if isinstance(c, float | int) and math.isfinite(c) else None for c in found]
    return {"threshold": known} if len(known) == task.dim and any(known) else {}
