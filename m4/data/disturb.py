"""Data that are measured otherwise than in training: values that drift, and noise.

`disturbed` is a split of which every recorded value has moved:
- `drift`: each feature by `size` standard deviations, always to the same side, as after a change of
  device or laboratory; features of two values, codes and texts stay;
- `noise`: each value by a normal draw of `size` standard deviations; a share `size` of codes and
  tokens becomes another one of the same split.

A standard deviation is 1 for series, tables and signals, which are in z units of the training
split; of vectors and images it is that of the split. What is missing stays missing, labels stay. A
row's draws depend on the seed and its place in the split alone, and grow with `size`.

Letters: B rows of a batch, N rows of a split, F features.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from m4.data.store import Rows, Store, cut
from m4.specs import DataSpec, ModalitySpec

LOOKED_AT = 2048  # first rows of a split, by which features are judged
SALT = 0x73747273  # keeps these draws apart from others of the same seed
IN_Z = ("series", "table", "signal")
IDS = ("codes", "text")


def drift(store: Store, size: float, seed: int) -> Store:
    """Every feature moved by `size` standard deviations, up or down at random."""
    rng, shifts = np.random.default_rng((seed, SALT)), {}
    for m, known in _known(store).items():
        side_F = rng.choice([-1.0, 1.0], known.shape[-1])
        many_F = np.array([len(np.unique(x[~np.isnan(x)][:LOOKED_AT])) > 2 for x in known.T])
        shifts[m] = side_F * many_F * _deviation(store.spec.modality(m), known)

    def change(rows: Rows, _: np.ndarray) -> None:
        for name, shift_F in shifts.items():
            values = rows[f"{name}/values"]
            _put(store.spec.modality(name), rows, values + size * shift_F)

    return Disturbed(store, change)


def noise(store: Store, size: float, seed: int) -> Store:
    """Every value moved by a normal draw of `size` standard deviations; ids exchanged."""
    spec = store.spec
    scale = {m: _deviation(spec.modality(m), known) for m, known in _known(store).items()}
    pools = {m.name: _ids(store, m) for m in spec.modalities if m.kind in IDS}

    def change(rows: Rows, index_B: np.ndarray) -> None:
        generators = [np.random.default_rng((seed, SALT, int(i))) for i in index_B]
        for m in spec.modalities:
            values = rows[f"{m.name}/values"]
            if m.kind in IDS:
                other = [rng.choice(pools[m.name], m.shape) for rng in generators]
                lost = np.stack([rng.random(m.shape) for rng in generators]) < size
                _put(m, rows, np.where(lost, np.stack(other), values))
            elif m.name in scale:
                drawn = np.stack([rng.standard_normal(m.shape) for rng in generators])
                _put(m, rows, values + size * scale[m.name] * drawn)

    return Disturbed(store, change)


KINDS: Mapping[str, Callable[[Store, float, int], Store]] = {"drift": drift, "noise": noise}


class Disturbed(Store):
    """A store whose rows are changed in place on their way out: `change(rows, indices)`."""

    def __init__(self, store: Store, change: Callable[[Rows, np.ndarray], None]):
        vars(self).update(vars(store))
        self._store, self._change = store, change

    def read(self, indices: Sequence[int] | np.ndarray, spec: DataSpec | None = None) -> Rows:
        """As `Store.read`."""
        rows = self._store.read(indices)
        self._change(rows, np.asarray(indices))
        return cut(rows, spec or self.spec)

    def columns(self, keys: Sequence[str]) -> Rows:
        """As `Store.columns`, but for values, which have to be read in rows. Raises ValueError."""
        if any(key.endswith("/values") for key in keys):
            raise ValueError("values of a disturbed split are read in rows")
        return self._store.columns(keys)


def _put(m: ModalitySpec, rows: Rows, values: np.ndarray) -> None:
    """Replaces the values where something was recorded."""
    mask = rows.get(f"{m.name}/observed")
    if mask is None:
        mask = rows[f"{m.name}/mask"]
        mask = mask.reshape(*mask.shape, *[1] * (values.ndim - mask.ndim))
    if np.dtype(m.dtype).kind == "u":
        values = np.clip(np.rint(values), 0, np.iinfo(m.dtype).max)
    old = rows[f"{m.name}/values"]
    rows[f"{m.name}/values"] = np.where(mask, values, old).astype(old.dtype)


def _known(store: Store) -> dict[str, np.ndarray]:
    """Recorded values of every modality that has numbers, [values, F], NaN where not observed."""
    rows = store.read(np.arange(min(LOOKED_AT, len(store))))
    found: dict[str, Any] = {}
    for m in store.spec.modalities:
        if m.kind in IDS:
            continue
        values = rows[f"{m.name}/values"].astype(np.float32)
        mask = rows.get(f"{m.name}/observed", rows[f"{m.name}/mask"])
        mask = mask.reshape(*mask.shape, *[1] * (values.ndim - mask.ndim))
        values = np.where(mask, values, np.nan)
        step = 1 if m.kind != "image" else max(1, m.shape[1] // 16)  # of an image some points
        values = values[:, :, ::step, ::step] if m.kind == "image" else values
        found[m.name] = values.reshape(-1, values.shape[-1])
    return found


def _deviation(m: ModalitySpec, known: np.ndarray) -> np.ndarray:
    """f64[F]."""
    if m.kind in IN_Z:
        return np.ones(known.shape[-1])
    counts = np.maximum((~np.isnan(known)).sum(0), 1)
    mean = np.nansum(known, axis=0, dtype=np.float64) / counts
    return np.sqrt(np.nansum((known - mean) ** 2, axis=0) / counts)


def _ids(store: Store, m: ModalitySpec) -> np.ndarray:
    """The ids that occur, each once."""
    found = store.columns([f"{m.name}/values", f"{m.name}/mask"])
    ids = np.unique(found[f"{m.name}/values"][found[f"{m.name}/mask"]])
    return ids if len(ids) else np.zeros(1, int)
