"""Properties that every method must have, as checks on a `Probe`.

    @pytest.mark.parametrize("check", properties.CHECKS, ids=lambda c: c.__name__)
    def test_property(probe, check):
        check(probe)

One probe compiles one prediction and one gradient for a fixed batch shape; every check reuses
them. Letters: B rows, M modalities.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from m4 import sharding
from m4.config import code
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Batch, Stream, Target

GARBAGE = (np.nan, np.inf, -np.inf, 1e30)
ROWS = 6

SPEC = DataSpec(
    modalities=(
        ModalitySpec("vitals", "series", (5, 3)),
        ModalitySpec("static", "table", (4,)),
        ModalitySpec("labs", "series", (4, 2)),
        ModalitySpec("notes", "vectors", (2, 5)),
        ModalitySpec("icd", "codes", (3,), dtype="int32", vocab=7),
    ),
    tasks=(
        TaskSpec("death", "binary"),
        TaskSpec("phenotype", "multilabel", dim=3),
        TaskSpec("ward", "multiclass", dim=4),
        TaskSpec("stay", "regression"),
    ),
)

PAIR = DataSpec(SPEC.modalities[:2], SPEC.tasks[:2])  # for what compiles much
THREE = DataSpec(SPEC.modalities[1:4], SPEC.tasks, hours=4.0)  # what releases of today can take
IMAGES = DataSpec(
    (ModalitySpec("fundus", "image", (1, 8, 8, 3)), ModalitySpec("oct", "image", (1, 8, 8, 3))),
    (TaskSpec("risk", "binary"), TaskSpec("grade", "multiclass", dim=3)),
)

# Part of a field's name -> its size in a small method; the first that fits.
SMALL = {
    "heads": 2, "depth": 1, "experts": 3, "patches": 2, "patch": 4, "queries": 3, "width": 8,
    "hidden": 8, "mlp": 8, "embed_time": 8,
}  # fmt: skip


def method_files() -> list[tuple[str, str]]:
    """Name and fidelity of every file of a method in m4/methods."""
    return [(name, f) for name in code.method_names() for f in code.method_modules(name)]


def small(cls: Any, spec: DataSpec, *, moe: Mapping[str, Any] = FrozenDict(), **fields: Any) -> Any:
    """A method of any class with little of everything and, unless said, no auxiliary losses."""
    sizes: dict[str, Any] = {"aux_weights": FrozenDict()}
    for field in dataclasses.fields(cls):
        fits = [size for part, size in SMALL.items() if part in field.name]
        if type(field.default) is int and fits:
            sizes[field.name] = min(field.default, fits[0])
    own = {field.name: field.default for field in dataclasses.fields(cls)}
    if "moe" in own:
        sizes["moe"] = dataclasses.replace(own["moe"], **{"hidden": 8, **moe})
    return cls(spec, **{k: v for k, v in sizes.items() if k in own} | fields)


def first_small(cls: Any, *specs: DataSpec, **fields: Any) -> Any:
    """A small method of the first schema that the class takes; it must take one of them."""
    refusals = []
    for spec in specs:
        method = small(cls, spec, **fields)
        try:
            parameter_shapes(method)
        except ValueError as error:
            refusals.append(str(error))
        else:
            return method
    raise AssertionError(refusals)


def random_stream(m: ModalitySpec, present: np.ndarray, rng: np.random.Generator) -> Stream:
    """Values, ragged lengths, irregular sorted times and scattered observations."""
    rows = len(present)
    length = rng.integers(1, m.length + 1, (rows, 1))
    mask = (np.arange(m.length) < length) & present[:, None]
    times = np.sort(rng.uniform(0, 47, (rows, m.length)), axis=1).astype(np.float32)
    shape = (rows, *m.shape)
    if m.kind in ("codes", "text"):
        return Stream(np.where(mask, rng.integers(0, m.vocab, shape), 0), mask, present)
    values = rng.normal(size=shape).astype(np.float32)
    if m.kind == "vectors":
        return Stream(values * mask[..., None], mask, present, times * mask)
    if m.kind == "image":
        return Stream(values * mask[..., None, None, None], mask, present)
    if m.kind == "series":
        observed = (rng.random(shape) < 0.7) & mask[..., None]
        return Stream(values * observed, mask, present, times * mask, observed)
    if m.kind == "table":
        observed = (rng.random(shape) < 0.8) & present[:, None]
        return Stream(values * observed, present[:, None], present, None, observed)
    raise ValueError(f"no random stream for kind {m.kind!r}")


def random_target(task: TaskSpec, rows: int, rng: np.random.Generator) -> Target:
    """A label of every row."""
    mask = np.ones((rows, task.dim) if task.kind == "multilabel" else rows, np.float32)
    if task.kind == "multiclass":
        return Target(rng.integers(0, task.dim, rows).astype(np.int32), mask)
    if task.kind == "regression":
        return Target(rng.normal(size=(rows, task.dim)).astype(np.float32), mask)
    return Target(rng.integers(0, 2, (rows, task.dim)).astype(np.float32), mask)


def random_batch(spec: DataSpec, seed: int = 0, rows: int = ROWS, keep: float = 0.7) -> Batch:
    """Modalities present with probability `keep`; every row has one, every modality a row."""
    rng = np.random.default_rng(seed)
    present = rng.random((rows, len(spec.modalities))) < keep
    for m in range(len(spec.modalities)):
        present[m % rows, m] = True
    for b in range(rows):
        present[b, b % len(spec.modalities)] = True
    return Batch(
        inputs={
            m.name: random_stream(m, present[:, i], rng) for i, m in enumerate(spec.modalities)
        },
        targets={t.name: random_target(t, rows, rng) for t in spec.tasks},
        task=np.full(rows, -1, np.int32),
        weight=np.ones(rows, np.float32),
        uid=np.arange(rows, dtype=np.int32),
    )


@dataclasses.dataclass
class Probe:
    """A method with parameters and its two compiled functions.

    `predict(batch)` -> logits by task in evaluation. `grads(batch)` -> (loss, gradients) of the
    task losses in training, with fixed rngs; auxiliary losses count unless the method says 0.
    """

    method: Any
    params: Any
    batch: Batch
    predict: Callable[[Batch], dict]
    grads: Callable[[Batch], tuple]


def random_params(method, seed: int = 0):
    """As `random_like`; nothing is compiled."""
    return random_like(parameter_shapes(method), seed)


def random_like(shapes, seed: int = 0):
    """Parameters off their initial values, so that no zero hides a path.

    Kernels get their fan-in's scale, everything else N(0.5, 0.5^2).
    """
    rng = np.random.default_rng(seed)

    def leaf(x):
        scale = x.shape[-2] ** -0.5 if x.ndim > 1 else 0.5
        return (rng.normal(size=x.shape) * scale + (0.5 if x.ndim < 2 else 0.0)).astype(x.dtype)

    return jax.tree.map(leaf, shapes)


def probe(method, *, seed: int = 0) -> Probe:
    """Compile a method's prediction and gradient for `ROWS` random rows."""
    predict_rngs = {name: jax.random.key(5) for name in getattr(method, "eval_rngs", ())}
    batch = random_batch(method.data, seed)
    rngs = {"dropout": jax.random.key(1), "gate": jax.random.key(2)}
    params = random_params(method, seed)

    @jax.jit
    def predict(batch):
        return method.apply({"params": params}, batch, train=False, rngs=predict_rngs).logits

    @jax.jit
    def grads(batch):
        def loss(params):
            out = method.apply({"params": params}, batch, train=True, rngs=rngs)
            return method.loss(out, batch, jnp.zeros((), jnp.int32))[0]

        return jax.value_and_grad(loss)(params)

    return Probe(method, params, batch, predict, grads)


