"""Data that lack more than they do, `train.missing` and `eval.missing` (Rubin 1976).

`incomplete` is a split of which the same rows lack the same for ever, by one of `KINDS`:
- `mcar`: missing completely at random;
- `mar`: missingness depends on another modality, which stays;
- `mnar`: missingness depends on the values that go missing;
- `blocks`: groups of modalities are lost together, as where a ward lacks a device;
- `gaps`: a run of consecutive positions is lost within a series.

Rates are exact to within one row of the split. What a row lacks depends on the seed and the split
alone, not on batches or processes. A row may be left with nothing, and gets weight 0. Labels stay.

Letters: B rows of a batch, N rows of a split, T positions, M modalities.
"""

import dataclasses
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from m4.data.regularise import Rates, by_modality, keep, require, require_share
from m4.data.store import Rows, Store, cut, layout, stacked
from m4.specs import DataSpec
from m4.types import Stream

CHUNK = 256  # rows read at once
SALT = 0x6D697373  # keeps these draws apart from others of the same seed


@dataclasses.dataclass(frozen=True)
class Split:
    """What a mechanism may know of the rows that it takes from."""

    spec: DataSpec
    present_NM: np.ndarray
    # (modality, feature) -> f64[N], a row's mean of what was observed; NaN without any
    mean: Callable[[str, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the rows of a split lose: modalities, and runs of positions."""

    drop_NM: np.ndarray
    share: float = 0.0  # of the positions of a modality where `run_NM` is not negative
    run_NM: np.ndarray | None = None  # where the run begins: 0 first, 1 last; -1 none
    more_NM: np.ndarray | None = None  # rounds a length up with the probability of its fraction


def mcar(split: Split, rng: np.random.Generator, *, rate: Rates) -> Plan:
    """Lose a share `rate` (one, or per modality) of the rows that have it, whatever they hold."""
    return _lose_highest(split, rng, {}, by_modality(split.spec, rate))


def mar(
    split: Split,
    rng: np.random.Generator,
    *,
    rate: Rates,
    driver: str,
    feature: int | str = 0,
    strength: float = 2.0,
) -> Plan:
    """Lose modalities more often where `feature` of the modality `driver` is high.

    `strength` is the log-odds per standard deviation of the driver within the split. Rows
    without the driver count as average. The driver itself must have rate 0.
    """
    spec, level_N = split.spec, _strength(strength) * _level(split, driver, feature)
    rates_M = by_modality(spec, rate)
    if rates_M[spec.modality_names.index(driver)] > 0:
        raise ValueError(f"the driver {driver!r} must stay; give the other modalities rates")
    return _lose_highest(split, rng, dict.fromkeys(spec.modality_names, level_N), rates_M)


def mnar(
    split: Split,
    rng: np.random.Generator,
    *,
    rate: Rates,
    features: Mapping[str, int | str] | None = None,
    strength: float = 2.0,
) -> Plan:
    """Lose a modality more often where its own feature (`features` by modality, else 0) is high."""
    rates_M, strength = by_modality(split.spec, rate), _strength(strength)
    features = {} if features is None else features
    if not isinstance(features, Mapping):
        raise ValueError(f"features={features!r}: must be by modality, as in {{'vitals': 0}}")
    for name, feature in features.items():
        _number(split.spec, name, feature)
    lossy = [n for n, r in zip(split.spec.modality_names, rates_M, strict=True) if r > 0]
    scores = {name: strength * _level(split, name, features.get(name, 0)) for name in lossy}
    return _lose_highest(split, rng, scores, rates_M)


def blocks(
    split: Split,
    rng: np.random.Generator,
    *,
    rate: Mapping[str, float],
    groups: Mapping[str, Sequence[str]],
) -> Plan:
    """Lose all modalities of a group at once, in a share `rate` of the rows that have any of them.

    `groups` are modalities by the name of their group, `rate` is by that name too, 0 if not named.
    """
    names = split.spec.modality_names
    lists = groups.values() if isinstance(groups, Mapping) else [None]
    if not all(isinstance(group, list | tuple) and group for group in lists):
        raise ValueError(f"groups={groups!r}: must be lists of modalities by name of their group")
    require(split.spec, [name for group in groups.values() for name in group])
    if not isinstance(rate, Mapping) or {*rate} - {*groups}:
        raise ValueError(f"rate={rate}: must be by group; groups are {', '.join(map(str, groups))}")
    require_share(rate.values())
    drop_NM = np.zeros_like(split.present_NM)
    for group, share in rate.items():
        columns = [names.index(name) for name in groups[group]]
        rows = _some(rng, np.flatnonzero(split.present_NM[:, columns].any(-1)), share)
        drop_NM[np.ix_(rows, np.array(columns))] = True
    return Plan(drop_NM)


def gaps(split: Split, rng: np.random.Generator, *, rate: Rates, share: float) -> Plan:
    """Lose a run of `share` of a row's positions, in a share `rate` of the rows, per modality.

    Both are exact to within one (row, position), and in expectation. Unlike `segment_loss` the
    run is of measurements, not of hours, so that as much is lost where they are sparse; a series
    that loses all its positions is absent. Only modalities with times can be named.
    """
    modalities = split.spec.modalities
    rates_M = by_modality(split.spec, rate)
    if not isinstance(rate, Mapping):
        rates_M *= [m.timed for m in modalities]
    untimed = [m.name for m, r in zip(modalities, rates_M, strict=True) if r and not m.timed]
    if untimed:
        raise ValueError(f"gaps are in time; without times: {', '.join(untimed)}")
    require_share([share], "share")
    run_NM = np.full(split.present_NM.shape, -1.0)
    for m, wanted in enumerate(rates_M):
        rows = _some(rng, np.flatnonzero(split.present_NM[:, m]), wanted)
        run_NM[rows, m] = rng.random(len(rows))
    more_NM = rng.random(run_NM.shape)
    return Plan(np.zeros_like(split.present_NM), share, run_NM, more_NM)


KINDS = {function.__name__: function for function in (mcar, mar, mnar, blocks, gaps)}


def check(spec: DataSpec, options: Mapping[str, Any]) -> None:
    """Raises ValueError for options that are none, or are not for this schema; {} is right."""
    if options:
        rows = np.zeros((0, len(spec.modalities)), bool)
        _plan(Split(spec, rows, lambda name, feature: np.zeros(0)), options, 0)


def incomplete(store: Store, options: Mapping[str, Any], seed: int) -> Store:
    """The split as it would be if more were missing: `kind`, one of `KINDS`, and its arguments.

    Raises ValueError as `check` does. Labels stay.
    """
    if not options:
        return store
    split = Split(store.spec, store.present(), functools.partial(_means, store))
    return Incomplete(store, _plan(split, options, seed))


class Incomplete(Store):
    """A store whose rows lack what a plan takes from them."""

    def __init__(self, store: Store, plan: Plan):
        vars(self).update({k: v for k, v in vars(store).items() if k != "longest"})
        self._plan = plan

    def read(self, indices: Sequence[int] | np.ndarray, spec: DataSpec | None = None) -> Rows:
        """As `Store.read`."""
        rows = lose_rows(self.spec, super().read(indices), self._plan, np.asarray(indices))
        return cut(rows, spec or self.spec)

    def columns(self, keys: Sequence[str]) -> Rows:
        """As `Store.columns`."""
        return stacked({key: rows[key] for key in keys} for rows in _pieces(self))


def lose_rows(spec: DataSpec, rows: Rows, plan: Plan, index_B: np.ndarray) -> Rows:
    """The rows `index_B` of a split, whose arrays are overwritten, without what they lose."""
    for m, modality in enumerate(spec.modalities):
        stream = _stream(spec, rows, modality.name)
        if plan.run_NM is not None and (plan.run_NM[index_B, m] >= 0).any():
            stream = _without_run(stream, plan, index_B, m)
        for part in layout(modality):
            rows[f"{modality.name}/{part}"] = getattr(stream, part)
            rows[f"{modality.name}/{part}"][plan.drop_NM[index_B, m]] = 0
    return rows


def _plan(split: Split, options: Mapping[str, Any], seed: int) -> Plan:
    """What `options` make of a split."""
    arguments = dict(options)
    kind = arguments.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        close = difflib.get_close_matches(str(kind), KINDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(KINDS)}{hint}")
    known = dict([*inspect.signature(KINDS[kind]).parameters.items()][2:])
    for name in arguments:
        if name not in known:
            raise ValueError(f"{name}: kind={kind!r} takes {', '.join(known)}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise ValueError(f"{name}: is missing, kind={kind!r} needs it")
    empty = [name for name in ("rate", "groups") if arguments.get(name) == {}]
    if empty:
        raise ValueError(f"{empty[0]}={{}}: is empty, so that nothing would go missing")
    return KINDS[kind](split, np.random.default_rng((seed, SALT)), **arguments)


def _lose_highest(
    split: Split,
    rng: np.random.Generator,
    scores: Mapping[str, np.ndarray],
    rates_M: np.ndarray,
) -> Plan:
    """Per modality, lose rate * n of the n rows that have it: those of highest noisy score.

    Logistic noise makes `score` (0 if not given) a log-odds; n * rate is rounded up or down at
    random, so that the expected rate is exact too.
    """
    drop_NM = np.zeros_like(split.present_NM)
    for m, name in enumerate(split.spec.modality_names):
        having = np.flatnonzero(split.present_NM[:, m])
        if rates_M[m] > 0 and len(having):
            noisy = rng.logistic(size=len(having)) + (scores[name][having] if name in scores else 0)
            number = int(rates_M[m] * len(having) + rng.random())
            drop_NM[having[np.argsort(-noisy)[:number]], m] = True
    return Plan(drop_NM)


def _some(rng: np.random.Generator, rows: np.ndarray, rate: float) -> np.ndarray:
    """A share of the rows at random, rounded up or down so that the expectation is exact."""
    return rng.permutation(rows)[: int(rate * len(rows) + rng.random())] if rate else rows[:0]


def _level(split: Split, name: str, feature: int | str) -> np.ndarray:
    """f64[N]: mean of a feature over what was observed, standardised; 0 where absent."""
    mean_N = split.mean(name, _number(split.spec, name, feature))
    known_N = ~np.isnan(mean_N)
    if not known_N.any():
        return np.zeros(len(mean_N))
    centred_N = np.where(known_N, mean_N - mean_N[known_N].mean(), 0)
    return centred_N / max(mean_N[known_N].std(), 1e-12)


def _number(spec: DataSpec, name: str, feature: int | str) -> int:
    """A feature's place among those of a modality. Raises ValueError if there is none."""
    require(spec, [name])
    modality = spec.modality(name)
    features = modality.features or tuple(map(str, range(modality.shape[-1])))
    number = features.index(feature) if feature in features else feature
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(features):
        raise ValueError(f"feature {feature!r} of {name!r}: it has {', '.join(features)}")
    return number


def _strength(value: float) -> float:
    """Log-odds that were asked for. Raises ValueError for what are none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"strength={value!r}: must be a finite number")
    return value


def _means(store: Store, name: str, feature: int) -> np.ndarray:
    """`Split.mean` of a store."""
    pieces = [mean_of(_stream(store.spec, rows, name), feature) for rows in _pieces(store)]
    return np.concatenate(pieces)


def _pieces(store: Store) -> Iterator[Rows]:
    """All rows of a store, some at a time."""
    for start in range(0, len(store), CHUNK):
        yield store.read(np.arange(start, min(start + CHUNK, len(store))))


def _stream(spec: DataSpec, rows: Rows, name: str) -> Stream:
    """A modality of some rows."""
    parts: dict[str, Any] = {part: rows[f"{name}/{part}"] for part in layout(spec.modality(name))}
    return Stream(**parts)


def mean_of(stream: Stream, feature: int) -> np.ndarray:
    """f64[B]: a row's mean of a feature over what was observed; NaN without any."""
    values = np.asarray(stream.values, np.float64)
    if values.ndim > 3:  # image: mean over everything
        values = values.mean((2, 3))
    counts = stream.mask if stream.observed is None else stream.observed
    if stream.observed is not None:  # series, table
        counts = counts[..., [feature]].reshape(len(counts), -1)
    if values.ndim == 3 or stream.observed is not None:
        values = values[..., [feature]].reshape(len(values), -1)
    counts_B = counts.sum(-1)
    return np.where(counts_B > 0, (values * counts).sum(-1) / np.maximum(counts_B, 1), np.nan)


def _without_run(stream: Stream, plan: Plan, index_B: np.ndarray, m: int) -> Stream:
    """A modality of some rows without the run of positions that each loses."""
    assert plan.run_NM is not None and plan.more_NM is not None
    run_B, more_B = plan.run_NM[index_B, m], plan.more_NM[index_B, m]
    length_B = stream.mask.sum(-1)
    lost_B = (plan.share * length_B + more_B).astype(int).clip(max=length_B)
    lost_B = np.where(run_B < 0, 0, lost_B)
    start_B = (run_B.clip(min=0) * (length_B - lost_B + 1)).astype(int)
    place_BT = np.cumsum(stream.mask, axis=-1) - 1
    inside_BT = (place_BT >= start_B[:, None]) & (place_BT < (start_B + lost_B)[:, None])
    return keep(stream, stream.mask & ~inside_BT)
