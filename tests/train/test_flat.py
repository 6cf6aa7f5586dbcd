"""A state as vectors: there and back bit for bit, and the same training as with trees."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from m4.train import optim
from m4.train.flat import FlatMethod, Layout
from m4.train.step import init_params, init_state, make_step
from tests import toy

METHOD, HOW = toy.Toy(data=toy.SPEC), {"weight_decay": 0.1, "clip_norm": 1.0}
SCHEDULE = optim.make_schedule(0.01, steps=8, warmup_steps=2)
TX = optim.make_optimiser("adamw", SCHEDULE, **HOW)


def fresh():
    return init_state(init_params(METHOD, toy.batch(0), seed=3), TX, ema=0.9, spike_window=3)


def test_a_state_is_packed_and_unpacked_bit_for_bit():
    state = fresh()
    layout = Layout.of(state.params)
    packed = layout.packed(jax.tree.map(np.asarray, state), join=np.concatenate)
    assert layout.is_packed(packed) and not layout.is_packed(state)
    shapes = jax.eval_shape(layout.packed, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(packed, shapes)
    back = layout.unpacked(packed)
    chex.assert_trees_all_equal_structs(state, back)
    chex.assert_trees_all_equal(state, back)
    assert len(jax.tree.leaves(packed.params)) == 2


def test_every_dtype_has_its_vectors_and_decay_its_parameters():
    params = {
        "dense": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)},
        "table": {"embedding": jnp.ones((2, 2), jnp.bfloat16)},
        "frozen": {"kernel": 7.0 * jnp.ones((1, 1))},
    }
    layout = Layout.of(params)
    vectors = layout.vectors(params)
    assert layout.decayed(vectors) == {
        "decayed_bfloat16": True, "decayed_float32": True, "spared_float32": False
    }  # fmt: skip
    assert vectors["decayed_float32"].tolist() == [0, 1, 2, 3, 4, 5]
    assert sorted(vectors["spared_float32"].tolist()) == [1, 1, 1, 7]
    chex.assert_trees_all_equal(layout.tree(vectors), params)
    assert layout.decayed(params) == optim.decayed(params)


def test_vectors_train_as_trees_do():
    state, batch = fresh(), toy.batch(0)
    layout = Layout.of(state.params)
    whole = make_step(METHOD, TX, seed=3, ema=0.9)
    tx = optim.make_optimiser("adamw", SCHEDULE, mask=layout.decayed, **HOW)
    flat = make_step(FlatMethod(METHOD, layout), tx, seed=3, ema=0.9)
    packed = layout.packed(state)
    totals = whole.zeros(state, batch), flat.zeros(packed, batch)
    steps = jax.jit(whole.apply), jax.jit(flat.apply)
    for number in range(5):
        batch = toy.batch(number)
        state, one = steps[0](state, totals[0], batch)
        packed, other = steps[1](packed, totals[1], batch)
        totals = one, other
    found = layout.unpacked(packed)
    chex.assert_trees_all_close(found, state, rtol=2e-5, atol=2e-7)
    chex.assert_trees_all_close(totals[1], totals[0], rtol=2e-5)
