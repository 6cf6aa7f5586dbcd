"""`--mode=eval`: the best checkpoint on the test split, every modality subset, references.

Of an ensemble (`m4.run.members`) every member predicts, by one compiled function, and their average
is evaluated; `restore` and `sweep` hide whether there are one or several.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from m4 import seal, sharding
from m4.config import Flags
from m4.data import aggregate, at_first, set_aside
from m4.data.batch import empty
from m4.data.store import Store
from m4.errors import CheckpointError, ConfigError
from m4.eval import (
    averages,
    baselines,
    evaluate,
    gain,
    operating,
    reliance,
    results,
    subsets,
    table,
    table_one,
)
from m4.eval.predictions import SCORED_KINDS, Predictions
from m4.eval.report import words
from m4.modes import report
from m4.remote import states
from m4.run import (
    beside,
    hours,
    members,
    placed,
    preflight,
    programs,
    pseudonyms,
    refitted,
    trained,
)
from m4.run import meds_predictions as meds
from m4.run.setup import Model, Setup, context, make_model, make_setup
from m4.run.workspace import (
    open_incomplete,
    owned,
    require_test,
    same_run,
    trained_on,
    use_cache,
    validation,
)
from m4.specs import DataSpec
from m4.specs import words as words_of
from m4.train import processes, retention, verify
from m4.train.checkpoint import Checkpoints

KEEP_BEST = 2  # the second is for the day on which the first is damaged


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The test split as the best step sees it, and what it is compared with."""

    found: Predictions
    chosen: list[subsets.Subset]
    thresholds: dict[str, np.ndarray]
    references: dict[str, dict[str, np.ndarray]] | None  # by row of the split; the blend is not yet
    num_rows: int  # of the split, also those that have nothing to predict from
    cuts: operating.Cuts = dataclasses.field(default_factory=dict)  # chosen in validation
    values: dict[str, table_one.Values] = dataclasses.field(default_factory=dict)  # by split
    calibration: Predictions | None = None  # of patients set aside, see `data.calibration`
    parts: Sequence[Predictions] = ()  # of an ensemble, what each member says to the full input


def run(config: ml_collections.ConfigDict, folder: Path, flags: Flags) -> None:
    """Evaluates without training. See `m4.main`."""
    del flags
    with owned(folder):
        setup, predict = restore(config, folder)
        with context(setup.mesh):
            _evaluate(config, setup, folder, predict)


def restore(config: ml_collections.ConfigDict, folder: Path):
    """(setup, what predicts: `(batch, keep_M) -> (tasks, stats)`, or all members of an ensemble).

    Both are for `sweep`. The best step's parameters are in it. Raises CheckpointError for folds,
    and for an ensemble whose members have seen each other's test patients.
    """
    use_cache(folder)
    if members.folders(folder):
        return _restore_several(config, folder)
    setup = make_setup(config, trained_on(config, folder))
    require_test(setup.data, folder)
    params = best_params(config, setup, folder)
    with context(setup.mesh):
        predict = programs.compile_predict(setup, config.eval.batch_size)
    return setup, functools.partial(predict, params)


def _restore_several(config, folder: Path) -> tuple[Setup, members.Several]:
    """As `restore`; the setup is the first member's."""
    members.refuse_own_test(folder)
    owns = members.configs_of(config, folder)
    built = [trained_on(own, place) for place, own in owns]
    require_test(built[0], folder)
    members.require_unseen(folder, built)
    setup, compiled = make_setup(owns[0][1], built[0]), members.Programs()
    found = []
    for (place, own), data in zip(owns, built, strict=True):
        model: Model = setup
        if found:
            spec = Store(data, "test").spec if data != built[0] else setup.loader.store.spec
            first = empty(spec, own.eval.batch_size)
            model = make_model(own, data, spec, first, setup.mesh)
        params = best_params(own, model, place, say=functools.partial(print, f"{place.name}:"))
        with context(setup.mesh):
            predict = functools.partial(compiled.of(own, model), params)
        found.append(members.Member(own, model, predict))
    return setup, members.Several(found)


