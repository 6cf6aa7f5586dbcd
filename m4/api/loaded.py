"""A trained work directory as an object: predictions, scores and explanations of any data.

Letters: S subsets, N rows, M modalities, C labels, classes or values.
"""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import pyarrow as pa

from m4 import config as configs
from m4 import local, seal
from m4.api import contributions, frames, handed
from m4.config import Flags, trust
from m4.data import apply, data_sets, index
from m4.data import manifest as manifests
from m4.data.batch import empty
from m4.data.sets.declared import parse
from m4.data.sets.declared.definition import Definition
from m4.data.store import Store
from m4.errors import CheckpointError, ConfigError, DataError
from m4.eval import averages, baselines, damage, results
from m4.eval.predictions import Predictions
from m4.eval.subsets import Subset
from m4.export import bundle
from m4.modes import eval as eval_mode
from m4.run import beside, meds_predictions, members, refitted, trained
from m4.run.devices import make_mesh
from m4.run.setup import context, make_model
from m4.run.workspace import lent, open_incomplete, trained_on, use_cache
from m4.specs import DataSpec, TaskSpec
from m4.train import retention

Say = Callable[[str], Any]


def silent(line: str) -> None:
    """Says nothing."""


def load(
    workdir: str | Path,
    *,
    set: Mapping[str, Any] | None = None,  # noqa: A002 (as `--set` of the command)
    trust_code: bool = False,
) -> "Model":
    """The model that a run has trained; its training data need not be there any more.

    Args:
      workdir: a work directory that `m4.fit` or `--mode=train` made, or one with several models,
        an ensemble or a cross-validation, which are averaged (`m4.eval.averages`).
      set: fields of the configuration to replace, {"eval.batch_size": 64}.
      trust_code: run code outside m4 that the work directory names.

    Raises:
      ConfigError: no such folder, no run in it, or code outside m4 that is not trusted.
      CheckpointError: nothing was trained there, or not all folds.
      DataError: the memory of its training data is gone.
    """
    folder = local.folder(str(workdir), "workdir")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such work directory; m4.fit makes one")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: holds no run (no config.json)")
    flags = Flags(workdir=folder, overrides=as_text(set or {}), trust_code=trust_code)
    trust.require_of(flags)
    config = configs.load(flags)
    if members.folders(folder):
        return Model(config, folder)
    if not retention.complete(folder / "checkpoints/best"):
        raise CheckpointError(f"{folder}: holds no trained parameters; m4.fit trains them")
    return Model(config, folder)


def as_text(values: Mapping[str, Any]) -> dict[str, str]:
    """Values of fields as one would type them after `--set`."""

    def text(value: Any) -> str:
        value = value.item() if isinstance(value, np.generic) else value
        return str(value) if isinstance(value, str | Path) else repr(value)

    return {path: text(value) for path, value in values.items()}


@dataclasses.dataclass(frozen=True)
class Asked:
    """Records that a model is asked about, in the folder `data`, and who they are."""

    data: Path
    store: Store
    keys: pa.Table | None  # subject and prediction time of every record, where they have them
    order: list[handed.Key] | None = None  # of the rows that were handed over
    columns: tuple[str, str] = ("subject_id", "prediction_time")  # what the user calls them
    nothing: bool = False  # whether no record has anything to predict from
    zone: str | None = None  # of the times that were handed over; None: they have none

    @property
    def manifest(self) -> dict[str, Any]:
        """What is known of the records."""
        return self.store.manifest


