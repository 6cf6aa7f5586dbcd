"""Schedules, clipping, decay mask: numbers worked out by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m4.config import rules
from m4.train import optim


def test_cosine_with_warmup_by_hand():
    # lr 1.0, 4 warm-up steps, 12 in all: 0 1/4 2/4 3/4 1, then cos over the 8 left:
    # at step 8 (half way) 0.5*(1+cos(pi/2)) = 0.5 and with end_fraction 0.2: 0.8*0.5+0.2 = 0.6
    f = optim.make_schedule(1.0, steps=12, warmup_steps=4, end_fraction=0.2)
    np.testing.assert_allclose(
        [f(s) for s in (0, 1, 2, 4, 8, 12)], [0, 0.25, 0.5, 1, 0.6, 0.2], rtol=1e-6
    )


def test_linear_and_constant_by_hand():
    f = optim.make_schedule(2.0, steps=10, schedule="linear", end_fraction=0.5)
    np.testing.assert_allclose([f(0), f(5), f(10)], [2.0, 1.5, 1.0])
    g = optim.make_schedule(2.0, steps=10, schedule="constant")
    np.testing.assert_allclose([g(0), g(10)], [2.0, 2.0])


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="cosin"):
        optim.make_schedule(1.0, steps=3, schedule="cosin")
    with pytest.raises(ValueError, match="adamm"):
        optim.make_optimiser("adamm", lambda _: 1.0)
    with pytest.raises(ValueError, match="adamw"):
        optim.make_optimiser("adam", lambda _: 1.0, weight_decay=0.1)


def test_every_configurable_optimiser_exists_and_moves_downhill():
    assert rules.FIELDS["optim.name"].names() == optim.OPTIMISERS
    for name in optim.OPTIMISERS:
        tx = optim.make_optimiser(name, lambda _: 0.1)
        params = {"kernel": jnp.ones((2, 2))}
        updates, _ = tx.update({"kernel": jnp.ones((2, 2))}, tx.init(params), params)
        assert (updates["kernel"] < 0).all(), name


def test_clip_by_hand():
    # gradient (3, 4) has norm 5; clipped to 1 it is (0.6, 0.8); SGD without momentum, lr 0.5
    tx = optim.make_optimiser("sgd", lambda _: 0.5, clip_norm=1.0, b1=0.0)
    params = {"bias": jnp.zeros(2)}
    updates, _ = tx.update({"bias": jnp.array([3.0, 4.0])}, tx.init(params), params)
    np.testing.assert_allclose(updates["bias"], [-0.3, -0.4], rtol=1e-6)


def test_decay_spares_biases_scales_and_vectors():
    params = {
        "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "experts": {"wi": jnp.ones((3, 2, 2)), "b1": jnp.ones((3, 2))},
        "norm": {"scale": jnp.ones(2)},
    }
    assert optim.decayed(params) == {
        "dense": {"kernel": True, "bias": False},
        "experts": {"wi": True, "b1": False},
        "norm": {"scale": False},
    }
    # zero gradient, lr 1, decay 0.1: a matrix goes from 1 to 0.9, the rest stays
    tx = optim.make_optimiser("adamw", lambda _: 1.0, weight_decay=0.1)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.1)
    assert not updates["norm"]["scale"].any() and not updates["experts"]["b1"].any()


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_adamw_is_that_of_optax_and_a_refused_step_keeps_every_bit(platform):
    rng = np.random.default_rng(0)
    draw = lambda scale: {  # noqa: E731
        name: jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)
        for name, shape in {"kernel": (3, 4), "bias": (4,)}.items()
    }
    options = {"weight_decay": 0.1, "clip_norm": 1.0, "platform": platform}
    ours = optim.make_optimiser("adamw", lambda _: 0.1, **options)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.1, mask=optim.decayed)
    )

    def step(tx, grads, old, ok=True):
        def update(grads, old):
            updates, state = tx.update(grads, old[1], old[0])
            return optax.apply_updates(old[0], updates), state

        return optim.accept(jnp.array(ok), update, grads, old, platform=platform)

    params = draw(1.0)
    mine, expected = (params, ours.init(params)), (params, theirs.init(params))
    for scale in (0.01, 1.0, 100.0):  # the first is not clipped
        grads = draw(scale)
        mine, expected = step(ours, grads, mine), step(theirs, grads, expected)
        chex.assert_trees_all_close(mine[0], expected[0], rtol=1e-5)
    chex.assert_trees_all_close(mine[1][1], expected[1][1][0], rtol=1e-5)
    bad = jax.tree.map(lambda x: x * jnp.nan, grads)
    chex.assert_trees_all_equal(step(ours, bad, mine, ok=False), mine)
    for name in optim.OPTIMISERS:
        tx = optim.make_optimiser(name, lambda _: 0.1, clip_norm=1.0, platform=platform)
        start = params, tx.init(params)
        chex.assert_trees_all_equal(step(tx, bad, start, ok=False), start)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA:CPU copies")
def test_the_update_needs_no_memory_of_its_own():
    """As a choice between numbers it copies the moments, with Optax's clipping the gradient."""
    params = {"kernel": jnp.zeros((256, 1024))}
    tx = optim.make_optimiser("adamw", lambda _: 0.1, weight_decay=0.1, clip_norm=1.0)

    def update(grads, old):
        updates, state = tx.update(grads, old[1], old[0])
        return optax.apply_updates(old[0], updates), state

    def step(old, grads, ok):
        return optim.accept(ok, update, grads, old, platform="cpu")

    args = (params, tx.init(params)), params, jnp.array(True)
    program = jax.jit(step, donate_argnums=0).lower(*args).compile()
    assert program.memory_analysis().temp_size_in_bytes < params["kernel"].nbytes / 4
