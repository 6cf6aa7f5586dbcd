"""Runs what is missing of a study: an arm at a time, all of its seeds through one compile.

OUT/study.json            the plan that all rows follow; another plan is refused
OUT/rows/<cell>.json      one row a run, whole or not at all, never written twice
OUT/predictions/<cell>.npz   of the test split, rows in order; patients are numbers from 0
OUT/selections/<cell>.npz    what experts some validation tokens got, at every evaluation
OUT/tuning/<arm>.json     what was tried, by validation
OUT/claims/<arm>          who runs an arm just now: a lock like that of a work directory
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from m4 import __version__, atomic, seal, sharding, task_losses
from m4 import config as configs
from m4.config.plain import nested
from m4.data import data_sets
from m4.data.cohort import sha256
from m4.errors import ConfigError, DivergedError, all_printable
from m4.eval import metrics, subsets
from m4.eval.bootstrap import number
from m4.eval.predictions import Predictions
from m4.eval.scorer import Scorer
from m4.lab import fitting, held, interventions, sizes, special, study, together
from m4.lab.documents import SCHEMA, read_json
from m4.lab.study import LAYER, Arm, Study
from m4.run import agreement, preflight, programs
from m4.run.method import fronts, make_method
from m4.run.setup import context
from m4.specs import LOWER_IS_BETTER, DataSpec
from m4.train import workdir
from m4.train.digest import named
from m4.train.step import init_params

PROBED = 256  # rows of the validation split whose routing is kept at every evaluation


def begin(out: Path, asked: Study, arms: list[Arm], left: Mapping[str, str]) -> None:
    """Writes the plan. Raises ConfigError if the folder holds a study with another one."""
    try:
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"--out={out}: cannot be made ({error.strerror})") from error
    workdir.close_to_others(out, "--out")
    document = {
        "schema": SCHEMA,
        "plan": asked.plan(),
        "study": arms[0].plan,
        "metric": study.metric_of(asked, arms[0]),
        "axes": json.loads(json.dumps(study.plain(asked.axes))),
        "seeds": list(asked.seeds),
        "arms": [
            {"key": a.key, "label": a.label, "family": a.family, "null": a.null, "is": a.reference}
            for a in arms
        ],
        "left": dict(left),
    }
    path = out / "study.json"
    # A plan that nothing has followed yet may still be changed.
    if path.exists() and any((out / kept).exists() for kept in ("claims", "rows", "tuning")):
        before = read_json(path)
        if before.get("schema") != SCHEMA:
            raise ConfigError(f"--out={out}: is of another version of the lab; choose another")
        changes = configs.diff(before["plan"], all_printable(document["plan"]), harmless=())
        if changes:
            raise ConfigError(
                f"--out={out}: holds a study with another plan; a margin is not moved once there"
                " are rows: choose another --out",
                *changes,
            )
        if before["metric"] != document["metric"]:
            raise ConfigError(
                f"--out={out}: is judged by {before['metric']}, not {document['metric']}: choose"
                " another --out"
            )
        known = {arm["key"]: arm for arm in before["arms"]}
        keys = {_place(arm): arm["key"] for arm in before["arms"]}
        for arm in all_printable(document["arms"]):
            if keys.get(_place(arm), arm["key"]) != arm["key"]:
                raise ConfigError(
                    f"--out={out}: knows {arm['label']} with another configuration, whose rows"
                    " would be judged together with these: choose another --out"
                )
        document["arms"] = [*(known | {a["key"]: a for a in document["arms"]}).values()]
        document["seeds"] = sorted({*before["seeds"], *document["seeds"]})
        begun = any((out / "rows").glob("*.json"))
        first = before["seeds"] if begun else document["seeds"]
        document["first_seeds"] = before.get("first_seeds", first)
    atomic.write(path, json.dumps(seal.sealed(document), indent=1) + "\n")


def _place(arm: Mapping[str, Any]) -> str:
    """What rows are judged by: the label and the family, as JSON."""
    return json.dumps([arm["label"], arm["family"]], sort_keys=True)


def run(asked: Study, arms: list[Arm], out: Path, *, shard: tuple[int, int] = (0, 1)) -> list[str]:
    """Runs the cells of a shard that have no row; returns what was not run, and why.

    Shard i of n has every n-th arm. Arms that another process holds are left to it. An arm that
    fails by its own fault (its method refuses, it diverges) is a line, not the end of the others.
    """
    until, notes = time.monotonic() + asked.seconds(), []
    opener = held.Opener(len(asked.seeds))
    for arm in arms[shard[0] :: shard[1]]:
        missing = [s for s in asked.seeds if not (out / "rows" / f"{arm.cell(s)}.json").exists()]
        if not missing:
            continue
        name = f"{arm.label} {arm.family or ''}".rstrip()
        if time.monotonic() > until:
            notes.append(f"{name}: not begun within the budget of {asked.budget}")
            continue
        with _claimed(out / "claims" / arm.key) as why_not:
            if why_not:
                notes.append(f"{name}: {why_not}")
                continue
            print(f"arm      {name}: seeds {', '.join(map(str, missing))}", flush=True)
            try:
                said = _arm(asked, arm, missing, out, opener, until)
            except (ConfigError, DivergedError) as error:
                said = error.args
            notes += [f"{name}: {line}" for line in said]
    return notes


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[str]:
    """Holds an arm until the block ends; or says who does, or why it cannot be held."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(workdir.locked(folder))
            why = ""
        except ConfigError as error:
            why = str(error.args[0]).partition(";")[0]
        yield why


