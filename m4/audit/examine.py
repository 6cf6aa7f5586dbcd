"""What is asked of what: the method on invented and real rows, gates, data, a trained run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from m4 import sharding
from m4.audit import laws, leaks, learning
from m4.audit.findings import Finding, ask
from m4.audit.probe import Probe, Programs, Tolerance, probe, random_params, real_probe, without_aux
from m4.audit.real_rows import RealRows
from m4.data.store import Store
from m4.modes import eval as eval_mode
from m4.run import compiler, origin, programs
from m4.run.method import method_of
from m4.run.setup import Setup, context, make_setup
from m4.run.workspace import open_split, owned, prepare, use_cache
from m4.specs import DataSpec

RANDOM, REAL, TRAINED = "random parameters", "random, real rows", "trained, real rows"
OWN_PROGRAM, DATA, TRAINING = "the run's own program", "data", "training"
ROUNDING = Tolerance(1e-4, 1e-5, to_scale=True)  # of float32, at any scale of logits
BY_PRECISION = {"float32": ROUNDING}
COARSE = Tolerance(3e-2, 3e-2, to_scale=True)  # of bfloat16
NO_VALIDATION = "there is no validation split (data.also_train): real rows are those of train"
ONCE = (laws.evaluation_draws_nothing, learning.gates_are_parameters)
OF_ROUTING = learning.routing_follows_inputs


def everything(config: ml_collections.ConfigDict, workdir: Path | None) -> Iterator[Finding]:
    """The audit of a configuration with its data, and of a run if one is named."""
    if workdir is None:
        yield from _whole(config, None)
        return
    with owned(workdir):
        yield from _whole(config, workdir)


def invented(config: ml_collections.ConfigDict, spec: DataSpec) -> Iterator[Finding]:
    """The method alone, on rows that nobody recorded."""
    method = without_aux(method_of(config, spec))
    yield from of_method(method, _programs(method))


def _whole(config: ml_collections.ConfigDict, workdir: Path | None) -> Iterator[Finding]:
    if workdir is not None:
        use_cache(workdir)
    setup = make_setup(config, prepare(config))
    splits = {name: Store(setup.data, name) for name in setup.loader.store.manifest["splits"]}
    for check in leaks.CHECKS:
        yield ask(check, DATA, splits)
    method = without_aux(setup.method)
    compiled = _programs(method)
    yield from of_method(method, compiled)
    looked_at = "val" if "val" in splits else "train"
    if looked_at == "train":
        yield Finding("validation_rows", DATA, "left out", NO_VALIDATION, 0.0)
    rows = RealRows(open_split(setup.data, looked_at, 1))
    real = real_probe(compiled, method, random_params(method), rows, tolerance=ROUNDING)
    yield from _laws(real, REAL)
    if workdir is not None:
        yield from _of_run(config, setup, workdir, compiled, rows)


def _programs(method: Any) -> Programs:
    cpu = jax.default_backend() == "cpu"
    return Programs.of(method, compiler.OPTIONS["little"] if cpu else None)


def of_method(method: Any, compiled: Programs) -> Iterator[Finding]:
    """The method with random parameters on invented rows."""
    params = random_params(method)
    one = probe(method, compiled=compiled, params=params, tolerance=ROUNDING)
    for check in ONCE:
        yield ask(check, "the method", one)
    yield ask(OF_ROUTING, RANDOM, one)
    yield from _laws(one, RANDOM)


def _laws(one: Probe, of: str) -> Iterator[Finding]:
    for law in laws.LAWS:
        if one.random or law not in laws.INVENTED:
            yield ask(law, of, one)


def _of_run(
    config, setup: Setup, workdir: Path, compiled: Programs, rows: RealRows
) -> Iterator[Finding]:
    """Of trained parameters, how they came about, and the program that evaluates them."""
    best = eval_mode.best_params(config, setup, workdir)
    params, method = jax.device_get(best), without_aux(setup.method)
    with context(setup.mesh):
        state = setup.init()
        if config.train["from"]:
            state = origin.begin(config, setup, state)
    before = jax.device_get(state.params)
    yield ask(learning.training_moved_the_gates, TRAINING, before, params)
    trained = real_probe(compiled, method, params, rows, tolerance=ROUNDING)
    yield ask(OF_ROUTING, TRAINED, trained)
    yield from _laws(trained, TRAINED)
    with context(setup.mesh):
        own = _own_program(config, setup, best, rows.split)
        for law in laws.OF_PREDICTIONS:
            yield ask(law, OWN_PROGRAM, own)


def _own_program(config, setup: Setup, params: Any, split: Store) -> Probe:
    """The compiled prediction of an evaluation, whose batch is as large as the run's."""
    size = config.eval.batch_size
    compiled = programs.compile_predict(setup, size)
    keep_M = np.ones(len(setup.spec.modalities), bool)

    def predict(batch):
        placed = sharding.put_whole(batch, sharding.rows(setup.mesh))
        return jax.device_get(compiled(params, placed, keep_M)[0])

    def grads(batch):
        raise NotImplementedError("predictions alone")

    rows = RealRows(split, size)
    tolerance = BY_PRECISION.get(config.train.precision, COARSE)
    return Probe(
        setup.method, params, rows(0), predict, grads,
        others=rows, tolerance=tolerance, random=False,
    )  # fmt: skip
