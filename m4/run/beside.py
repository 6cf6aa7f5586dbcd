"""What stands beside a prediction: a set or interval, and which test should come next.

`calibration.json` of a work directory has the thresholds of prediction sets (`m4.eval.calibrated`)
of patients who neither trained nor chose the model, and of which parameters they are. Evaluation
writes it where patients were set aside (`data.calibration`), for its owner alone. Advice is learnt
anew from `results/<split>_subsets.parquet`, every answer under every subset, which evaluation
writes with `eval.subsets=all`; that split's own rows have theirs in `results/<split>_next.parquet`.
No table is believed that is of other parameters or of rows that `eval.missing` degraded. Columns,
each only where it can be had:

| column | of | what |
|---|---|---|
| `set/<task>`, `set/<task>/<label>` | classes | classes that may be true; null: not asked |
| `low/<task>`, `high/<task>` | numbers | ends of the interval; null where none is sure |
| `next/<task>` | classes | the absent modality that should tell most per cost (`eval.costs`) |
| `gain/<task>/<modality>` | classes | what it should tell, in nats; null where it is there |
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m4 import seal
from m4.errors import DataError
from m4.eval import acquire, bootstrap, calibrated, damage, games, questions, subsets, table
from m4.eval.predictions import Predictions
from m4.run import members
from m4.specs import DataSpec

FILE, FORMAT = "calibration.json", 1
LEARNT_ON = ("test", "crossval")  # splits whose table teaches; the first that is there
TABLES = ("subsets", "worth", "next")  # results/<split>_<name>.parquet
PARAMETERS = b"m4.parameters"  # of a table's metadata: whose answers they are
MISSING = b"m4.missing"  # what `eval.missing` took from the rows before
ADVISED = ("binary", "multiclass")
NO_ADVICE = "no advice which test comes next: "
DEGRADED = (
    "m4: warning: rows lack more than they do (eval.missing); prediction sets and intervals were"
    " calibrated on rows as they are, and need not hold what they promise here"
)
AGAIN = "--mode=eval --config.eval.subsets=all writes it again"


def parameters(folder: Path, places: Sequence[Path] = ()) -> list[str]:
    """Digests of the best parameters, of each member; what predicts is known by them.

    `places` are the members' folders, where they are known better than by the files of `folder`.
    """
    each = map(damage.best, places or members.folders(folder) or (folder,))
    return [*filter(None, each)]  # a step that cannot be read is refused elsewhere


def is_of(document: Mapping[str, Any], folder: Path, places: Sequence[Path] = ()) -> bool:
    """Whether a document is of the `parameters` that are there; one that does not say it is."""
    return document.get("parameters") in (None, parameters(folder, places))


def write(folder: Path, calibration: Predictions, spec: DataSpec, alpha: float) -> None:
    """Writes `calibration.json` of the patients set aside."""
    document = {"format": FORMAT, "alpha": alpha, "parameters": parameters(folder)}
    document |= {"tasks": calibrated.rules(calibration, spec, alpha)}
    text = json.dumps(seal.sealed(document), indent=1, allow_nan=False) + "\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with (
        seal.replaced(folder / FILE, folder) as partial,
        open(os.open(partial, flags, 0o600), "wb") as file,
    ):
        file.write(text.encode())


def read(folder: Path) -> tuple[list[str], float, calibrated.Rules] | None:
    """(parameters, alpha, thresholds) of `calibration.json`, None if there is none.

    Raises DataError if it is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        document = seal.load(path)
        if not seal.intact(document) or document["format"] != FORMAT:
            raise ValueError
        return document["parameters"], document["alpha"], document["tasks"]
    except (OSError, ValueError, LookupError, RecursionError):
        raise DataError(f"{path}: is damaged; --mode=eval writes it again") from None


def marked(answers: pa.Table, folder: Path, missing: Mapping[str, Any]) -> pa.Table:
    """A table that says whose answers it holds, those of the folder's best parameters, and to what.

    `missing` is what `eval.missing` took from the rows, {} for nothing.
    """
    mark = {PARAMETERS: parameters(folder), MISSING: dict(missing)}
    known = {**(answers.schema.metadata or {}), **{k: json.dumps(v) for k, v in mark.items()}}
    return answers.replace_schema_metadata(known)


def place(folder: Path, split: str, name: str) -> Path:
    """Where one of the `TABLES` lies."""
    return folder / "results" / f"{split}_{name}.parquet"


