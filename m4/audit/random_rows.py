"""Rows of any schema that nobody recorded: random values, lengths, times, presence and labels.

Letters: B rows, M modalities.
"""

from typing import Any

import numpy as np

from m4.data.record import target_shape
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Batch, Stream, Target

ROWS = 6  # enough to exchange, permute and empty some; the cost of a check is compiling it


def random_stream(m: ModalitySpec, present: Any, rng: np.random.Generator) -> Stream:
    """Values, ragged lengths, irregular sorted times and scattered observations."""
    rows = len(present)
    length = rng.integers(1, m.length + 1, (rows, 1))
    mask: Any = (np.arange(m.length) < length) & present[:, None]
    times: Any = np.sort(rng.uniform(0, 47, (rows, m.length)), axis=1).astype(np.float32)
    shape = (rows, *m.shape)
    if m.kind in ("codes", "text"):
        ids: Any = np.where(mask, rng.integers(0, m.vocab or 2, shape), 0)
        return Stream(ids.astype(m.dtype), mask, present)
    if m.kind == "image" and np.dtype(m.dtype).kind == "u":
        pixels: Any = rng.integers(0, 256, shape) * mask[..., None, None, None]
        return Stream(pixels.astype(m.dtype), mask, present)
    observed: Any = None
    values: Any = rng.normal(size=shape).astype(np.float32)
    if m.kind == "vectors":
        return Stream(values * mask[..., None], mask, present, times * mask)
    if m.kind == "signal":
        return Stream(values * mask[..., None], mask, present)
    if m.kind == "image":
        return Stream(values * mask[..., None, None, None], mask, present)
    if m.kind == "series":
        observed = (rng.random(shape) < 0.7) & mask[..., None]
        return Stream(values * observed, mask, present, times * mask, observed)
    if m.kind == "table":
        observed = (rng.random(shape) < 0.8) & present[:, None]
        return Stream(values * observed, present[:, None], present, None, observed)
    raise ValueError(f"no random stream for kind {m.kind!r}")


def random_target(task: TaskSpec, rows: int, rng: np.random.Generator, shape=None) -> Target:
    """A label of every row; `shape` is one row's where the task alone does not tell."""
    mask: Any = np.ones((rows, task.dim) if task.kind == "multilabel" else rows, np.float32)
    shape = (task.dim,) if shape is None else shape
    value: Any = rng.integers(0, 2, (rows, *shape)).astype(np.float32)
    if task.kind in ("multiclass", "cluster"):
        value = rng.integers(0, task.dim, rows).astype(np.int32)
    elif task.kind == "regression":
        value = rng.normal(size=(rows, task.dim)).astype(np.float32)
    elif task.kind == "survival":
        event = rng.integers(0, 2, rows)
        value = np.stack([rng.uniform(0, 100, rows), event], -1).astype(np.float32)
    return Target(value, mask)


def random_targets(spec: DataSpec, rows: int, rng: np.random.Generator) -> dict[str, Target]:
    """A label of every row for every task."""
    return {t.name: random_target(t, rows, rng, target_shape(spec, t)) for t in spec.tasks}


def random_batch(spec: DataSpec, seed: int = 0, rows: int = ROWS, keep: float = 0.7) -> Batch:
    """Modalities present with probability `keep`; every row has one, every modality a row."""
    rng = np.random.default_rng(seed)
    present = rng.random((rows, len(spec.modalities))) < keep
    for m in range(len(spec.modalities)):
        present[m % rows, m] = True
    for b in range(rows):
        present[b, b % len(spec.modalities)] = True
    columns: dict[str, Any] = {
        "task": np.full(rows, -1, np.int32),
        "weight": np.ones(rows, np.float32),
        "uid": np.arange(rows, dtype=np.int32),
    }
    inputs = {m.name: random_stream(m, present[:, i], rng) for i, m in enumerate(spec.modalities)}
    return Batch(inputs=inputs, targets=random_targets(spec, rows, rng), **columns)


def covering(present_NM: np.ndarray, rows: int, seed: int = 0) -> np.ndarray:
    """`rows` places of a split: of every modality somebody who has it, the others at random."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero(present_NM.any(-1)))
    chosen: list[Any] = []
    for m in np.argsort(present_NM.sum(0)):
        having = [i for i in order if present_NM[i, m]]
        if having and len(chosen) < rows and not present_NM[chosen, m].any():
            chosen.append(having[0])
    chosen += [i for i in order if i not in chosen][: rows - len(chosen)]
    return np.array(chosen, np.int64)
