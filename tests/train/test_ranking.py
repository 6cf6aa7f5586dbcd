"""`train.ranking`: more modalities must not be worse than fewer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m4.audit.random_rows import random_batch
from m4.config import rules
from m4.eval import monotone
from m4.methods.concat import Concat
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.task_losses import task_losses
from m4.train import ranking
from m4.train import step as steps
from m4.train.ranking import Ranking
from m4.types import Batch, Outputs, Stream, Target
from tests.train import methods

TWO = DataSpec(
    tuple(ModalitySpec(name, "table", (2,)) for name in ("a", "b", "c")),
    (TaskSpec("death", "binary", weight=2.0), TaskSpec("stay", "regression")),
)


def test_how_many_stay_and_which_is_even():
    present = jnp.asarray(np.repeat([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 0], [0] * 4], 4000, 0))
    keep = np.asarray(ranking.kept(present > 0, jax.random.key(0))).reshape(4, 4000, 4)
    assert not (keep & ~np.asarray(present > 0).reshape(keep.shape)).any()
    counts = keep.sum(-1)
    assert {*np.unique(counts[0])} == {1, 2, 3} and (counts[1:3] == 1).all() and not counts[3].any()
    share = np.bincount(counts[0])[1:] / 4000
    np.testing.assert_allclose(share, 1 / 3, atol=4 * np.sqrt(2 / 9 / 4000))
    np.testing.assert_allclose(keep[0].mean(0), 0.5, atol=4 * np.sqrt(1 / 4 / 4000))
    np.testing.assert_allclose(keep[1].mean(0)[::2], 0.5, atol=4 * np.sqrt(1 / 4 / 4000))


def made(more, fewer, batch, keep):
    """The loss by logits, {task: [B]} each, where `keep` of the modalities stay."""
    rank = Ranking(TWO, 1.0)
    outs = [Outputs({k: jnp.asarray(v)[:, None] for k, v in z.items()}, {}) for z in (more, fewer)]
    terms = task_losses(TWO, outs[0].logits, batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "kept", lambda present, key: present & keep)
        less = rank.fewer(batch, jax.random.key(0), terms)
    return rank.loss(*outs, batch, less), less


def rows(present):
    batch = random_batch(TWO, rows=4, keep=1.0)
    for m, name in enumerate(TWO.modality_names):
        batch = batch.replace(
            inputs=batch.inputs
            | {name: ranking.hidden(batch.inputs[name], np.asarray(present)[:, m])}
        )
    target = {
        "death": Target(np.array([[1.0], [0], [1], [1]]), np.array([1.0, 1, 1, 0])),
        "stay": Target(np.zeros((4, 1)), np.ones(4)),
    }
    return batch.replace(targets=target, task=np.full(4, -1), weight=np.ones(4, np.float32))


def test_the_loss_by_hand():
    """Row 1 got better, row 2 had one modality only, row 3 has no label."""
    batch = rows([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    still = {"stay": np.zeros(4)}
    more, fewer = {"death": np.array([-1.0, -2, -3, -3])}, {"death": np.zeros(4)}
    value, less = made(more | still, fewer | still, batch, np.array([True, False, False]))
    gap = np.log1p(np.exp(1.0)) - np.log(2)
    np.testing.assert_allclose(value, 2.0 * gap / 3, rtol=1e-6)  # weight 2, of 3 labels
    np.testing.assert_array_equal(less.present(TWO), [[1, 0, 0]] * 4)
    assert not less.inputs["b"].values.any() and not less.inputs["b"].observed.any()

    def loss(z):
        logits = {"death": z} | {"stay": jnp.zeros(4)}
        return made(logits, fewer | still, batch, np.array([True, False, False]))[0]

    grads = jax.grad(loss)(jnp.asarray(more["death"]))
    assert grads[0] < 0 and not np.any(grads[1:])


EVERY = [n if n == "m3h" else pytest.param(n, marks=pytest.mark.slow) for n in methods.NAMES]


@pytest.mark.parametrize("name", EVERY)
def test_every_method_can_be_ranked(name):
    """With micro-batches, and layers computed again; without running anything."""
    method, batch = methods.small(name), methods.batch()
    params = jax.eval_shape(lambda: steps.init_params(method, batch, seed=0))
    rank = Ranking(method.data, 0.5)
    step = steps.make_step(
        method, optax.sgd(0.1), seed=0, accumulate=2, remat="layer", ranking=rank
    )
    grads, means = jax.eval_shape(step.gradient, params, batch, np.int32(0))
    assert jax.tree.structure(grads) == jax.tree.structure(params) and "ranking" in means


def test_micro_batches_are_one_batch(monkeypatch):
    """The same rows lose the same, so the sums are the same."""

    def kept(present, key):
        first = present & (jnp.cumsum(present, -1) == 1)
        return jnp.where(present.sum(-1, keepdims=True) > 1, first, present)

    monkeypatch.setattr(ranking, "kept", kept)
    method, batch = methods.small("concat"), methods.batch()
    params = methods.params(method, batch)

    def gradient(**how):
        step = steps.make_step(
            method, optax.sgd(0.1), seed=0, ranking=Ranking(method.data, 0.5), **how
        )
        run = jax.jit(step.gradient).lower(params, batch, np.int32(0)).compile(methods.FAST)
        return run(params, batch, np.int32(0))

    (whole, means), (parts, other) = gradient(), gradient(accumulate=2)
    assert means["ranking"].total > 0
    for key in ("loss", "ranking"):
        np.testing.assert_allclose(other[key].total, means[key].total, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, parts)


def test_what_cannot_be_ranked_is_refused():
    values = {"train": {"select": "death/auroc", "ranking": 0.5}}
    assert rules.data_problems(values, TWO) == []
    (line,) = rules.data_problems(values, DataSpec(TWO.modalities[:1], TWO.tasks))
    assert "with a single modality" in line
    maps = TaskSpec("lesion", "segmentation", dim=1)
    (line,) = rules.data_problems(values, DataSpec(TWO.modalities, (*TWO.tasks, maps)))
    assert line.endswith("with tasks that have no loss per row: lesion (segmentation)")
    off = {"train": {"select": "death/auroc", "ranking": 0.0}}
    assert rules.data_problems(off, DataSpec(TWO.modalities[:1], TWO.tasks)) == []


def cohort(rng, count):
    """Death follows `a`, less so `b`, and `c` not at all; everybody has everything."""
    x = {name: rng.normal(size=(count, 2)).astype(np.float32) for name in "abc"}
    odds = np.exp(1.5 * x["a"].sum(-1) + x["b"].sum(-1))
    death = (rng.random(count) < odds / (1 + odds)).astype(np.float32)
    every = np.ones(count, bool)
    inputs = {
        n: Stream(v, every[:, None], every, observed=np.ones_like(v, bool)) for n, v in x.items()
    }
    ones = np.ones(count, np.float32)
    targets = {"death": Target(death[:, None], ones)}
    targets["stay"] = Target(0 * ones[:, None], 0 * ones)
    rows = np.arange(count, dtype=np.int32)
    return Batch(inputs, targets, np.full(count, -1, np.int32), ones, rows)


def misled(weight):
    """Shares of new patients whom knowing a modality makes less likely to be right, log loss."""
    rng, adam = np.random.default_rng(0), optax.adam(0.01)
    train, test = cohort(rng, 500), cohort(rng, 1000)
    method = Concat(TWO, width=8, hidden=16, depth=1, dropout=0.0)
    params = methods.params(method, train)
    step = steps.make_step(method, adam, seed=0, ranking=Ranking(TWO, weight))

    def both(i, now):
        updates, opt = adam.update(step.gradient(now[0], train, i)[0], now[1])
        return optax.apply_updates(now[0], updates), opt

    start = params, adam.init(params)
    params, _ = jax.jit(lambda start: jax.lax.fori_loop(0, 100, both, start))(start)
    logits = jax.jit(lambda b: method.apply({"params": params}, b, train=False).logits["death"])
    sign = 2 * test.targets["death"].value[:, 0] - 1

    def right(batch):
        return -np.logaddexp(0, -sign * np.asarray(logits(batch))[:, 0])

    hurt = {}
    for name in TWO.modality_names:
        lacking = ranking.hidden(test.inputs[name], np.zeros(len(sign), bool))
        less = test.replace(inputs=test.inputs | {name: lacking})
        hurt[name] = float((right(test) - right(less) < -monotone.NOTICED).mean())
    return hurt, float(-right(test).mean())


def test_fewer_patients_are_misled():
    """The price is stated in docs/training.md: a large weight costs log loss."""
    (plain, loss), (ranked, dearer) = misled(1e-9), misled(5.0)
    assert all(ranked[name] < plain[name] for name in plain), (plain, ranked)
    assert ranked["c"] < 0.7 * plain["c"]  # which says nothing: only to be trusted less
    assert loss < 0.5 < dearer + 0.1 < 0.8
