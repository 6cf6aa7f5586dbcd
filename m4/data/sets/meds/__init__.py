"""Any MEDS data set, through one declarative file.

    data = dict(name="meds", options=dict(file="my_hospital.toml"))

reads `data/**/*.parquet`, `metadata/subject_splits.parquet` and label files as MEDS 0.3 and 0.4
define them (https://github.com/Medical-Event-Data-Standard/meds), and makes one record per
(subject, prediction time). The file says which codes are which modality and where the labels of
each task are: see `docs/data.md`. `m4.data.sets.tables` reads other tables through the same
language.

`python -m m4.data draft FOLDER` writes a first version of the file from the data.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m4.data.cohort import Cohort, Example, checksums
from m4.data.sets.meds import definition as definitions
from m4.data.sets.meds import parse
from m4.data.sets.meds.definition import Definition
from m4.errors import ConfigError, DataError
from m4.specs import DataSpec

VERSION = "1"
LICENCE = "as the definition says"
WHERE = "see `where` and `folder` of the definition"


def resolved(
    *,
    file: str = "",
    folder: str = "",
    split: str = "",
    fold: int = 0,
    num_folds: int = 0,
    meds: bool = True,
) -> dict[str, Any]:
    """The definition's content with the options put in: what identifies a build.

    Args:
      file: path of the definition, or the name of a shipped one.
      folder: where the files are below the raw folder, if not where the definition says.
      split: 'meds', 'hash' or 'folds' instead of the definition's.
      fold: which of `num_folds` is tested.
      num_folds: of cross-validation by subject; 0 for the definition's number. A number means
        split='folds' unless `split` says otherwise.
      meds: whether MEDS files are the default.

    Raises ConfigError for a file that can't be read.
    """
    content = dict(definitions.load(file))
    content["meds"] = meds
    if folder:
        content["folder"] = folder
    splits = dict(content.get("splits", {}))
    if split or num_folds:
        splits["from"] = split or "folds"
    if num_folds:
        splits["num_folds"] = num_folds
    if fold or num_folds:
        splits["fold"] = fold
    if splits:
        content["splits"] = splits
    return content


def read_definition(**options: Any) -> Definition:
    """The checked definition. Raises ConfigError with one line per problem."""
    content = resolved(**options)
    meds = content.pop("meds")
    found = parse.parse(content, str(options["file"]), meds=meds)
    if Path(found.folder).is_absolute():
        raise ConfigError(f"folder={found.folder!r}: must be a path below --config.data.raw_dir")
    return found


def spec(
    *, file: str = "", folder: str = "", split: str = "", fold: int = 0, num_folds: int = 0
) -> DataSpec:
    """The schema that the definition declares; options as in `resolved`."""
    return read_definition(
        file=file, folder=folder, split=split, fold=fold, num_folds=num_folds
    ).data_spec()


def missing_files(raw_dir: Path | str, **options: Any) -> list[str]:
    """One line per source of events and per task without files."""
    found = read_definition(**options)
    root = Path(raw_dir) / found.folder
    wanted = {source.files: "events" for source in found.sources}
    wanted |= {task.files: f"labels of {task.spec.name}" for task in found.tasks}
    lines = [
        f"{root / pattern} is missing ({what})"
        for pattern, what in wanted.items()
        if not definitions.find(root, pattern)
    ]
    return lines + ([f"{found.name}: {found.where}"] if lines else [])


def cohort(raw_dir: Path | str, *, seed: int, **options: Any) -> Cohort:
    """One example per labelled (subject, prediction time).

    Raises:
      ConfigError: a definition with errors.
      DataError: files that can't be used, when they are read: at the first example.
    """
    return make(Path(raw_dir), read_definition(**options), seed=seed)


def make(raw_dir: Path, found: Definition, *, seed: int) -> Cohort:
    """The cohort of a definition."""
    root = raw_dir / found.folder
    paths = _paths(found, root, "metadata/subject_splits.parquet")

    def examples():
        from m4.data.sets.meds import examples as building  # needs pyarrow

        return building.prepare(found, root, seed=seed)

    return _cohort(found, checksums(raw_dir, paths), examples, ("train", "val", "test"))


def new(
    folder: Path, resolved: Mapping[str, Any], vocabularies: Mapping[str, Sequence[str]]
) -> Cohort:
    """What a trained model is asked about new files of the same kind, as the split 'new'.

    Args:
      folder: where the files are, in place of the definition's.
      resolved: what `resolved` said when the model was trained.
      vocabularies: those that were counted then; a modality without is a DataError.
    """
    content = dict(resolved)
    meds = content.pop("meds", True)
    found = parse.parse(content, "definition", meds=meds)
    for modality in found.modalities:
        name, size = modality.spec.name, modality.spec.vocab or 0
        if modality.tokens and modality.vocabulary == "train":
            if name not in vocabularies:
                raise DataError(f"the vocabulary of {name} is not known")
            if len(vocabularies[name]) >= size:
                raise DataError(f"the vocabulary of {name} is larger than the model's")

    def examples():
        from m4.data.sets.meds import examples as building  # needs pyarrow

        return building.prepare_new(found, folder, vocabularies=vocabularies)

    paths = _paths(found, folder, "points.*")
    return _cohort(found, checksums(folder, paths), examples, ("new",))


def _paths(found: Definition, root: Path, *others: str) -> set[Path]:
    """Every file that is read."""
    patterns = [s.files for s in found.sources] + [t.files for t in found.tasks]
    return {path for pattern in (*patterns, *others) for path in definitions.find(root, pattern)}


def _cohort(found: Definition, sources: dict, examples: Callable, splits: Sequence[str]) -> Cohort:
    result = Cohort(
        spec=found.data_spec(),
        splits={},
        sources=sources,
        licence=found.licence,
        version=VERSION,
        notes=f"{found.name}; one record per subject and prediction time.",
    )
    prepared = functools.cache(examples)

    def split(name: str) -> Iterator[Example]:
        made, flow = prepared()
        yield from made.split(name)
        result.vocabularies.update(made.vocabularies)
        result.flow[:] = [(step, count) for step, count in flow.items() if count]

    result.splits = {name: lambda name=name: split(name) for name in splits}
    return result