def tree_equal(a, b):
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def tree_close(a, b, **tolerance):
    """Within float32 rounding of the same algorithm."""
    tolerance = {"rtol": 1e-5, "atol": 1e-6} | tolerance
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def take(batch: Batch, rows) -> Batch:
    """Rows of a batch, in the order asked for."""
    return jax.tree.map(lambda x: x[np.asarray(rows)], batch)


def replace_rows(batch: Batch, other: Batch, rows) -> Batch:
    """`batch` with some rows taken from `other`."""

    def leaf(x, y):
        x = np.array(x)
        x[np.asarray(rows)] = y[np.asarray(rows)]
        return x

    return jax.tree.map(leaf, batch, other)


def drop_modalities(batch: Batch, row: int) -> Batch:
    """`batch` with nothing present in `row`, as the data room writes it: zeros."""

    def stream(s):
        cut = jax.tree.map(np.array, s)
        for field in ("values", "mask", "present", "times", "observed"):
            if getattr(cut, field) is not None:
                getattr(cut, field)[row] = 0
        return cut

    return batch.replace(inputs={name: stream(s) for name, s in batch.inputs.items()})


def pollute(batch: Batch, garbage: float) -> Batch:
    """Garbage wherever nothing was measured: absent slots, padding, unobserved entries."""

    def stream(s):
        present = np.asarray(s.present)
        mask = np.asarray(s.mask)
        holes = ~np.broadcast_to(
            present.reshape(-1, *(1,) * (s.values.ndim - 1)), np.shape(s.values)
        )
        if s.observed is not None:
            holes |= ~np.asarray(s.observed)
        elif mask.shape[1] == s.values.shape[1]:
            holes |= ~mask.reshape(*mask.shape, *(1,) * (s.values.ndim - 2))
        integer = np.issubdtype(s.values.dtype, np.integer)
        filler = np.iinfo(np.int32).max if integer else garbage
        new = s.replace(values=np.where(holes, filler, s.values).astype(s.values.dtype))
        if s.times is not None:
            new = new.replace(times=np.where(mask, s.times, garbage).astype(np.float32))
        return new

    return batch.replace(inputs={name: stream(s) for name, s in batch.inputs.items()})