def _arm(
    asked: Study,
    arm: Arm,
    missing: list[int],
    out: Path,
    opener: held.Opener,
    until: float,
) -> list[str]:
    """Runs seeds of an arm; returns which were not, and why."""
    preflight.require(arm.at(missing[0]), None)
    known: dict[str, Compiled] = {}
    arm, tried = _tuned(asked, arm, out, known, opener)
    left = [s for s in missing if not (out / "rows" / f"{tried['cell']}-s{s}.json").exists()]
    groups = [left] * bool(left) if asked.together == "vmap" else [[seed] for seed in left]
    notes: list[str] = []
    for seeds in groups:
        if time.monotonic() > until:
            return [*notes, f"budget of {asked.budget} spent before seed {seeds[0]}"]
        cells = [fitting.data_of(arm.at(seed), opener) for seed in seeds]
        own, first = _compiled(known, cells[0]), time.process_time()
        fits = _fitted(asked.together, known, cells)
        cpu = (time.process_time() - first) / len(seeds)
        for seed, data, found in zip(seeds, cells, fits, strict=True):
            if isinstance(found, DivergedError):
                notes += [f"seed {seed}: {line}" for line in found.args]
                continue
            document = _cell(asked, arm, own, data, seed, out, tried, found, cpu)
            path = out / "rows" / f"{tried['cell']}-s{seed}.json"
            path.parent.mkdir(exist_ok=True)
            atomic.write(path, json.dumps(seal.sealed(document)) + "\n")
            print(f"         seed {seed}: {document['metric']} {document['value']}", flush=True)
    return notes


def _fitted(
    how: str, known: "dict[str, Compiled]", cells: list[fitting.Seeded]
) -> Sequence[fitting.Fit | DivergedError]:
    """What each cell comes to: one by one, or all in one program."""
    if how == "vmap":
        own = _compiled(known, cells[0])
        return together.fit(own.programs, own.stepping(how, cells), cells)
    out: list[fitting.Fit | DivergedError] = []
    for data in cells:
        own = _compiled(known, data)  # its data may be of another shape than the others'
        stepping = own.stepping(how, [data])
        try:
            if how == "map":
                out += together.fit(own.programs, stepping, [data])
            else:
                out.append(fitting.fit(own.programs, stepping, data))
        except DivergedError as error:
            out.append(error)
    return out