def forget(folder: Path, split: str, *, keep: Collection[str] | None = None) -> None:
    """Removes a split's tables but those in `keep`; by default those of other parameters."""
    for name in TABLES:
        path, old = place(folder, split, name), keep is not None and name not in keep
        if keep is None and path.exists():
            with contextlib.suppress(OSError, ValueError, pa.ArrowException):
                old = _mark(path)[0] not in (None, parameters(folder))
        if old and path.exists():
            seal.remove(folder, path.relative_to(folder).as_posix())
            print(f"{path}: removed, it was of an earlier evaluation")


@dataclasses.dataclass(frozen=True)
class Beside:
    """What a work directory knows beside its predictions; `lines`: what it does not know."""

    folder: Path
    spec: DataSpec
    rules: calibrated.Rules
    learnt_on: str  # the split whose table teaches; "" without
    costs: Mapping[str, float]
    seed: int
    lines: tuple[str, ...]

    def said(self, columns: Mapping[str, Any]) -> list[str]:
        """Lines about what columns lack, and why."""
        said = any(line.startswith(NO_ADVICE) for line in self.lines)
        learnt = not self.learnt_on or any(name.startswith("gain/") for name in columns)
        few = f"{NO_ADVICE}too few patients to learn it from"
        return [*self.lines, *([] if learnt or said else [few])]

    def columns(self, found: Predictions, split: str = "") -> dict[str, Any]:
        """The columns of the module for predictions of people, in the order of their rows.

        `split` is that of the data trained on; "" of new data.
        """
        return _sets(found, self.spec, self.rules) | self._advice(found, split)

    def _advice(self, found: Predictions, split: str) -> dict[str, Any]:
        if not self.learnt_on:
            return {}
        if split == self.learnt_on:  # they are advised by the half to which they do not belong
            return self._kept(split, found)
        columns: dict[str, pa.Array] = {}
        for task, adviser in self.advisers.items():
            columns |= table.advice_columns(task, adviser.names, *adviser.advise(found))
        return columns

    def _kept(self, split: str, found: Predictions) -> dict[str, Any]:
        """The gains that evaluation gave the rows of its own table, by the costs of today.

        None of a modality that is there, whatever the table says.
        """
        path, columns = place(self.folder, split, "next"), {}
        if not path.exists() or _unfit_rows(path, self.folder):
            return columns
        kept, names = pq.read_table(path), self.spec.modality_names
        at = pc.index_in(pa.array(found.uid), value_set=kept["row"].combine_chunks())
        price_M = acquire.prices(names, self.costs)
        for task in self.spec.tasks:
            own = [f"gain/{task.name}/{name}" for name in names]
            if not {*own} <= {*kept.column_names}:
                continue
            gain_NM = np.stack([kept[c].take(at).to_numpy(zero_copy_only=False) for c in own], -1)
            gain_NM = np.where(found.present, np.nan, np.maximum(gain_NM.astype(np.float64), 0))
            next_N = acquire.best(gain_NM, price_M)
            columns |= table.advice_columns(task.name, names, gain_NM, next_N)
        return columns

    @functools.cached_property
    def advisers(self) -> dict[str, acquire.Adviser]:
        """Task -> its value models, learnt when they are first asked for."""
        found = {}
        whole = table.read(place(self.folder, self.learnt_on, "subsets"), self.spec)
        draws = bootstrap.resample(whole.patient, draws=1)
        for task in self.spec.tasks:
            game = games.play(whole, self.spec, task, draws, min_patients=1, seed=self.seed)
            one = None if game is None else acquire.adviser(game, self.costs, seed=self.seed)
            if one is not None:
                found[task.name] = one
        return found


def of(folder: Path, config: ml_collections.ConfigDict, spec: DataSpec) -> Beside:
    """What the work directory knows. Raises DataError for a damaged file."""
    lines, rules, split = [], {}, ""
    if any(task.kind in questions.KINDS for task in spec.tasks):
        rules, why = _rules(folder, config)
        lines += [f"no prediction sets: {why}"] if why else []
        lines += [DEGRADED] if rules and config.eval.missing else []
    if any(task.kind in ADVISED for task in spec.tasks) and len(spec.modalities) > 2:
        split, why = _table(folder, config, spec)
        lines += [f"{NO_ADVICE}{f'for rows of {split}, ' if split else ''}{why}"] if why else []
    costs = config.eval.costs.to_dict()
    return Beside(folder, spec, rules, split, costs, config.seed, tuple(lines))