def lost_best(folder: Path, note: Mapping[str, Any]) -> str | None:
    """What is to be said if the best step that a state's note names is not there any more.

    A later one is in order: the run was killed before it could be named, or goes over it again.
    """
    named, found = note.get("best"), retention.complete(folder / "checkpoints/best")
    if named and max(found, default=-1) < named["step"]:
        there = f"only step {found[-1]} is there" if found else "it is gone"
        return (
            f"{folder / 'checkpoints/best'}: step {named['step']} was the best so far, but {there}"
        )
    return None


def best_params(
    config: ml_collections.ConfigDict,
    setup: Model,
    folder: Path,
    *,
    say: Callable[[str], Any] = print,
):
    """Evaluation parameters of the best step. Raises CheckpointError without one."""
    if several := members.folders(folder):
        raise CheckpointError(f"{folder}: holds several models; choose one, as {several[0]}")
    best = Checkpoints(states.of(folder) / "best", keep=KEEP_BEST)
    try:
        restored, note = best.restore(
            {"params": setup.state.eval_params},
            accept=lambda note: same_run(
                note, config, setup.data, folder, sections=("data.", "method.")
            ),
        )
        newest = best.newest()
    except CheckpointError as error:
        steps = {
            name: retention.complete(folder / "checkpoints" / name) for name in ("best", "last")
        }
        if steps["best"] or not steps["last"]:
            raise
        again = "the command that trained, with --force=best, chooses one among what is left"
        raise CheckpointError(*error.args, again) from error
    finally:
        best.close()
    say(f"evaluating step {note['step']}")
    digest = newest["digest"] if newest and newest["step"] == note["step"] else None
    if why := verify.disowned(folder, note["step"], digest):
        say(f"m4: warning: step {note['step']} is evaluated, {why}")
    return restored["params"]


def finish(config: ml_collections.ConfigDict, setup: Setup, folder: Path, predict) -> Evaluation:
    """What comes after training: evaluates the best step."""
    return _evaluate(
        config, setup, folder, functools.partial(predict, best_params(config, setup, folder))
    )


def sweep(config, setup: Model, store: Store, predict, keep_SM) -> Predictions:
    """Predictions of a split under the modality subsets `keep_SM`; of an ensemble their average."""
    return averages.mean(each(config, setup, store, predict, keep_SM), setup.spec)


def each(config, setup: Model, store: Store, predict, keep_SM) -> list[Predictions]:
    """What `sweep` takes the average of: the predictions of every member, or of the one model."""
    if not isinstance(predict, members.Several):
        return [_sweep(config, setup, store, predict, keep_SM)]
    return [
        _sweep(member.config, member.model, own, member.predict, keep_SM)
        for member, own in zip(predict.members, predict.stores(store), strict=True)
    ]


def _sweep(config, setup: Model, store: Store, predict, keep_SM) -> Predictions:
    """Predictions of one model."""
    found = evaluate.sweep(
        predict,
        placed.batches(store, config.eval.batch_size, setup.mesh, config.train.buckets),
        setup.spec,
        keep_SM,
        patients=store.columns(["patient"])["patient"],
    )
    groups = {name: column[found.uid] for name, column in store.groups().items()}
    return dataclasses.replace(found, groups=groups)


def of_nobody(config, setup: Model, predict, keep_SM) -> Predictions:
    """What `sweep` would find of no row at all: every task, and no prediction."""
    batch = sharding.put_whole(empty(setup.spec, config.eval.batch_size), sharding.rows(setup.mesh))
    tasks, _ = predict(batch, np.asarray(keep_SM[0], bool))
    sizes = {
        task.name: tasks[task.name].shape[-1]
        for task in setup.spec.tasks
        if task.kind in SCORED_KINDS and task.name in tasks
    }
    return Predictions(
        subsets=np.asarray(keep_SM, bool),
        uid=np.zeros(0, np.int64),
        patient=np.zeros(0, np.int64),
        present=np.zeros((0, len(setup.spec.modalities)), bool),
        prediction={n: np.zeros((len(keep_SM), 0, size), np.float32) for n, size in sizes.items()},
        label={name: np.zeros((0, size)) for name, size in sizes.items()},
        label_mask={name: np.zeros((0, size), bool) for name, size in sizes.items()},
        counted=np.zeros((len(keep_SM), 0), bool),
        routing={},
    )


