"""`manifest.json`: everything a run must know about its data, and nothing about a single patient.

| key | content |
|---|---|
| `format` | layout version of the folder |
| `name`, `version`, `licence`, `notes`, `options`, `seed` | what was built, and the split seed |
| `calibration` | share of the training patients in a split of that name; null for none |
| `leave_out` | 'site=North': the group whose people are tested; null for none |
| `also_train` | 'val' or 'all': which splits train beside 'train'; null for none |
| `fingerprint` | hash of the above, the declared schema (no groups) and source checksums |
| `sources` | file -> bytes, sha256 |
| `schema` | the `DataSpec`, with regression loc and scale fitted on train |
| `flow` | [step, count] of the cohort, cuts of too long payloads at the end |
| `splits` | split -> rows, patients, presence per modality, presence patterns, labels per task |
| `features` | of val and test: values of every feature, and how many the training range clips |
| `joining`, `warnings` | how the files match; what should make one look twice; a line each |
| `fitted` | what else the module took from training examples; absent without |
| `normalisers` | modality -> per feature: name, `m4.data.normalise.fit`, count; train only |
| `files` | file -> sha256, of all but the records, which hold checksums of their own |
| `sha256` | of everything above (`m4.seal`) |

Presence patterns are keyed by the integer whose bit m is modality m of the schema.
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from m4 import cells, seal
from m4.data import normalise
from m4.data import record as records
from m4.data.cohort import Example, sha256
from m4.data.shares import SMALLEST
from m4.errors import DataError, shortage
from m4.specs import DataSpec, ModalitySpec, TaskSpec, wordless

FORMAT = 1
FILE = "manifest.json"
UNSEALED = (FILE, "stamps.json", "LICENCE.txt")
RECORDS = ".array_record"  # part of the name of files that hold checksums of their own
AGAIN = "delete the folder to build it again"


def flow_lines(manifest: dict[str, Any]) -> list[str]:
    """What every filter of a cohort kept or dropped, then the records of each split, a line each.

    Counts below `SMALLEST` are not given exactly.
    """
    ends = [(f"records, {name}", split["rows"]) for name, split in manifest["splits"].items()]
    return [
        f"{cells.count(count, SMALLEST):>12}  {step}" for step, count in [*manifest["flow"], *ends]
    ]


def schema(spec: DataSpec) -> dict[str, Any]:
    """A `DataSpec` as JSON types, without its words: they may change while records stay.

    Without group columns it has no `groups`.
    """
    found = json.loads(json.dumps(dataclasses.asdict(wordless(spec))))
    for item in (*found["modalities"], *found["tasks"]):
        for word in ("title", "titles", "unit", "units", "definition"):
            item.pop(word, None)
    gone = {"about"} if spec.groups else {"about", "groups"}
    return {key: value for key, value in found.items() if key not in gone}


def spec_from(schema: dict[str, Any]) -> DataSpec:
    """The inverse of `schema`. Raises DataError for one that is none, or none any more.

    What is wrong with it is not quoted: the file may be anybody's.
    """

    def build(kind, item):
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in item.items()})

    try:
        modalities = tuple(build(ModalitySpec, item) for item in schema["modalities"])
        tasks = tuple(build(TaskSpec, item) for item in schema["tasks"])
        return DataSpec(modalities, tasks, schema["hours"], tuple(schema.get("groups", ())))
    except ValueError:
        raise DataError(
            "built data of another version: their schema is not one of this one; build them again"
        ) from None


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a built folder.

    Raises DataError when it is absent, damaged or outdated, or when a file that it vouches for is.
    """
    manifest = unchecked(folder)
    check_files(folder, manifest)
    return manifest


