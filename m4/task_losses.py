"""Losses per task kind: pure functions of logits and targets.

Every function returns one number per row; reduction is `Mean`'s business, so masked rows,
missing labels and micro-batches merge exactly.

Letters: B rows, C labels, classes or values, J intervals of time.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from m4.specs import DataSpec, TaskSpec
from m4.types import Array, Batch, Mean, MoeAux, Outputs, Target


def row_loss(task: TaskSpec, logits_BC: Array, target: Target) -> tuple[Array, Array]:
    """Loss and label weight of every row, both f32[B].

    binary and multilabel: sigmoid cross-entropy, averaged over the labels that are known;
    multiclass: softmax cross-entropy of an integer class; regression: Huber (delta 1) on the
    standardised target; survival: see `survival_loss`. Values at masked labels never reach the
    result or its gradient. Raises ValueError for kinds whose loss belongs to a method
    (segmentation, cluster).
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
    if task.kind == "survival":
        value_B2 = jnp.where(mask_B[:, None] > 0, target.value.reshape(-1, 2), 0.0)
        return survival_loss(survival_edges(task), logits_BC, value_B2), mask_B
    raise ValueError(
        f"task {task.name}: kind {task.kind!r} has no generic loss; its method must provide one"
    )


def standardise(task: TaskSpec, value: Array) -> Array:
    """Regression target in loss units: (transform(value) - loc) / scale."""
    value = value.astype(jnp.float32)
    if task.transform == "log1p":
        value = jnp.log1p(jnp.maximum(value, 0.0))
    return (value - task.loc) / task.scale


Scaling = Mapping[str, tuple[Any, Any]]  # f32 (loc, scale) of every regression task


def scaling(spec: DataSpec) -> Scaling:
    """What was fitted to the targets of a training split, as inputs of a program."""
    regressions = [task for task in spec.tasks if task.kind == "regression"]
    return {t.name: (np.float32(t.loc), np.float32(t.scale)) for t in regressions}


def unscaled(spec: DataSpec) -> DataSpec:
    """The schema of batches that are `in_loss_units`: the same for every training split."""
    unit = {"transform": "none", "loc": 0.0, "scale": 1.0}
    tasks = (dataclasses.replace(t, **unit) if t.kind == "regression" else t for t in spec.tasks)
    return dataclasses.replace(spec, tasks=tuple(tasks))


def scaled(task: TaskSpec, scaling: Scaling) -> TaskSpec:
    """`task` with its entry of `scaling`, which may be traced."""
    loc, scale = scaling.get(task.name, (task.loc, task.scale))
    return dataclasses.replace(task, loc=loc, scale=scale)


def in_loss_units(spec: DataSpec, batch: Batch, scaling: Scaling) -> Batch:
    """`batch` with its regression targets standardised."""
    targets = dict(batch.targets)
    for name in scaling:
        target, task = targets[name], scaled(spec.task(name), scaling)
        targets[name] = target.replace(value=standardise(task, target.value))
    return batch.replace(targets=targets)


def predict(task: TaskSpec, logits_BC: Array) -> Array:
    """Logits -> probabilities (binary, multilabel, multiclass) or values in the target's unit.

    Of a survival task: the probability of the event up to the end of every interval.
    """
    logits_BC = logits_BC.astype(jnp.float32)
    if task.kind in ("binary", "multilabel"):
        return jax.nn.sigmoid(logits_BC)
    if task.kind == "multiclass":
        return jax.nn.softmax(logits_BC, axis=-1)
    if task.kind == "regression":
        value_BC = logits_BC * task.scale + task.loc
        return jnp.expm1(value_BC) if task.transform == "log1p" else value_BC
    if task.kind == "survival":  # 1 - prod (1 - hazard)
        return -jnp.expm1(-jnp.cumsum(jax.nn.softplus(logits_BC), axis=-1))
    raise ValueError(f"task {task.name}: kind {task.kind!r} has no generic prediction")


def survival_edges(task: TaskSpec) -> np.ndarray:
    """Right ends of a survival task's intervals, f32[J]: its `labels`, in the unit of its times.

    Raises ValueError unless they are `dim` and increase.
    """
    try:
        found = np.array([float(label) for label in task.labels], np.float32)
    except ValueError:
        found = np.zeros(0, np.float32)
    if len(found) != task.dim or (np.diff(found, prepend=0.0) <= 0).any():
        raise ValueError(
            f"task {task.name}: a survival task with dim={task.dim} needs as many labels, the"
            f" increasing right ends of its time intervals; it has {task.labels}"
        )
    return found


def survival_loss(edge_J: np.ndarray, logits_BJ: Array, value_B2: Array) -> Array:
    """Minus log-likelihood of (time, 1 = event or 0 = censored) per row, f32[B].

    Logits are of the hazards P(event in interval j | none before) (Gensheimer and Narasimhan
    2019). An interval counts for a row that had no event up to its right end, or had it inside;
    an interval in which a row was censored does not. Outliving the last edge is all that counts.
    """
    time_B1, event_B1 = value_B2[:, :1], value_B2[:, 1:] > 0
    survived_BJ = time_B1 >= edge_J
    start_J = np.concatenate([[-np.inf], edge_J[:-1]])
    event_BJ = event_B1 & (time_B1 >= start_J) & ~survived_BJ
    logits_BJ = logits_BJ.astype(jnp.float32)
    loss_BJ = jnp.where(survived_BJ, jax.nn.softplus(logits_BJ), 0.0)
    loss_BJ += jnp.where(event_BJ, jax.nn.softplus(-logits_BJ), 0.0)
    return loss_BJ.sum(-1)


RowLoss = Callable[[TaskSpec, Array, Target], tuple[Array, Array]]