def _evaluate(config, setup: Setup, folder: Path, predict) -> Evaluation:
    val, test = validation(config, setup.data), open_incomplete(config, setup.data, "test")
    if val is None:
        thresholds, cuts = refitted.cuts(folder)
    else:
        judged = _judged(config, setup, val, predict)
        thresholds = results.thresholds(judged, setup.spec)
        cuts = operating.choose(judged, setup.spec)
    chosen = _subsets(config, setup, test)
    parts = each(config, setup, test, predict, subsets.matrix(chosen))
    found = averages.mean(parts, setup.spec)
    wanted, _ = baselines.chosen(config.eval.baselines, setup.spec)
    wanted = wanted if processes.first() else ()
    own = (setup.spec, setup.loader.store, test, wanted)
    references = references_of(config, *own) if wanted else None
    stores = {"train": setup.loader.store, "val": val, "test": test} if processes.first() else {}
    values = {name: values_of(store) for name, store in stores.items() if store is not None}
    own = (thresholds, references, len(test), cuts, values)
    apart = None
    if config.data.calibration and _alike(predict):
        store = open_incomplete(config, setup.data, set_aside.SPLIT)
        apart = sweep(config, setup, store, predict, subsets.matrix(chosen))
        if processes.first() and not config.eval.missing:
            beside.write(folder, apart, setup.spec, config.eval.alpha)
    parts = [averages.of_full(part) for part in parts] if len(parts) > 1 else []
    evaluation = Evaluation(found, chosen, *own, calibration=apart, parts=parts)
    if processes.first():
        publish(config, setup.spec, folder, evaluation, split="test")
    return evaluation


def _alike(predict) -> bool:
    """Whether all that predicts was trained on the same rows."""
    return not isinstance(predict, members.Several) or predict.alike


def _judged(config, setup: Setup, val: Store, predict) -> Predictions:
    """What cuts are chosen on: the validation split, all modalities kept.

    Members of an ensemble that were trained on different rows have no patients in common whom none
    of them has seen: each predicts its own validation split, and all of these count.
    """
    whole = np.ones((1, len(setup.spec.modalities)), bool)
    if _alike(predict):
        return sweep(config, setup, val, predict, whole)
    return averages.beside(
        [
            _sweep(m.config, m.model, Store(m.model.data, "val"), m.predict, whole)
            for m in predict.members
        ]
    )


def publish(
    config,
    spec: DataSpec,
    folder: Path,
    evaluation: Evaluation,
    *,
    split: str,
    places: Sequence[Path] = (),
) -> None:
    """Writes and prints the results, and renders the report.

    `places` are the folders of a cross-validation's folds.
    """
    document = results.compose(
        evaluation.found,
        spec,
        evaluation.chosen,
        split=split,
        draws=config.eval.bootstrap,
        seed=config.seed,
        min_patients=config.eval.min_patients,
        thresholds=evaluation.thresholds,
        references=evaluation.references,
        cuts=evaluation.cuts,
        values=evaluation.values,
        costs=config.eval.costs.to_dict(),
        budget=config.eval.budget,
    )
    document |= reliance.sections(
        evaluation.found,
        spec,
        evaluation.calibration,
        alpha=config.eval.alpha,
        draws=config.eval.bootstrap,
        seed=config.seed,
        min_patients=config.eval.min_patients,
        thresholds=evaluation.thresholds,
    )
    if evaluation.parts:
        document["ensemble"] = _gain(config, spec, folder, evaluation)
    _, rare = baselines.chosen(config.eval.baselines, spec)
    if rare and evaluation.references is not None:
        document["references_left_out"] = list(rare)
    if config.data.leave_out:
        document["left_out"] = config.data.leave_out
    document["words"] = _words(config, folder, split)
    document["parameters"] = beside.parameters(folder, places)
    if config.eval.missing:
        document["missing"] = config.eval.missing.to_dict()
    results.write(document, folder)
    write_tables(config, folder, evaluation.found, spec, split)
    words.print_table(document)
    report.build(folder)


