"""What training loses on purpose, anew for every row that is drawn: `(Batch, rng) -> Batch`.

- `modality_dropout`: each modality is lost with its rate, but never a row's last one;
- `segment_loss`: a window of time is lost from single series.

Draws are hashes of (rng's next word, row number, modality), so that a row's fate does not depend on
the other rows of its batch or on how many processes share it.

Letters: B rows, T positions, M modalities.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from m4.data.batch import finish
from m4.specs import DataSpec
from m4.types import Batch, Stream

Transform = Callable[[Batch, np.random.Generator], Batch]
Rates = float | Mapping[str, float]


def chain(*transforms: Transform) -> Transform:
    """One after the other, all drawing from the same generator."""

    def apply(batch: Batch, rng: np.random.Generator) -> Batch:
        for transform in transforms:
            batch = transform(batch, rng)
        return batch

    return apply


def modality_dropout(spec: DataSpec, rates: Rates) -> Transform:
    """Lose each present modality with probability `rates` (one, or per modality; 0 if not named).

    Where chance would take all of a row's modalities, one of them, chosen evenly, stays.
    """
    rates_M = by_modality(spec, rates)

    def apply(batch: Batch, rng: np.random.Generator) -> Batch:
        present_BM = _present(spec, batch)
        draw_BM = _uniform(rng, np.asarray(batch.uid), len(rates_M))
        drop_BM = present_BM & (draw_BM < rates_M)
        # Given that all are dropped, draw / rate is uniform for each: its maximum picks evenly.
        luck_BM = np.where(present_BM, draw_BM / np.maximum(rates_M, 1e-12), -1)
        emptied_B = (drop_BM == present_BM).all(-1)
        drop_BM[emptied_B, luck_BM.argmax(-1)[emptied_B]] = False
        return lose(spec, batch, drop_BM)

    return apply


def segment_loss(
    spec: DataSpec, *, rate: float, share: float, modalities: tuple[str, ...] | None = None
) -> Transform:
    """Lose a window of `share * spec.hours` from each timed modality with probability `rate`.

    The window starts evenly between time zero and the last start that keeps it inside. A modality
    left without positions is absent; where that would empty the row, its modality stays whole.
    """
    names = modalities or tuple(m.name for m in spec.modalities if m.timed)
    untimed = [name for name in names if not spec.modality(name).timed]
    if untimed or not (0 <= rate <= 1 and 0 <= share <= 1):
        raise ValueError(f"segment_loss: rate={rate}, share={share}; without times: {untimed}")

    def apply(batch: Batch, rng: np.random.Generator) -> Batch:
        draw_BM = _uniform(rng, np.asarray(batch.uid), 2 * len(names))
        num_present_B = _present(spec, batch).sum(-1)
        inputs = dict(batch.inputs)
        for number, name in enumerate(names):
            stream = inputs[name]
            start_B = draw_BM[:, 2 * number] * (1 - share) * spec.hours
            assert stream.times is not None
            inside_BT = (stream.times >= start_B[:, None]) & (
                stream.times <= start_B[:, None] + share * spec.hours
            )
            inside_BT &= (draw_BM[:, 2 * number + 1] < rate)[:, None]
            emptied_B = stream.present & ~(stream.mask & ~inside_BT).any(-1)
            saved_B = emptied_B & (num_present_B == 1)
            num_present_B = num_present_B - (emptied_B & ~saved_B)
            inputs[name] = keep(stream, stream.mask & ~(inside_BT & ~saved_B[:, None]))
        return finish(spec, batch.replace(inputs=inputs))

    return apply


def lose(spec: DataSpec, batch: Batch, drop_BM: np.ndarray) -> Batch:
    """Make modality m of row b absent where `drop_BM`; a row left with nothing gets weight 0."""
    inputs = {}
    for m, name in enumerate(spec.modality_names):
        stream, keep_B = batch.inputs[name], ~drop_BM[:, m]
        parts = {
            part: array * keep_B.reshape(-1, *[1] * (array.ndim - 1)).astype(array.dtype)
            for part, array in vars(stream).items()
            if array is not None
        }
        inputs[name] = stream if keep_B.all() else stream.replace(**parts)
    return finish(spec, batch.replace(inputs=inputs))


def keep(stream: Stream, keep_BT: np.ndarray) -> Stream:
    """Keep some positions and move them to the front."""
    order_BT = np.argsort(~keep_BT, axis=-1, kind="stable")
    mask_BT = np.take_along_axis(keep_BT, order_BT, -1)

    parts = {"mask": mask_BT, "present": mask_BT.any(-1)}
    for part in ("values", "times", "observed"):
        array = getattr(stream, part)
        if array is not None:
            tail = [1] * (array.ndim - 2)
            moved = np.take_along_axis(array, order_BT.reshape(*order_BT.shape, *tail), 1)
            parts[part] = moved * mask_BT.reshape(*mask_BT.shape, *tail).astype(array.dtype)
    return stream.replace(**parts)


def _present(spec: DataSpec, batch: Batch) -> np.ndarray:
    return np.stack([batch.inputs[name].present for name in spec.modality_names], axis=-1)


def require(spec: DataSpec, names: Iterable[Any]) -> None:
    """Raises ValueError for a name that is no modality."""
    unknown = sorted({str(name) for name in names if name not in spec.modality_names})
    if unknown:
        listed = ", ".join(spec.modality_names)
        raise ValueError(f"{', '.join(unknown)}: no such modality; modalities are {listed}")


def require_share(rates: Iterable[float], what: str = "rate") -> None:
    """Raises ValueError for what is no share."""
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise ValueError(f"{what}={rate!r}: must be a number within 0..1")


def by_modality(spec: DataSpec, rates: Rates) -> np.ndarray:
    """f64[M] of one rate for all, or of rates per modality: 0 if not named."""
    names = spec.modality_names
    if not isinstance(rates, Mapping):
        rates = dict.fromkeys(names, rates)
    require(spec, rates)
    require_share(rates.values())
    return np.array([rates.get(name, 0.0) for name in names], np.float64)


def _uniform(rng: np.random.Generator, uid_B: np.ndarray, num: int) -> np.ndarray:
    """[B, num] in [0, 1): SplitMix64 (Steele et al. 2014) of (rng's next word, uid, column)."""
    with np.errstate(over="ignore"):
        state = uid_B.astype(np.uint64)[:, None] * np.uint64(num) + np.arange(num, dtype=np.uint64)
        state = (state + rng.integers(2**63, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((state ^ (state >> np.uint64(31))) >> np.uint64(11)) / 2.0**53