def unchecked(folder: Path) -> dict[str, Any]:
    """The manifest, itself intact or a DataError; the files that it vouches for are not read."""
    path = folder / FILE
    try:
        manifest = seal.load(path)
    except (OSError, ValueError, MemoryError) as error:
        if short := shortage(error):
            raise short from error
        raise DataError(f"{path}: no readable manifest; {AGAIN}") from error
    if not isinstance(manifest, dict):
        raise DataError(f"{path}: no manifest; {AGAIN}")
    if manifest.get("format") != FORMAT:
        raise DataError(f"{path}: format {manifest.get('format')}, expected {FORMAT}")
    if not seal.intact(manifest) or not isinstance(manifest.get("files"), dict):
        raise DataError(f"{path}: differs from its digest, or has none; {AGAIN}")
    return manifest


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Raises DataError when a file that the manifest vouches for is damaged or gone."""
    for name, digest in manifest["files"].items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise DataError(f"{folder / name}: is damaged or gone; {AGAIN}")


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest.json`, last of all files; the same data always gives the same bytes."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    files = {k: sha256(p) for k, p in names.items() if k not in UNSEALED and RECORDS not in p.name}
    whole = seal.sealed(manifest | {"files": files})
    (folder / FILE).write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n")


class Summary:
    """Counts of one split, taken while its records pass by."""

    def __init__(self, spec: DataSpec):
        """Start at zero."""
        self._spec = spec
        self.patients: set[int] = set()
        self._patterns: Counter[int] = Counter()
        shapes = {task.name: records.target_shape(spec, task) for task in spec.tasks}
        self._maps = {task.name for task in spec.tasks if task.kind == "segmentation"}
        shapes |= dict.fromkeys(self._maps, ())  # rows, and the share of a map that is marked
        self._known = {name: np.zeros(shape) for name, shape in shapes.items()}
        self._sum = {name: np.zeros(shape) for name, shape in shapes.items()}
        self._classes = {task.name: Counter() for task in spec.tasks if task.kind == "multiclass"}

    def add(self, record: Example) -> None:
        """Count one encoded record."""
        self.patients.add(int(record["patient"]))
        bits = (
            records.present(modality, record["inputs"][modality.name]) << m
            for m, modality in enumerate(self._spec.modalities)
        )
        self._patterns[sum(bits)] += 1
        for task, value in record["targets"].items():
            value = value.mean() if task in self._maps else value
            known = ~np.isnan(value)
            self._known[task] += known
            self._sum[task] += np.where(known, value, 0)
            if task in self._classes and known:
                self._classes[task][int(value)] += 1

    def knows(self, task: str) -> bool:
        """Whether any label of a task was seen."""
        return bool(self._known[task].any())

    def result(self) -> dict[str, Any]:
        """JSON types; label means are prevalences for binary and multilabel tasks."""
        labels = {}
        for task in self._known:
            known, total = self._known[task], self._sum[task]
            mean = total / np.maximum(known, 1)
            labels[task] = {"known": known.astype(int).tolist(), "mean": mean.tolist()}
            if task in self._classes:
                classes = sorted(self._classes[task].items())
                labels[task]["classes"] = {str(k): n for k, n in classes}
        patterns = sorted(self._patterns.items(), key=lambda item: (-item[1], item[0]))
        return {
            "rows": self._patterns.total(),
            "patients": len(self.patients),
            "present": {
                name: sum(n for pattern, n in patterns if pattern >> m & 1)
                for m, name in enumerate(self._spec.modality_names)
            },
            "patterns": {str(pattern): n for pattern, n in patterns},
            "labels": labels,
        }


class Fitter:
    """Everything that is fitted, from training records passing by."""

    def __init__(self, spec: DataSpec):
        """Empty samples."""
        self._spec = spec
        self._samplers = {
            modality.name: normalise.Sampler(modality.shape[-1])
            for modality in spec.modalities
            if modality.kind in normalise.KINDS
        }
        self._targets = {task.name: [] for task in spec.tasks if task.kind == "regression"}

    def add(self, record: Example) -> None:
        """Take in one encoded training record."""
        for name, sampler in self._samplers.items():
            values = record["inputs"][name]["values"]
            sampler.add(values.reshape(-1, values.shape[-1]))
        for name, kept in self._targets.items():
            kept.append(record["targets"][name])

    def normalisers(self) -> dict[str, list[dict[str, Any]]]:
        """Per modality one fitted normaliser per feature, with its count of observed values."""
        fitted = {}
        for name, sampler in self._samplers.items():
            modality = self._spec.modality(name)
            names = modality.features or tuple(map(str, range(modality.shape[-1])))
            columns = zip(names, sampler.values(), sampler.count.tolist(), strict=True)
            fitted[name] = [
                {"feature": feature, **normalise.fit(values), "count": count}
                for feature, values, count in columns
            ]
        return fitted

    def spec(self) -> DataSpec:
        """The schema with `loc` and `scale` of every regression task filled in."""
        tasks = {task.name: task for task in self._spec.tasks}
        for name, kept in self._targets.items():
            values = np.array(kept, np.float64).ravel()
            values = values[~np.isnan(values)]
            values = np.log1p(values) if tasks[name].transform == "log1p" else values
            loc, scale = (values.mean(), values.std()) if values.size else (0.0, 1.0)
            scale = float(scale) if scale > 1e-6 else 1.0
            tasks[name] = dataclasses.replace(tasks[name], loc=float(loc), scale=scale)
        return dataclasses.replace(self._spec, tasks=tuple(tasks.values()))
