"""A definition as a data set: options, missing files, cohort, and new data for a trained model."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m4.data.cohort import Cohort, Example, checksums
from m4.data.sets.declared import definition as definitions
from m4.data.sets.declared import examples, parse, wording
from m4.data.sets.declared.definition import Definition
from m4.data.sets.declared.points import SPLIT_FILE
from m4.errors import ConfigError, DataError
from m4.specs import DataSpec

VERSION = "4"
LICENCE = "as the definition says"
WHERE = "see `where` and `folder` of the definition"


class Declared:
    """What `m4.data.cohort` asks of a data set module, for any definition or for the one `file`."""

    VERSION, LICENCE, WHERE = VERSION, LICENCE, WHERE
    SCRATCH = True  # `cohort` and `new` take a folder for what they write on the way
    ELSEWHERE = ("groups",)  # which may come later: they are no input

    def __init__(self, *, meds: bool, file: str = ""):
        """`meds`: whether MEDS files are the default."""
        self._meds, self._file = meds, file

    def content(
        self,
        *,
        file: str = "",
        folder: str = "",
        split: str = "",
        fold: int = 0,
        num_folds: int = 0,
        val_fraction: float | None = None,
        modalities: Sequence[str] = (),
        tasks: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The definition's content with the options put in.

        Args:
          file: path of the definition, or the name of a shipped one.
          folder: where the files are below the raw folder, if not where the definition says.
          split: 'meds', 'hash' or 'folds' instead of the definition's; 'all': everybody trains.
          fold: which of `num_folds` is tested.
          num_folds: of cross-validation by subject; 0 for the definition's number. A number means
            split='folds' unless `split` says otherwise.
          val_fraction: share of the subjects that are left for training, for validation.
          modalities: those to keep; empty for all that are not `on_request`.
          tasks: those to keep, in the same way.

        Raises ConfigError for a file that can't be read and for names that it does not have.
        """
        content = {**definitions.load(file or self._file), "meds": self._meds}
        if folder:
            content["folder"] = folder
        splits = {
            "from": split or ("folds" if num_folds else None),
            "num_folds": num_folds or None,
            "fold": fold if fold or num_folds else None,
            "val_fraction": val_fraction,
        }
        splits = {key: value for key, value in splits.items() if value is not None}
        if splits:
            content["splits"] = {**content.get("splits", {}), **splits}
        return _chosen(content, modalities=modalities, tasks=tasks)

    @functools.wraps(content, assigned=())  # the same options
    def resolved(self, **options: Any) -> dict[str, Any]:
        """What identifies a build: the content without words, which change no record."""
        return wording.without(self.content(**options))

    def read_definition(self, **options: Any) -> Definition:
        """The checked definition. Raises ConfigError with one line per problem."""
        content = self.content(**options)
        file = str(options.get("file") or self._file)
        return parse.parse(content, file, meds=content.pop("meds"))

    @functools.wraps(content, assigned=())  # the same options
    def spec(self, **options: Any) -> DataSpec:
        """The schema that the definition declares."""
        return self.read_definition(**options).data_spec()

    def everyone(self, **options: Any) -> dict[str, Any]:
        """The options with which everybody trains who is tested in a fold (`m4.data.held_in`)."""
        kept = {k: v for k, v in options.items() if k not in ("fold", "num_folds", "split")}
        return kept | {"split": "all"}

    def missing_files(self, raw_dir: Path | str, **options: Any) -> list[str]:
        """One line per source of events and per task without files."""
        found = self.read_definition(**options)
        root = Path(raw_dir) / found.folder
        wanted = {source.files: "events" for source in found.sources}
        wanted |= {task.files: f"labels of {task.spec.name}" for task in found.labelled}
        lines = [
            f"{root / pattern} is missing ({what})"
            for pattern, what in wanted.items()
            if not definitions.find(root, pattern)
        ]
        return lines + ([f"{found.name}: {found.where}"] if lines else [])

    def cohort(
        self, raw_dir: Path | str, *, seed: int, scratch: Path | None = None, **options: Any
    ) -> Cohort:
        """One example per labelled (subject, prediction time).

        Events wait in a folder in `scratch`, if it is given, until the cohort is let go of.

        Raises:
          ConfigError: a definition with errors.
          DataError: files that can't be used, when they are read: at the first example.
        """
        found = self.read_definition(**options)
        root = Path(raw_dir) / found.folder
        paths = _paths(found, root, SPLIT_FILE)
        sources = checksums(Path(raw_dir), paths)
        prepared = functools.partial(examples.prepare, found, root, seed=seed, scratch=scratch)
        cohort = _cohort(found, sources, prepared, ("train", "val", "test"))
        if root / SPLIT_FILE not in paths:
            cohort.absent = [(root / SPLIT_FILE).relative_to(raw_dir).as_posix()]
        return cohort

    def new(
        self,
        folder: Path,
        resolved: Mapping[str, Any],
        vocabularies: Mapping[str, Sequence[str]],
        *,
        scratch: Path | None = None,
    ) -> Cohort:
        """What a trained model is asked about new files of the same kind, as the split 'new'.

        Args:
          folder: where the files are, in place of the definition's.
          resolved: what `resolved` said when the model was trained.
          vocabularies: those that were counted then; a modality without is a DataError.
          scratch: a folder for the events, as of `cohort`.
        """
        content = {"meds": True, **resolved}
        found = parse.parse(content, "definition", meds=content.pop("meds"))
        for modality in found.modalities:
            name, size = modality.spec.name, modality.spec.vocab or 0
            if modality.tokens and modality.vocabulary == "train":
                if name not in vocabularies:
                    raise DataError(f"the vocabulary of {name} is not known")
                if len(vocabularies[name]) >= size:
                    raise DataError(f"the vocabulary of {name} is larger than the model's")
        sources = checksums(folder, _paths(found, folder, "points.*"))
        about = {"vocabularies": vocabularies, "scratch": scratch}
        prepared = functools.partial(examples.prepare_new, found, folder, **about)
        return _cohort(found, sources, prepared, ("new",))


