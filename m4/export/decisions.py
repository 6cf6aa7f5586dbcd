"""What goes with a prediction: the cut chosen in validation, and thresholds of prediction sets.

Cuts are read from the results of the test split, which were made with them, thresholds from
`calibration.json` (`m4.run.beside`), by which the results judged them: a bundle promises what was
evaluated, not what the configuration said in training.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from m4 import seal
from m4.errors import ConfigError
from m4.eval.calibrated import Rules
from m4.run import beside
from m4.specs import TaskSpec


def _silent(line: str) -> None:
    """Says nothing."""


def results(folder: Path, say: Callable[[str], Any] = _silent) -> dict[str, Any] | None:
    """The results document of the test split; None if there is none, or it is damaged.

    None too if they are of other parameters, as of a run that was trained on since; `say` is told.

    Raises ConfigError for results of a split that was made to lack more: neither their scores nor
    their cuts are the model's.
    """
    try:
        if seal.problem(folder, "results/test.json"):
            return None
        found = seal.load(folder / "results/test.json")
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("tasks"), dict):
        return None
    if found.get("missing"):
        raise ConfigError(
            f"{folder / 'results/test.json'}: scores and cuts are of data made to lack more;"
            " evaluate again without eval.missing (--mode=eval --config.eval.missing={})"
        )
    if not beside.is_of(found, folder):
        say(
            f"m4: warning: {folder / 'results/test.json'} is of other parameters, so it is not"
            " taken; --mode=eval writes it again"
        )
        return None
    return found


def thresholds(
    folder: Path, document: Mapping[str, Any] | None, alpha: float
) -> tuple[float, Rules | None]:
    """(alpha, thresholds of prediction sets) as they were evaluated.

    Args:
      folder: the work directory.
      document: its results, if there are.
      alpha: of the configuration, which counts where nothing was evaluated.

    Returns None as thresholds if `calibration.json` is not there, or of other parameters. Raises
    DataError if it is damaged and ConfigError if the results are of another alpha.
    """
    judged = (document or {}).get("conformal")
    tried = judged.get("alpha") if isinstance(judged, dict) else None
    kept = beside.read(folder)
    if kept is None or kept[0] != beside.parameters(folder):
        return tried or alpha, None
    _, own, rules = kept
    if tried not in (None, own):
        raise ConfigError(
            f"{folder / beside.FILE}: is of eval.alpha={own:g}, results/test.json of {tried:g};"
            f" --mode=eval --config.eval.alpha={own:g} writes both"
        )
    return own, rules


def cuts(task: TaskSpec, document: Mapping[str, Any] | None) -> dict[str, Any]:
    """{'threshold': a cut per label}, {} where none was chosen."""
    found = ((document or {}).get("tasks", {}).get(task.name) or {}).get("threshold")
    if task.kind not in ("binary", "multilabel") or not isinstance(found, list):
        return {}
    known = [c if isinstance(c, float | int) and math.isfinite(c) else None for c in found]
    some = any(cut is not None for cut in known)  # 0 is a cut
    return {"threshold": known} if len(known) == task.dim and some else {}
