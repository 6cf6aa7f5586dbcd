"""A batch taken in micro-batches is one batch, however its labels are spread."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m4.train.step import init_state, make_step
from tests.train import methods


def gradient(method, params, batch, **how):
    found = jax.jit(make_step(method, optax.sgd(0.1), seed=0, **how).gradient)
    return found.lower(params, batch, jnp.int32(0)).compile(methods.FAST)(
        params, batch, jnp.int32(0)
    )


@pytest.mark.parametrize("name", methods.CASES)
def test_micro_batches_are_one_batch(name):
    """Label weights differ by part: of 'death' the first three have none, the last has all."""
    batch = methods.batch()
    method = methods.small(name, moe={"router": "top_k"} if name != "m4oe" else {})
    params = methods.params(method, batch)
    whole, means = gradient(method, params, batch)
    parts, sums = gradient(method, params, batch, accumulate=4)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(whole))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * scale)
    assert means.keys() == sums.keys()
    for term in ("loss", *(term for term in means if term.startswith("task/"))):
        np.testing.assert_allclose(sums[term].total, means[term].total, rtol=1e-6, err_msg=term)
        np.testing.assert_allclose(sums[term].weight, means[term].weight, rtol=1e-6, err_msg=term)


def test_a_part_that_is_not_finite_spoils_the_whole_step():
    method, tx = methods.small("m3h"), optax.sgd(0.1)
    batch = methods.batch()
    params = methods.params(method, batch)
    step = make_step(method, tx, seed=0, accumulate=4)
    state = init_state(params, tx, ema=0.0)
    batch.targets["death"].value[13] = np.inf
    after, totals = jax.jit(step.apply)(state, step.zeros(state, batch), batch)
    assert int(after.skipped) == 1 and int(totals.nonfinite["task/death"]) == 1
    jax.tree.map(np.testing.assert_array_equal, after.params, params)


def test_memory_is_that_of_one_part():
    method, batch = methods.small("m3h"), methods.batch(rows=512)
    params = methods.params(method, batch)
    sizes = []
    for parts in (1, 8):
        step = make_step(method, optax.sgd(0.1), seed=0, accumulate=parts)
        program = jax.jit(step.gradient).lower(params, batch, jnp.int32(0)).compile()
        sizes.append(program.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < sizes[0] / 2
