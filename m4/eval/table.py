"""The subset table as a file: every row's prediction under every subset of the modalities.

Long: one line per subset and row. Columns: `row` of the split, `patient` (as the caller names
them), `fold` of a cross-validation, `subset` (the modalities that were kept, in words), `counted`
(whether any of them is there), `present/<modality>`, `group/<column>`, then per task
`answer/<task>` or `answer/<task>/<label>` for each output and `label/<task>` likewise (null where
unknown). `read` makes `Predictions` of it, so that any analysis can be made again. Maps are left
out. It names rows: keep it to its owner.

Letters: S subsets, N rows, M modalities, C labels, classes or values, L label columns.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m4 import seal
from m4.errors import DataError
from m4.eval import acquire, attribution, bootstrap, games
from m4.eval.predictions import Predictions
from m4.eval.subsets import describe
from m4.specs import DataSpec, TaskSpec

NOTE = b"m4.subset_table"  # of the file's metadata: what the words of `subset` stand for


def make(found: Predictions, spec: DataSpec, patient_N: np.ndarray) -> pa.Table:
    """The table; `patient_N` is what patients are called in it. Routing is left out."""
    names, count = spec.modality_names, len(found.subsets)
    said = [describe(names, tuple(map(bool, keep))) for keep in found.subsets]
    index = pa.array(np.repeat(np.arange(count, dtype=np.int32), len(found.uid)))
    columns = {"row": _tiled(found.uid, count), "patient": _tiled(patient_N, count)}
    if found.fold is not None:
        columns["fold"] = _tiled(found.fold, count)
    columns["subset"] = pa.DictionaryArray.from_arrays(index, pa.array(said))
    columns["counted"] = pa.array(found.counted.reshape(-1))
    for m, name in enumerate(names):
        columns[f"present/{name}"] = _tiled(found.present[:, m], count)
    for name, category_N in found.groups.items():
        columns[f"group/{name}"] = _tiled(category_N, count)
    for task, answer_SNC in found.prediction.items():
        if spec.task(task).kind == "segmentation":  # its scores are no predictions
            continue
        outputs = _outputs(spec.task(task), answer_SNC.shape[2])
        for c, output in enumerate(outputs):
            columns[f"answer/{output}"] = pa.array(answer_SNC[:, :, c].reshape(-1))
        for column, value_N, known_N in _labels(found, spec.task(task)):
            columns[column] = _tiled(value_N, count, known_N)
    note = {"modalities": names, "subsets": [[bool(k) for k in keep] for keep in found.subsets]}
    return pa.table(columns).replace_schema_metadata({NOTE: json.dumps(note).encode()})


def worth(found: Predictions, spec: DataSpec, patient_N: np.ndarray, seed: int = 0) -> pa.Table:
    """One line per row: what each modality adds to what is known of it, `<task>/<modality>`.

    Shapley values of the log probability of what came true (`m4.eval.attribution`), null where the
    label is unknown. `seed` is that of the sweep, whose random orders passed the subsets.
    """
    columns = {"row": pa.array(found.uid), "patient": pa.array(patient_N)}
    draws = bootstrap.resample(found.patient, draws=1)
    for task in spec.tasks:
        game = games.play(found, spec, task, draws, min_patients=1, seed=seed)
        value_nM = None if game is None else attribution.by_row(game)
        if game is None or value_nM is None:
            continue
        known_N = np.isin(np.arange(len(found.uid)), game.row_n)
        for m, name in enumerate(spec.modality_names):
            value_N = np.zeros(len(found.uid))
            value_N[game.row_n] = value_nM[:, m]
            columns[f"{task.name}/{name}"] = pa.array(value_N, mask=~known_N)
    return pa.table(columns)


def next_tests(
    found: Predictions,
    spec: DataSpec,
    patient_N: np.ndarray,
    costs: Mapping[str, float] | None = None,
    seed: int = 0,
) -> pa.Table:
    """One line per row: what each modality that it lacks should tell, `gain/<task>/<modality>`.

    In nats, null where a modality is there or nothing is known of it. `next/<task>` names the one
    that tells most per cost (`m4.eval.acquire`). No columns of a task without a value model.
    """
    columns = {"row": pa.array(found.uid), "patient": pa.array(patient_N)}
    draws = bootstrap.resample(found.patient, draws=1)
    for task in spec.tasks:
        game = games.play(found, spec, task, draws, min_patients=1, seed=seed)
        advice = None if game is None else acquire.by_row(game, costs, seed=seed)
        if game is None or advice is None:
            continue
        gain_NM = np.full(found.present.shape, np.nan)
        gain_NM[game.row_n] = advice[0]
        next_N = np.full(len(found.uid), -1)
        next_N[game.row_n] = advice[1]
        columns |= advice_columns(task.name, spec.modality_names, gain_NM, next_N)
    return pa.table(columns)


def advice_columns(
    task: str, names: Sequence[str], gain_NM: np.ndarray, next_N: np.ndarray
) -> dict[str, pa.Array]:
    """`gain/<task>/<modality>`, null where NaN, and `next/<task>`, null below 0."""
    columns = {
        f"gain/{task}/{name}": pa.array(gain_N, mask=np.isnan(gain_N))
        for name, gain_N in zip(names, gain_NM.T, strict=True)
    }
    named_N = np.array([*names, ""], object)[next_N]
    return columns | {f"next/{task}": pa.array(named_N, pa.string(), mask=next_N < 0)}


def read(path: Path, spec: DataSpec) -> Predictions:
    """The table of a file.

    Raises DataError for one that is no such table, is of other data, or is not as it was written
    (`seals.json` of the work directory that it lies in).
    """
    name = f"{path.parent.name}/{path.name}"
    if seal.problem(path.absolute().parent.parent, name) == "differs from its seal":
        raise DataError(f"{path}: differs from its seal; --mode=eval writes it again")
    try:
        table = pq.read_table(path)
        note = json.loads((table.schema.metadata or {})[NOTE])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        raise DataError(f"{path}: is no subset table; --mode=eval writes one") from None
    keep_SM = np.array(note["subsets"], bool)
    if tuple(note["modalities"]) != spec.modality_names or table.num_rows % len(keep_SM):
        raise DataError(f"{path}: is of other modalities than {', '.join(spec.modality_names)}")
    count, rows = len(keep_SM), table.num_rows // len(keep_SM)
    first = table.slice(0, rows)

    def column(name: str) -> np.ndarray:
        return first[name].to_numpy(zero_copy_only=False)

    prediction, label, known = {}, {}, {}
    for task in spec.tasks:
        named = [f"answer/{name}" for name in _outputs(task, task.dim)]
        outputs = [name for name in named if name in table.column_names]
        if not outputs:
            continue
        each = [table[name].to_numpy().reshape(count, rows) for name in outputs]
        prediction[task.name] = np.stack(each, axis=-1)
        columns = [first[name] for name in first.column_names if name in _label_names(task)]
        known[task.name] = np.stack([~np.asarray(c.is_null()) for c in columns], axis=-1)
        values = [c.fill_null(0.0).to_numpy() for c in columns]
        label[task.name] = np.stack(values, axis=-1)
    groups = [name for name in table.column_names if name.startswith("group/")]
    return Predictions(
        subsets=keep_SM,
        uid=column("row"),
        patient=column("patient"),
        present=np.stack([column(f"present/{name}") for name in spec.modality_names], axis=-1),
        prediction=prediction,
        label=label,
        label_mask=known,
        counted=table["counted"].to_numpy(zero_copy_only=False).reshape(count, rows),
        routing={},
        fold=column("fold") if "fold" in table.column_names else None,
        groups={name.removeprefix("group/"): column(name).astype(str) for name in groups},
    )


def _tiled(value_N: np.ndarray, count: int, known_N: np.ndarray | None = None) -> pa.Array:
    """A column that is the same under every subset."""
    mask = None if known_N is None else np.tile(~known_N, count)
    return pa.array(np.tile(value_N, count), mask=mask)


def _outputs(task: TaskSpec, width: int) -> list[str]:
    """Columns of a task's outputs."""
    names = task.labels if len(task.labels) == width else tuple(map(str, range(width)))
    return [task.name] if width == 1 else [f"{task.name}/{name}" for name in names]


def _label_names(task: TaskSpec) -> list[str]:
    if task.kind == "survival":
        return [f"label/{task.name}/{name}" for name in ("time", "event")]
    width = 1 if task.kind == "multiclass" else task.dim
    return [f"label/{name}" for name in _outputs(task, width)]


def _labels(found: Predictions, task: TaskSpec):
    """(column, values f64[N], known bool[N]) of a task's labels."""
    label_NL, known_NL = found.label[task.name], found.label_mask[task.name]
    names = _label_names(task)
    names = names if len(names) == label_NL.shape[1] else [f"label/{task.name}"]
    for c, name in enumerate(names):
        yield name, label_NL[:, c], known_NL[:, c]