class Model:
    """What a run has learned.

    `predict`, `evaluate` and `explain` take, as `data`,

    * a frame of pandas, polars or pyarrow, or a mapping of several by the names of the definition's
      files: `{"patients": df, "measurements": df}`. Files without a frame count as empty. For data
      sets of MEDS files or tables;
    * a folder of raw files like those trained on, of any data set;
    * nothing: a `split` of the data trained on, which are built again if they are gone.

    Everybody is asked about whom there are
    labels; without labels `points`, a frame of subjects and times; without those, everybody.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path, *, say: Say = silent):
        """A model of the work directory, see `load`. `say` is told what happens, by lines."""
        self.config, self.workdir, self._say = config, workdir, say
        several, self._compiled = members.configs_of(config, workdir), members.Programs()
        self._members = tuple(Model(own, place, say=say) for place, own in several)
        for member in self._members:  # one program for all that can share it
            member._compiled = self._compiled
        self._known = trained.read(workdir, config.data.options.to_dict())
        self.spec: DataSpec = manifests.spec_from(self._known.manifest["schema"])

    def __repr__(self) -> str:
        """Work directory, method, modalities and tasks."""
        parts = ", ".join(self.spec.modality_names), ", ".join(self.spec.task_names)
        return f"<m4.Model {self.config.method.name} of {self.workdir}: {parts[0]} -> {parts[1]}>"

    def predict(
        self,
        data: Any = None,
        *,
        points: Any = None,
        split: str = "test",
        frame: frames.Kind | None = None,
        to: str | Path | None = None,
    ) -> Any:
        """Predictions: one row per question, in the order of the frame that asked.

        Args:
          data: see the class.
          points: who is asked, and when, instead of everybody with labels.
          split: of the data trained on, without `data`.
          frame: 'pandas', 'polars' or 'arrow'; by default as `data`, pyarrow for a folder.
          to: a folder for the same in the MEDS prediction schema, one file per task.

        Returns:
          A frame of subject, prediction time and a column per task: probability of a binary task,
          `task/label` of several labels or classes, else the value in its unit. Missing where
          there was nothing to predict from. Where patients were set aside for it, also
          `set/<task>`, a list of the classes that may be true, or `low/<task>` and `high/<task>`;
          where it was learnt, `next/<task>`, the modality to ask for next: `m4.run.beside`.

        Raises a `m4.errors.UserError`: DataError for data of no use, ConfigError for frames of a
        data set that reads its own files only.
        """
        with self.asked(data, points=points, split=split) as asked:
            found = self.answer(asked)
            if to is not None:
                if asked.keys is None:
                    raise ConfigError("to: this data set's records have no subjects")
                place = local.folder(str(to), "to")
                for name, table in meds_predictions.tables(found, self.spec, asked.keys):
                    frames.write_private(place / name, table)
            columns = _outputs(self.spec, found)
            more = self._beside.columns(found, "" if data is not None else split)
            more = {n: c for n, c in more.items() if not n.startswith("gain/") and n not in columns}
            return frames.from_arrow(_joined(asked, found, columns, more), _kind(data, frame))

    def evaluate(
        self, data: Any = None, *, points: Any = None, split: str = "test"
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """Scores of predictions where the labels are known.

        Returns {task: {metric: {'value', 'low', 'high'}}}, with 95 % intervals of a bootstrap over
        patients; null where a metric is undefined or fewer than `eval.min_patients` count.
        Warns of records with the identifiers of subjects trained on: their scores flatter.
        Raises as `predict`, and DataError if no label is known.
        """
        with self.asked(data, points=points, split=split, labelled=True) as asked:
            again = data is not None and members.seen_again(self.config, self.workdir, asked.keys)
            if again:
                warnings.warn(again, stacklevel=2)
            document = self.scores(self.answer(asked), split)
        if document is None:
            raise DataError("no labels, no scores")
        return {score["task"]: score["metrics"] for score in document["scores"]}

    def explain(
        self,
        data: Any = None,
        *,
        points: Any = None,
        split: str = "test",
        frame: frames.Kind | None = None,
    ) -> Any:
        """What every modality adds to every prediction (`m4.api.contributions`).

        Returns a frame with a row per question, output and modality: `output` as the columns of
        `predict`, `modality`, whether it was `present`, its `contribution` in the unit of the
        prediction, `baseline`, the prediction for a patient of whom nothing is known, and
        `prediction`, which is the baseline and all contributions. Where it was learnt, also
        `expected_gain`: what a modality that is absent should tell, in nats. Arguments and errors
        as of `predict`; questions with nothing to predict from have no rows.
        """
        names = self.spec.modality_names
        keep_SM = contributions.subsets(len(names))
        with self.asked(data, points=points, split=split) as asked:
            found = self.answer(asked, keep_SM)
            parts, more = [], self._beside.columns(found, "" if data is not None else split)
            advised = any(column.startswith("gain/") for column in more)
            for task, output, value_SN in _by_task(self.spec, found):
                added_NM = contributions.shapley(value_SN[..., None], keep_SM)[..., 0]
                for m, name in enumerate(names):
                    parts.append(
                        {
                            "output": np.full(len(added_NM), output),
                            "modality": np.full(len(added_NM), name),
                            "present": found.present[:, m],
                            "contribution": added_NM[:, m],
                            "baseline": value_SN[-1].astype(np.float64),
                            "prediction": value_SN[0].astype(np.float64),
                        }
                    )
                    if advised:
                        parts[-1]["expected_gain"] = _gain(more, task, name, len(added_NM))
            columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            uid = np.tile(found.uid, len(parts))
        order = np.argsort(uid, kind="stable")
        who = _who(asked, uid[order])
        made = {
            key: pa.array(value[order], from_pandas=key == "expected_gain")
            for key, value in columns.items()
        }
        table = pa.table(who | made)
        return frames.from_arrow(table, _kind(data, frame))

    def export(self, to: str | Path, **options: Any) -> str:
        """Writes the model into one file that runs with JAX and NumPy alone; returns its digest.

        `options` and errors as of `m4.export.write`. The work directory is read anew.
        """
        return bundle.write(self.workdir, to, say=self._say, **options)

    @contextlib.contextmanager
    def asked(
        self, data: Any, *, points: Any = None, split: str = "test", labelled: bool = False
    ) -> Iterator[Asked]:
        """The records of what `predict` is asked about; they are gone afterwards.

        Until then they lie in the work directory, if that can be written by its owner alone.
        """
        if data is None:
            self._require_unseen(split)
            folder = self._built()
            if folder.name != self._known.manifest["fingerprint"]:
                raise DataError(f"{folder}: is not the data that this model was trained on")
            store = open_incomplete(self.config, folder, split)
            yield Asked(folder, store, index.read(folder, split))
            return
        with lent(self.workdir) as scratch:
            order, definition, zone = None, None, None
            if isinstance(data, str | Path):
                new = local.folder(str(data), "data")
                if points is not None:
                    raise ConfigError("points: goes with frames; a folder has points.parquet")
                if not new.is_dir():
                    raise DataError(f"{new}: no such folder")
            else:
                new, definition = scratch / "frames", self._definition()
                new.mkdir(mode=0o700)
                with by_frame(new):
                    zone = handed.write(new, definition, data, points=points, labelled=labelled)
                    order = handed.order(new, definition)
            place = scratch / self._known.manifest["fingerprint"]
            place.mkdir(mode=0o700)
            with by_frame(new if definition else None):
                trained.require(self.config, self.workdir, new)
                self.read(new, place, some=definition is None)
            store = Store(place, apply.SPLIT)
            columns = _called(definition) if definition else Asked.columns
            keys, nothing = index.read(place, apply.SPLIT), _nothing(store.manifest)
            yield Asked(place, store, keys, order, columns, nothing, zone)

    def read(self, new: Path, place: Path, *, some: bool = True) -> dict[str, Any]:
        """Reads new raw files into records in `place`; returns their manifest.

        To checkpoints they are the data set that `place` is called as: the fingerprint of the
        training data. Raises DataError for files of no use and, where `some` record must have
        something to predict from, if none has.
        """
        module = data_sets.find(self.config.data.name)

        def progress(split: str, rows: int) -> None:
            self._say(f"reading {split}: {rows} records")

        for own, there in self._elsewhere(place):
            there.mkdir(mode=0o700, exist_ok=True)
            apply.write(there, new, module, own._known)
        manifest = apply.write(place, new, module, self._known, progress=progress)
        for line in ("joining", *manifest["joining"], "cohort", *manifests.flow_lines(manifest)):
            self._say(line)
        lines = apply.warnings(manifest, self._known)
        absent = {line.partition(":")[0] for line in lines if ": in 0 of " in line}
        for line in lines:
            name = line.partition(": no event")[0].partition("/")[0]
            if name in absent:  # of what is lacking altogether one line is enough
                continue
            if self._say is silent:
                warnings.warn(line, stacklevel=2)
            else:
                self._say(f"warning  {line}")
        if some and _nothing(manifest):
            raise DataError(f"{new}: no record has anything to predict from")
        return manifest

    def answer(self, asked: Asked, keep_SM: np.ndarray | None = None) -> Predictions:
        """Predictions of records under subsets of modalities; without those, of all they have."""
        if self._members:
            each = [m.answer(self._asked_of(asked, m), keep_SM) for m in self._members]
            return averages.mean(each, self.spec)
        model, predict = self._program
        if keep_SM is None:
            keep_SM = np.ones((1, len(self.spec.modalities)), bool)
        with context(model.mesh):
            if asked.nothing:
                return eval_mode.of_nobody(self.config, model, predict, keep_SM)
            return eval_mode.sweep(self.config, model, asked.store, predict, keep_SM)

    def scores(
        self, found: Predictions, name: str, references: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """The results document (`m4.eval.results`) of predictions, None without a known label.

        `references` are those of the same rows, as of `references`.
        """
        known = {
            task: values
            for task, values in found.prediction.items()
            if found.label_mask[task].any()
        }
        if not known:
            return None
        full = Subset("full", "full", (True,) * len(self.spec.modalities))
        return results.compose(
            dataclasses.replace(found, prediction=known),
            self.spec,
            [full],
            split=name,
            draws=self.config.eval.bootstrap,
            seed=self.config.seed,
            min_patients=self.config.eval.min_patients,
            thresholds=_thresholds(self.workdir, self.spec, self.config.eval.missing.to_dict()),
            references=_of_tasks(references, known),
        )

    def references(self, asked: Asked) -> dict[str, dict[str, np.ndarray]]:
        """Reference models (`eval.baselines`), fitted on the training rows, of what is asked.

        Without the data trained on there are none, nor for members trained on different rows.
        """
        names, _ = baselines.chosen(self.config.eval.baselines, self.spec)
        there = trained.built(self.config, self._known.manifest["fingerprint"])
        if not names or self._elsewhere(there):
            return {}
        if not (there / manifests.FILE).is_file():
            self._say(f"no references: the data trained on are not in {there} any more")
            return {}
        self._say(
            "fitting references on the training rows; --config.eval.baselines=False does without"
        )
        train = open_incomplete(self.config, there, "train")
        return eval_mode.references_of(self.config, self.spec, train, asked.store, names)

    def _built(self) -> Path:
        """The data trained on, built again if they are gone, see `trained_on`."""
        with contextlib.nullcontext() if self._say is print else contextlib.redirect_stdout(None):
            return trained_on(self.config, self.workdir)

    def _elsewhere(self, place: Path) -> list[tuple["Model", Path]]:
        """Members that read the same records otherwise, and where: beside `place`."""
        found = {m._known.manifest["fingerprint"]: m for m in self._members}
        return [(own, place.with_name(name)) for name, own in found.items() if name != place.name]

    def _asked_of(self, asked: Asked, member: "Model") -> Asked:
        """The same records as a member reads them: scaled as its training rows are."""
        there = asked.data.with_name(member._known.manifest["fingerprint"])
        if there == asked.data:
            return asked
        return dataclasses.replace(asked, data=there, store=Store(there, asked.store.split))

    def _require_unseen(self, split: str) -> None:
        """Raises CheckpointError if some members of an ensemble were trained on others' split."""
        if len({member._known.manifest["fingerprint"] for member in self._members}) > 1:
            members.refuse_own_test(self.workdir)
            built = [member._built() for member in self._members]
            members.require_unseen(self.workdir, built, split)

    def _definition(self) -> Definition:
        """What the data trained on were called. ConfigError for other than MEDS and tables."""
        trained.defined(self.config)
        content = {"meds": True, **self._known.manifest["options"]}
        return parse.parse(content, "definition", meds=content.pop("meds"))

    @functools.cached_property
    def _beside(self) -> beside.Beside:
        """What stands beside predictions; says what does not, once.

        Who hears nothing is warned if patients were set aside for sets, and there are none.
        """
        found = beside.of(self.workdir, self.config, self.spec)
        for line in found.lines:
            self._say(line)
        if self._say is silent and self.config.data.calibration and not found.rules:
            for line in found.lines[:1]:
                warnings.warn(line, stacklevel=4)
        return found

    @functools.cached_property
    def _program(self) -> tuple[Any, Callable]:
        """The model and its compiled prediction with the best parameters, made when first asked."""
        if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
            use_cache(self.workdir)
        mesh, rows = make_mesh(self.config), self.config.eval.batch_size
        place = Path(self._known.manifest["fingerprint"])  # of the checkpoints' data; never read
        model = make_model(self.config, place, self.spec, empty(self.spec, rows), mesh)
        params = eval_mode.best_params(self.config, model, self.workdir, say=self._say)
        with context(mesh):
            return model, functools.partial(self._compiled.of(self.config, model), params)