@dataclasses.dataclass(frozen=True)
class Compiled:
    """An arm's programs, and the prediction under interventions where the arm has a gate."""

    programs: fitting.Programs
    intervened: Any  # compiled like `programs.predict`, None without a gate
    shapes: Any  # of its parameters
    seconds: float  # of compiling it
    steps: dict[int, fitting.Stepping] = dataclasses.field(default_factory=dict)  # by seeds at once

    def stepping(self, how: str, cells: list[fitting.Seeded]) -> fitting.Stepping:
        """The train step for cells, compiled when it is asked for first.

        Raises ConfigError for cells that cannot be trained together.
        """
        setup, plan = self.programs.setup, fitting.plan_of(cells[0].config)
        number = len(cells) if how == "vmap" else 1
        if how == "vmap" and not all(fitting.serves(self.programs, data) for data in cells):
            raise ConfigError(f"together={how!r}: seeds differ in their data; leave it out")
        if number not in self.steps and how == "loop":
            self.steps[number] = fitting.compile_step(setup, plan.batch_size)
        elif number not in self.steps:
            kind: together.How = "vmap" if how == "vmap" else "map"
            self.steps[number] = together.compile_step(setup, plan, number, kind)
        return self.steps[number]

    @classmethod
    def of(cls, data: fitting.Seeded) -> "Compiled":
        """Compiles everything that an arm needs."""
        own, config = fitting.compile_for(data), data.config
        section = config.method.get(LAYER.partition(".")[2], {})
        if "gate" not in section or section.get("router") == "product_keys":
            return cls(own, None, None, 0.0)
        start, changed = time.perf_counter(), config.method.to_dict()
        changed[LAYER.partition(".")[2]]["gate"] = interventions.name_of(section["gate"])
        setup = own.setup
        target = getattr(setup.method, "moe", None)
        method = make_method(
            changed,
            task_losses.unscaled(setup.spec),
            **fronts(config),
            target=getattr(target, "target", None),
        )
        batch = jax.tree.map(np.asarray, setup.loader.batch(0))
        with context(setup.mesh):
            boxed = jax.eval_shape(lambda: init_params(method, batch, seed=0))
            shapes, gather = sharding.unbox(boxed), sharding.gatherer(boxed, setup.mesh)
            state = dataclasses.replace(setup.state, params=shapes, ema=None)
            model = dataclasses.replace(setup, unscaled=method, state=state, gather=gather)
            predict = programs.compile_predict(model, config.eval.batch_size, stats=False)
        return cls(own, predict, shapes, time.perf_counter() - start)


def _compiled(known: dict[str, Compiled], data: fitting.Seeded) -> Compiled:
    """The programs of a cell, compiled unless those of another one serve it."""
    flat = configs.flatten(data.config.to_dict())
    fixed = study.digest({k: v for k, v in flat.items() if k not in held.GIVEN})
    if fixed not in known or not fitting.serves(known[fixed].programs, data):
        known[fixed] = Compiled.of(data)
    return known[fixed]


def _tuned(
    asked: Study, arm: Arm, out: Path, known: dict[str, Compiled], opener: held.Opener
) -> tuple[Arm, dict[str, Any]]:
    """The arm with the values of its tuning that are best on validation, and what was tried."""
    if asked.tune is None:
        return arm, {"cell": arm.key, "trials": []}
    path, metric = out / "tuning" / f"{arm.key}.json", study.metric_of(asked, arm)
    trials: list[dict[str, Any]] = []
    if path.exists():
        trials = read_json(path)["trials"]
    else:
        for changes in study.points(asked.tune["axes"]):
            config = configs.check(nested(configs.flatten(arm.config) | changes), {}, arm.label)
            seeded = [config.to_dict() | {"seed": seed} for seed in asked.tune["seeds"]]
            cells = [
                fitting.data_of(ml_collections.ConfigDict(own).lock(), opener) for own in seeded
            ]
            values: list[float] = []
            for found in _fitted(asked.together, known, cells):
                if isinstance(found, DivergedError):
                    values.append(float("nan"))
                    continue
                (at,) = [line for line in found.curve if line["step"] == found.step]
                values.append(at[metric])
            mean = number(float(np.mean(values)))
            told = [*map(number, values)]
            trials.append({"changes": changes, "values": told, "mean": mean})
            print(f"         tuning {changes}: {metric} {np.mean(values):.4g}", flush=True)
        path.parent.mkdir(exist_ok=True)
        atomic.write(path, json.dumps(seal.sealed({"trials": trials})) + "\n")
    lower = metric.rpartition("/")[2] in LOWER_IS_BETTER
    sound = [trial for trial in trials if trial["mean"] is not None]
    if not sound:
        raise DivergedError(f"tuning: no values of {', '.join(asked.tune['axes'])} can be trained")
    best = min(sound, key=lambda trial: trial["mean"] if lower else -trial["mean"])
    config = configs.check(nested(configs.flatten(arm.config) | best["changes"]), {}, arm.label)
    tuned = dataclasses.replace(arm, config=config.to_dict() | {"seed": 0})
    return tuned, {"cell": arm.key, "trials": trials}


