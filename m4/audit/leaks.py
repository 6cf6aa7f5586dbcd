"""Leaks in built data: what a score on the test split would owe to them. NumPy alone.

Each check takes the splits by name and returns a figure, or raises `Defect`, or `LeftOut` where
there is no split to compare with. No identifier, value
or small count is told.

Letters: N rows, F columns, M modalities, L labels.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special, stats

from m4 import cells
from m4.audit.probe import Defect, LeftOut
from m4.data import aggregate
from m4.data.store import Store, layout
from m4.specs import TaskSpec

Splits = Mapping[str, Store]
Answer = tuple[str, np.ndarray, bool]  # name, f64[N] with NaN, whether it is ranked, not yes or no
SMALLEST = 10
ALMOST = 0.99  # AUROC or |rank correlation| of one feature that "predicts almost perfectly"
PRESENCE = 0.9  # the same of presence alone
CHANCE = 1e-3  # that any of the features tried would be as good by chance
SPARE = 7  # bits: two of the rows are alike by chance in less than 1 of 2^7 data sets
LONG = 16  # tokens or codes from which on a list is no coincidence
CHUNK = 256  # rows read at once
HELD_OUT = ("val", "test")


def no_patient_in_two_splits(splits: Splits) -> None:
    """Patients of different splits are different ones."""
    if len(splits) < 2:
        raise LeftOut("there is one split alone (data.also_train)")
    patients = {name: np.unique(s.columns(["patient"])["patient"]) for name, s in splits.items()}
    for (one, a), (two, b) in itertools.combinations(patients.items(), 2):
        both = len(np.intersect1d(a, b, assume_unique=True))
        if both:
            raise Defect(f"{cells.count(both, SMALLEST)} patients are in {one} and in {two}")


def no_duplicate_rows(splits: Splits) -> None:
    """No two rows have the same inputs, unless these are so few that chance makes them."""
    where = np.concatenate([np.full(len(split), i) for i, split in enumerate(splits.values())])
    digest_N = np.concatenate([_digests(split) for split in splits.values()])
    patient_N = np.concatenate([s.columns(["patient"])["patient"] for s in splits.values()])
    order_N = np.argsort(digest_N, kind="stable")
    telling_N = _bits(splits) > 2 * np.log2(max(2, len(where))) + SPARE
    order_N = order_N[telling_N[order_N]]
    repeated = digest_N[order_N][1:] == digest_N[order_N][:-1]
    one_P, two_P = order_N[:-1][repeated], order_N[1:][repeated]
    if not len(one_P):
        return
    names, across = [*splits], where[one_P] != where[two_P]
    pairs = zip(where[one_P[across]], where[two_P[across]], strict=True)
    places = sorted({f"{names[min(pair)]} and {names[max(pair)]}" for pair in pairs})
    words = f"{cells.count(len(one_P), SMALLEST)} rows repeat the inputs of another"
    words += f", also between {places[0]}" if places else ""
    words += "" if (patient_N[one_P] == patient_N[two_P]).all() else ", of another patient"
    raise Defect(words)


def _digests(split: Store) -> np.ndarray:
    """i64[N]: of a row's inputs."""
    found = np.zeros(len(split), np.int64)
    for start in range(0, len(split), CHUNK):
        rows = split.read(range(start, min(start + CHUNK, len(split))))
        parts = [
            np.ascontiguousarray(rows[f"{m.name}/{part}"]) for m in split.spec.modalities
            for part in layout(m)
        ]  # fmt: skip
        for i in range(len(parts[0])):
            content = hashlib.blake2b(digest_size=8)
            for part in parts:
                content.update(part[i].tobytes())
            found[start + i] = int.from_bytes(content.digest(), "little", signed=True)
    return found


