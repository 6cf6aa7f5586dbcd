"""One row of plain numbers per record, for the boosting and logistic baselines.

The inputs are the very rows that methods see: cut to length, winsorised, in z units (see
`m4.data.normalise`). Trees do not mind, except that a mean is a mean of transformed values.

| kind | columns per record |
|---|---|
| series | per feature: last, first, mean, min, max, std, count |
| vectors, signal | per component: mean over positions |
| table | the values |
| codes, text | per id, where `vocab` <= 1024: how often it occurs |
| image | per channel: mean over views and pixels |
| all | whether the modality is present |

NaN where there was no observation (std: fewer than two), 0 in counts and presence.

Letters: N records, T positions, f features, V ids.
"""

from collections.abc import Sequence

import numpy as np

from m4.data.store import Rows, Store
from m4.specs import ModalitySpec

STATISTICS = ("last", "first", "mean", "min", "max", "std", "count")
MAX_VOCAB = 1024
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


def _counts(ids_NT: np.ndarray, mask_NT: np.ndarray, num_ids: int) -> np.ndarray:
    counts_NV = np.zeros((len(ids_NT), num_ids))
    if num_ids:
        np.add.at(counts_NV, (np.nonzero(mask_NT)[0], ids_NT[mask_NT]), 1)
    return counts_NV


def _ids(modality: ModalitySpec) -> int:
    return (modality.vocab or 0) if (modality.vocab or 0) <= MAX_VOCAB else 0


def _divide(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
