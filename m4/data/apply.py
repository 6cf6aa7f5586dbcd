"""New raw data -> records for a trained model: all that was fitted is taken from its training data.

`write` makes a folder like those of `m4.data.build` with the one split `SPLIT`. Schema (with loc
and scale of regression tasks), normalisers and vocabularies are those that are handed in; the new
data are only counted. A data set module takes part with

    def new(folder, resolved, vocabularies) -> Cohort

where `folder` holds the new files, `resolved` is what the module's `resolved` said when the model
was trained, and the cohort has the one split: every point that is asked, labelled or not.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from m4 import cells
from m4.data import build, normalise
from m4.data import manifest as manifests
from m4.data.cohort import Example
from m4.errors import DataError
from m4.specs import DataSpec

SPLIT = "new"
MANY_CLIPPED = 0.2  # share of a feature's values; of the training values it is 0.002


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a model knows of its training data."""

    manifest: Mapping[str, Any]
    vocabularies: Mapping[str, list[str]]


def write(
    target: Path,
    folder: Path,
    module: ModuleType,
    trained: Trained,
    *,
    progress: build.Progress | None = None,
) -> dict[str, Any]:
    """Writes the records of new data into `target`; returns their manifest.

    The manifest is the training data's with `sources`, `flow` and `splits` of the new data, and
    `features`: see `Features`.

    Raises:
      DataError: files that cannot be used, no record, another schema than the model's.
    """
    with build.foreign(str(folder)):
        cohort = module.new(folder, trained.manifest["options"], trained.vocabularies)
    if manifests.schema(cohort.spec) != trained.manifest["declared"]:
        raise DataError(f"{folder}: is read into another schema than the model was trained on")
    summary = manifests.Summary(cohort.spec)
    features = Features(cohort.spec, trained.manifest["normalisers"])

    def seen(_: str, record: Example) -> None:
        summary.add(record)
        features.add(record)

    cuts = build.write_records(target, cohort, seen, progress=progress)
    manifest = {
        **trained.manifest,
        "sources": cohort.sources,
        "flow": build.flow(cohort, cuts),
        "splits": {SPLIT: summary.result()},
        "features": features.result(),
    }
    manifests.write(target, manifest)
    return manifest


class Features:
    """Per feature of series and tables: values, and how many of them are clipped."""

    def __init__(self, spec: DataSpec, normalisers: Mapping[str, list[dict[str, Any]]]):
        """`normalisers` as in a manifest."""
        names = [m.name for m in spec.modalities if m.kind in ("series", "table")]
        self._fitted = {name: normalisers[name] for name in names}
        self._limits = {name: normalise.limits(fitted) for name, fitted in self._fitted.items()}
        self._counts = {name: np.zeros((2, len(f)), int) for name, f in self._fitted.items()}

    def add(self, record: Example) -> None:
        """Count one encoded record."""
        for name, (low_f, high_f) in self._limits.items():
            values_Nf = record["inputs"][name]["values"].reshape(-1, len(low_f))
            outside_Nf = (values_Nf < low_f) | (values_Nf > high_f)
            self._counts[name] += [(~np.isnan(values_Nf)).sum(axis=0), outside_Nf.sum(axis=0)]

    def result(self) -> dict[str, list[dict[str, Any]]]:
        """JSON types: modality -> [{feature, trained, values, clipped}], `trained` of training."""
        return {
            name: [
                {"feature": f["feature"], "trained": f["count"], "values": v, "clipped": c}
                for f, (v, c) in zip(fitted, self._counts[name].T.tolist(), strict=True)
            ]
            for name, fitted in self._fitted.items()
        }


def warnings(manifest: Mapping[str, Any], trained: Trained) -> list[str]:
    """What new records lack altogether, and features in a range that training did not have."""
    new, old = manifest["splits"][SPLIT], trained.manifest["splits"]["train"]
    rows, lines = cells.count(new["rows"], manifests.SMALLEST), []
    for name, present in new["present"].items():
        features = [f for f in manifest["features"].get(name, ()) if f["trained"]]
        if not present and old["present"][name]:
            share = _share(old["present"][name], old["rows"])
            lines.append(f"{name}: in 0 of {rows} records (training: {share})")
        elif gone := [f["feature"] for f in features if not f["values"]]:
            lines.append(f"{name}: {', '.join(gone)} in 0 of {rows} records")
        lines += [
            f"{name}: {f['feature']} is clipped in {_share(f['clipped'], f['values'])} of its"
            " values: another unit than in training?"
            for f in features
            if f["values"] >= manifests.SMALLEST and f["clipped"] > MANY_CLIPPED * f["values"]
        ]
    return lines


def _share(part: int, total: int) -> str:
    return cells.share(part, total, manifests.SMALLEST, digits=0, unknown="some")