def _bits(splits: Splits) -> np.ndarray:
    """f64[N]: how many bits it takes to tell a row, were its columns independent.

    Of a series only means count: where there is one measurement, all its statistics are the same.
    Pictures, signals and long lists of tokens or codes are told by themselves.
    """
    tables = [aggregate.table(split) for split in splits.values()]
    spec, names = next(iter(splits.values())).spec, tables[0][1]
    kinds = {m.name: m.kind for m in spec.modalities}
    x_NF = np.concatenate([x for x, _ in tables])
    found_N = np.zeros(len(x_NF))
    for name, column_N in zip(names, x_NF.T, strict=True):
        if kinds[name.partition("/")[0]] == "series" and not name.endswith("/mean"):
            continue
        known = np.flatnonzero(~np.isnan(column_N))
        _, inverse, counts = np.unique(column_N[known], return_inverse=True, return_counts=True)
        others = np.maximum(1, counts[inverse] - 1)  # a row's twin says nothing of chance
        found_N[known] += np.log2(len(x_NF) / others)
    for m in spec.modalities:
        if m.kind in ("image", "signal", "text", "codes"):
            key, least = f"{m.name}/mask", 1 if m.kind in ("image", "signal") else LONG
            long = [s.columns([key])[key].sum(-1) >= least for s in splits.values()]
            found_N[np.concatenate(long)] = np.inf
    return found_N


def nothing_after_the_window(splits: Splits) -> None:
    """No measurement has a time after the window that a prediction may look at."""
    for name, split in splits.items():
        for m in split.spec.modalities:
            if not m.timed:
                continue
            found = split.columns([f"{m.name}/times", f"{m.name}/mask"])
            late = found[f"{m.name}/times"] > split.spec.hours * (1 + 1e-6)
            rows = int((late & found[f"{m.name}/mask"]).any(-1).sum())
            if rows:
                count = cells.count(rows, SMALLEST)
                raise Defect(f"{m.name}: {count} {name} rows measure after {split.spec.hours:g} h")


def no_feature_tells_the_label(splits: Splits) -> str:
    """No single feature, or its being known, predicts a label almost perfectly."""
    train = splits["train"]
    x_NF, names = aggregate.table(train)
    asked = [*_answers(train)]
    tests = 4 * max(1, len(names)) * max(1, len(asked))
    best = (0.0, "")
    for f, name in enumerate(names):
        x_N = x_NF[:, f].astype(np.float64)
        there_N = ~np.isnan(x_N)
        for words, column_N in ((name, x_N), (f"that {name} is known", there_N.astype(np.float64))):
            for (what, _, ranked), found in zip(asked, told(column_N, asked, tests), strict=True):
                if found >= ALMOST:
                    kind = "|rank correlation|" if ranked else "AUROC"
                    raise Defect(f"{words} alone tells {what}: {kind} {found:.3f} in training")
                best = max(best, (float(found), f"{what} by {words}"))
    return f"best {best[0]:.2f}: {best[1]}" if best[1] else ""


def presence_tells_no_label(splits: Splits) -> str:
    """Which modalities are there does not predict a label of held-out rows by itself."""
    train = splits["train"]
    rest = [splits[name] for name in HELD_OUT if name in splits]
    if not rest:
        raise LeftOut("no rows are held out (data.also_train)")
    held_NM = np.concatenate([split.present() for split in rest])
    train_NM, figures = train.present(), []
    answers = [{what: (y, ranked) for what, y, ranked in _answers(s)} for s in (train, *rest)]
    for what, (y_N, ranked) in answers[0].items():
        if not all(what in a for a in answers[1:]):
            continue
        held_N = np.concatenate([a[what][0] for a in answers[1:]])
        score_N = _by_pattern(train_NM, y_N, held_NM)
        (found,) = told(score_N, [(what, held_N, ranked)], len(answers[0]))
        kind = "|rank correlation|" if ranked else "AUROC"
        if found >= PRESENCE:
            raise Defect(f"presence alone tells {what}: {kind} {found:.3f} on held-out rows")
        figures.append((float(found), what))
    found, what = max(figures, default=(0.0, ""))
    return f"best {found:.2f}: {what}" if what else ""


def _by_pattern(train_NM: np.ndarray, y_N: np.ndarray, held_NM: np.ndarray) -> np.ndarray:
    """f64[held-out rows]: mean label of the training rows with a row's presence pattern.

    Drawn to the mean of all as by ten rows, so that rare patterns say little.
    """
    bits_M = 2.0 ** np.arange(train_NM.shape[1])
    known = ~np.isnan(y_N)
    mean = y_N[known].mean() if known.any() else 0.0
    codes, inverse = np.unique(train_NM[known] @ bits_M, return_inverse=True)
    total = np.bincount(inverse, y_N[known], len(codes))
    count = np.bincount(inverse, minlength=len(codes))
    rate = (total + 10 * mean) / (count + 10)
    held = held_NM @ bits_M
    place = np.searchsorted(codes, held).clip(max=max(0, len(codes) - 1))
    found = (codes[place] == held) if len(codes) else np.zeros(len(held), bool)
    return np.where(found, rate[place] if len(codes) else 0.0, mean)


