"""The programs of a run, compiled ahead of time: the train step and the prediction, per bucket."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from m4 import sharding, task_losses
from m4.eval.evaluate import mask_modalities
from m4.eval.predictions import SCORED_KINDS
from m4.maths import HASHED
from m4.nn import front, segmentation
from m4.run import compiler
from m4.run.setup import Model, like
from m4.train.checkpoint import abstract
from m4.train.flat import Layout
from m4.train.precision import in_precision
from m4.types import Batch


class ByLength:
    """One compiled function per bucket; a call takes the one for the lengths of its batch."""

    def __init__(self, compiled: Mapping[tuple[int, ...], Callable]):
        self._compiled = dict(compiled)

    def __call__(self, *args: Any) -> Any:
        """Raises TypeError for a batch of lengths that nothing was compiled for."""
        (batch,) = (arg for arg in args if isinstance(arg, Batch))
        if lengths(batch) not in self._compiled:
            raise TypeError(f"no program for lengths {lengths(batch)}: {[*self._compiled]}")
        return self._compiled[lengths(batch)](*args)

    def given(self, argument: Any) -> "ByLength":
        """The same programs with another last argument (`With.given`)."""
        made: Any = self._compiled
        return ByLength({key: one.given(argument) for key, one in made.items()})

    def memory_analysis(self) -> Any:
        """Of the function for whole batches."""
        return [*self._compiled.values()][-1].memory_analysis()


class With:
    """A compiled function and its last argument, which is put on the mesh at the first call.

    Where it takes a state as vectors (`layout`), it takes trees, too.
    """

    def __init__(self, compiled: Any, argument: Any, mesh: Any, layout: Layout | None = None):
        self._compiled, self._argument, self._mesh = compiled, argument, mesh
        self._layout, self.program = layout, compiled
        self.memory_analysis = compiled.memory_analysis

    def given(self, argument: Any) -> "With":
        """The same program with another last argument: another seed, rate or scaling."""
        return With(self._compiled, argument, self._mesh, self._layout)

    @functools.cached_property
    def _placed(self) -> Any:
        return sharding.put_whole(self._argument, sharding.replicated(self._mesh))

    def __call__(self, *args: Any) -> Any:
        """What the function makes of them and its argument."""
        if self._layout is not None and not self._layout.is_packed(args[0]):
            packed = self._layout.packed(jax.tree.map(np.asarray, args[0]), join=np.concatenate)
            args = sharding.put_whole(packed, sharding.replicated(self._mesh)), *args[1:]
        return self._compiled(*args, self._placed)


def steered(step: Any, model: Model, shares: Callable[[], np.ndarray]) -> Callable:
    """The compiled step with each task's share of the rate as `shares` has it at a call."""
    scaling, now = task_losses.scaling(model.spec), {}

    def call(*args: Any) -> Any:
        key = shares().tobytes()
        if key not in now:
            now.clear()
            now[key] = step.given((model.inputs.replace(shares=shares()), scaling))
        return now[key](*args)

    return call


def lengths(batch: Batch) -> tuple[int, ...]:
    """Positions of every modality, by name."""
    return tuple(stream.mask.shape[1] for _, stream in sorted(batch.inputs.items()))


def _each(compile_for: Callable[[Any], Callable], model: Model, num_rows: int) -> Callable:
    """What `compile_for` makes of a batch of each bucket's shape, as one function."""
    batches = [like(cut, num_rows, model.mesh) for cut in model.cuts]
    if len(batches) == 1:
        return compile_for(batches[0])
    return ByLength({lengths(batch): compile_for(batch) for batch in batches})


def like_all(tree: Any, whole: jax.sharding.NamedSharding) -> Any:
    """Shapes of arrays of which every device has all."""
    return abstract(tree, jax.tree.map(lambda _: whole, tree))


