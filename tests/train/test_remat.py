"""What is computed again is the same, and is not kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m4.train import remat
from m4.train.step import init_params, make_step
from tests.train import methods
from tests.train.test_accumulate import gradient

FLAT = ("m3h", "latefusion", "medfuse")  # no layers
LAYERED = [name for name in methods.NAMES if name not in FLAT]
REST = [pytest.param(n, marks=pytest.mark.slow) for n in LAYERED if n != "fusemoe"]


@pytest.mark.parametrize("name", [case for case in methods.CASES if case not in FLAT])
def test_losses_and_gradients_are_the_same(name):
    """With dropout and noise, which must be drawn again alike."""
    _same(name, "layer")


@pytest.mark.parametrize("name", ["fusemoe", *REST])
def test_so_they_are_where_products_alone_are_kept(name):
    """`dots` knows no method: it looks at operations."""
    _same(name, "dots")


@pytest.mark.parametrize("name", ["fusemoe", *REST])
def test_so_they_are_where_products_wait_on_the_host(name):
    _same(name, "offload")


def test_products_with_weights_wait_in_the_memory_of_the_host():
    method, batch = methods.small("fusemoe"), methods.batch()
    params = methods.params(method, batch)

    def program(how):
        found = make_step(method, optax.sgd(0.1), seed=0, remat=how).gradient
        return str(jax.make_jaxpr(found)(params, batch, jnp.int32(0)))

    kept = {how: program(how).count("<host>") for how in ("dots", "offload")}
    assert kept["dots"] == 0 and kept["offload"] > 40, kept


@functools.cache
def _kept(name: str):
    """Method, batch, parameters, and the gradient with everything kept."""
    batch, method = methods.batch(), methods.small(name, dropout=0.2)
    params = methods.params(method, batch)
    return method, batch, params, gradient(method, params, batch)


def _same(name: str, how: str) -> None:
    method, batch, params, (whole, means) = _kept(name)
    again, other = gradient(method, params, batch, remat=how)
    np.testing.assert_allclose(other["loss"].total, means["loss"].total, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, again)


def kept(method, batch, how):
    """Bytes that the forward pass keeps for the backward pass, besides parameters and batch."""
    sizes = []

    def forward(params):
        rngs = {name: jax.random.key(0) for name in ("dropout", "gate")}

        def apply(params):
            return method.apply({"params": params}, batch, train=True, rngs=rngs)

        out = remat.rematerialised(how, apply)(params)
        return sum(jnp.sum(logits) for logits in out.logits.values())

    def both(params):
        _, pullback = jax.vjp(forward, params)
        known = {id(x) for x in jax.tree.leaves(params)}
        left = [x for x in jax.tree.leaves(pullback) if id(x) not in known]
        sizes.append(sum(x.size * x.dtype.itemsize for x in left))

    jax.eval_shape(both, methods.params(method, batch))
    return sizes[0]


def test_less_is_kept():
    method, batch = methods.small("fusemoe", depth=4), methods.batch(rows=32)
    sizes = {how: kept(method, batch, how) for how in ("none", "layer", "dots")}
    assert sizes["layer"] < sizes["none"] / 2 and sizes["dots"] < sizes["none"], sizes


def test_layers_are_told_by_their_numbers():
    tree = {"time_0": {"norm_1": {"scale": 1}}, "drop_2": {"x": 1}, "head": {"kernel": 1}}
    assert remat.layers(tree) == ["time_0"]
    batch = methods.batch()
    for name in methods.NAMES:
        method = methods.small(name)
        shapes = jax.eval_shape(lambda method=method: init_params(method, batch, seed=0))
        found = remat.layers(shapes)
        assert bool(found) == (name in LAYERED), (name, found)
