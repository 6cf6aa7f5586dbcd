"""bfloat16 in matrix products, and nowhere else."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend import core

from m4 import sharding
from m4.maths import exact
from m4.run.setup import context
from m4.train import optim
from m4.train.precision import PRODUCTS, in_precision
from m4.train.step import init_state, make_step
from tests import toy
from tests.train import methods


def equations(program):
    """All equations of a program and of the programs inside it."""
    for equation in getattr(program, "jaxpr", program).eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, core.Jaxpr | core.ClosedJaxpr):
                    yield from equations(inner)


@pytest.mark.parametrize("name", methods.CASES)
def test_only_products_read_bfloat16(name):
    batch, method = methods.batch(), methods.small(name)
    params = methods.params(method, batch)
    step = make_step(method, optax.sgd(0.1), seed=0, precision="bfloat16", platform="gpu")
    program = jax.make_jaxpr(step.gradient)(params, batch, jnp.int32(0))
    narrow = exact = 0
    for equation in equations(program):
        dtypes = {x.aval.dtype for x in equation.invars if hasattr(x.aval, "dtype")}
        if equation.primitive.name in PRODUCTS:
            asked = equation.params["precision"] or ()
            highest = jax.lax.Precision.HIGHEST in asked
            narrow, exact = narrow + (not highest), exact + highest
            assert (np.dtype("float32") in dtypes) == highest, equation
            assert equation.outvars[0].aval.dtype == jnp.float32
        else:
            assert np.dtype(jnp.bfloat16) not in dtypes, equation
    assert narrow > 4
    if hasattr(method, "moe"):
        assert exact  # gates
    for leaf in jax.tree.leaves(jax.eval_shape(step.gradient, params, batch, jnp.int32(0))):
        assert leaf.dtype == jnp.float32


def outside(x_ND: jax.Array, w_DE: Annotated[jax.Array, jax.nn.initializers.normal(1.0)]):
    """A gate that asks for nothing."""
    return x_ND @ w_DE


def test_a_gate_from_outside_keeps_float32():
    name = f"{__name__}:{outside.__name__}"
    method = methods.small("fusemoe", depth=1, moe={"gate": name, "router": "top_k"})
    batch = methods.batch()
    params = methods.params(method, batch)

    def logits(params, batch):
        out = method.apply({"params": params}, batch, train=False)
        return [aux.stats for aux in out.moe.values()]

    narrow = in_precision("bfloat16", logits, platform="gpu")
    products = [
        e for e in equations(jax.make_jaxpr(narrow)(params, batch)) if e.primitive.name in PRODUCTS
    ]
    exact = [e for e in products if e.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2]
    assert exact and all(x.aval.dtype == np.float32 for e in exact for x in e.invars)


@jax.custom_vjp
def written_by_hand(x, w):
    """A gate with a gradient of its own, which JAX traces after the gate was left."""
    return x @ w


def forward(x, w):
    return x @ w, (x, w)


def backward(saved, dy):
    x, w = saved
    return dy @ w.T, x.T @ dy


written_by_hand.defvjp(forward, backward)


@pytest.mark.parametrize(("wrap", "exacts"), [(lambda f: f, 3), (jax.checkpoint, 4)])
def test_gradients_by_hand_of_what_is_exact_keep_float32(wrap, exacts):
    """Forwards, to both operands, and forwards once more where nothing is kept."""

    def f(x, w):
        with exact():
            y = written_by_hand(x, w)
        return jnp.sum(jnp.tanh(y) @ w)

    take = jax.grad(wrap(f), argnums=(0, 1))
    x, w = jnp.ones((2, 3)), jnp.ones((3, 3))
    program = jax.make_jaxpr(in_precision("bfloat16", take, platform="gpu"))(x, w)
    products = [e for e in equations(program) if e.primitive.name in PRODUCTS]
    kinds = [{str(x.aval.dtype) for x in e.invars} for e in products]
    assert kinds.count({"float32"}) == exacts, kinds
    assert kinds.count({"bfloat16"}) == len(kinds) - exacts > 2, kinds


def test_programs_on_a_mesh_are_entered():
    """Experts on two devices run inside `shard_map`."""
    method, batch = methods.small("fusemoe", depth=1), methods.batch()
    params = methods.params(method, batch)
    with context(sharding.make_mesh({"expert": 2})):
        step = make_step(method, optax.sgd(0.1), seed=0, precision="bfloat16", platform="gpu")
        traced = jax.jit(step.gradient).trace(params, batch, jnp.int32(0))
    inside = [e for e in equations(traced.jaxpr) if e.primitive.name == "shard_map"]
    found = [
        e for m in inside for e in equations(m.params["jaxpr"]) if e.primitive.name in PRODUCTS
    ]
    assert found and all(x.aval.dtype == jnp.bfloat16 for e in found for x in e.invars[:2])


def test_accelerators_get_bfloat16_and_a_cpu_the_same_numbers():
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(64, 64)), jnp.float32) for _ in range(2))

    def product(x, y):
        with jax.default_matmul_precision("highest"):
            exact = x @ y
        return x @ y, exact

    gpu = jax.jit(in_precision("bfloat16", product, platform="gpu"))
    text = gpu.trace(x, y).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("(tensor<64x64xbf16>, tensor<64x64xbf16>) -> tensor<64x64xf32>") == 1
    assert text.count("(tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>") == 1
    found, exact = jax.jit(in_precision("bfloat16", product, platform="cpu"))(x, y)
    wanted = [a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, y)]
    np.testing.assert_allclose(found, wanted[0] @ wanted[1], rtol=1e-5, atol=1e-5)
    assert np.abs(found - exact).max() > 1e-3
    np.testing.assert_array_equal(exact, jax.jit(jnp.matmul)(x, y))


def test_loops_branches_and_checkpoints_are_entered():
    def f(w, x):
        x, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, length=2)
        x = jax.checkpoint(lambda h: jnp.sin(h @ w))(x)
        return jax.lax.cond(x.sum() > 0, lambda h: (h @ w).sum(), lambda h: h.sum(), x)

    narrow = in_precision("bfloat16", jax.value_and_grad(f), platform="gpu")
    program = jax.make_jaxpr(narrow)(jnp.ones((4, 4)), jnp.ones((2, 4)))
    found = [e for e in equations(program) if e.primitive.name in PRODUCTS]
    assert len(found) >= 7
    assert all(x.aval.dtype == jnp.bfloat16 for e in found for x in e.invars)


def test_training_stays_within_a_band_and_the_state_float32():
    """50 steps: the loss falls as in float32, within 2 %."""
    losses = {}
    for precision in ("float32", "bfloat16"):
        method = toy.Toy(data=toy.SPEC, dropout=0.0)
        tx = optim.make_optimiser("adamw", lambda _: 0.01)
        step = make_step(method, tx, seed=0, precision=precision)
        state = init_state(methods.params(method, toy.batch(0)), tx, ema=0.9)
        run, zeros = jax.jit(step.apply), step.zeros(state, toy.batch(0))
        losses[precision] = []
        for number in range(50):
            state, totals = run(state, zeros, toy.batch(number))
            losses[precision].append(float(totals.means["loss"].total))
        kinds = {x.dtype for x in jax.tree.leaves(state)}
        assert kinds == {np.dtype("float32"), np.dtype("int32")}
    wide, narrow = (np.array(losses[p]) for p in ("float32", "bfloat16"))
    assert wide[-10:].mean() < 0.9 * wide[:10].mean()
    assert (np.abs(narrow - wide) < 0.02 * wide).all() and (narrow != wide).any()