def _of_tasks(
    references: Mapping[str, Mapping[str, np.ndarray]] | None, tasks: Collection[str]
) -> dict[str, dict[str, np.ndarray]] | None:
    """The predictions of some tasks."""
    if references is None:
        return None
    return {
        name: {task: values for task, values in own.items() if task in tasks}
        for name, own in references.items()
    }


def _nothing(manifest: Mapping[str, Any]) -> bool:
    """Whether no new record has anything to predict from."""
    return {*manifest["splits"][apply.SPLIT]["patterns"]} == {"0"}


@contextlib.contextmanager
def by_frame(root: Path | None) -> Iterator[None]:
    """Errors about the files that stand for frames, in words about the frames."""
    try:
        yield
    except DataError as error:
        if root is None:
            raise
        lines = (str(line).replace(f"{root}/", "") for line in error.args)
        raise DataError(*(line.replace(str(root), "frames") for line in lines)) from None


def _called(definition: Definition) -> tuple[str, str]:
    task = definition.labelled[0]
    return task.subject or "row", task.time or "prediction_time"


def _kind(data: Any, frame: frames.Kind | None) -> frames.Kind:
    """The frame that is returned: as asked for, or as was given."""
    first = next(iter(data.values()), None) if isinstance(data, Mapping) else data
    return frame or frames.kind_of(first) or "arrow"