def _cell(
    asked: Study,
    arm: Arm,
    own: Compiled,
    data: fitting.Seeded,
    seed: int,
    out: Path,
    tried: Mapping[str, Any],
    found: fitting.Fit,
    cpu: float,
) -> dict[str, Any]:
    """One trained run: predicts the test split under subsets, measures; writes all but the row."""
    first = time.process_time()
    setup, spec = own.programs.setup, data.spec
    with context(setup.mesh):
        test, scores = _tested(own.programs, data, found.params)
        needed = _necessity(asked, arm, own, data, found.params, test)
    metric, name = study.metric_of(asked, arm), f"{tried['cell']}-s{seed}"
    keep_predictions(out / f"predictions/{name}.npz", test, spec)
    probed = {
        layer: [at[layer][:PROBED] for at in found.selections] for layer in found.selections[0]
    }
    files = [f"predictions/{name}.npz", *_keep_selections(out, name, probed)]
    layer, stepping = getattr(setup.method, "moe", None), next(iter(own.steps.values()))
    routed = float(sum(load.load.sum() for load in test.routing.values()))
    counts = sizes.parameters(found.params, arm.config["method"].get("moe", {}))
    return {
        **_identity(asked, arm, seed, tried["cell"]),
        "config": json.loads(json.dumps(arm.at(seed).to_dict())),
        "m4": __version__,
        "code": agreement.code(),
        "versions": agreement.versions(),
        "data": data.loader.store.manifest["fingerprint"],
        "files": {name: sha256(out / name) for name in files},
        "metric": metric,
        "task": dataclasses.asdict(spec.task(metric.rpartition("/")[0])),
        "value": scores["full"].get(metric),
        "scores": scores,
        "validation": found.curve,
        "step": found.step,
        "tuning": tried["trials"],
        "parameters": counts,
        "digest": digest_of(found.params),
        "flops_per_step": stepping.flops,
        "compile_s": round(own.programs.seconds + own.seconds + stepping.seconds, 3),
        "step_s": found.seconds / arm.config["train"]["steps"],
        "cpu_s": round(cpu + time.process_time() - first, 3),
        "together": asked.together,
        "peak_bytes": stepping.peak_bytes,
        "device": str(jax.devices()[0].device_kind),
        "balance": found.balance,
        "saturation": {
            "steps": [0, *(line["step"] for line in found.curve)],
            **{layer: special.saturation(chosen) for layer, chosen in probed.items()},
        },
        "experts": _experts(data, test, seed),
        "necessity": needed,
        "tokens_per_expert": _tokens_per_expert(arm, routed, len(test.uid), layer),
    }


def _identity(asked: Study, arm: Arm, seed: int, key: str) -> dict[str, Any]:
    """What a row is of, and the plan that it follows."""
    return {
        "schema": SCHEMA,
        "study": arm.plan,
        "margin": dict(asked.margin),
        "arm": key,
        "label": arm.label,
        "family": arm.family,
        "null": arm.null,
        "reference": arm.reference,
        "seed": seed,
    }


