"""Losses per task kind: pure functions of logits and targets.

Every function returns one number per row; reduction is `Mean`'s business, so masked rows,
missing labels and micro-batches merge exactly.

Letters: B rows, C labels, classes or values.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from m4.specs import DataSpec, TaskSpec
from m4.types import Array, Batch, Mean, Target


def row_loss(task: TaskSpec, logits_BC: Array, target: Target) -> tuple[Array, Array]:
    """Loss and label weight of every row, both f32[B].

    binary and multilabel: sigmoid cross-entropy, averaged over the labels that are known;
    multiclass: softmax cross-entropy of an integer class; regression: Huber (delta 1) on the
    standardised target. Values at masked labels never reach the result or its gradient.
    Raises ValueError for kinds whose loss belongs to a method (segmentation, cluster, survival).
    """
    logits_BC = logits_BC.astype(jnp.float32)
    mask_B = target.mask.astype(jnp.float32)
    if task.kind in ("binary", "multilabel"):
        mask_BC = jnp.broadcast_to(mask_B.reshape(mask_B.shape[0], -1), logits_BC.shape)
        value_BC = jnp.where(mask_BC > 0, target.value.reshape(logits_BC.shape), 0).astype(
            jnp.float32
        )
        loss_BC = optax.sigmoid_binary_cross_entropy(logits_BC, value_BC) * mask_BC
        known_B = mask_BC.sum(-1)
        return loss_BC.sum(-1) / jnp.maximum(known_B, 1.0), (known_B > 0).astype(jnp.float32)
    if task.kind == "multiclass":
        label_B = jnp.where(mask_B > 0, target.value.reshape(-1), 0).astype(jnp.int32)
        return optax.softmax_cross_entropy_with_integer_labels(logits_BC, label_B), mask_B
    if task.kind == "regression":
        value_BC = jnp.where(
            mask_B[:, None] > 0, standardise(task, target.value.reshape(logits_BC.shape)), 0.0
        )
        return optax.huber_loss(logits_BC, value_BC).mean(-1), mask_B
    raise ValueError(
        f"task {task.name}: kind {task.kind!r} has no generic loss; its method must provide one"
    )


def standardise(task: TaskSpec, value: Array) -> Array:
    """Regression target in loss units: (transform(value) - loc) / scale."""
    value = value.astype(jnp.float32)
    if task.transform == "log1p":
        value = jnp.log1p(jnp.maximum(value, 0.0))
    return (value - task.loc) / task.scale


def predict(task: TaskSpec, logits_BC: Array) -> Array:
    """Logits -> probabilities (binary, multilabel, multiclass) or values in the target's unit."""
    logits_BC = logits_BC.astype(jnp.float32)
    if task.kind in ("binary", "multilabel"):
        return jax.nn.sigmoid(logits_BC)
    if task.kind == "multiclass":
        return jax.nn.softmax(logits_BC, axis=-1)
    if task.kind == "regression":
        value_BC = logits_BC * task.scale + task.loc
        return jnp.expm1(value_BC) if task.transform == "log1p" else value_BC
    raise ValueError(f"task {task.name}: kind {task.kind!r} has no generic prediction")


def task_losses(spec: DataSpec, logits: Mapping[str, Array], batch: Batch) -> dict[str, Mean]:
    """Mean loss of every task over rows that count, carry its label and have what it needs."""
    terms = {}
    for index, task in enumerate(spec.tasks):
        loss_B, known_B = row_loss(task, logits[task.name], batch.targets[task.name])
        weight_B = known_B * batch.weight * ((batch.task < 0) | (batch.task == index))
        for modality in task.needs:
            weight_B = weight_B * batch.inputs[modality].present
        terms[task.name] = Mean(jnp.sum(loss_B * weight_B), jnp.sum(weight_B))
    return terms


def total(
    spec: DataSpec,
    terms: Mapping[str, Mean],
    aux_losses: Mapping[str, Array],
    aux_weights: Mapping[str, float],
) -> Array:
    """Weighted sum of task means and auxiliary losses.

    Raises ValueError unless every auxiliary loss has a weight and every weight a loss, so that
    none can be forgotten or misspelled. A weight of 0 drops the term instead of multiplying it,
    because a dropped term may be non-finite.
    """
    if set(aux_losses) != set(aux_weights):
        raise ValueError(
            f"aux losses {sorted(aux_losses)} but aux_weights {sorted(aux_weights)}: name each once"
        )
    value = sum(task.weight * terms[task.name].value() for task in spec.tasks)
    return value + sum(
        aux_weights[name] * aux_losses[name] for name in sorted(aux_losses) if aux_weights[name]
    )