def _outputs(spec: DataSpec, found: Predictions) -> dict[str, np.ndarray]:
    """Column -> f32[S, N]: `task`, or `task/label` of several labels or classes."""
    return {name: value_SN for _, name, value_SN in _by_task(spec, found)}


def _by_task(spec: DataSpec, found: Predictions) -> Iterator[tuple[str, str, np.ndarray]]:
    """(task, column, f32[S, N]) of every output."""
    for task, values_SNC in found.prediction.items():
        if spec.task(task).kind != "segmentation":  # its scores are no predictions
            for c, name in enumerate(_names(spec.task(task), values_SNC.shape[-1])):
                yield task, name, values_SNC[..., c]


def _gain(more: Mapping[str, Any], task: str, modality: str, rows: int) -> np.ndarray:
    """What a modality should tell of a task, f64[rows]; NaN where nothing is known of that."""
    found = more.get(f"gain/{task}/{modality}")
    if found is None:
        return np.full(rows, np.nan)
    return found.to_numpy(zero_copy_only=False).astype(np.float64)


def _names(task: TaskSpec, count: int) -> Sequence[str]:
    labels = task.labels or tuple(map(str, range(count)))
    return [task.name] if count == 1 else [f"{task.name}/{label}" for label in labels[:count]]


def _who(asked: Asked, uid_N: np.ndarray) -> dict[str, Any]:
    """Columns that say whose the records are, and at what time."""
    if asked.keys is None:
        return {"row": pa.array(uid_N)}
    keys = asked.keys.take(pa.array(uid_N))
    found = {asked.columns[0]: keys["subject_id"], asked.columns[1]: keys["prediction_time"]}
    if keys["prediction_time"].null_count == len(keys):
        del found[asked.columns[1]]
    others = [name for name in keys.column_names if name not in index.MEDS]
    return found | {name: keys[name] for name in others}


