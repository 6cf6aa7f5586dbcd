"""One row of plain numbers per record, for the boosting and logistic baselines.

The inputs are the very rows that methods see: cut to length, winsorised, in z units (see
`m4.data.normalise`). Trees do not mind, except that a mean is a mean of transformed values.

| kind | columns per record |
|---|---|
| series | per feature: last, first, mean, min, max, std, count |
| vectors | per component: mean over positions |
| signal | per component: means over eighths of its length, and its length |
| table | the values |
| codes, text | per id, where `vocab` <= 1024: how often it occurs |
| image | per channel: mean over views and pixels; of a view of up to 1,024 numbers all of them |
| all | whether the modality is present |

NaN where there was no observation (std: fewer than two), 0 in counts and presence.

Letters: N records, T positions, f features, V ids.
"""

import math
from collections.abc import Sequence

import numpy as np

from m4.data.store import Rows, Store
from m4.specs import ModalitySpec

STATISTICS = ("last", "first", "mean", "min", "max", "std", "count")
MAX_VOCAB = 1024
MAX_PIXELS = 1024
PARTS = 8  # of a signal
CHUNK = 512


def table(store: Store, *, include: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """Aggregates of a whole split.

    Args:
      store: the split.
      include: modalities to use, all by default.

    Returns:
      float32 [N, columns] with NaN, and the column names ('vitals/HR/last').
    """
    unknown = sorted({*(include or ())} - {*store.spec.modality_names})
    if unknown:
        raise ValueError(f"include={unknown}; modalities are {store.spec.modality_names}")
    chosen = [m for m in store.spec.modalities if include is None or m.name in include]
    chunks = [
        np.concatenate([_columns(m, rows) for m in chosen], axis=1)
        for start in range(0, len(store), CHUNK)
        for rows in [store.read(range(start, min(start + CHUNK, len(store))))]
    ]
    return np.concatenate(chunks).astype(np.float32), [n for m in chosen for n in _names(m)]


def _names(modality: ModalitySpec) -> list[str]:
    width = modality.shape[-1]
    features = modality.features or tuple(map(str, range(width)))
    if modality.kind == "series":
        names = [f"{feature}/{statistic}" for statistic in STATISTICS for feature in features]
    elif modality.kind in ("codes", "text"):
        names = [f"id {v}" for v in range(_ids(modality))]
    elif modality.kind == "signal":
        names = [f"{feature}/part {k}" for k in range(1, PARTS + 1) for feature in features]
        names += ["length"]
    elif _small(modality):
        places = np.ndindex(*modality.shape[1:3])
        names = [f"{feature}/{y},{x}" for y, x in places for feature in features]
    else:
        names = [*features]
    return [f"{modality.name}/{name}" for name in [*names, "present"]]


def _columns(modality: ModalitySpec, rows: Rows) -> np.ndarray:
    """[N, columns of one modality]."""
    values, mask_NT = rows[f"{modality.name}/values"], rows[f"{modality.name}/mask"]
    present_N = rows[f"{modality.name}/present"]
    if modality.kind == "series":
        columns = _series(values, rows[f"{modality.name}/observed"])
    elif modality.kind == "table":
        columns = np.where(rows[f"{modality.name}/observed"], values, np.nan)
    elif modality.kind in ("codes", "text"):
        columns = _counts(values, mask_NT, _ids(modality))
    elif modality.kind == "signal":
        columns = np.concatenate([_parts(values, mask_NT), mask_NT.sum(1)[:, None]], axis=1)
    elif _small(modality):
        columns = np.where(mask_NT, values.reshape(len(values), -1), np.nan)
    else:
        values_NTf = values.mean((2, 3)) if modality.kind == "image" else values
        total_Nf = np.einsum("ntf,nt->nf", values_NTf.astype(np.float64), mask_NT)
        columns = _divide(total_Nf, mask_NT.sum(1)[:, None])
    return np.concatenate([columns, present_N[:, None]], axis=1)


def _series(values_NTf: np.ndarray, observed_NTf: np.ndarray) -> np.ndarray:
    """[N, 7 * f], statistics in the order of `STATISTICS`."""
    count_Nf = observed_NTf.sum(1)
    known_Nf = count_Nf > 0
    first_Nf = observed_NTf.argmax(1)
    last_Nf = observed_NTf.shape[1] - 1 - observed_NTf[:, ::-1].argmax(1)
    mean_Nf = _divide(np.where(observed_NTf, values_NTf, 0).sum(1, dtype=np.float64), count_Nf)
    deviation_NTf = np.where(observed_NTf, values_NTf - np.nan_to_num(mean_Nf)[:, None], 0)
    std_Nf = np.sqrt(_divide((deviation_NTf**2).sum(1), count_Nf))

    ends = [np.take_along_axis(values_NTf, i[:, None], 1)[:, 0] for i in (last_Nf, first_Nf)]
    low_Nf = np.where(observed_NTf, values_NTf, np.inf).min(1)
    high_Nf = np.where(observed_NTf, values_NTf, -np.inf).max(1)
    last_Nf, first_Nf, low_Nf, high_Nf = (
        np.where(known_Nf, x, np.nan) for x in (*ends, low_Nf, high_Nf)
    )
    std_Nf = np.where(count_Nf > 1, std_Nf, np.nan)
    columns = [last_Nf, first_Nf, mean_Nf, low_Nf, high_Nf, std_Nf, count_Nf]
    return np.concatenate(columns, axis=1)


def _parts(values_NTf: np.ndarray, mask_NT: np.ndarray) -> np.ndarray:
    """[N, PARTS * f]: means over equal parts of what the mask, true at first, keeps."""
    length_N1 = mask_NT.sum(1)[:, None]
    columns = []
    for part in range(PARTS):
        # In units of 1 / PARTS of a position: how much of each lies within the part.
        left, right = (length_N1 * k / PARTS for k in (part, part + 1))
        at = np.arange(mask_NT.shape[1])
        share_NT = np.clip(np.minimum(at + 1, right) - np.maximum(at, left), 0, 1)
        total_Nf = np.einsum("ntf,nt->nf", values_NTf.astype(np.float64), share_NT)
        columns.append(total_Nf / np.where(length_N1 > 0, share_NT.sum(1)[:, None], np.nan))
    return np.concatenate(columns, axis=1)


def _small(modality: ModalitySpec) -> bool:
    """Whether it is one view of few numbers."""
    one = modality.kind == "image" and modality.shape[0] == 1
    return one and math.prod(modality.shape) <= MAX_PIXELS


def _counts(ids_NT: np.ndarray, mask_NT: np.ndarray, num_ids: int) -> np.ndarray:
    counts_NV = np.zeros((len(ids_NT), num_ids))
    if num_ids:
        np.add.at(counts_NV, (np.nonzero(mask_NT)[0], ids_NT[mask_NT]), 1)
    return counts_NV


def _ids(modality: ModalitySpec) -> int:
    return (modality.vocab or 0) if (modality.vocab or 0) <= MAX_VOCAB else 0


def _divide(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
