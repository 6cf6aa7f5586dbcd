"""Batches with some of their rows or contents exchanged, emptied or polluted."""

import jax
import numpy as np

from m4.audit.random_rows import random_targets
from m4.specs import DataSpec
from m4.types import Batch


def take(batch: Batch, rows) -> Batch:
    """Rows of a batch, in the order asked for."""
    return jax.tree.map(lambda x: x[np.asarray(rows)], batch)


def replace_rows(batch: Batch, other: Batch, rows) -> Batch:
    """`batch` with some rows taken from `other`."""

    def leaf(x, y):
        x = np.array(x)
        x[np.asarray(rows)] = y[np.asarray(rows)]
        return x

    return jax.tree.map(leaf, batch, other)


def drop_modalities(batch: Batch, row: int) -> Batch:
    """`batch` with nothing present in `row`, as the data room writes it: zeros."""

    def stream(s):
        cut = jax.tree.map(np.array, s)
        for field in ("values", "mask", "present", "times", "observed"):
            if getattr(cut, field) is not None:
                getattr(cut, field)[row] = 0
        return cut

    return batch.replace(inputs={name: stream(s) for name, s in batch.inputs.items()})


def pollute(batch: Batch, garbage: float) -> Batch:
    """Garbage wherever nothing was measured: absent slots, padding, unobserved entries."""

    def stream(s):
        present = np.asarray(s.present)
        mask = np.asarray(s.mask)
        holes = ~np.broadcast_to(
            present.reshape(-1, *(1,) * (s.values.ndim - 1)), np.shape(s.values)
        )
        if s.observed is not None:
            holes |= ~np.asarray(s.observed)
        elif mask.shape[1] == s.values.shape[1]:
            holes |= ~mask.reshape(*mask.shape, *(1,) * (s.values.ndim - 2))
        integer = np.issubdtype(s.values.dtype, np.integer)
        filler = np.iinfo(s.values.dtype).max if integer else garbage
        new = s.replace(values=np.where(holes, filler, s.values).astype(s.values.dtype))
        if s.times is not None:
            new = new.replace(times=np.where(mask, s.times, garbage).astype(np.float32))
        return new

    return batch.replace(inputs={name: stream(s) for name, s in batch.inputs.items()})


def relabel(batch: Batch, spec: DataSpec, seed: int = 7) -> Batch:
    """Other labels, same masks."""
    other = random_targets(spec, len(batch.uid), np.random.default_rng(seed))
    return batch.replace(
        targets={n: t.replace(value=1 - other[n].value) for n, t in batch.targets.items()}
    )


def remask(batch: Batch, seed: int = 7) -> Batch:
    """Same labels, others of them known."""
    rng = np.random.default_rng(seed)

    def other(mask):
        return rng.integers(0, 2, np.shape(mask)).astype(mask.dtype)

    return batch.replace(
        targets={n: t.replace(mask=other(t.mask)) for n, t in batch.targets.items()}
    )


def reweigh(batch: Batch, seed: int = 7) -> Batch:
    """Other weights; those of 0 stay, since they say that nobody is there."""
    weight = np.asarray(batch.weight)
    factor = np.random.default_rng(seed).uniform(0.25, 4.0, weight.shape)
    return batch.replace(weight=(weight * factor).astype(weight.dtype))


def reassign(batch: Batch, spec: DataSpec, seed: int = 7) -> Batch:
    """Rows of other tasks, each of one."""
    task = np.asarray(batch.task)
    other = np.random.default_rng(seed).integers(0, len(spec.tasks), task.shape)
    return batch.replace(task=other.astype(task.dtype))
