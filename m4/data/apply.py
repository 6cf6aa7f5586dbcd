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

from m4.data import build, shift
from m4.data import manifest as manifests
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
    progress: build.Progress | None = None,
) -> dict[str, Any]:
    """Writes the records of new data into `target`; returns their manifest.

    The manifest is the training data's with what was measured of the new data.

    Raises:
      DataError: files that cannot be used, no record, another schema than the model's.
    """
    with build.blamed(target, folder):
        return _write(target, folder, module, trained, progress)


def _write(
    target: Path,
    folder: Path,
    module: ModuleType,
    trained: Trained,
    progress: build.Progress | None,
) -> dict[str, Any]:
    with build.foreign(str(folder)):
        keeps = {"scratch": target.parent} if getattr(module, "SCRATCH", False) else {}
        cohort = module.new(folder, trained.manifest["options"], trained.vocabularies, **keeps)
    if manifests.schema(cohort.spec) != trained.manifest["declared"]:
        raise DataError(f"{folder}: is read into another schema than the model was trained on")
    joining = build.joining(cohort)
    summary = manifests.Summary(cohort.spec)
    features = shift.Features(cohort.spec, trained.manifest["normalisers"])

    def seen(_: str, record: Example) -> None:
        summary.add(record)
        features.add(record)

    cuts = build.write_records(target, cohort, seen, progress=progress)
    manifest = {
        **trained.manifest,
        "sources": cohort.sources,
        "flow": build.flow(cohort, cuts),
        "splits": {SPLIT: summary.result()},
        "features": {SPLIT: features.result()},
        "joining": joining,
        "warnings": cohort.warnings,
    }
    manifests.write(target, manifest)
    return manifest


def warnings(manifest: Mapping[str, Any], trained: Trained) -> list[str]:
    """What new records lack altogether, and features in a range that training did not have."""
    new, train = manifest["splits"][SPLIT], trained.manifest["splits"]["train"]
    return [*manifest["warnings"], *shift.warnings(new, train, manifest["features"][SPLIT])]