def relabel(batch: Batch, spec: DataSpec, seed: int = 7) -> Batch:
    """Other labels, same masks."""
    other = random_batch(spec, seed).targets
    return batch.replace(
        targets={n: t.replace(value=1 - other[n].value) for n, t in batch.targets.items()}
    )


def batch_composition_invariance(probe: Probe):
    """What else is in the batch does not change a row's logits: any other row, one at a time.

    One at a time, since what rows exchange can stay within a part of the batch.
    """
    want, other = probe.predict(probe.batch), random_batch(probe.method.data, seed=9)
    for row in np.random.default_rng(9).permutation(ROWS):
        found = probe.predict(replace_rows(probe.batch, other, [row]))
        for task in want:
            kept = np.arange(ROWS) != row
            tree_close(found[task][kept], want[task][kept])


def filler_rows_change_no_logits(probe: Probe):
    """A last batch filled up with empty rows of weight 0 is predicted as what there is of it."""
    few = take(probe.batch, range(ROWS - 2))
    full = drop_modalities(drop_modalities(probe.batch, ROWS - 2), ROWS - 1)
    real = np.arange(ROWS) < ROWS - 2
    full = full.replace(weight=real.astype(np.float32), uid=np.where(real, full.uid, -1))
    found = jax.tree.map(lambda x: x[real], probe.predict(full))
    tree_close(found, probe.predict(few))


def patient_permutation_equivariance(probe: Probe):
    """Permuted rows give permuted logits."""
    order = [4, 2, 0, 5, 1, 3]
    expected = jax.tree.map(lambda x: x[np.array(order)], probe.predict(probe.batch))
    tree_close(probe.predict(take(probe.batch, order)), expected)


def garbage_changes_no_bit(probe: Probe):
    """NaN, infinities and huge numbers in unmeasured slots reach neither logits nor gradients."""
    logits, grads = probe.predict(probe.batch), probe.grads(probe.batch)
    for garbage in GARBAGE:
        polluted = pollute(probe.batch, garbage)
        tree_equal(probe.predict(polluted), logits)
        tree_equal(probe.grads(polluted), grads)


def empty_row_counts_nowhere(probe: Probe):
    """A row with nothing present: finite, and neither its label nor its weight matters."""
    empty = drop_modalities(probe.batch, row=2)
    loss, grads = probe.grads(empty)
    for x in jax.tree.leaves((loss, grads, probe.predict(empty))):
        assert np.isfinite(x).all()
    other_label = replace_rows(empty, relabel(empty, probe.method.data), [2])
    tree_equal(probe.grads(other_label), (loss, grads))
    weight = np.array(empty.weight)
    weight[2] = 0.0
    tree_equal(probe.grads(empty.replace(weight=weight)), (loss, grads))


def padding_rows_count_nowhere(probe: Probe):
    """A row of weight 0 (the tail of an evaluation) changes neither loss nor gradient."""
    weight = np.array(probe.batch.weight)
    weight[[1, 4]] = 0.0
    batch = probe.batch.replace(weight=weight)
    other = replace_rows(batch, random_batch(probe.method.data, seed=5), [1, 4])
    tree_close(probe.grads(batch), probe.grads(other.replace(weight=weight)))