def _joined(
    asked: Asked,
    found: Predictions,
    columns: Mapping[str, np.ndarray],
    more: Mapping[str, Any],
) -> pa.Table:
    """Who and what, in the order of what was asked; missing where nothing is predicted."""
    whole = found.full()
    values: dict[str, Any] = {name: pa.array(value_SN[whole]) for name, value_SN in columns.items()}
    values |= more
    if asked.order is None or asked.keys is None:
        return pa.table(_who(asked, found.uid) | values)
    times = asked.keys["prediction_time"].cast(pa.int64()).to_pylist()
    known, given = asked.keys["subject_id"].to_pylist(), [subject for subject, _ in asked.order]
    kind = pa.int64()
    if any(isinstance(subject, str) for subject in (*known, *given)):  # 12 and W001: all are text
        kind = pa.string()
        known, given = ([s if s is None else str(s) for s in each] for each in (known, given))
    record: dict[Any, int] = {key: row for row, key in enumerate(zip(known, times, strict=True))}
    predicted = {int(uid): row for row, uid in enumerate(found.uid)}
    when = [time for _, time in asked.order]
    places = [predicted.get(record.get(key, -1)) for key in zip(given, when, strict=True)]
    rows = pa.array(places, pa.int64())
    who = {asked.columns[0]: pa.array(given, kind)}
    if any(time is not None for time in when):
        who[asked.columns[1]] = pa.array(when, pa.timestamp("us", asked.zone))
    return pa.table(who | {name: value.take(rows) for name, value in values.items()})


def _thresholds(folder: Path, spec: DataSpec, missing: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The cuts chosen on the validation split, as far as the test split's results tell them.

    Those of a validation split that lacked more or less (`missing`) than what is asked are none.
    Of a model of all rows those that were chosen out of fold.
    """
    if chosen := refitted.cuts(folder)[0]:
        return {name: cut for name, cut in chosen.items() if np.isfinite(cut).all()}
    try:
        if damage.differs(folder, "results/test.json"):
            raise ValueError
        found = seal.load(folder / "results/test.json")
        if found.get("missing", {}) != missing or not beside.is_of(found, folder):
            return {}
        cards = found["tasks"]
        known = [task for task in spec.tasks if task.name in cards]
        cuts = {task: np.array(cards[task.name]["threshold"], float) for task in known}
    except (OSError, ValueError, TypeError, LookupError):
        return {}
    return {t.name: c for t, c in cuts.items() if c.shape == (t.dim,) and np.isfinite(c).all()}
