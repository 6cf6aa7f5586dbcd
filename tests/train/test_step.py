"""The train step: learning, reproducibility, the guard against non-finite numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m4.train import optim
from m4.train.step import init_params, init_state, make_step
from tests import toy


class Rig:
    """A compiled step with its state and totals."""

    def __init__(self, *, ema=0.0, method=None, lr=0.01, rows=16):
        method = method or toy.Toy(data=toy.SPEC)
        tx = optim.make_optimiser("adamw", lambda _: lr, weight_decay=0.01, clip_norm=1.0)
        step = make_step(method, tx, seed=3, ema=ema)
        first = toy.batch(0, rows=rows)
        self.fresh = jax.jit(lambda: init_state(init_params(method, first, seed=3), tx, ema=ema))
        self.state = self.fresh()
        self.totals = step.zeros(self.state, first)
        self.step = jax.jit(step.apply).lower(self.state, self.totals, first).compile()

    def run(self, batches):
        for batch in batches:
            self.state, self.totals = self.step(self.state, self.totals, batch)
        return self


@pytest.fixture(scope="module")
def rig():
    return Rig(ema=0.9)


@pytest.fixture
def fresh(rig):
    rig.state, rig.totals = rig.fresh(), jax.tree.map(jnp.zeros_like, rig.totals)
    return rig


def test_loss_falls(fresh):
    fresh.run(toy.batch(s) for s in range(10))
    early = fresh.totals.means["loss"].value()
    fresh.totals = jax.tree.map(jnp.zeros_like, fresh.totals)
    fresh.run(toy.batch(s) for s in range(10, 150))
    late = fresh.totals.means["loss"].value()
    assert late < 0.8 * early
    assert int(fresh.state.step) == 150


def test_two_runs_agree_bit_for_bit_and_dropout_depends_on_the_step(fresh):
    batch = toy.batch(0)
    one = fresh.run([batch] * 3).state
    fresh.state = fresh.fresh()
    two = fresh.run([batch] * 3).state
    chex.assert_trees_all_equal(one, two)
    # The same parameters and batch at another step draw another dropout mask.
    later = one.replace(step=one.step + 1)
    a, _ = fresh.step(one, fresh.totals, batch)
    b, _ = fresh.step(later, fresh.totals, batch)
    pairs = zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True)
    assert any((x != y).any() for x, y in pairs)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_batch_changes_nothing_but_counters(fresh, value):
    bad = toy.batch(1)
    bad.targets["los"].value[0] = value
    before = fresh.run([toy.batch(0)]).state
    after = fresh.run([bad]).state
    for name in ("params", "opt", "ema"):
        chex.assert_trees_all_equal(getattr(before, name), getattr(after, name))
    assert (int(after.step), int(after.bad), int(after.skipped)) == (2, 1, 1)
    # The good batch's numbers alone are in the totals, and the culprit is named.
    assert float(fresh.totals.means["loss"].weight) == 1.0
    assert np.isfinite(fresh.totals.means["loss"].total)
    assert int(fresh.totals.nonfinite["task/los"]) == 1
    assert int(fresh.totals.nonfinite["task/death"]) == 0
    recovered = fresh.run([toy.batch(2)]).state
    assert (int(recovered.bad), int(recovered.skipped)) == (0, 1)
    assert int(fresh.totals.bad) == 1


def test_ema_by_hand(fresh):
    # decay at step 0 is min(0.9, 1/10) = 0.1: ema = 0.1 * initial + 0.9 * new
    start = fresh.state
    after = fresh.run([toy.batch(0)]).state
    expected = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, start.params, after.params)
    chex.assert_trees_all_close(after.ema, expected, rtol=1e-5, atol=1e-7)
    assert after.eval_params is after.ema


def test_term_totals_merge_exactly(fresh):
    """Rows 0..7 with a label, then rows with half of them: the mean weighs rows, not steps."""
    full, half = toy.batch(0), toy.batch(1)
    half.targets["death"].mask[8:] = 0
    fresh.run([full, half])
    assert float(fresh.totals.means["task/death"].weight) == 16 + 8


def test_another_shape_or_dtype_is_an_error(fresh):
    with pytest.raises(TypeError):
        fresh.run([toy.batch(0, rows=8)])
    wrong = toy.batch(0)
    wrong = wrong.replace(weight=wrong.weight.astype(np.int32))
    with pytest.raises(TypeError):
        fresh.run([wrong])


def test_without_ema_evaluation_uses_params():
    tx = optax.sgd(0.1)
    state = init_state({"kernel": jnp.ones((2, 2))}, tx, ema=0.0)
    assert state.ema is None
    assert state.eval_params is state.params
