"""Predict a split under many modality subsets with one compiled function.

Letters: B rows of a batch, S subsets, N rows of the split, M modalities, E experts,
C labels, classes or values, L label columns; X nothing, or rows.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m4.errors import DivergedError
from m4.eval import coincide
from m4.eval.predictions import SCORED_KINDS, LayerRouting, Predictions
from m4.specs import DataSpec, TaskSpec
from m4.types import Array, Batch

Predict = Callable[[Batch, np.ndarray], tuple[Mapping[str, Array], Mapping[str, Mapping]]]
MAX_ROUTING_CELLS = 20_000_000  # per layer: 80 MB of float32
WITNESSES = 3  # subsets of which packed answers are compared with those of a call of their own


def mask_modalities(batch: Batch, keep_XM: Array, spec: DataSpec) -> Batch:
    """`batch` as if the modalities with `keep_XM` False had never been recorded.

    Values, times, masks and presence of a dropped modality become zeros, and a row that is left
    with nothing gets weight 0. With all of `keep_XM` True no bit changes. `keep_XM` is in the
    spec's order, bool[M] for all rows or bool[B, M] for each, and may be traced, so one
    compilation serves every subset.
    """

    def kept(stream, keep_X):
        def one(x):
            wide = keep_X.reshape(keep_X.shape + (1,) * (x.ndim - keep_X.ndim))
            return jnp.where(wide, x, jnp.zeros((), x.dtype))

        return jax.tree.map(one, stream)

    keep_XM = jnp.asarray(keep_XM)
    inputs = {
        name: kept(batch.inputs[name], keep_XM[..., m])
        for m, name in enumerate(spec.modality_names)
    }
    masked = batch.replace(inputs=inputs)
    something_B = masked.present(spec).any(axis=-1)
    return masked.replace(weight=jnp.where(something_B, batch.weight, 0.0))


def sweep(
    predict: Predict,
    batches: Iterable[tuple[Batch, Batch]],
    spec: DataSpec,
    subsets_SM: np.ndarray,
    *,
    patients: np.ndarray,
) -> Predictions:
    """Run `predict` on every batch under every subset and gather the results on the host.

    Args:
      predict: compiled `(batch, keep_M) -> (task -> f32[B, C], layer -> stats)`; predictions are
        probabilities or values in the target's unit (`m4.task_losses.predict`), the masking
        (`mask_modalities`) happens inside.
      batches: each row once; rows with weight 0 are padding. What the host knows of a batch (all
        but the values of its inputs is needed), and the batch where `predict` wants it.
      spec: the data set.
      subsets_SM: bool[S, M]; routing is kept for the row that keeps everything, else the first.
      patients: patient of row `uid`, [rows of the split].

    A row that is the same input under several subsets is predicted once (`m4.eval.coincide`), if
    `_Asking` finds that this changes no bit.
    Rows come back in the order of `uid`, whatever that of the batches. The device is asked for the
    results of a batch once, after the next batch has been queued.
    Raises DivergedError for a prediction that is not finite, ValueError when no row counts or a
    row comes twice.
    """
    subsets_SM = np.asarray(subsets_SM, bool)
    asking = _Asking(predict, spec, subsets_SM)
    parts, pending, place_N = [], None, np.random.default_rng(0).permutation(len(patients))
    for pair in itertools.chain(batches, [None]):
        queued = None if pair is None else (pair[0], *asking(*pair))
        if pending is not None:
            parts.append(_fetch(*pending, spec, subsets_SM, place_N))
        pending = queued
    if not any(len(part["uid"]) for part in parts):
        raise ValueError("nothing to evaluate: every row has weight 0")
    return _merge(parts, spec, subsets_SM, np.asarray(patients))


class _Asking:
    """Asks for every row of a batch under every subset, for inputs that coincide once.

    A packed row has other neighbours than in the batch itself. No method lets them matter, but a
    processor may round otherwise then: if `WITNESSES` subsets of the first packed batch are not
    answered with the same bits as in a call of their own, nothing is packed.
    """

    def __init__(self, predict: Predict, spec: DataSpec, subsets_SM: np.ndarray):
        self._predict, self._spec, self._subsets_SM = predict, spec, subsets_SM
        self._whole = int(np.argmax(subsets_SM.all(axis=1)))
        self._packs: bool | None = None  # None: not tried yet
        self._take: Callable[..., Batch] | None = None

    def __call__(self, batch: Batch, placed: Batch) -> tuple[np.ndarray, list, dict]:
        """(place of each answer, i64[S, B], answers of each call, routing of the whole input)."""
        present_BM = np.stack([batch.inputs[m].present for m in self._spec.modality_names], axis=-1)
        loop = coincide.loop(len(present_BM), self._subsets_SM)
        real_B = np.asarray(batch.weight) > 0
        calls = coincide.pack(present_BM > 0, real_B, self._subsets_SM, self._whole)
        if self._packs is False or len(calls) >= len(loop):
            return self._ask(placed, loop)
        asked = self._ask(placed, calls)
        if self._packs is None:
            self._packs = self._same(placed, real_B, asked)
        return asked if self._packs else self._ask(placed, loop)

    def _ask(self, placed: Batch, calls: coincide.Calls) -> tuple[np.ndarray, list, dict]:
        plain = [self._predict(placed, self._subsets_SM[s]) for s in calls.plain]
        everything_M = np.ones(self._subsets_SM.shape[1], bool)
        packed = [
            self._predict(self._taken(placed, row_B, keep_BM), everything_M)
            for row_B, keep_BM in zip(calls.row_KB, calls.keep_KBM, strict=True)
        ]
        layers = plain[calls.plain.index(self._whole)][1]
        return calls.place_SB, [tasks for tasks, _ in plain + packed], dict(layers)

    def _taken(self, placed: Batch, row_B: np.ndarray, keep_BM: np.ndarray) -> Batch:
        """Rows of a batch, each under its own subset, where the batch lies."""
        if self._take is None:

            def take(batch, row_B, keep_BM):
                rows = jax.tree.map(lambda x: jnp.take(x, row_B, axis=0), batch)
                return mask_modalities(rows, keep_BM, self._spec)

            there = jax.tree.map(lambda x: x.sharding, placed)
            self._take = jax.jit(take, out_shardings=there)
        return self._take(placed, row_B, keep_BM)

    def _same(self, placed: Batch, real_B: np.ndarray, asked: tuple) -> bool:
        """Whether some subsets are answered alike, bit for bit, in a call of their own."""
        place_SB, answers, _ = asked
        tried_s = np.linspace(0, len(place_SB) - 1, 1 + WITNESSES).astype(int)[1:]
        for s in tried_s:
            alone, _ = self._predict(placed, self._subsets_SM[s])
            for name, own_BC in jax.device_get(dict(alone)).items():
                packed_BC = _joined(answers, name)[place_SB[s]]
                if own_BC[real_B].tobytes() != packed_BC[real_B].tobytes():
                    return False
        return True


def _joined(answers: list[Mapping[str, Array]], name: str) -> np.ndarray:
    """A task's answers of all calls, on the host."""
    return np.concatenate([np.asarray(tasks[name]) for tasks in answers])


