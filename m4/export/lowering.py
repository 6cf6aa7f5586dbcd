"""The prediction of a model as portable StableHLO: a row at a time, for any number of rows.

The function of one row is mapped over a symbolic number of them, so that a prediction never
depends on who else is asked about, and nothing in it knows how many rows there are. It is the
program of `m4.run.programs.compile_predict` for a batch of one; exact engines of experts stand in
for each other.

Letters: B rows.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import export

from m4 import task_losses
from m4.data.batch import empty
from m4.data.store import layout
from m4.errors import ConfigError
from m4.eval.predictions import SCORED_KINDS
from m4.export.standalone import require_pure
from m4.moe.engine.dispatch import LIMITED, Target
from m4.nn import front
from m4.run.method import fronts, make_method, on
from m4.specs import DataSpec, TaskSpec
from m4.train.precision import Precision, in_precision
from m4.types import Method, Stream

PLATFORMS = ("cpu", "cuda", "tpu")
HERE = Target("cpu", grouped=False)  # no kernel that one kind of device alone has


@dataclasses.dataclass(frozen=True)
class Lowered:
    """Modules of StableHLO, one per bucket, and the signature that they share."""

    modules: tuple[bytes, ...]
    program: dict[str, Any]  # what the runner must know of them


def predicted(spec: DataSpec) -> list[TaskSpec]:
    """Tasks that a bundle predicts: none that clusters rows or draws a map."""
    return [t for t in spec.tasks if t.kind in SCORED_KINDS and t.kind != "segmentation"]


def portable(config: ml_collections.ConfigDict, spec: DataSpec) -> Method:
    """The method with engines that every platform has.

    Raises ConfigError where a prediction is no function of its row.
    """
    given = config.method.to_dict()
    engine = (given.get("moe") or {}).get("engine", "auto")
    if engine in LIMITED:
        raise ConfigError(
            f"method.moe.engine={engine!r}: drops what an expert has no room for, so a prediction"
            " depends on the other rows of its batch; train with 'auto' to export"
        )
    if engine != "auto":
        given["moe"] = {**given["moe"], "engine": "auto"}
    method = make_method(given, spec, **fronts(config), target=HERE)
    if noisy := getattr(front.bare(method), "eval_rngs", ()):
        raise ConfigError(
            f"method.fidelity={config.method.get('fidelity', 'm4')!r}: draws random numbers"
            f" ({', '.join(noisy)}) when it predicts, so a prediction is no function of its row;"
            " export another fidelity"
        )
    return on(task_losses.unscaled(spec), method)


def lower(
    method: Method,
    spec: DataSpec,
    cuts: Sequence[DataSpec],
    params: Any,
    precision: Precision,
    platforms: Sequence[str],
) -> Lowered:
    """The prediction of every task that has one, for each schema of `cuts`, the last one whole.

    Raises ConfigError if it cannot be lowered for all of the platforms.
    """
    tasks = predicted(spec)
    regressions = [task.name for task in tasks if task.kind == "regression"]
    leaves, tree = jax.tree.flatten(params)
    given = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    given += [jax.ShapeDtypeStruct((), np.float32)] * (2 * len(regressions))
    names = [(m.name, part) for m in spec.modalities for part in layout(m)]
    shown: dict[str, Any] = {
        "platforms": [*platforms],
        "params": [[[*x.shape], str(x.dtype)] for x in leaves],
        "scalars": 2 * len(regressions),
        "inputs": [[*pair] for pair in names],
        "cuts": [],
    }
    modules = []
    for cut in cuts:
        one = in_precision(precision, _of_row(method, cut, tasks), platform="cpu")

        def whole(*args, one=one):
            flat, pairs, arrays = _split(args, len(leaves), 2 * len(regressions))
            scaling = dict(zip(regressions, zip(pairs[::2], pairs[1::2], strict=True), strict=True))
            held = jax.tree.unflatten(tree, flat), scaling
            return jax.vmap(lambda *row: one(*held, *row))(*arrays)

        shapes = [(*layout(cut.modality(name))[part],) for name, part in names]
        made = _export(whole, given, shapes, platforms)
        modules.append(made.mlir_module_serialized)
        length = None if cut == cuts[-1] else _length(cut, spec)
        arrays = [[[None, *shape], str(np.dtype(dtype))] for shape, dtype in shapes]
        shown["cuts"].append({"length": length, "arrays": arrays})
        shown["convention"] = made.calling_convention_version
        shown["outputs"] = [[[None, *x.shape[1:]], str(x.dtype)] for x in made.out_avals]
    return Lowered(tuple(modules), shown)


def _of_row(method: Method, spec: DataSpec, tasks: Sequence[TaskSpec]):
    """`(params, scaling, *arrays of a row) -> predictions [C] of every task`."""
    blank = jax.tree.map(np.asarray, empty(spec, 1))
    names = [(m.name, part) for m in spec.modalities for part in layout(m)]

    def one(params, scaling: Mapping[str, Any], *arrays):
        parts: dict[str, dict[str, Any]] = {}
        for (name, part), array in zip(names, arrays, strict=True):
            parts.setdefault(name, {})[part] = array[None]
        streams = {name: Stream(**own) for name, own in parts.items()}
        batch = blank.replace(inputs=streams, weight=jnp.ones(1, jnp.float32))
        out = method.apply({"params": params}, batch, train=False)
        return tuple(
            task_losses.predict(task_losses.scaled(task, scaling), out.logits[task.name])[0]
            for task in tasks
        )

    return one


def _export(whole, given, shapes, platforms) -> export.Exported:
    (rows,) = export.symbolic_shape("b")
    inputs = [jax.ShapeDtypeStruct((rows, *shape), dtype) for shape, dtype in shapes]
    # Every argument stays: the runner passes all of them.
    jitted = jax.jit(whole, keep_unused=True)
    try:
        with _without_places():
            made = export.export(jitted, platforms=tuple(platforms))(*given, *inputs)
    except (NotImplementedError, ValueError, TypeError) as error:
        raise ConfigError(
            f"method: cannot be lowered for {', '.join(platforms)} ({type(error).__name__});"
            " --debug says more, --platforms=cpu asks for less"
        ) from error
    require_pure(made.mlir_module())
    return made


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
    """Lowered programs do not say from which lines of which files on this machine they are."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _split(args: Sequence[Any], *sizes: int):
    start = 0
    for size in sizes:
        yield args[start : start + size]
        start += size
    yield args[start:]


def _length(cut: DataSpec, spec: DataSpec) -> int:
    """Positions that a bucket's longest modality has."""
    return max(a.length for a, b in zip(cut.modalities, spec.modalities, strict=True) if a != b)
