"""Losses of tasks that are taken together are those of each by itself."""

import numpy as np
import pytest

from m4 import task_losses
from m4.data.batch import empty
from m4.specs import DataSpec, ModalitySpec, TaskSpec

TABLE = ModalitySpec("labs", "table", (2,))
TASKS = (
    TaskSpec("death", "binary"),
    TaskSpec("days", "regression", loc=1.0, scale=2.0),
    TaskSpec("codes", "multilabel", dim=3),
    TaskSpec("back", "binary", labels=("no", "yes"), needs=("labs",)),
    TaskSpec("cost", "regression", loc=1.0, scale=3.0, transform="log1p"),
    TaskSpec("pain", "regression", loc=1.0, scale=2.0),
    TaskSpec("early", "survival", dim=2, labels=("1", "2")),
    TaskSpec("late", "survival", dim=2, labels=("4", "8")),
    TaskSpec("ward", "multiclass", dim=3),
    TaskSpec("unit", "multiclass", dim=3, labels=("a", "b", "c")),
)
SPEC = DataSpec((TABLE,), TASKS)


@pytest.fixture
def given():
    """Logits and a batch of six rows with labels that are partly known, one row for one task."""
    rng, batch = np.random.default_rng(0), empty(SPEC, 6)
    targets, logits = {}, {}
    for task in TASKS:
        target = batch.targets[task.name]
        value = rng.integers(0, 2, target.value.shape) + 0.0 * target.value
        if task.kind == "regression":
            value = rng.uniform(0, 9, target.value.shape)
        mask = rng.random(target.mask.shape) < 0.7
        value = np.asarray(value, target.value.dtype)
        targets[task.name] = target.replace(value=value, mask=mask.astype(target.mask.dtype))
        logits[task.name] = rng.normal(size=(6, task.dim)).astype(np.float32)
    present = rng.random(6) < 0.5
    inputs = {"labs": batch.inputs["labs"].replace(present=present)}
    weight, task = np.array([1, 1, 0, 1, 1, 1], np.float32), np.array([-1, -1, -1, 3, -1, 0])
    batch = batch.replace(targets=targets, inputs=inputs, weight=weight, task=task)
    return logits, batch


def one_by_one(logits, batch, row_loss):
    for index, task in enumerate(TASKS):
        loss_B, known_B = row_loss(task, logits[task.name], batch.targets[task.name])
        weight_B = known_B * batch.weight * ((batch.task < 0) | (batch.task == index))
        if task.needs:
            weight_B = weight_B * batch.inputs["labs"].present
        yield task.name, float((loss_B * weight_B).sum()), float(weight_B.sum())


def by_name(task, logits, target):
    loss_B, known_B = task_losses.row_loss(task, logits, target)
    return loss_B * len(task.name), known_B


@pytest.mark.parametrize("named", [False, True])
def test_each_task_has_its_own_loss(given, named):
    row_loss = by_name if named else task_losses.row_loss
    terms = task_losses.task_losses(SPEC, *given, row_loss=row_loss, by_name=named)
    assert tuple(terms) == SPEC.task_names
    for name, total, weight in one_by_one(*given, row_loss):
        np.testing.assert_allclose(terms[name].total, total, rtol=1e-6)
        assert float(terms[name].weight) == weight
    assert len({round(float(term.total), 4) for term in terms.values()}) > 6