def _words(config, folder: Path, split: str) -> dict[str, Any]:
    """What the data set says in words; of one that cannot be asked, what the last results say."""
    try:
        return words_of(preflight.schema(config))
    except ConfigError:
        said = words_of(trained.schema(config, folder))
        with contextlib.suppress(OSError, ValueError, AttributeError):
            kept = seal.load(folder / "results" / f"{split}.json").get("words")
            return kept if isinstance(kept, dict) and kept.keys() == said.keys() else said
        return said


def _gain(config, spec: DataSpec, folder: Path, evaluation: Evaluation) -> dict[str, Any]:
    """The section `ensemble` of the results, and its first figures in print."""
    how = {"draws": config.eval.bootstrap, "seed": config.seed}
    how["min_patients"] = config.eval.min_patients
    told = [members.told(place) for place in members.folders(folder)]
    section = {
        "members": len(told),
        "kind": members.kind_of(folder),
        "seeds": [one["seed"] for one in told],
        "methods": [one["method"] for one in told],
        "hours": hours.of(members.folders(folder)),
        "tasks": gain.describe(evaluation.parts, evaluation.found, spec, **how),
    }
    print(*gain.lines(section, spec.tasks), sep="\n")
    return section


def values_of(store: Store) -> table_one.Values:
    """First values of a split's rows, and whose they are."""
    values_NF, names = at_first.values(store)
    return table_one.Values(names, values_NF, store.columns(["patient"])["patient"], store.groups())


def write_tables(config, folder: Path, found: Predictions, spec: DataSpec, split: str) -> None:
    """results/<split>_subsets.parquet, _worth and _next, for their owner alone, if asked for.

    Every row under every subset, what each modality is worth to each row, and which of those that
    it lacks should come next. None of rows from which `eval.missing` took something: what is
    predicted later is advised by them. Those of earlier parameters are removed.
    """
    wanted = config.eval.subsets not in (True, False, "auto")
    if not wanted or config.eval.missing:
        if wanted:
            print("no tables of single rows: these lack more than they do (eval.missing)")
        beside.forget(folder, split)
        return
    patient_N, written = pseudonyms.of(found.patient, folder), []
    costs = config.eval.costs.to_dict()
    for name, own in (
        ("subsets", table.make(found, spec, patient_N)),
        ("worth", table.worth(found, spec, patient_N, config.seed)),
        ("next", table.next_tests(found, spec, patient_N, costs, config.seed)),
    ):
        if own.num_columns == 2:  # row and patient: of no task
            continue
        path = beside.place(folder, split, name)
        meds.write_private(path, beside.marked(own, folder, config.eval.missing.to_dict()), folder)
        print(f"{name:8} {path}; patients as keyed hashes (key: {folder / 'key'})")
        written.append(name)
    beside.forget(folder, split, keep=written)


def _subsets(config, setup: Setup, test: Store) -> list[subsets.Subset]:
    names = setup.spec.modality_names
    found = test.columns(["patient", *(f"{name}/present" for name in names)])
    present = np.stack([found[f"{name}/present"] for name in names], axis=-1)
    own = {"min_patients": config.eval.min_patients, "how": config.eval.subsets}
    own |= {"seed": config.seed}
    return subsets.choose(names, present, found["patient"], **own)


def references_of(config, spec: DataSpec, train: Store, test: Store, names: Sequence[str]):
    """The rows `names` of references, fitted on `train`, of the rows of `test`."""
    x_train, columns = aggregate.table(train)
    x_test, _ = aggregate.table(test)
    rows = baselines.Table(x_train, columns, train.columns(["patient"])["patient"])
    tasks = spec.task_names
    found = train.columns([*(f"y/{t}" for t in tasks), *(f"y/{t}/mask" for t in tasks)])
    labels = {t: (found[f"y/{t}"], found[f"y/{t}/mask"]) for t in tasks}
    own = {"seed": config.seed, "names": names}
    return baselines.fit_predict(spec, rows, labels, x_test, **own)
