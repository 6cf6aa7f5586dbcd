"""Can `train.select` be computed on the validation labels? Asked before anything is trained."""

from typing import Any

import ml_collections
import numpy as np

from m4.data.store import Store
from m4.errors import ConfigError
from m4.eval import evaluate, metrics
from m4.types import Target


def require_defined(
    config: ml_collections.ConfigDict, val: Store | None, where: str = "the validation split"
) -> None:
    """Raises ConfigError for a metric that these labels leave undefined, whatever is predicted.

    The metric itself is asked, with predictions drawn at random: AUROC of one class, R2 of equal
    values or a c-index without a comparable pair are NaN for them too. Where the last step is
    chosen (`train.choose`) no metric is needed.
    """
    if val is None and config.optim.halve:
        raise ConfigError("optim.halve: needs a validation split, and data.also_train leaves none")
    if config.train.choose == "last":
        return
    if val is None:
        raise ConfigError(
            f"data.also_train={config.data.also_train!r}: leaves no validation split to choose a"
            " step on; --config.train.choose=last takes the last one"
        )
    name, _, metric = config.train.select.rpartition("/")
    values = of_chance(val, name)
    if np.isfinite(values[metric].value):
        return
    others = [other for other, value in values.items() if np.isfinite(value.value)]
    hint = f"choose one of {', '.join(others)}" if others else "choose another task"
    raise ConfigError(
        f"train.select={config.train.select!r}: cannot be computed on {where}"
        f" ({values[metric].note or 'undefined for its labels'}); {hint},"
        " or --config.train.choose=last"
    )


def of_chance(split: Store, name: str) -> dict[str, metrics.Value]:
    """Every metric of a task with predictions drawn at random: NaN where labels leave it undefined.

    `name` is the task's.
    """
    task, rows, names = split.spec.task(name), np.arange(len(split)), split.spec.modality_names
    found = split.columns([f"y/{name}", f"y/{name}/mask", *(f"{m}/present" for m in names)])
    present = {m: found[f"{m}/present"].astype(bool) for m in names}
    counted_N = np.any([*present.values()], axis=0)
    counted_N = np.all([counted_N, *(present[m] for m in task.needs)], axis=0)
    known: Any = found[f"y/{name}"], found[f"y/{name}/mask"]
    label_NL, mask_NL = evaluate.labels(task, Target(*known), rows, counted_N)
    drawn_NC = np.random.default_rng(0).random((len(split), task.dim))
    return metrics.score(task, label_NL, mask_NL, drawn_NC)
