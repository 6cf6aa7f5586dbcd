"""Which updates are taken: spikes by hand, faults at every place, and what is said of them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.train import guard, optim
from m4.train.step import init_params, init_state, make_step
from tests import toy

TX = optim.make_optimiser("adamw", lambda _: 0.01, weight_decay=0.01, clip_norm=1.0)
METHOD = toy.Toy(data=toy.SPEC)
STEP = make_step(METHOD, TX, seed=3, ema=0.9)
WINDOW = 4


@pytest.fixture(scope="module")
def rig():
    """(compiled step, fresh state, totals) with a spike guard of four steps."""
    first = toy.batch(0)
    fresh = jax.jit(
        lambda: init_state(init_params(METHOD, first, seed=3), TX, ema=0.9, spike_window=WINDOW)
    )
    state = fresh()
    totals = STEP.zeros(state, first)
    return jax.jit(STEP.apply).lower(state, totals, first).compile(), state, totals


def run(rig, batches):
    step, state, totals = rig
    for batch in batches:
        state, totals = step(state, totals, batch)
    return state, totals


def history(losses, norms):
    return guard.History(jnp.array(losses, jnp.float32), jnp.array(norms, jnp.float32))


@pytest.mark.parametrize(
    ("loss", "norm", "spike"),
    [
        # Losses 1 2 3 4 10: median 3, deviations 2 1 0 1 7, their median 1, limit 3 + 6 * 1 = 9.
        (8.9, 5.0, False),
        (9.1, 5.0, True),
        # Norms 1 1 2 2 5: median 2, limit 10 * 2 = 20.
        (1.0, 19.9, False),
        (1.0, 20.1, True),
    ],
)
def test_spikes_by_hand(loss, norm, spike):
    before = history([1, 2, 3, 4, 10], [1, 1, 2, 2, 5])
    ok, found, after = guard.accept(before, jnp.float32(loss), jnp.float32(norm))
    assert (bool(ok), bool(found)) == (not spike, spike)
    expected = before if spike else history([2, 3, 4, 10, loss], [1, 2, 2, 5, norm])
    chex.assert_trees_all_equal(after, expected)


def test_nothing_is_a_spike_before_the_history_is_full_or_if_the_loss_never_varied():
    young = history([np.nan, 2, 3, 4], [np.nan, 1, 1, 1])
    ok, spike, after = guard.accept(young, jnp.float32(1e9), jnp.float32(1e9))
    assert bool(ok) and not bool(spike)
    assert after.losses_W.tolist() == [2, 3, 4, 1e9]
    flat = history([2, 2, 2, 2], [1, 1, 1, 1])
    assert bool(guard.accept(flat, jnp.float32(2.1), jnp.float32(1))[0])
    assert not bool(guard.accept(flat, jnp.float32(2.1), jnp.float32(11))[0])
    ok, spike, after = guard.accept(flat, jnp.float32(np.nan), jnp.float32(1))
    assert not bool(ok) and not bool(spike)  # not finite is counted apart
    chex.assert_trees_all_equal(after, flat)
    assert guard.empty(0) is None
    assert bool(guard.accept(None, jnp.float32(1e30), jnp.float32(1e30))[0])


def spoiled(step, what):
    batch = toy.batch(step)
    if what == "input":
        batch.inputs["static"].values[3, 0] = np.nan
        batch.inputs["static"].present[3] = True
    elif what == "label":
        batch.targets["los"].value[5] = np.inf
    elif what == "spike":
        batch.targets["los"].value[:] = 1e4
    return batch


@pytest.mark.parametrize("what", ["input", "label", "spike"])
def test_a_refused_batch_leaves_the_same_bits_as_a_run_without_it(rig, what):
    before, _ = run(rig, [toy.batch(s) for s in range(5)])
    step, _, totals = rig
    state, totals = step(before, totals, spoiled(5, what))
    assert int(totals.last_bad) == 6 and int(state.skipped) == 1
    assert int(totals.spikes) == (what == "spike")
    assert bool(sum(map(int, totals.nonfinite.values()))) == (what != "spike")
    assert not any(map(int, totals.damaged.values()))
    skipping = before.replace(step=before.step + 1, skipped=before.skipped + 1)
    with_it, _ = step(state, totals, toy.batch(6))
    without, _ = step(skipping, totals, toy.batch(6))
    chex.assert_trees_all_equal(with_it, without)


@pytest.mark.parametrize("part", ["params", "ema", "opt"])
def test_a_damaged_state_is_reported(rig, part):
    step, state, totals = rig
    tree = getattr(state, part)
    path, leaf = next(
        (p, x) for p, x in jax.tree_util.tree_flatten_with_path(tree)[0] if x.ndim == 2
    )
    hurt = leaf.at[0, 0].set(jnp.inf)
    tree = jax.tree_util.tree_map_with_path(lambda p, x: hurt if p == path else x, tree)
    after, totals = step(state.replace(**{part: tree}), totals, toy.batch(0))
    assert int(totals.damaged[part]) == 1
    (name,) = guard.nonfinite_leaves({part: getattr(after, part)})
    assert name.startswith(f"{part}.") and name.endswith("kernel")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_the_places_of_bad_numbers_are_found_in_every_dtype(dtype):
    tree = {"a": jnp.ones(3, dtype), "b": {"c": jnp.asarray([1.0, 0.0, 2.0]).astype(dtype)}}
    assert guard.nonfinite_leaves(tree) == {}
    if dtype != "int32":
        tree["b"]["c"] = 1 / tree["b"]["c"]
        ((name, where),) = guard.nonfinite_leaves(tree).items()
        assert name == "b.c" and where.tolist() == [False, True, False]


def test_rows_are_numbers_of_the_split_never_contents():
    batch = spoiled(0, "input").replace(uid=np.arange(100, 116, dtype=np.int32))
    batch.inputs["static"].values[3, 1] = 123456.75
    said = guard.rows_of(batch)
    assert said == "rows 103 of the train split (not finite: inputs.static.values)"
    plain = toy.batch(0, rows=20)
    plain.weight[2:] = 0
    assert guard.rows_of(plain) == "rows 0, 1 of the train split"


def test_the_operation_is_named(rig):
    params = rig[1].params
    said = guard.culprit(STEP.gradient, params, toy.batch(0), 0)
    assert said.startswith("nothing is wrong")
    said = guard.culprit(STEP.gradient, params, spoiled(0, "input"), 0)
    assert said.startswith("the first nan comes out of ") and "tests" not in said
    hurt = jax.tree.map(lambda x: x, params)
    hurt["norm"]["scale"] = hurt["norm"]["scale"].at[0].set(jnp.nan)
    said = guard.culprit(STEP.gradient, hurt, toy.batch(0), 0)
    assert said == "the parameters themselves are not finite: norm.scale"
