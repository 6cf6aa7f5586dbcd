"""From a configuration and built data to a model: mesh, method, optimiser, state, loader."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import optax

from m4 import sharding, task_losses
from m4.data import augment, regularise
from m4.data.batch import empty
from m4.data.buckets import ladder
from m4.data.loader import TrainLoader
from m4.data.sampling import Sampling
from m4.data.store import Store
from m4.errors import ConfigError
from m4.moe.engine.dispatch import target_of
from m4.run import compiler
from m4.run.compiler import Effort
from m4.run.devices import make_mesh
from m4.run.method import method_of, on
from m4.run.workspace import open_incomplete
from m4.specs import DataSpec
from m4.train import optim
from m4.train import step as train_step
from m4.train.checkpoint import abstract
from m4.train.flat import FlatMethod, Layout
from m4.train.precision import Precision
from m4.train.ranking import Ranking
from m4.types import Batch, Method


@dataclasses.dataclass(frozen=True)
class Model:
    """What it takes to predict; nothing in it is compiled yet."""

    data: Path  # folder of the built data set
    spec: DataSpec
    mesh: jax.sharding.Mesh
    method: Method
    unscaled: Method  # for batches `task_losses.in_loss_units`: no number of a training split
    precision: Precision  # of matrix products
    inputs: train_step.Inputs
    step: train_step.Step  # of `unscaled`
    layout: Layout | None  # of the step's states; None: trees as everywhere else
    efforts: tuple[Effort, Effort]  # of compiling the step and predictions
    init: Callable[[], train_step.State]
    state: Any  # shapes and shardings of the state
    gather: Callable[[Any], Any]  # of parameters what a forward pass uses
    cuts: tuple[DataSpec, ...]  # the schema in every bucket, the last is whole

    def whole(self, state: Any) -> Any:
        """A state that the compiled step returned, as trees."""
        if self.layout is None:
            return state
        placed = jax.tree.map(lambda x: x.sharding, self.state)
        return jax.device_put(self.layout.unpacked(state), placed)


@dataclasses.dataclass(frozen=True)
class Setup(Model):
    """What every mode that has the training data needs."""

    loader: TrainLoader


def make_setup(config: ml_collections.ConfigDict, data: Path, store: Store | None = None) -> Setup:
    """Builds everything from a built data set, whose training split may be open already.

    Raises ConfigError for what the method refuses.
    """
    mesh = make_mesh(config)
    store = store or open_incomplete(config, data, "train")
    block = sharding.row_block(mesh)
    loader = make_loader(config, store, *block)
    # The whole batch on every process: what is traced must be the same program everywhere.
    simple = block == (0, 1) and not config.train.buckets
    first = (loader if simple else make_loader(config, store, 0, 1, buckets=())).batch(0)
    model = make_model(config, data, store.spec, first, mesh)
    parts = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return Setup(**parts, loader=loader)


def make_model(
    config: ml_collections.ConfigDict, data: Path, spec: DataSpec, first: Batch, mesh
) -> Model:
    """The model of a schema, from any batch of it that is not cut."""
    cuts = ladder(spec, config.train.buckets)
    spec = weighted(spec, config.train.task_weights)
    target = target_of(own_device(mesh))
    method = method_of(config, spec, target=target)
    platform = target.platform
    tx, schedule, ema = make_optimiser(config, platform)
    fresh = functools.partial(train_step.init_state, tx=tx, ema=ema)
    fresh = functools.partial(fresh, spike_window=config.train.spike_window)
    shares = np.ones(len(spec.tasks), np.float32) if config.optim.halve else None
    inputs = train_step.Inputs.of(config.seed, schedule, shares)
    shard = config.optim.shard
    init, state, gather = _init(method, tx, first, mesh, seed=inputs.seed, fresh=fresh, shard=shard)
    require_any_length(method, [like(cut, len(first.uid), mesh) for cut in cuts], mesh)
    how = {name: config.train[name] for name in ("precision", "remat", "accumulate")}
    how |= {"platform": platform, "gather": gather}
    if config.train.ranking:
        how["ranking"] = Ranking(task_losses.unscaled(spec), config.train.ranking)
    if shard:  # the average is whole again where it predicts
        place = jax.lax.with_sharding_constraint
        placed = jax.tree.map(lambda x: x.sharding, state.params)
        how["scatter"] = lambda grads: place(grads, sharding.over_data(state.params, placed))
        gather = lambda params, gather=gather: gather(place(params, placed))  # noqa: E731
    trained: Any = on(task_losses.unscaled(spec), method)
    unscaled = trained
    layout = Layout.of(state.params) if mesh.size == 1 and platform == "cpu" else None
    if layout is not None:
        trained = FlatMethod(unscaled, layout)
        how["gather"] = lambda params: params  # of one device
        tx, *_ = make_optimiser(config, platform, mask=layout.decayed)
    step = train_step.make_step(trained, tx, seed=config.seed, ema=ema, **how)
    efforts = compiler.step_effort(config), compiler.predict_effort(config)
    parts = (method, unscaled, config.train.precision, inputs, step, layout, efforts, init, state)
    return Model(data, spec, mesh, *parts, gather, cuts)


def own_device(mesh: jax.sharding.Mesh) -> Any:
    """A device of the mesh: of this process, or of a pod that is only described the first."""
    own = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    return (own or mesh.devices.flat)[0]


def make_loader(
    config: ml_collections.ConfigDict,
    store: Store,
    index: int,
    count: int,
    *,
    buckets: tuple[int, ...] | None = None,
) -> TrainLoader:
    """The training batches of one of `count` processes."""
    train = config.train
    sampling = Sampling(
        order=train.order,
        order_epochs=train.order_epochs,
        streams=train.streams,
        stream_ratio=train.stream_ratio.to_dict(),
        buckets=train.buckets if buckets is None else buckets,
    )
    try:
        return TrainLoader(
            store,
            train.batch_size,
            config.seed,
            sampling=sampling,
            transform=corruption(store.spec, train),
            process_index=index,
            process_count=count,
        )
    except ValueError as error:
        raise ConfigError(f"train: {error}") from error


def make_optimiser(
    config: ml_collections.ConfigDict,
    platform: str | None = None,
    *,
    mask: Callable = optim.decayed,
) -> tuple[optax.GradientTransformation, optim.Schedule, float]:
    """Optimiser, learning rate by step, and decay of the parameter average.

    `mask` says which parameters decay.
    """
    options = config.optim.to_dict()
    ema, _, _ = (options.pop(name) for name in ("ema", "shard", "halve"))
    timing = {k: options.pop(k) for k in ("lr", "schedule", "warmup_steps", "end_fraction")}
    schedule = optim.make_schedule(timing.pop("lr"), steps=config.train.steps, **timing)
    tx = optim.make_optimiser(
        options.pop("name"), schedule, platform=platform, mask=mask, **options
    )
    return tx, schedule, ema


def corruption(spec: DataSpec, train: ml_collections.ConfigDict) -> regularise.Transform | None:
    """What training varies and loses on purpose: values, whole modalities, windows of time."""
    some = []
    if train.augment:
        some.append(augment.augment(spec, train.augment.to_dict()))
    if train.modality_dropout:
        some.append(regularise.modality_dropout(spec, train.modality_dropout))
    if train.segment_dropout:
        rate, share = train.segment_dropout, train.segment_share
        some.append(regularise.segment_loss(spec, rate=rate, share=share))
    return regularise.chain(*some) if some else None


def weighted(spec: DataSpec, weights: Mapping[str, float]) -> DataSpec:
    """The schema with some tasks' weights in the total loss replaced."""
    tasks = (dataclasses.replace(t, weight=weights.get(t.name, t.weight)) for t in spec.tasks)
    return dataclasses.replace(spec, tasks=tuple(tasks))


