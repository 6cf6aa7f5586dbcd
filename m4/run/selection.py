"""What labels allow: `train.select` on validation, learning on training. Asked before training."""

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
    chosen (`train.choose`) no metric is needed, and that is a warning.
    """
    if val is None and config.optim.halve:
        raise ConfigError("optim.halve: needs a validation split, and data.also_train leaves none")
    last = config.train.choose == "last"
    if val is None and last:
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
    why = values[metric].note or "undefined for its labels"
    if last:
        told = f"train.select={config.train.select}: cannot be computed on {where} ({why})"
        print(f"m4: warning: {told}; the last step is taken all the same", flush=True)
        return
    others = [other for other, value in values.items() if np.isfinite(value.value)]
    hint = f"choose one of {', '.join(others)}" if others else "choose another task"
    raise ConfigError(
        f"train.select={config.train.select!r}: cannot be computed on {where}"
        f" ({why}); {hint},"
        " or --config.train.choose=last"
    )


def tell(train: Store) -> None:
    """Prints a line for each task of whose training labels nothing can be learned."""
    for task in train.spec.tasks:
        if task.kind in ("segmentation", "cluster"):
            continue
        found = train.columns([f"y/{task.name}", f"y/{task.name}/mask"])
        value_NL, mask_NL = (x.reshape(len(train), -1) for x in found.values())
        value_NL = value_NL[:, -1:] if task.kind == "survival" else value_NL  # the event
        known_NL = np.broadcast_to(mask_NL > 0, value_NL.shape)
        alike = [_alike(value_NL[known_NL[:, c], c]) for c in range(value_NL.shape[1])]
        if any(alike):
            which = f"{sum(alike)} of {len(alike)} labels" if len(alike) > 1 else "its label"
            print(
                f"m4: warning: {task.name}: {which} never varies among the training rows that have"
                " it: nothing can be learned of it",
                flush=True,
            )


def _alike(known_n: np.ndarray) -> bool:
    return len(known_n) == 0 or known_n.min() == known_n.max()


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
