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
from m4.data import manifest as manifests
from m4.data import recording
from m4.data.cohort import Example
from m4.errors import DataError

SPLIT = "new"


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
    progress: recording.Progress | None = None,
) -> dict[str, Any]:
    """Writes the records of new data into `target`; returns their manifest.

    The manifest is the training data's with `sources`, `flow` and `splits` of the new data, and
    `observed`: modality -> records that have each feature.

    Raises:
      DataError: files that cannot be used, no record, another schema than the model's.
    """
    with recording.foreign(str(folder)):
        cohort = module.new(folder, trained.manifest["options"], trained.vocabularies)
    if manifests.schema(cohort.spec) != trained.manifest["declared"]:
        raise DataError(f"{folder}: is read into another schema than the model was trained on")
    summary = manifests.Summary(cohort.spec)
    kinds = {m.name: m.shape[-1] for m in cohort.spec.modalities if m.kind in ("series", "table")}
    observed = {name: np.zeros(size, int) for name, size in kinds.items()}

    def seen(split: str, record: Example) -> None:
        del split
        summary.add(record)
        for name, count in observed.items():
            values = record["inputs"][name]["values"]
            count += (~np.isnan(values)).reshape(-1, len(count)).any(axis=0)

    cuts = recording.write(target, cohort, seen, progress=progress)
    manifest = {
        **trained.manifest,
        "sources": cohort.sources,
        "flow": recording.flow(cohort, cuts),
        "splits": {SPLIT: summary.result()},
        "observed": {name: count.tolist() for name, count in observed.items()},
    }
    manifests.write(target, manifest)
    return manifest


def lacking(manifest: Mapping[str, Any], trained: Trained) -> list[str]:
    """What training records had and not one new record has: modalities, features; a line each."""
    new, old = manifest["splits"][SPLIT], trained.manifest["splits"]["train"]
    rows, lines = cells.count(new["rows"], manifests.SMALLEST), []
    for name, present in new["present"].items():
        had = {"smallest": manifests.SMALLEST, "digits": 0, "unknown": "some"}
        share = cells.share(old["present"][name], old["rows"], **had)
        if not present and old["present"][name]:
            lines.append(f"{name}: in 0 of {rows} records (training: {share})")
            continue
        fitted = trained.manifest["normalisers"].get(name, ())
        counts = manifest["observed"].get(name, ())
        gone = [f["feature"] for f, n in zip(fitted, counts, strict=False) if f["count"] and not n]
        if present and gone:
            lines.append(f"{name}: {', '.join(gone)} in 0 of {rows} records")
    return lines