def missing_labels_give_no_gradient(probe: Probe):
    """Masked labels may hold anything; a task without labels gives its head no gradient."""
    spec = probe.method.data
    task = spec.tasks[0].name
    target = probe.batch.targets[task]

    def unlabelled(value):
        filler = np.full_like(target.value, value)
        masked = Target(filler, np.zeros_like(target.mask))
        return probe.batch.replace(targets={**probe.batch.targets, task: masked})

    loss, grads = probe.grads(unlabelled(0.0))
    for garbage in GARBAGE:
        tree_equal(probe.grads(unlabelled(garbage)), (loss, grads))
    assert np.isfinite(loss)
    nobody = {n: t.replace(mask=np.zeros_like(t.mask)) for n, t in probe.batch.targets.items()}
    loss, grads = probe.grads(probe.batch.replace(targets=nobody))
    assert loss == 0.0
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert not np.any(g), f"{jax.tree_util.keystr(path)} has a gradient without labels"


def targets_do_not_influence_logits(probe: Probe):
    """No label leaks into the forward pass."""
    relabelled = relabel(probe.batch, probe.method.data)
    tree_equal(probe.predict(relabelled), probe.predict(probe.batch))


def evaluation_is_deterministic(probe: Probe):
    """Two evaluations agree bit for bit."""
    tree_equal(probe.predict(probe.batch), probe.predict(probe.batch))


def every_parameter_learns(probe: Probe):
    """Each parameter gets a finite, somewhere non-zero gradient from the task losses."""
    _, grads = probe.grads(random_batch(probe.method.data, seed=3, keep=0.8))
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all() and np.any(g), f"{jax.tree_util.keystr(path)}: no gradient"


def every_modality_matters(probe: Probe):
    """Dropping a modality changes the logits of the rows that had it, and of no other row."""
    logits = probe.predict(probe.batch)
    for name, stream in probe.batch.inputs.items():
        absent = jax.tree.map(np.zeros_like, stream)
        cut = probe.predict(probe.batch.replace(inputs={**probe.batch.inputs, name: absent}))
        had = np.asarray(stream.present)
        for task, x in cut.items():
            moved = np.abs(np.asarray(x) - logits[task]).max(-1) > 1e-6
            assert moved[had].all(), f"{task} does not read {name}"
            assert not moved[~had].any(), f"{name} leaks into rows without it ({task})"


def same_on_eight_devices(method, *, rows: int = 8):
    """Training loss and gradients of a batch split over 8 devices equal those of one device."""
    batch = random_batch(method.data, rows=rows)
    params = random_params(method)
    rngs = {"dropout": jax.random.key(1), "gate": jax.random.key(2)}

    def loss(params, batch):
        out = method.apply({"params": params}, batch, train=True, rngs=rngs)
        return method.loss(out, batch, jnp.zeros((), jnp.int32))[0]

    def run(devices):
        mesh = sharding.make_mesh({"data": devices})
        with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
            where = (sharding.replicated(mesh), sharding.rows(mesh))
            step = jax.jit(jax.value_and_grad(loss), in_shardings=where)
            return step(params, sharding.put_batch(batch, mesh))

    (one, grads_one), (eight, grads_eight) = run(1), run(8)
    np.testing.assert_allclose(eight, one, rtol=1e-6)
    tree_close(grads_eight, grads_one)


CHECKS = (
    batch_composition_invariance,
    filler_rows_change_no_logits,
    patient_permutation_equivariance,
    garbage_changes_no_bit,
    empty_row_counts_nowhere,
    padding_rows_count_nowhere,
    missing_labels_give_no_gradient,
    targets_do_not_influence_logits,
    evaluation_is_deterministic,
    every_parameter_learns,
    every_modality_matters,
)


def parameter_shapes(method):
    """The parameter tree as shapes, without running anything."""
    batch = random_batch(method.data)
    rngs = {"params": jax.random.key(0), "gate": jax.random.key(0)}
    return nn.unbox(jax.eval_shape(lambda: method.init(rngs, batch, train=False)))["params"]


def parameter_tree(method) -> str:
    """One line 'path shape' per parameter."""
    return "".join(
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {x.shape}\n"
        for path, x in jax.tree_util.tree_leaves_with_path(parameter_shapes(method))
    )
