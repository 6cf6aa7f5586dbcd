"""Product keys against the full search, and the layer of single-neuron experts."""

import re

import jax
import numpy as np
import pytest
from flax import linen as nn

from m4.moe.layer import MoE
from m4.moe.options import MoEOptions, problems
from m4.moe.product_keys import product_keys
from tests.moe.training import train_steps

pytestmark = pytest.mark.usefixtures("quick_compile")
RNG = np.random.default_rng(0)


def test_product_keys_find_the_best_of_all():
    """Brute force over all S^2 = 49 experts; weights are softmaxes over the kept or over all."""
    query = RNG.normal(size=(20, 3, 8)).astype(np.float32)
    keys = RNG.normal(size=(2, 7, 4)).astype(np.float32)
    first = np.einsum("nhq,sq->nhs", query[..., :4], keys[0])
    second = np.einsum("nhq,sq->nhs", query[..., 4:], keys[1])
    scores = (first[..., :, None] + second[..., None, :]).reshape(20, 3, 49)
    find = jax.jit(product_keys, static_argnames=("k", "normalise"))
    for normalise in ("after", "before", "none"):
        experts, weights = find(query, keys, k=5, normalise=normalise)
        np.testing.assert_array_equal(experts, np.argsort(-scores, axis=-1)[..., :5])
        s = np.exp(scores)
        kept = np.take_along_axis(s, np.asarray(experts), axis=-1)
        total = {"after": kept.sum(-1, keepdims=True), "before": s.sum(-1, keepdims=True)}
        np.testing.assert_allclose(weights, kept / total.get(normalise, 1.0), rtol=1e-4)
    with pytest.raises(ValueError, match=r"k=8 must be in \[1, 7\]"):
        product_keys(query, keys, k=8)


def layer_and_inputs(**fields):
    keys = {"num_heads": 2, "query_width": 8}
    options = {"router": "product_keys", "num_experts": 49, "top_k": 3, "router_options": keys}
    layer = MoE(MoEOptions(**options | fields), num_modalities=2)
    x = RNG.normal(size=(10, 6)).astype(np.float32)
    given = {"valid_N": np.arange(10) < 7, "modality_N": np.arange(10) % 2}
    variables = nn.unbox(layer.init(jax.random.key(0), x, **given, train=True))
    return layer, variables, x, given


def test_output_is_the_sum_of_neurons():
    layer, variables, x, given = layer_and_inputs(activation="relu")
    y, aux = layer.apply(variables, x, **given, train=False)
    (p,) = variables["params"].values()
    query = np.einsum("nd,dhq->nhq", x, p["query"]["kernel"])
    mean, variance = query.mean(-1, keepdims=True), query.var(-1, keepdims=True)
    query = (query - mean) / np.sqrt(variance + 1e-6)
    experts, weights = product_keys(query, p["keys"], k=3)
    want = np.zeros((10, 6))
    for n in range(7):
        for e, w in zip(np.ravel(experts[n]), np.ravel(weights[n]), strict=True):
            want[n] += w * max(p["u"][e] @ x[n], 0) * p["v"][e]
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    assert aux.stats["by_modality"].sum() == 7 * 2 * 3
    np.testing.assert_allclose(aux.stats["load"].sum(), 1.0, rtol=1e-5)
    load_E = np.asarray(aux.stats["load"])
    assert float(aux.stats["cv"]) == pytest.approx(load_E.std() / load_E.mean(), rel=1e-5)
    assert float(aux.stats["dead"]) == pytest.approx(np.mean(load_E == 0), rel=1e-5)


@pytest.mark.parametrize("top_k", [1, 3])
def test_every_parameter_gets_a_gradient_and_garbage_none(top_k):
    layer, variables, x, given = layer_and_inputs(top_k=top_k)

    def loss(params, x):
        return (layer.apply({"params": params}, x, **given, train=True)[0] ** 2).sum()

    grads, by_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], x)
    assert all(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(grads))
    np.testing.assert_array_equal(by_x[7:], 0.0)


@pytest.mark.parametrize(
    ("fields", "losses", "told"),
    [
        ({"num_experts": 50}, (), "num_experts=50 must be a square, as 49"),
        ({"num_experts": 9, "top_k": 4}, (), r"top_k=4 must be in [1, 3], the sub-keys per side"),
        ({"share": "permod"}, (), "share must be 'joint': product keys"),
        ({}, ("importance",), "losses: the router product_keys has none, and no importance"),
        ({"num_shared": 1}, (), "num_shared=1: the experts of product_keys do not have it"),
        ({"output": "softmax"}, (), "output='softmax': the experts of product_keys do not have it"),
        ({"dtype": "bfloat16"}, (), "dtype='bfloat16': the experts of product_keys do not have it"),
        ({"router_options": {"num_head": 2}}, (), "unexpected keyword argument 'num_head'"),
    ],
)
def test_what_cannot_be_is_told_and_refused(fields, losses, told):
    options = MoEOptions(**{"router": "product_keys", "num_experts": 49} | fields)
    (found,) = problems(options, losses)
    assert told in found
    with pytest.raises((ValueError, TypeError), match=re.escape(told)):
        x = np.ones((2, 4), np.float32)
        MoE(options, losses=losses).init(jax.random.key(0), x, valid_N=x[:, 0] > 0, train=False)


def test_all_is_well_by_default_options():
    assert not problems(MoEOptions(router="product_keys", num_experts=49))
    assert problems(MoEOptions(router="product_key")) == [
        "router='product_key': unknown; did you mean product_keys?"
    ]


@pytest.mark.slow
def test_a_million_experts_train():
    options = MoEOptions(
        router="product_keys", num_experts=2**20, top_k=8, router_options={"num_heads": 4}
    )
    losses = train_steps(MoE(options), width=32, num_tokens=256, steps=20)
    assert losses[-1] < 0.9 * losses[0]
