"""Simulated missingness: transforms `(Batch, rng) -> Batch` on NumPy.

Regularisation for training, independent for every row:
- `modality_dropout`: each modality is lost with its rate, but never a row's last one;
- `segment_loss`: a window of time is lost from single series.

Mechanisms for stress tests (Rubin 1976), with the realised rate exact to within one row:
- `mcar`: missing completely at random;
- `mar`: missingness depends on another modality, which stays;
- `mnar`: missingness depends on the values that go missing;
- `blocks`: groups of modalities are lost together, as where a ward lacks a device;
- `gaps`: a run of consecutive positions is lost within a series.
They may leave a row with nothing; such a row gets weight 0.

Draws of the first two are hashes of (rng's next word, row number, modality), so that a row's fate
does not depend on the other rows of its batch or on how many processes share it.

Letters: B rows, T positions, f features, M modalities.
"""

from collections.abc import Callable, Mapping

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
    rates_M = _rates(spec, rates)

    def apply(batch: Batch, rng: np.random.Generator) -> Batch:
        present_BM = _present(spec, batch)
        draw_BM = _uniform(rng, batch.uid, len(rates_M))
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
        draw_BM = _uniform(rng, batch.uid, 2 * len(names))
        num_present_B = _present(spec, batch).sum(-1)
        inputs = dict(batch.inputs)
        for number, name in enumerate(names):
            stream = inputs[name]
            start_B = draw_BM[:, 2 * number] * (1 - share) * spec.hours
            inside_BT = (stream.times >= start_B[:, None]) & (
                stream.times <= start_B[:, None] + share * spec.hours
            )
            inside_BT &= (draw_BM[:, 2 * number + 1] < rate)[:, None]
            emptied_B = stream.present & ~(stream.mask & ~inside_BT).any(-1)
            saved_B = emptied_B & (num_present_B == 1)
            num_present_B = num_present_B - (emptied_B & ~saved_B)
            inputs[name] = _take(stream, stream.mask & ~(inside_BT & ~saved_B[:, None]))
        return finish(spec, batch.replace(inputs=inputs))

    return apply


def mcar(spec: DataSpec, rates: Rates) -> Transform:
    """Lose a share `rates` of the rows that have a modality, whatever they hold."""
    rates_M = _rates(spec, rates)

    def apply(batch: Batch, rng: np.random.Generator) -> Batch:
        scores = {m.name: np.zeros(len(batch.uid)) for m in spec.modalities}
        return _lose_highest(spec, batch, rng, scores, rates_M)

    return apply


def mar(
    spec: DataSpec, rates: Rates, *, driver: str, feature: int = 0, strength: float = 2.0
) -> Transform:
    """Lose modalities more often where `feature` of the modality `driver` is high.

    `strength` is the log-odds per standard deviation of the driver within the batch. Rows
    without the driver count as average. The driver itself must have rate 0.
    """
    rates_M = _rates(spec, rates)
    if rates_M[spec.modality_names.index(driver)] > 0:
        raise ValueError(f"mar: the driver {driver!r} must stay; give the other modalities rates")

    def apply(batch: Batch, rng: np.random.Generator) -> Batch:
        score_B = strength * _level(batch.inputs[driver], feature)
        scores = dict.fromkeys(spec.modality_names, score_B)
        return _lose_highest(spec, batch, rng, scores, rates_M)

    return apply


def mnar(
    spec: DataSpec,
    rates: Rates,
    *,
    features: Mapping[str, int] | None = None,
    strength: float = 2.0,
) -> Transform:
    """Lose a modality more often where its own `features` (number per modality, 0) are high."""
    rates_M = _rates(spec, rates)

    def apply(batch: Batch, rng: np.random.Generator) -> Batch:
        scores = {
            name: strength * _level(batch.inputs[name], (features or {}).get(name, 0))
            for name, rate in zip(spec.modality_names, rates_M, strict=True)
            if rate > 0
        }
        return _lose_highest(spec, batch, rng, scores, rates_M)

    return apply


def blocks(
    spec: DataSpec, groups: Mapping[str, tuple[str, ...]], rates: Mapping[str, float]
) -> Transform:
    """Lose all modalities of a group at once, in a share of the rows that have any of them.

    Args:
      spec: of the data.
      groups: name of a group -> its modalities.
      rates: name of a group -> share; 0 if not named.

    Raises:
      ValueError: an unknown modality or group, or a rate outside 0..1.
    """
    unknown = {m for names in groups.values() for m in names} - {*spec.modality_names}
    if unknown or {*rates} - {*groups} or not all(0 <= rate <= 1 for rate in rates.values()):
        raise ValueError(
            f"blocks: rates {dict(rates)} for groups {[*groups]}; unknown modalities"
            f" {sorted(unknown)}"
        )

    def apply(batch: Batch, rng: np.random.Generator) -> Batch:
        present_BM, names = _present(spec, batch), spec.modality_names
        drop_BM = np.zeros_like(present_BM)
        for group, rate in rates.items():
            columns = [names.index(name) for name in groups[group]]
            having = present_BM[:, columns].any(-1) & (batch.weight > 0)
            rows = _some(rng, np.flatnonzero(having), rate)
            drop_BM[np.ix_(rows, columns)] = True
        return lose(spec, batch, drop_BM)

    return apply


