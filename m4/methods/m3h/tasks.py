"""What M3H makes of each kind of task: its logits, its loss, its weight.

Letters: B rows, T tasks, d task width, D width that affine heads read, N columns of statistics,
C outputs of a task.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
import optax

from m4 import task_losses
from m4.methods.m3h import clustering
from m4.nn.layers import StackedHeads
from m4.specs import DataSpec, TaskSpec
from m4.types import Array, Batch, Mean, Outputs, Target

Cluster = Literal["dec", "mi", "kmeans"]
Weighting = Literal["class", "uniform", "uncertainty"]
CLUSTER_LOSSES = {
    "dec": clustering.dec,
    "mi": clustering.mutual_information,
    "kmeans": clustering.kmeans,
}


def affine(tasks: Sequence[TaskSpec]) -> np.ndarray:
    """Indices of the tasks with an affine head: all but clustering."""
    return np.array([t for t, task in enumerate(tasks) if task.kind != "cluster"], int)


def task_logits(tasks: Sequence[TaskSpec], o_BTd: Array, h_BTD: Array) -> dict[str, Array]:
    """Affine heads on `h_BTD` of the `affine` tasks; those of clustering are centroids among `o`.

    Parameters 'heads' and 'cluster_<task>' belong to the module that calls.
    """
    plain = [tasks[t] for t in affine(tasks)]
    logits = StackedHeads(plain, name="heads")(h_BTD) if plain else {}
    for t, task in enumerate(tasks):
        if task.kind == "cluster":
            head = clustering.ClusterHead(task.dim, name=f"cluster_{task.name}")
            logits[task.name] = head(o_BTd[:, t])
    return logits


def objective(
    data: DataSpec,
    out: Outputs,
    batch: Batch,
    weighting: Weighting,
    cluster: Cluster = "dec",
    *,
    squares: bool = True,
) -> tuple[Array, dict[str, Mean]]:
    """Weighted mean of the active tasks' losses. Rows with nothing present count nowhere.

    'uncertainty' weighs by the learned `out.extra['sigma']`; see `task_weights` and `row_loss`.
    """
    batch = task_losses.counted(data, batch)

    def of_rows(task: TaskSpec, logits_BC: Array, target: Target) -> tuple[Array, Array]:
        if task.kind == "cluster":
            loss_B = CLUSTER_LOSSES[cluster](logits_BC, batch.weight)
            return loss_B, jnp.ones_like(batch.weight)
        return row_loss(task, logits_BC, target, squares=squares)

    terms = task_losses.task_losses(data, out.logits, batch, row_loss=of_rows)
    weight_T = task_weights(data.tasks, weighting) * out.extra["active"]
    loss_T = jnp.stack([terms[name].value() for name in data.task_names])
    if weighting == "uncertainty":
        known_T = jnp.stack([terms[name].weight > 0 for name in data.task_names])
        loss_T = jnp.where(known_T, task_losses.uncertainty(loss_T, out.extra["sigma"]), 0.0)
    return jnp.sum(weight_T * loss_T) / jnp.maximum(weight_T.sum(), 1e-6), terms


def row_loss(
    task: TaskSpec, logits_BC: Array, target: Target, *, squares: bool
) -> tuple[Array, Array]:
    """As `task_losses.row_loss`, but squares of a regression where `squares`, not Huber."""
    if task.kind != "regression" or not squares:
        return task_losses.row_loss(task, logits_BC, target)
    mask_B = target.mask.astype(jnp.float32)
    value_BC = task_losses.standardise(task, target.value.reshape(logits_BC.shape))
    value_BC = jnp.where(mask_B[:, None] > 0, value_BC, 0.0)
    return 2 * optax.l2_loss(logits_BC, value_BC).mean(-1), mask_B


def task_weights(tasks: Sequence[TaskSpec], weighting: Weighting) -> np.ndarray:
    """f32[T]: the tasks' own weights, with 'class' over the number of tasks of their kind."""
    count = Counter(task.kind for task in tasks)
    share = [1.0 / count[t.kind] if weighting == "class" else 1.0 for t in tasks]
    return np.array([t.weight for t in tasks], np.float32) * np.array(share, np.float32)