def _fetch(
    batch: Batch, place_SB, answers, layers, spec: DataSpec, subsets_SM, place_N
) -> dict[str, Any]:
    """One batch on the host without its padding rows; `place_N` is each row's in a random order."""
    batch, answers, layers = jax.device_get((batch, answers, layers))
    rows = np.flatnonzero(np.asarray(batch.weight) > 0)
    present_NM = np.stack([batch.inputs[m].present for m in spec.modality_names], axis=-1)[rows]
    part = {
        "uid": np.asarray(batch.uid)[rows].astype(np.int64),
        "present": present_NM.astype(bool),
        "counted": (present_NM[None] & subsets_SM[:, None, :]).any(axis=-1),
        "prediction": {},
        "label": {},
        "label_mask": {},
        "layers": {
            name: _layer(stats, rows, place_N[np.asarray(batch.uid)[rows]])
            for name, stats in layers.items()
        },
    }
    for index, task in enumerate(spec.tasks):
        if task.kind not in SCORED_KINDS or task.name not in answers[0]:
            continue
        value_SNC = _joined(answers, task.name)[place_SB[:, rows]].astype(np.float32)
        bad_SN = ~np.isfinite(value_SNC).all(axis=-1) & part["counted"]
        if bad_SN.any():
            raise DivergedError(
                f"task {task.name}: {bad_SN.sum()} of {part['counted'].sum()} predictions are not "
                "finite; the checkpoint has diverged (try a lower optim.lr)"
            )
        part["prediction"][task.name] = value_SNC
        own_N = np.isin(np.asarray(batch.task)[rows], (-1, index))
        target = batch.targets[task.name]
        part["label"][task.name], part["label_mask"][task.name] = labels(task, target, rows, own_N)
    return part


