"""What is in a built data set, and what should make one look twice.

`python -m m4.data describe FOLDER` prints schema, splits, presence, labels, flow and warnings of a
folder that `m4.data.build` wrote. Counts below `SMALLEST` are never shown, and nothing that is
printed tells anything about one patient.

Letters: N rows, F features.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from m4 import cells
from m4.data import aggregate, shift
from m4.data import manifest as manifests
from m4.data.groups import UNKNOWN
from m4.data.store import Store
from m4.errors import DataError
from m4.specs import DataSpec, TaskSpec

SMALLEST = manifests.SMALLEST
FEW = 50  # rows with the rarer outcome below which nothing can be ranked
SUSPICIOUS = 0.95  # AUROC of a single feature, or its absolute rank correlation with a value
SHIFT = 0.3  # difference of a modality's share between two splits
MAX_LINES = 10


def is_built(place: Path) -> bool:
    """Whether there is a built folder at or below `place`."""
    return any(place.rglob(manifests.FILE))


def folders(place: Path) -> list[Path]:
    """The built folders at or below `place`. Raises DataError if there is none."""
    found = sorted(p.parent for p in place.rglob(manifests.FILE) if ".partial" not in str(p))
    if not found:
        raise DataError(f"{place}: no {manifests.FILE} here or below")
    return found


def lines(folder: Path) -> list[str]:
    """The whole description of one built folder."""
    manifest = manifests.read(folder)
    spec = manifests.spec_from(manifest["schema"])
    splits = manifest["splits"]
    found = [
        f"{manifest['name']} {manifest['version']}, fingerprint {manifest['fingerprint']}",
        f"  {manifest['notes']}",
        f"  licence: {manifest['licence']}",
        f"  split seed {manifest['seed']}, {len(manifest['sources'])} source files",
        "",
        "split           " + "".join(f"{name:>12}" for name in splits),
    ]
    for what in ("rows", "patients"):
        found.append(f"{what:16}" + "".join(f"{_count(s[what]):>12}" for s in splits.values()))
    found += ["", "modalities (share of rows that have it)"]
    for m in spec.modalities:
        shares = "".join(f"{_share(s['present'][m.name], s['rows']):>12}" for s in splits.values())
        size = "x".join(map(str, m.shape)) + (f", {m.vocab} ids" if m.vocab else "")
        found.append(f"  {m.name:14}{shares}   {m.kind} {size}")
    found += ["", "tasks (rows with a label; share with the outcome, or mean)"]
    for task in spec.tasks:
        shown = "".join(f"{_label(task, s['labels'][task.name]):>20}" for s in splits.values())
        found.append(f"  {task.name:20}{shown}   {task.kind}")
    found += _groups(folder, spec, splits)
    found += ["", "combinations of modalities (all splits)", *_patterns(spec, splits)]
    found += ["", "flow", *(f"  {line}" for line in manifests.flow_lines(manifest))]
    if joining := manifest.get("joining"):
        found += ["", "joining", *(f"  {line}" for line in joining)]
    odd = [*warnings(folder)]
    return [*found, "", f"warnings: {len(odd) or 'none'}", *(f"  ! {line}" for line in odd)]


def _groups(folder: Path, spec: DataSpec, splits: dict[str, Any]) -> list[str]:
    """Rows of each category of each group column by split, the commonest first; not the rare."""
    found: list[str] = []
    for column in spec.groups:
        by_split = [Counter(Store(folder, name).groups()[column].tolist()) for name in splits]
        total = sum(by_split, Counter())
        shown = [c for c, n in total.most_common() if c != UNKNOWN and n >= SMALLEST]
        found += ["", f"group {column} (rows)"]
        for category in [*shown[:MAX_LINES], UNKNOWN]:
            counts = "".join(f"{_count(own[category]):>12}" for own in by_split)
            found.append(f"  {category or 'not known':14}{counts}")
        if left := len([c for c in total if c != UNKNOWN]) - len(shown[:MAX_LINES]):
            found.append(f"  {left} more, rarer")
    return found


def warnings(folder: Path) -> Iterator[str]:
    """What should make one look twice, a line each."""
    manifest = manifests.read(folder)
    spec, splits = manifests.spec_from(manifest["schema"]), manifest["splits"]
    for task in spec.tasks:
        for name, split in splits.items():
            yield from _rare(task, name, split["labels"][task.name])
    yield from shift.of_build(manifest)
    train = splits["train"]
    for m in spec.modality_names:
        for name, split in splits.items():
            difference = split["present"][m] / split["rows"] - train["present"][m] / train["rows"]
            if abs(difference) > SHIFT:
                yield f"{m}: present in far {'more' if difference > 0 else 'fewer'} rows of {name}"
    yield from leaks(Store(folder, "train"))


def leaks(train: Store) -> Iterator[str]:
    """Features that alone tell a label almost perfectly, on the training rows."""
    x_NF, names = aggregate.table(train)
    for task in train.spec.tasks:
        keys = (f"y/{task.name}", f"y/{task.name}/mask")
        for label, y_N, known_N in _outcomes(task, *train.columns(keys).values()):
            if task.kind == "regression":
                score_F, what = (
                    np.abs(_correlation(x_NF[known_N], y_N[known_N])),
                    "rank correlation",
                )
            else:
                auroc_F, what = _auroc(x_NF[known_N], y_N[known_N] > 0), "AUROC"
                score_F = np.maximum(auroc_F, 1 - auroc_F)
            for f in np.argsort(-score_F)[:3]:
                if score_F[f] >= SUSPICIOUS:
                    score = f"({what} {score_F[f]:.3f})"
                    yield f"{names[f]} alone tells {label} {score}: is it known only afterwards?"


def _outcomes(task: TaskSpec, value: np.ndarray, mask: np.ndarray):
    """(name, y[N], known bool[N]) per question a task asks."""
    rows = len(value)
    value_NL, mask_NL = value.reshape(rows, -1), mask.reshape(rows, -1) > 0
    if task.kind in ("binary", "regression"):
        yield task.name, value_NL[:, 0], mask_NL[:, 0]
    elif task.kind in ("multilabel", "multiclass"):
        names = task.labels or tuple(map(str, range(task.dim)))
        for c, name in enumerate(names):
            one = task.kind == "multilabel"
            y_N = value_NL[:, c] if one else (value_NL[:, 0] == c).astype(float)
            yield f"{task.name}/{name}", y_N, mask_NL[:, c if one else 0]
    elif task.kind == "survival":
        yield f"{task.name} (event)", value_NL[:, 1], mask_NL[:, 0]


def _auroc(x_NF: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """AUROC of every column, a missing value being a value of its own; 0.5 for small groups."""
    positive, negative = int(y_N.sum()), int((~y_N).sum())
    if min(positive, negative) < SMALLEST:
        return np.full(x_NF.shape[1], 0.5)
    rank_NF = rankdata(np.nan_to_num(x_NF, nan=-1e30), axis=0)
    total_F = rank_NF[y_N].sum(axis=0) - positive * (positive + 1) / 2
    return total_F / (positive * negative)


def _correlation(x_NF: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """Rank correlation of every column with a value, where it is observed; 0 for small groups."""
    out = np.zeros(x_NF.shape[1])
    for f, x_N in enumerate(x_NF.T):
        seen_N = ~np.isnan(x_N)
        if seen_N.sum() >= FEW and np.ptp(x_N[seen_N]) > 0 and np.ptp(y_N[seen_N]) > 0:
            out[f] = np.corrcoef(rankdata(x_N[seen_N]), rankdata(y_N[seen_N]))[0, 1]
    return out


def _rare(task: TaskSpec, split: str, found: dict[str, Any]) -> Iterator[str]:
    known, mean = np.ravel(found["known"]), np.ravel(found["mean"])
    if not known.any():
        yield f"{task.name}: no label in {split}"
        return
    names = task.labels or tuple(map(str, range(task.dim)))
    rare = []
    if task.kind in ("binary", "multilabel"):
        few = np.minimum(known * mean, known * (1 - mean))
        rare = [names[c] if task.kind == "multilabel" else "" for c in np.flatnonzero(few < FEW)]
    elif task.kind == "multiclass":
        rare = [names[c] for c in range(task.dim) if found["classes"].get(str(c), 0) < FEW]
    if rare:
        what = f" ({_some(rare)})" if any(rare) else ""
        yield f"{task.name}: fewer than {FEW} rows of {split} have the rarer outcome{what}"


def _patterns(spec: DataSpec, splits: dict[str, Any]) -> list[str]:
    total: Counter[int] = Counter()
    for split in splits.values():
        total.update({int(pattern): count for pattern, count in split["patterns"].items()})
    ranked = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    out = []
    for pattern, count in [(p, n) for p, n in ranked[:MAX_LINES] if n >= SMALLEST]:
        kept = [name for m, name in enumerate(spec.modality_names) if pattern >> m & 1]
        whole = len(kept) == len(spec.modalities)
        out.append(f"  {count:>8,}  {'all' if whole else ' + '.join(kept) or 'nothing'}")
    rest = len(ranked) - len(out)
    return out + ([f"            and {rest} rarer ones"] if rest else [])


def _label(task: TaskSpec, found: dict[str, Any]) -> str:
    known, mean = np.ravel(found["known"]), np.ravel(found["mean"])
    text = _count(int(known.max()))
    if task.kind == "binary":
        return f"{text}; {_share(round(float(known[0] * mean[0])), int(known[0]))}"
    if task.kind == "regression" and known[0] >= SMALLEST:
        return f"{text}; {mean[0]:.3g}"
    return text


def _count(count: int) -> str:
    return cells.count(count, SMALLEST)


def _share(count: int, total: int) -> str:
    return cells.share(count, total, SMALLEST, digits=1, unknown="-")


def _some(names: list[str]) -> str:
    more = len(names) - MAX_LINES
    return ", ".join(names[:MAX_LINES]) + (f" and {more} more" if more > 0 else "")
