"""When a prediction can be relied on, and by whom: sections of the results document.

`conformal`, see `m4.eval.coverage`; `selective`, see `m4.eval.selective`; `groups`, see
`m4.eval.fairness`. A section is absent where nothing can be judged.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from m4.eval import bootstrap, coverage, fairness, selective
from m4.eval.predictions import Predictions
from m4.specs import DataSpec


@threadpool_limits.wrap(limits=1)
def sections(
    predictions: Predictions,
    spec: DataSpec,
    calibration: Predictions | None,
    *,
    alpha: float,
    min_patients: int,
    seed: int,
    draws: int = 1000,
    thresholds: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """The sections that these predictions allow, by name; `draws` are those of the document."""
    sampled = bootstrap.resample(predictions.patient, predictions.fold, draws=draws, seed=seed)
    judged = [*coverage.judge(predictions, spec, alpha=alpha, calibration=calibration, seed=seed)]
    cuts = thresholds or {}
    found = {
        "conformal": coverage.section(judged, predictions, spec, alpha, min_patients),
        "selective": selective.section(judged, sampled, min_patients),
        "groups": fairness.section(predictions, spec, sampled, judged, cuts, min_patients),
    }
    return {name: section for name, section in found.items() if section}