def labels(task: TaskSpec, target, rows: np.ndarray, own_N: np.ndarray):
    """(labels f64[N, L], 0 where unknown; known bool[N, L]) of `rows`, known where `own_N`."""
    columns = {"multiclass": 1, "survival": 2}.get(task.kind, task.dim)
    value = np.asarray(target.value)[rows]
    value = value.mean((1, 2)) if task.kind == "segmentation" else value
    value_NL = value.reshape(len(rows), columns).astype(np.float64)
    mask_BL = np.asarray(target.mask)
    mask_NL = mask_BL.reshape(len(mask_BL), -1)[rows] > 0
    mask_NL = np.broadcast_to(mask_NL, value_NL.shape) & own_N[:, None]
    return np.where(mask_NL, value_NL, 0.0), mask_NL


def _layer(stats: Mapping[str, np.ndarray], rows: np.ndarray, place_n) -> dict[str, Any]:
    layer = {key: stats[key] for key in ("entropy", "dropped") if key in stats}
    if "by_row" in stats:
        by_row = np.asarray(stats["by_row"], np.float32)[rows]
        if "dropped_by_row" in stats:
            dropped = np.asarray(stats["dropped_by_row"], np.float32)[rows]
            layer["lost"] = np.stack([by_row.sum(axis=(1, 2)), dropped], axis=-1)
        layer["kept"] = place_n < MAX_ROUTING_CELLS // max(1, int(np.prod(by_row.shape[1:])))
        layer["by_row"] = by_row[layer["kept"]]
        layer["by_modality"] = by_row.sum(axis=0, dtype=np.float64)
    elif "by_modality" in stats:
        layer["by_modality"] = np.asarray(stats["by_modality"], np.float64)
    layer["load"] = np.asarray(
        layer["by_modality"].sum(axis=0) if "by_modality" in layer else stats["load"], np.float64
    )
    return layer


def _merge(parts, spec: DataSpec, subsets_SM: np.ndarray, patients: np.ndarray) -> Predictions:
    uid_N = np.concatenate([part["uid"] for part in parts])
    order_N = np.argsort(uid_N)
    uid_N = uid_N[order_N]
    if doubled := int((uid_N[1:] == uid_N[:-1]).sum()):
        raise ValueError(f"{doubled} rows come more than once")
    tasks = [name for name in spec.task_names if name in parts[0]["prediction"]]

    def joined(arrays, axis):
        return np.concatenate(arrays, axis=axis).take(order_N, axis=axis)

    def each(key, axis):
        return {name: joined([part[key][name] for part in parts], axis) for name in tasks}

    return Predictions(
        subsets=subsets_SM,
        uid=uid_N,
        patient=patients[uid_N],
        present=joined([part["present"] for part in parts], 0),
        prediction=each("prediction", 1),
        label=each("label", 0),
        label_mask=each("label_mask", 0),
        counted=joined([part["counted"] for part in parts], 1),
        routing={
            name: _merge_layer([part["layers"][name] for part in parts], order_N)
            for name in parts[0]["layers"]
        },
    )


def _merge_layer(layers: list[dict[str, Any]], order_N: np.ndarray) -> LayerRouting:
    """Sums and means; `by_row` of the rows that were kept, in `order_N`."""
    weights = np.array([layer["load"].sum() for layer in layers])

    def mean(key):
        if key not in layers[0] or not weights.sum():
            return None
        return float(np.average([float(layer[key]) for layer in layers], weights=weights))

    def total(key):
        return np.sum([layer[key] for layer in layers], axis=0) if key in layers[0] else None

    by_row = rows = None
    if "by_row" in layers[0]:
        kept_N = np.concatenate([layer["kept"] for layer in layers])
        rows = np.flatnonzero(kept_N[order_N])
        by_row = np.concatenate([layer["by_row"] for layer in layers])
        by_row = by_row[(np.cumsum(kept_N) - 1)[order_N[rows]]]
    lost = None
    if "lost" in layers[0]:
        lost = np.concatenate([layer["lost"] for layer in layers])[order_N]
    entropy, dropped, load = mean("entropy"), mean("dropped"), np.asarray(total("load"))
    return LayerRouting(total("by_modality"), load, entropy, dropped, by_row, rows, lost)