def digest_of(params: Any) -> str:
    """Of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    for name, leaf in sorted(named(params).items()):
        digest.update(name.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _tested(own: fitting.Programs, data: fitting.Seeded, params: Any):
    """Predictions of the test split, and {subset: {task/metric: value}}."""
    spec = data.spec
    chosen = subsets.choose(spec.modality_names, data.test.present, data.test.patients)
    chosen = chosen if data.config.eval.subsets else chosen[:1]
    test = fitting.sweep(own, data, data.test, params, subsets.matrix(chosen))
    scores = {}
    for s, subset in enumerate(chosen):
        scores[subset.label if s else "full"] = {
            f"{task.name}/{name}": number(value.value)
            for task in spec.tasks
            if task.name in test.prediction
            for name, value in Scorer(test, spec, task).point(s).items()
        }
    return test, scores


def _necessity(asked, arm, own: Compiled, data, params, test: Predictions):
    """What interventions at the gate do to the metric on the test split; None without a gate."""
    if own.intervened is None or not test.routing:
        return None
    task, _, metric = study.metric_of(asked, arm).rpartition("/")
    first, by_modality = next((name, layer.by_modality) for name, layer in test.routing.items())
    # Experts of two layers have nothing in common: those of the first are ablated there alone.
    layer = first if len(test.routing) > 1 else ""
    flat, shapes = named(params), named(own.shapes)

    def score(**change: Any) -> float | None:
        leaves = interventions.leaves(shapes, flat, layer, change)
        full = jax.tree_util.tree_unflatten(jax.tree.structure(own.shapes), leaves)
        found = fitting.sweep(own.programs, data, data.test, full, predict=own.intervened)
        return value(found)

    def value(found: Predictions) -> float | None:
        own = Scorer(found, data.spec, data.spec.task(task))
        return number(own.point(0, (metric,))[metric].value)

    if by_modality is None:
        return None
    sizes_of = {x.shape[-1] for n, x in shapes.items() if interventions.ablates(n, layer)}
    if sizes_of != {by_modality.shape[-1]}:
        # Layers in one loop, or under one name: none can be told from the others.
        by_modality = np.zeros_like(by_modality)
    names = own.programs.setup.spec.modality_names
    return special.necessity(score, value(test), by_modality, names, arm.config["seed"])


def _experts(data: fitting.Seeded, test: Predictions, seed: int) -> dict[str, Any]:
    """By layer: how even, what they know, what was dropped, and expert by modality."""
    module, out = data_sets.find(data.config.data.name), {}
    cluster = module.clusters(data.test.store) if hasattr(module, "clusters") else None
    for name, layer in test.routing.items():
        rng = np.random.default_rng(seed)
        out[name] = special.collapse(layer.load)
        out[name]["dropped"] = layer.dropped
        if layer.by_modality is not None:
            even = layer.by_modality.sum()
            out[name]["by_modality"] = np.round(layer.by_modality / even, 6).tolist()
        if layer.by_row is None or not len(layer.by_row):
            continue
        kept = layer.kept()
        own = None if cluster is None else cluster[test.uid[kept]]
        arguments = layer.by_row, test.present[kept], test.patient[kept], own, rng
        out[name]["information"] = special.information(*arguments)
    return out


def _tokens_per_expert(arm: Arm, routed: float, test_rows: int, layer: Any) -> float | None:
    """Assignments that an expert gets in training, on average."""
    if layer is None or not routed:
        return None
    train = arm.config["train"]
    rate = routed / max(test_rows, 1)  # assignments of a row
    return round(rate * train["batch_size"] * train["steps"] / layer.num_experts, 3)


def _keep_selections(out: Path, name: str, probed: Mapping[str, Any]) -> list[str]:
    """Writes a file for every layer; returns their names."""
    files = []
    for layer, chosen in probed.items():
        files.append(f"selections/{name}-{layer}.npz")
        (out / files[-1]).parent.mkdir(exist_ok=True)
        with atomic.replaced(out / files[-1]) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **special.sparse(chosen))  # pyright: ignore[reportArgumentType]
    return files


def keep_predictions(path: Path, found: Predictions, spec: DataSpec) -> None:
    """The full input's predictions with labels; patients become numbers in the order of rows."""
    path.parent.mkdir(exist_ok=True)
    _, patient = np.unique(found.patient, return_inverse=True)
    arrays = {"row": found.uid, "patient": patient.reshape(-1)}
    for task in spec.tasks:
        if task.name not in found.prediction or task.kind not in metrics.PRIMARY:
            continue
        arrays[f"p/{task.name}"] = found.prediction[task.name][found.full()]
        arrays[f"y/{task.name}"] = found.label[task.name]
        arrays[f"known/{task.name}"] = found.scored(spec, task, found.full())
    with atomic.replaced(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)
