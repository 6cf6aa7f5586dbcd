"""New raw data -> records for a trained model: all that was fitted is taken from its training data.

`write` makes a folder like those of `m4.data.build` with the one split `SPLIT`. Schema (with loc
and scale of regression tasks), normalisers and vocabularies are those that are handed in; the new
data are only counted. Any data set module takes part: without more, its `cohort` reads the new
files as it reads its own, and all splits are one. One whose labels may be lacking, or that takes
more from training examples than m4 does, has

    def new(folder, resolved, vocabularies) -> Cohort

where `folder` holds the new files, `resolved` is what the module's `resolved` said when the model
was trained (or its options), and the cohort has the one split: every point that is asked, labelled
or not. Of `scratch` (a folder for what is written on the way), `seed` (of training), `spec` (that
of training) and `fitted` (what the cohort trained on said it had) it is handed what it names.
"""

import contextlib
import dataclasses
import inspect
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m4.data import build, groups, shift
from m4.data import manifest as manifests
from m4.data.cohort import Cohort, Example
from m4.errors import ConfigError, DataError
from m4.specs import DataSpec

SPLIT = "new"


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a model knows of its training data."""

    manifest: Mapping[str, Any]
    vocabularies: Mapping[str, list[str]]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the data set, now

    @property
    def spec(self) -> DataSpec:
        """Their schema."""
        return manifests.spec_from(self.manifest["schema"])


def write(
    target: Path,
    folder: Path,
    module: Any,
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
    module: Any,
    trained: Trained,
    progress: build.Progress | None,
) -> dict[str, Any]:
    with build.foreign(str(folder)):
        read = _read if hasattr(module, "new") else _read_as_its_own
        cohort = read(module, folder, trained, target.parent)
    if {*cohort.splits} != {SPLIT}:
        raise DataError(f"{folder}: the data set's `new` must make the one split {SPLIT!r}")
    if not _same_schema(cohort.spec, trained):
        raise DataError(f"{folder}: is read into another schema than the model was trained on")
    joining = build.joining(cohort)
    summary = manifests.Summary(cohort.spec)
    features = shift.Features(cohort.spec, trained.manifest["normalisers"])

    def seen(_: str, record: Example) -> None:
        summary.add(record)
        features.add(record)

    cuts = build.write_records(target, cohort, seen, progress=progress)
    if cohort.vocabularies and cohort.vocabularies != trained.vocabularies:
        raise DataError(
            f"{folder}: its token ids were counted anew and stand for other words than those of the"
            " model; the data set needs a function `new`"
        )
    manifest = {
        **trained.manifest,
        "schema": _plain(trained.manifest["schema"]) | _groups(manifests.schema(cohort.spec)),
        "sources": cohort.sources,
        "flow": build.flow(cohort, cuts),
        "splits": {SPLIT: summary.result()},
        "features": {SPLIT: features.result()},
        "joining": joining,
        "warnings": cohort.warnings,
    }
    manifests.write(target, manifest)
    return manifest


def _read(module: Any, folder: Path, trained: Trained, scratch: Path) -> Cohort:
    """The cohort of a module that has `new`."""
    manifest, now = trained.manifest, {}
    with contextlib.suppress(ConfigError):  # a definition that is not there any more
        now = getattr(module, "resolved", dict)(**trained.options)
    moved = {k: now[k] for k in getattr(module, "ELSEWHERE", ()) if k in now}
    offered = {
        "scratch": lambda: scratch,
        "seed": lambda: manifest["seed"],
        "spec": lambda: trained.spec,
        "fitted": lambda: manifest.get("fitted", {}),
    }
    wanted = inspect.signature(module.new).parameters.keys()
    own = {name: get() for name, get in offered.items() if name in wanted}
    return module.new(folder, {**manifest["options"], **moved}, trained.vocabularies, **own)


def _read_as_its_own(module: Any, folder: Path, trained: Trained, scratch: Path) -> Cohort:
    """The cohort of a module without `new`: what it would train on in that folder, all together."""
    if hasattr(module, "resolved"):
        options = dict(trained.options)
    else:
        options = dict(trained.manifest["options"])
    if missing := module.missing_files(folder, **options):
        raise DataError(*missing)
    keeps = {"scratch": scratch} if getattr(module, "SCRATCH", False) else {}
    cohort = module.cohort(folder, seed=trained.manifest["seed"], **keeps, **options)
    starts = [*cohort.splits.values()]
    cohort.splits = {SPLIT: lambda: itertools.chain.from_iterable(start() for start in starts)}
    return cohort


def _same_schema(spec: DataSpec, trained: Trained) -> bool:
    """Whether a schema is that of training: as declared or, of widths that files say, as read.

    Group columns may have come since; they are no input.
    """
    now, declared = _plain(manifests.schema(spec)), _plain(trained.manifest["declared"])
    if now == declared:
        return True
    names = [modality.get("name") for modality in declared.get("modalities", ())]
    if names != [*spec.modality_names] or _tasks(now) != _tasks(declared):
        return False
    scaled = {task.name: task for task in trained.spec.tasks}
    tasks = tuple(
        dataclasses.replace(task, loc=then.loc, scale=then.scale)
        if (then := scaled.get(task.name)) and task.kind == "regression"
        else task
        for task in spec.tasks
    )
    now = manifests.schema(dataclasses.replace(spec, tasks=tasks))
    return _plain(now) == _plain(trained.manifest["schema"])


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema without its group columns."""
    return {key: value for key, value in schema.items() if key != groups.FOLDER}


def _groups(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key == groups.FOLDER}


def _tasks(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema without its modalities."""
    return {key: value for key, value in schema.items() if key != "modalities"}


def warnings(manifest: Mapping[str, Any], trained: Trained) -> list[str]:
    """What new records lack altogether, and features in a range that training did not have."""
    new, train = manifest["splits"][SPLIT], trained.manifest["splits"]["train"]
    return [*manifest["warnings"], *shift.warnings(new, train, manifest["features"][SPLIT])]