def task_losses(
    spec: DataSpec,
    logits: Mapping[str, Any],
    batch: Batch,
    *,
    row_loss: RowLoss = row_loss,
    by_name: bool = False,
) -> dict[str, Mean]:
    """Mean loss of every task over rows that count, carry its label and have what it needs.

    `row_loss` is a method's own loss per row, for kinds of task that have no generic one. It gets
    one of several tasks that are alike, and all their columns; `by_name` if names matter to it.
    """
    if not spec.tasks:
        return {}
    alike: dict[Any, list[int]] = {}
    for place, task in enumerate(spec.tasks):
        key = task.name if by_name else _meaning(task, logits[task.name], batch)
        alike.setdefault(key, []).append(place)
    places = np.concatenate([*alike.values()])
    loss_BT, known_BT = _row_losses(spec.tasks, [*alike.values()], logits, batch, row_loss)
    tasks = [spec.tasks[place] for place in places]
    task_B1 = batch.task[:, None]
    own_BT = ((task_B1 < 0) | (task_B1 == places)) & _has_needs(tasks, batch)
    weight_BT = known_BT * batch.weight[:, None] * own_BT
    total_T, weight_T = jnp.sum(loss_BT * weight_BT, 0), jnp.sum(weight_BT, 0)
    labels = batch.labels or {t.name: weight_T[i] for i, t in enumerate(tasks)}
    terms = {t.name: Mean(total_T[i], labels[t.name]) for i, t in enumerate(tasks)}
    return {name: terms[name] for name in spec.task_names}


def _meaning(task: TaskSpec, logits: Any, batch: Batch) -> Any:
    """What tasks of one loss have in common."""
    ends = task.labels if task.kind == "survival" else ()
    shapes = [x.shape for x in jax.tree.leaves((logits, batch.targets[task.name]))]
    return task.kind, task.dim, ends, task.transform, task.loc, task.scale, *shapes


def _row_losses(
    tasks: Sequence[TaskSpec],
    alike: Sequence[Sequence[int]],
    logits: Mapping[str, Any],
    batch: Batch,
    of_rows: RowLoss,
) -> tuple[Array, Array]:
    """`of_rows` of every task, both f32[B, T], group by group: forty alike compile like one."""
    found = []
    for places in alike:
        one = functools.partial(of_rows, tasks[places[0]])
        given = [(logits[tasks[t].name], batch.targets[tasks[t].name]) for t in places]
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts, 1), *given)
        found.append(jax.vmap(one, 1, 1)(*stacked))
    loss_BT, known_BT = (jnp.concatenate(parts, 1) for parts in zip(*found, strict=True))
    return loss_BT, known_BT


def _has_needs(tasks: Sequence[TaskSpec], batch: Batch) -> Array:
    """Whether a row has the modalities that a task needs, bool[B, T]."""
    every_B = jnp.ones(batch.weight.shape, bool)
    needs = {task.needs for task in tasks}
    has = {
        names: functools.reduce(jnp.logical_and, (batch.inputs[n].present for n in names), every_B)
        for names in needs
    }
    return jnp.stack([has[task.needs] for task in tasks], 1)


def uncertainty(loss: Array, sigma: Array) -> Array:
    """L / (2 sigma^2) + log(1 + sigma^2), a learned sigma per task (Liebel and Koerner 2018)."""
    return 0.5 * loss / jnp.square(sigma) + jnp.log1p(jnp.square(sigma))


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
    values = [task.weight * terms[task.name].value() for task in spec.tasks]
    values += [aux_weights[n] * aux_losses[n] for n in sorted(aux_losses) if aux_weights[n]]
    return sum(values, start=jnp.zeros(()))


def over_layers(moe: Mapping[str, MoeAux], names: Iterable[str]) -> dict[str, Array]:
    """Losses that every layer has, summed over layers."""
    zero = jnp.zeros(())
    return {name: sum((layer.losses[name] for layer in moe.values()), zero) for name in names}


def counted(spec: DataSpec, batch: Batch) -> Batch:
    """`batch` in which a row without any present modality has weight 0, whatever it had."""
    return batch.replace(weight=batch.weight * batch.present(spec).any(-1))


def of_each(
    spec: DataSpec,
    each: Mapping[str, Array],
    batch: Batch,
    kept_BN: Array,
    loss_of: Callable[[Array], Array] = lambda loss_BN: loss_BN,
) -> tuple[Array, dict[str, Mean]]:
    """What is minimised where N parts of a method answer alone: a row's loss is the mean of theirs.

    `each` are logits [B, N, C], of which those outside `kept_BN` don't count: a row with many
    modalities weighs no more than one with few. `loss_of` maps the losses, [B, N].
    """

    def mean_loss(task: TaskSpec, each_BNC: Array, target: Target) -> tuple[Array, Array]:
        every = jax.vmap(lambda logits_BC: row_loss(task, logits_BC, target), 1, 1)
        loss_BN, known_BN = every(each_BNC)
        total_B = jnp.where(kept_BN, loss_of(loss_BN), 0.0).sum(1)
        return total_B / jnp.maximum(kept_BN.sum(1), 1), known_BN[:, 0]

    terms = task_losses(spec, each, counted(spec, batch), row_loss=mean_loss)
    return total(spec, terms, {}, {}), terms


def objective(
    spec: DataSpec, out: Outputs, batch: Batch, aux_weights: Mapping[str, float]
) -> tuple[Array, dict[str, Mean]]:
    """What a method minimises, a scalar, and the mean loss of every task over `counted` rows.

    Task losses plus `aux_weights` times the auxiliary losses. Raises ValueError as `total` does.
    """
    terms = task_losses(spec, out.logits, counted(spec, batch))
    return total(spec, terms, out.aux_losses, aux_weights), terms
