"""The first value of every feature of a split, in its unit: what a table of patients is made of.

The values are those that methods see (clipped to the training range), with scaling undone. Tables
have one value a row anyway; other kinds than series and tables have no values that mean something.

Letters: N rows, T positions, f features, F features of all modalities.
"""

import numpy as np

from m4.data.store import Store

KINDS = ("series", "table")
CHUNK = 512
MAX_FEATURES = 200


def values(store: Store) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """float32 [N, F] with NaN where there is none, and (modality, feature) of every column."""
    chosen = [m for m in store.spec.modalities if m.kind in KINDS]
    names = [(m.name, f) for m in chosen for f in m.features or map(str, range(m.shape[-1]))]
    names = names[:MAX_FEATURES]
    if not names:
        return np.zeros((len(store), 0), np.float32), []
    chunks = []
    for start in range(0, len(store), CHUNK):
        rows = store.read(range(start, min(start + CHUNK, len(store))))
        parts = []
        for m in chosen:
            x, seen = rows[f"{m.name}/values"], rows[f"{m.name}/observed"]
            if m.kind == "series":
                first_Nf = seen.argmax(1)[:, None]
                x = np.take_along_axis(x, first_Nf, 1)[:, 0]
                seen = seen.any(1)
            parts.append(
                _in_units(np.where(seen, x, np.nan), store.manifest["normalisers"][m.name])
            )
        chunks.append(np.concatenate(parts, axis=1)[:, : len(names)])
    return np.concatenate(chunks).astype(np.float32), names


def _in_units(z_Nf: np.ndarray, fitted: list[dict]) -> np.ndarray:
    """The inverse of `m4.data.normalise`, but for what was clipped."""
    std_f, mean_f = (np.array([f[key] for f in fitted]) for key in ("std", "mean"))
    log_f = np.array([f["transform"] == "log1p" for f in fitted])
    raw_Nf = z_Nf * std_f + mean_f
    return np.where(log_f, np.expm1(np.where(log_f, raw_Nf, 0)), raw_Nf)