def like_step(model: Model, num_rows: int) -> tuple[Any, Any, Any, Any]:
    """Shapes and shardings of state, totals, batch and inputs as the step takes them."""
    whole, batch = sharding.replicated(model.mesh), like(model.cuts[-1], num_rows, model.mesh)
    state = model.state
    if model.layout is not None:
        state = like_all(jax.eval_shape(model.layout.packed, state), whole)
    given = like_all((model.inputs, task_losses.scaling(model.spec)), whole)
    totals = like_all(jax.eval_shape(model.step.zeros, state, batch, given[0]), whole)
    return state, totals, batch, given


def step_of(model: Model) -> Callable[..., Any]:
    """`(state, totals, batch, (inputs, scaling)) -> (state, totals)`, to be compiled."""

    def step(state, totals, batch, inputs):
        own, scaling = inputs
        batch = task_losses.in_loss_units(model.spec, batch, scaling)
        return model.step.apply(state, totals, batch, own)

    return step


def compile_step(model: Model, num_rows: int, accept: Callable[[list[str]], None] | None = None):
    """The train step for batches of `num_rows`, and a function that makes fresh totals.

    Before anything is compiled, `accept` gets the text of each lowered program and may raise.
    """
    whole, layout = sharding.replicated(model.mesh), model.layout
    inputs = model.inputs, task_losses.scaling(model.spec)
    state, totals, _, given = like_step(model, num_rows)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), totals)
    placed = jax.tree.map(lambda x: x.sharding, state)
    options = compiler.options(model.efforts[0], model.mesh)

    jitted = jax.jit(step_of(model), donate_argnums=0, out_shardings=(placed, whole))
    cuts = [like(cut, num_rows, model.mesh) for cut in model.cuts]
    lowered = [jitted.lower(state, totals, cut, given) for cut in cuts]
    if accept is not None:
        accept([one.as_text() for one in lowered])
    ready = iter(lowered)

    def compile_for(batch):
        return With(next(ready).compile(options), inputs, model.mesh, layout)

    return _each(compile_for, model, num_rows), lambda: sharding.put_whole(zeros, whole)


def noise(names: Sequence[str]) -> dict[str, jax.Array]:
    """A key for each stream of random numbers, the same at every evaluation."""
    return {name: jax.random.key(number, impl=HASHED) for number, name in enumerate(names)}


def compile_predict(model: Model, num_rows: int, *, stats: bool = True):
    """`(params, batch, keep_M) -> (task -> predictions, layer -> stats)`, compiled.

    It takes batches of `num_rows`. The modalities with `keep_M` False are masked inside, so every
    subset is one call. Without `stats` nothing is said of layers, which compiles sooner.
    """
    method, spec, scaling = model.unscaled, model.spec, task_losses.scaling(model.spec)
    whole = sharding.replicated(model.mesh)

    # What some releases draw in evaluation too; a fixed key keeps it repeatable.
    noisy = getattr(front.bare(method), "eval_rngs", ())

    def predict(params, batch, keep_M, scaling):
        batch = mask_modalities(batch, keep_M, spec)
        rngs = noise(noisy)
        out = method.apply({"params": model.gather(params)}, batch, train=False, rngs=rngs)
        tasks = {
            task.name: segmentation.scores(out.logits[task.name], batch.targets[task.name].value)
            if task.kind == "segmentation"  # a map is scored here: it would be much to fetch
            else task_losses.predict(task_losses.scaled(task, scaling), out.logits[task.name])
            for task in spec.tasks
            if task.kind in SCORED_KINDS
        }
        return tasks, {layer: aux.stats for layer, aux in out.moe.items()} if stats else {}

    keep = jax.ShapeDtypeStruct((len(spec.modalities),), np.bool_)
    platform = model.mesh.devices.flat[0].platform
    predict = in_precision(model.precision, predict, platform=platform)
    jitted = jax.jit(predict, out_shardings=whole)
    params, options = model.state.eval_params, compiler.options(model.efforts[1], model.mesh)

    def compile_for(batch):
        lowered = jitted.lower(params, batch, keep, like_all(scaling, whole))
        return With(lowered.compile(options), scaling, model.mesh)

    return _each(compile_for, model, num_rows)
