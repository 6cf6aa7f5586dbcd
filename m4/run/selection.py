"""What labels allow: `train.select` on validation, learning on training. Asked before training."""

from typing import Any

import ml_collections
import numpy as np

from m4.data.store import Store
from m4.errors import ConfigError
from m4.eval import evaluate, metrics
from m4.specs import TaskSpec
from m4.types import Target

UNDEFINED = "undefined for its labels"


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
        f" ({values[metric].note or UNDEFINED}); {hint},"
        " or --config.train.choose=last"
    )


def tell(config: ml_collections.ConfigDict, train: Store, val: Store | None) -> None:
    """Prints what labels do not allow and a run can go without.

    That is `train.select` where the last step is taken, and each task of whose training labels
    nothing can be learned.
    """
    if config.train.choose == "last" and val is not None:
        name, _, metric = config.train.select.rpartition("/")
        value = of_chance(val, name)[metric]
        if not np.isfinite(value.value):
            print(
                f"m4: warning: train.select={config.train.select}: cannot be computed on the"
                f" validation split ({value.note or UNDEFINED}); the last step is taken all the"
                " same",
                flush=True,
            )
    for task in train.spec.tasks:
        if task.kind in ("segmentation", "cluster"):
            continue
        label_NL, known_NL = _labels(train, task)
        first = 1 if task.kind == "survival" else 0  # the event, not its time
        pairs = zip(label_NL.T[first:], known_NL.T[first:], strict=True)
        alike = [len(np.unique(label_N[known_N])) < 2 for label_N, known_N in pairs]
        if any(alike):
            which = f"{sum(alike)} of {len(alike)} labels" if len(alike) > 1 else "its label"
            print(
                f"m4: warning: {task.name}: {which} never varies among the training rows that have"
                " it: nothing can be learned of it",
                flush=True,
            )


def of_chance(split: Store, name: str) -> dict[str, metrics.Value]:
    """Every metric of a task with predictions drawn at random: NaN where labels leave it undefined.

    `name` is the task's.
    """
    task = split.spec.task(name)
    drawn_NC = np.random.default_rng(0).random((len(split), task.dim))
    return metrics.score(task, *_labels(split, task), drawn_NC)


def _labels(split: Store, task: TaskSpec) -> tuple[np.ndarray, np.ndarray]:
    """(labels, known) of a split's rows, as they are scored: `evaluate.labels`."""
    names = split.spec.modality_names
    keys = f"y/{task.name}", f"y/{task.name}/mask"
    found = split.columns([*keys, *(f"{m}/present" for m in names)])
    present = {m: found[f"{m}/present"].astype(bool) for m in names}
    counted_N = np.any([*present.values()], axis=0)
    counted_N = np.all([counted_N, *(present[m] for m in task.needs)], axis=0)
    known: Any = [found[key] for key in keys]
    return evaluate.labels(task, Target(*known), np.arange(len(split)), counted_N)