def like(spec: DataSpec, num_rows: int, mesh: jax.sharding.Mesh) -> Any:
    """Shapes and shardings of a whole batch."""
    batch = empty(spec, num_rows)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    return abstract(shapes, jax.tree.map(lambda _: sharding.rows(mesh), shapes))


def require_any_length(method: Method, batches: Sequence[Any], mesh: jax.sharding.Mesh) -> None:
    """Raises ConfigError if the shape of a parameter depends on the length of a batch."""
    if len(batches) == 1:
        return

    def shapes(batch):
        params = jax.eval_shape(functools.partial(train_step.init_params, method, seed=0), batch)
        leaves = jax.tree_util.tree_leaves_with_path(sharding.unbox(params))
        return {jax.tree_util.keystr(p, simple=True, separator="/"): x.shape for p, x in leaves}

    with context(mesh):
        *short, whole = map(shapes, batches)
    for found in short:
        for name in sorted(whole.keys() | found.keys()):
            if whole.get(name) != found.get(name):
                raise ConfigError(
                    f"train.buckets: the method's parameter {name} has shape {whole.get(name)}, in"
                    f" shorter batches {found.get(name)}; this method takes one length only"
                )


def _init(method, tx, batch: Batch, mesh, *, seed: Any, fresh: Callable, shard: bool):
    """Function that makes a fresh state where it belongs, the state's shapes, and its `gather`.

    `fresh` makes a state of parameters.
    """

    def params(seed):
        return train_step.init_params(method, jax.tree.map(np.asarray, batch), seed=seed)

    def init(seed):
        return fresh(sharding.unbox(params(seed)))

    try:
        with context(mesh):
            boxed = jax.eval_shape(params, seed)
            shapes = jax.eval_shape(fresh, sharding.unbox(boxed))
    except ValueError as error:
        raise ConfigError(f"method: {error}") from error
    placed = sharding.param_shardings(boxed, mesh)
    shardings = sharding.state_shardings(shapes, placed, tx, mesh, shard=shard)

    def make() -> train_step.State:
        # It runs once: optimising it takes three times as long as it could save.
        options: Any = compiler.options("little", mesh)
        with context(mesh):
            given = sharding.put_whole(seed, sharding.replicated(mesh))
            return jax.jit(init, out_shardings=shardings).lower(given).compile(options)(given)

    return make, abstract(shapes, shardings), sharding.gatherer(boxed, mesh)


class context:  # noqa: N801 (used like a function)
    """Mesh and logical axis rules for everything that is traced inside."""

    def __init__(self, mesh: jax.sharding.Mesh):
        self._parts = (jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES))

    def __enter__(self):
        for part in self._parts:
            part.__enter__()

    def __exit__(self, *error):
        for part in reversed(self._parts):
            part.__exit__(*error)