def shipped(name: str) -> Declared:
    """The shipped definition `name` as a data set; one that names no tables is of MEDS files."""
    content = definitions.load(name)
    found = Declared(meds=not {"events", "rows"} & {*content}, file=name)
    found.LICENCE, found.WHERE = content["licence"], content["where"]
    return found


def _chosen(content: dict[str, Any], **chosen: Sequence[str]) -> dict[str, Any]:
    """The content with the modalities and tasks that are asked for."""
    problems = []
    for key, names in chosen.items():
        declared = content.get(key)
        if not isinstance(declared, Mapping):
            continue  # `parse` says what is wrong with it
        if unknown := sorted({*names} - {*declared}):
            problems.append(f"data.options.{key}: {unknown} not in {', '.join(declared)}")
        hidden = {n for n, v in declared.items() if isinstance(v, Mapping) and v.get("on_request")}
        asked = names or {*declared} - hidden
        content[key] = {name: value for name, value in declared.items() if name in asked}
    if problems:
        raise ConfigError(*problems)
    return content


def _paths(found: Definition, root: Path, *others: str) -> set[Path]:
    """Every file that is read."""
    patterns = [s.files for s in found.sources] + [t.files for t in found.labelled]
    return {path for pattern in (*patterns, *others) for path in definitions.find(root, pattern)}


def _cohort(found: Definition, sources: dict, prepare: Callable, splits: Sequence[str]) -> Cohort:
    notes = f"{found.name}; one record per subject and prediction time."
    result = Cohort(found.data_spec(), {}, sources, found.licence, VERSION, notes=notes)
    prepared = functools.cache(prepare)

    def split(name: str) -> Iterator[Example]:
        made = prepared()
        yield from made.split(name)
        result.vocabularies.update(made.vocabularies)
        result.flow[:] = [(step, count) for step, count in made.flow.items() if count]

    def joining() -> list[str]:
        result.warnings[:] = prepared().warnings
        return prepared().joining

    result.joining = joining
    result.splits = {name: lambda name=name: split(name) for name in splits}
    return result
