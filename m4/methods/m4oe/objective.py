"""What M4oE minimises: losses per row, learned task weights, and the information.

Letters: B rows, C classes.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from m4 import task_losses
from m4.nn import segmentation
from m4.specs import DataSpec, TaskSpec
from m4.types import Array, Batch, Mean, Outputs, Target


def objective(
    data: DataSpec,
    out: Outputs,
    batch: Batch,
    aux_weights: Mapping[str, float],
    row_loss: task_losses.RowLoss,
    *,
    by_name: bool = False,
) -> tuple[Array, dict[str, Mean]]:
    """Task losses minus `aux_weights['information']` times the information; unweighted terms.

    With `sigma` [P] in `out.extra` it is the sum of L / (2 sigma^2) + log(1 + sigma^2) over the
    tasks that have a label. `by_name` as `task_losses.task_losses` has it.
    """
    terms = task_losses.task_losses(data, out.logits, batch, row_loss=row_loss, by_name=by_name)
    weighed = dict(terms)
    for task, sigma in zip(data.tasks, out.extra.get("sigma", ()), strict=False):
        term = terms[task.name]
        value = task_losses.uncertainty(term.value(), sigma)
        weighed[task.name] = Mean(jnp.where(term.weight > 0, value, 0.0), jnp.ones(()))
    return task_losses.total(data, weighed, out.aux_losses, aux_weights), terms


def row_loss(task: TaskSpec, logits: Array, target: Target) -> tuple[Array, Array]:
    """As `task_losses.row_loss`; cross-entropy and Dice of maps."""
    if task.kind != "segmentation":
        return task_losses.row_loss(task, logits, target)
    mask_B = target.mask.astype(jnp.float32)
    value = jnp.where(mask_B[:, None, None, None] > 0, target.value, 0.0)
    return segmentation.loss(logits, value), mask_B


def focal_loss(class_weights: Mapping[str, tuple[float, ...]], gamma: float) -> task_losses.RowLoss:
    """`row_loss`, but focal where a task has classes; they weigh 1 where nothing else is said."""

    def loss(task: TaskSpec, logits: Array, target: Target) -> tuple[Array, Array]:
        if task.kind not in ("binary", "multiclass"):
            return row_loss(task, logits, target)
        weight_C = jnp.array(class_weights.get(task.name, (1.0,) * max(task.dim, 2)))
        return focal(logits, target, weight_C, gamma)

    return loss


def focal(logits_BC: Array, target: Target, weight_C: Array, gamma: float) -> tuple[Array, Array]:
    """(1 - p_y)^gamma w_y (-log p_y) and label mask per row; a single logit stands for two classes.

    As released, p_y in the first factor has no gradient.
    """
    logits_BC = logits_BC.astype(jnp.float32)
    if logits_BC.shape[-1] == 1:
        logits_BC = jnp.concatenate([jnp.zeros_like(logits_BC), logits_BC], -1)
    mask_B = target.mask.reshape(-1).astype(jnp.float32)
    label_B = jnp.where(mask_B > 0, target.value.reshape(-1), 0).astype(jnp.int32)
    log_BC = jax.nn.log_softmax(logits_BC)
    log_B = jnp.take_along_axis(log_BC, label_B[:, None], -1)[:, 0]
    easy_B = jax.lax.stop_gradient(jnp.exp(log_B))
    return -((1.0 - easy_B) ** gamma) * weight_C[label_B] * log_B, mask_B