def gaps(spec: DataSpec, rates: Rates, *, share: float) -> Transform:
    """Lose a run of `share` of a row's positions, in a share `rates` of the rows, per modality.

    Both are exact to within one (row, position), and in expectation. Unlike `segment_loss` the
    run is of measurements, not of hours, so that as much is lost where they are sparse; a series
    that loses all its positions is absent. Only modalities with times can be named.
    """
    rates_M = _rates(spec, rates) * [isinstance(rates, Mapping) or m.timed for m in spec.modalities]
    untimed = [m.name for m, r in zip(spec.modalities, rates_M, strict=True) if r and not m.timed]
    if untimed or not 0 <= share <= 1:
        raise ValueError(f"gaps: share={share} must be within 0..1; without times: {untimed}")

    def apply(batch: Batch, rng: np.random.Generator) -> Batch:
        inputs = dict(batch.inputs)
        for name, rate in zip(spec.modality_names, rates_M, strict=True):
            stream = inputs[name]
            rows = _some(rng, np.flatnonzero(stream.present & (batch.weight > 0)), rate)
            length = stream.mask[rows].sum(-1)
            lost = (share * length + rng.random(len(rows))).astype(int).clip(max=length)
            start = (rng.random(len(rows)) * (length - lost + 1)).astype(int)
            place = np.cumsum(stream.mask[rows], axis=-1) - 1
            inside = (place >= start[:, None]) & (place < (start + lost)[:, None])
            keep_BT = stream.mask.copy()
            keep_BT[rows] &= ~inside
            inputs[name] = _take(stream, keep_BT) if len(rows) else stream
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


def _lose_highest(
    spec: DataSpec,
    batch: Batch,
    rng: np.random.Generator,
    scores: Mapping[str, np.ndarray],
    rates_M: np.ndarray,
) -> Batch:
    """Per modality, lose rate * n of the n rows that have it: those of highest noisy score.

    Logistic noise makes `score` a log-odds; n * rate is rounded up or down at random, so that
    the expected rate is exact too.
    """
    drop_BM = np.zeros((len(batch.uid), len(rates_M)), bool)
    for m, name in enumerate(spec.modality_names):
        having = np.flatnonzero(batch.inputs[name].present & (batch.weight > 0))
        if rates_M[m] > 0 and len(having):
            noisy = scores[name][having] + rng.logistic(size=len(having))
            number = int(rates_M[m] * len(having) + rng.random())
            drop_BM[having[np.argsort(-noisy)[:number]], m] = True
    return lose(spec, batch, drop_BM)


def _some(rng: np.random.Generator, rows: np.ndarray, rate: float) -> np.ndarray:
    """A share of the rows at random, rounded up or down so that the expectation is exact."""
    return rng.permutation(rows)[: int(rate * len(rows) + rng.random())] if rate else rows[:0]


def _level(stream: Stream, feature: int) -> np.ndarray:
    """[B] mean of a feature over what was observed, standardised over rows; 0 where absent."""
    values = np.asarray(stream.values, np.float64)
    if values.ndim > 3:  # image: mean over everything
        values = values.mean((2, 3))
    counts = stream.mask if stream.observed is None else stream.observed
    if values.ndim == 3:
        values = values[..., feature]
        counts = counts[..., feature] if counts.ndim == 3 else counts
    elif stream.observed is not None:  # table
        values, counts = values[:, [feature]], counts[:, [feature]]
    counts_B = counts.sum(-1)
    mean_B = (values * counts).sum(-1) / np.maximum(counts_B, 1)
    known_B = counts_B > 0
    if not known_B.any():
        return np.zeros(len(mean_B))
    centred_B = np.where(known_B, mean_B - mean_B[known_B].mean(), 0)
    return centred_B / max(mean_B[known_B].std(), 1e-12)


def _take(stream: Stream, keep_BT: np.ndarray) -> Stream:
    """Keep some positions and move them to the front."""
    order_BT = np.argsort(~keep_BT, axis=-1, kind="stable")
    mask_BT = np.take_along_axis(keep_BT, order_BT, -1)

    def move(array):
        index, mask = order_BT, mask_BT
        if array.ndim == 3:
            index, mask = index[..., None], mask[..., None]
        return np.take_along_axis(array, index, 1) * mask.astype(array.dtype)

    observed = None if stream.observed is None else move(stream.observed)
    return stream.replace(
        values=move(stream.values),
        times=move(stream.times),
        observed=observed,
        mask=mask_BT,
        present=mask_BT.any(-1),
    )


def _present(spec: DataSpec, batch: Batch) -> np.ndarray:
    return np.stack([batch.inputs[name].present for name in spec.modality_names], axis=-1)


def _rates(spec: DataSpec, rates: Rates) -> np.ndarray:
    names = spec.modality_names
    if isinstance(rates, Mapping):
        unknown = sorted({*rates} - {*names})
        if unknown:
            raise ValueError(f"rates for {unknown}; modalities are {', '.join(names)}")
        rates_M = np.array([rates.get(name, 0.0) for name in names], np.float64)
    else:
        rates_M = np.full(len(names), float(rates))
    if not ((rates_M >= 0) & (rates_M <= 1)).all():
        raise ValueError(f"rates {rates} must be within 0..1")
    return rates_M


def _uniform(rng: np.random.Generator, uid_B: np.ndarray, num: int) -> np.ndarray:
    """[B, num] in [0, 1): SplitMix64 (Steele et al. 2014) of (rng's next word, uid, column)."""
    with np.errstate(over="ignore"):
        state = uid_B.astype(np.uint64)[:, None] * np.uint64(num) + np.arange(num, dtype=np.uint64)
        state = (state + rng.integers(2**63, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((state ^ (state >> np.uint64(31))) >> np.uint64(11)) / 2.0**53
