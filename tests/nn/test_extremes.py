"""Kernels with exponentials, logarithms, quotients and roots, at scores from 1 to 1,000.

Value and gradient must be finite, and those of the plain formula in float64.

Letters: B rows, M modalities, T tokens or tasks, U tasks, Q queries, L keys, H heads, c width of a
head, K clusters, d width.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.methods.m3h import clustering
from m4.methods.m3h.cross_task import normalise, task_attention
from m4.nn.encoders.modalities import SeriesStack, summary_statistics
from m4.nn.layers import StackedLayerNorm, attend

SIZES = [1, 10, 100, 1000]


def same(x):
    return x


def compare(kernel, plain, *args, rtol=1e-5, atol=1e-5):
    """`kernel` in float32 against `plain` in float64: value, and gradient of a weighted sum."""
    weights = np.random.default_rng(1).normal(size=np.shape(kernel(*args)))

    def run(function, *args):
        y, vjp = jax.vjp(function, *args)
        return y, *vjp(weights.astype(y.dtype))

    found = jax.jit(lambda *args: run(kernel, *args))(*(jnp.asarray(x) for x in args))
    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, run(plain, *(np.asarray(x, np.float64) for x in args)))
    for ours, theirs in zip(found, expected, strict=True):
        assert np.isfinite(ours).all()
        size = max(np.abs(theirs).max(), 1.0)  # what cancels is no better than its parts
        np.testing.assert_allclose(ours / size, theirs / size, rtol=rtol, atol=atol)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_attention(size):
    q_BMQHc, k_BMLHc = normal(2, 1, 3, 2, 4) * size, normal(2, 1, 5, 2, 4, seed=1)
    v_BMLHc, mask_BML = normal(2, 1, 5, 2, 4, seed=2), np.array([[[1, 1, 0, 1, 1]]] * 2) > 0

    def plain(q, k, v):
        scores = jnp.einsum("bmqhc,bmlhc->bmhql", q, k) / 2
        scores = jnp.where(mask_BML[:, :, None, None], scores, -jnp.inf)
        power = jnp.exp(scores - scores.max(-1, keepdims=True))
        return jnp.einsum("bmhql,bmlhc->bmqhc", power / power.sum(-1, keepdims=True), v)

    def kernel(q, k, v):
        return attend(q, k, v, mask_BML, same)

    # A score of size s has an error of s times 2^-24, and so have weights close to another's.
    compare(kernel, plain, q_BMQHc, k_BMLHc, v_BMLHc, rtol=1e-5 + size * 1e-6, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_layer_norm(size):
    x_BMD, norm = normal(4, 1, 6) * size, StackedLayerNorm()
    params = {"scale": normal(1, 6, seed=1), "bias": normal(1, 6, seed=2)}

    def plain(x):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]

    compare(lambda x: norm.apply({"params": params}, x), plain, x_BMD)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("norm", ["absmax", "sqrt_d"])
@pytest.mark.parametrize("mix", [None, 0.3])
def test_task_attention(size, norm, mix):
    s_BTU, active_T = normal(3, 4, 4) * size, np.array([True, True, False, True])
    active_U, eye_TU = active_T, np.eye(4)

    def kernel(s):
        return task_attention(normalise(s, active_T, norm=norm, width=9), active_T, mix=mix)

    def plain(s):
        inside = jnp.where(active_T[:, None] & active_U, jnp.abs(s), 0.0).max((1, 2), keepdims=True)
        s = s / 3 if norm == "sqrt_d" else s / (inside + 1e-8)
        s = s + (1 + np.log(2)) * eye_TU if mix is None else s
        power = jnp.where(active_U, jnp.exp(s - s.max(-1, keepdims=True)), 0.0)
        power = power / power.sum(-1, keepdims=True)
        return power if mix is None else mix * eye_TU + (1 - mix) * power

    compare(kernel, plain, s_BTU, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("loss", ["dec", "mutual_information", "kmeans"])
def test_clustering(size, loss):
    o_Bd, centroid_Kd, weight_B = normal(6, 3) * size, normal(4, 3, seed=1), np.ones(6)

    def logits(o, log1p=jnp.log1p):
        return -log1p(jnp.square(o[:, None] - centroid_Kd).sum(-1))

    def plain(o):
        q = jax.nn.softmax(logits(o))
        if loss == "kmeans":
            return jnp.square(o[:, None] - centroid_Kd).sum(-1).min(-1)
        if loss == "mutual_information":
            return -(q * jnp.log(q)).sum(-1) + (q.mean(0) * jnp.log(q.mean(0))).sum()
        p = q**2 / q.sum(0)
        p = jax.lax.stop_gradient(p / p.sum(-1, keepdims=True))
        return (p * (jnp.log(p) - jnp.log(q))).sum(-1)

    function = getattr(clustering, loss)
    compare(lambda o: function(logits(o), weight_B), plain, o_Bd, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("loss", [clustering.dec, clustering.mutual_information])
def test_clustering_far_from_all_centroids_but_one(size, loss):
    logits_BK, weight_B = normal(6, 4) * size, jnp.ones(6)
    value, grad = jax.value_and_grad(lambda x: loss(x, weight_B).sum())(logits_BK)
    assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize("size", SIZES)
def test_statistics_have_a_gradient_where_nothing_varies(size):
    # A root has none at 0, which a constant series is: the slope there is 0.
    values = np.full((1, 1, 3, 2), 1.0, np.float32) * size
    times, mask = np.array([[[0.1, 0.2, 0.4]]], np.float32), np.ones((1, 1, 3), bool)

    def total(values):
        series = SeriesStack(values, mask[..., None] & (values < np.inf), times, mask, mask[..., 0])
        return summary_statistics(series).sum()

    value, grad = jax.value_and_grad(total)(jnp.asarray(values))
    assert np.isfinite(value) and np.isfinite(grad).all()