def _rules(folder: Path, config: ml_collections.ConfigDict) -> tuple[calibrated.Rules, str]:
    """The thresholds, or {} and why there are none."""
    path, alpha, kept = folder / FILE, config.eval.alpha, read(folder)
    if kept is None:
        if not config.data.calibration:
            return {}, "no patients were set aside for them in training (data.calibration=0.15)"
        if members.folders(folder) and members.kind_of(folder) == "folds":
            return {}, "every fold was calibrated on patients of its own, not all together"
        return {}, f"{path} is not there; --mode=eval writes it"
    known, of_alpha, tasks = kept
    if known != parameters(folder):
        return {}, f"{path} is of other parameters; --mode=eval writes it again"
    if of_alpha != alpha:
        again = f"--config.eval.alpha={of_alpha:g} takes its sets,"
        again += f" --mode=eval --config.eval.alpha={alpha:g} calibrates anew"
        return {}, f"{path} is of eval.alpha={of_alpha:g}; {again}"
    return tasks, ""


def _table(folder: Path, config: ml_collections.ConfigDict, spec: DataSpec) -> tuple[str, str]:
    """The split whose subset table teaches, or "", and why there is no advice (for its rows)."""
    if config.eval.missing:
        return "", "rows lack more than they do (eval.missing); it is learnt from rows as they are"
    many = len(spec.modalities) > subsets.EXACT_UP_TO
    above = f"there is none above {subsets.EXACT_UP_TO} modalities: not every combination is tried"
    for split in LEARNT_ON:
        path, rows = (place(folder, split, name) for name in ("subsets", "next"))
        if not path.exists():
            continue
        if why := _unfit(path, folder):
            return "", why
        note = json.loads((pq.read_schema(path).metadata or {})[table.NOTE])
        if len(note["subsets"]) < 2 ** len(spec.modalities) - 1:
            return "", above if many else f"{path} has not every combination; {AGAIN}"
        return split, _unfit_rows(rows, folder) if rows.exists() else ""
    learnt = "it is learnt from what --mode=eval --config.eval.subsets=all writes"
    return "", above if many else learnt


def _unfit(path: Path, folder: Path) -> str:
    """Why a table is not believed, "" if it is."""
    try:
        mark = _mark(path)
    except (OSError, ValueError, pa.ArrowException):
        return f"{path} is damaged; {AGAIN}"
    if mark[0] != parameters(folder):
        return f"{path} is of other parameters; {AGAIN}"
    return "" if mark[1] == {} else f"{path} may be of rows made to lack more; {AGAIN}"


def _unfit_rows(path: Path, folder: Path) -> str:
    """As `_unfit`, of a table that is not read by `m4.eval.table.read`, which asks for its seal."""
    if seal.problem(folder, path.relative_to(folder).as_posix()) == "differs from its seal":
        return f"{path} differs from its seal; {AGAIN}"
    return _unfit(path, folder)


def _mark(path: Path) -> list[Any]:
    """The parameters of a table and what `eval.missing` took, null each where it does not say."""
    known = pq.read_schema(path).metadata or {}
    return [json.loads(known.get(key, b"null")) for key in (PARAMETERS, MISSING)]


def _sets(found: Predictions, spec: DataSpec, rules: calibrated.Rules) -> dict[str, Any]:
    columns: dict[str, pa.Array] = {}
    for one in calibrated.sets(found, spec, rules):
        task, column = one.question.task, one.question.column
        name = task.name
        if task.kind == "multilabel":
            name = f"{name}/{(task.labels or tuple(map(str, range(task.dim))))[column]}"
        if one.inside_NK is not None:
            both = zip(one.inside_NK.tolist(), one.asked_N.tolist(), strict=True)
            named = [
                [c for c, inside in zip(one.question.classes, row, strict=True) if inside]
                if asked
                else None
                for row, asked in both
            ]
            columns[f"set/{name}"] = pa.array(named, pa.list_(pa.string()))
        if one.ends_N2 is not None:
            for end, value_N in zip(("low", "high"), one.ends_N2.T, strict=True):
                columns[f"{end}/{name}"] = pa.array(value_N, mask=np.isnan(value_N))
    return columns