def _answers(split: Store) -> Iterator[Answer]:
    """Every label of every task that can be ranked or is yes or no."""
    for task in split.spec.tasks:
        if task.kind not in ("segmentation", "cluster"):
            yield from _answers_of(split, task)


def _answers_of(split: Store, task: TaskSpec) -> Iterator[Answer]:
    found = split.columns([f"y/{task.name}", f"y/{task.name}/mask"])
    y: Any = found[f"y/{task.name}"].astype(np.float64)
    y_NL = y.reshape(len(y), -1)
    mask_NL = np.broadcast_to(found[f"y/{task.name}/mask"].reshape(len(y), -1) > 0, y_NL.shape)
    y_NL = np.where(mask_NL, y_NL, np.nan)
    if task.kind == "survival":  # time among events, and the event
        happened = y_NL[:, 1] == 1
        yield f"{task.name} (event)", y_NL[:, 1], False
        yield f"{task.name} (time)", np.where(happened, y_NL[:, 0], np.nan), True
    elif task.kind == "multiclass":
        for c in range(task.dim):
            label = task.labels[c] if c < len(task.labels) else str(c)
            yield f"{task.name}={label}", np.where(mask_NL[:, 0], y_NL[:, 0] == c, np.nan), False
    else:
        for c in range(y_NL.shape[1]):
            label = task.labels[c] if c < len(task.labels) else str(c)
            name = task.name if y_NL.shape[1] == 1 else f"{task.name}/{label}"
            yield name, y_NL[:, c], task.kind == "regression"


def told(x_N: np.ndarray, asked: Sequence[Answer], tests: int) -> np.ndarray:
    """f64[L]: AUROC in the better direction, or |Spearman|, of a column that may hold NaN.

    0 where so few rows could be in order by chance in one of `tests`.
    """
    known = np.flatnonzero(~np.isnan(x_N))
    out_L = np.zeros(len(asked))
    if len(known) < 2 * SMALLEST or np.ptp(x_N[known]) == 0:
        return out_L
    order = known[np.argsort(x_N[known], kind="stable")]
    begins = np.flatnonzero(np.diff(x_N[order], prepend=np.nan) != 0)  # of equal values
    yes_no = [(label, y_N[order]) for label, (_, y_N, ranked) in enumerate(asked) if not ranked]
    if yes_no:
        y_NL = np.stack([y for _, y in yes_no], axis=-1)
        yes_GL = np.add.reduceat((y_NL > 0.5).astype(np.float64), begins)
        no_GL = np.add.reduceat((y_NL <= 0.5).astype(np.float64), begins)
        k_L, n_L = yes_GL.sum(0), no_GL.sum(0)
        below_GL = np.cumsum(no_GL, axis=0) - no_GL / 2
        area_L = (yes_GL * below_GL).sum(0) / np.maximum(k_L * n_L, 1)
        enough_L = (np.minimum(k_L, n_L) >= SMALLEST) & (_log_orders(k_L, n_L, tests) < 0)
        out_L[[label for label, _ in yes_no]] = np.where(
            enough_L, np.maximum(area_L, 1 - area_L), 0
        )
    for label, (_, y_N, ranked) in enumerate(asked):
        if ranked:
            both = known[~np.isnan(y_N[known])]
            if len(both) >= 5 * SMALLEST and np.ptp(x_N[both]) and np.ptp(y_N[both]):
                found: Any = stats.spearmanr(x_N[both], y_N[both])
                out_L[label] = abs(found.statistic)
    return out_L


def _log_orders(yes_L: np.ndarray, no_L: np.ndarray, tests: int) -> np.ndarray:
    """Logarithm of the chance that one of `tests` orders rows perfectly, over `CHANCE`."""
    orders_L = special.gammaln(yes_L + no_L + 1)
    orders_L -= special.gammaln(yes_L + 1) + special.gammaln(no_L + 1)
    return np.log(tests) - orders_L - np.log(CHANCE)


CHECKS = (
    no_patient_in_two_splits,
    no_duplicate_rows,
    nothing_after_the_window,
    no_feature_tells_the_label,
    presence_tells_no_label,
)
