"""Clustering losses by hand, their gradients, and which of them collapse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m4.methods.m3h import clustering


def test_logits_are_student_t_assignments():
    # Squared distances 0, 1 and 4: q ~ 1, 1/2, 1/5.
    head = clustering.ClusterHead(3)
    params = {"params": {"centroid": np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])}}
    q = jax.nn.softmax(head.apply(params, np.zeros((1, 2))))
    np.testing.assert_allclose(q[0], np.array([1, 0.5, 0.2]) / 1.7, rtol=1e-6)


def test_dec_target_by_hand():
    # q = (3/4, 1/4), (1/2, 1/2): f = 5/4, 3/4; q^2/f = (9/20, 1/12), (1/5, 1/3).
    q = np.array([[0.75, 0.25], [0.5, 0.5]])
    p = clustering.target(q, np.ones(2))
    np.testing.assert_allclose(p, [[27 / 32, 5 / 32], [3 / 8, 5 / 8]], rtol=1e-6)
    np.testing.assert_allclose(p.sum(-1), 1.0, rtol=1e-6)
    loss = clustering.dec(np.log(q), np.ones(2))
    np.testing.assert_allclose(loss, (p * np.log(p / q)).sum(-1), rtol=1e-5)


def test_no_gradient_flows_through_the_target():
    logits = jax.random.normal(jax.random.key(0), (5, 3))
    grad = jax.grad(lambda x: clustering.dec(x, jnp.ones(5)).sum())(logits)
    q = jax.nn.softmax(logits)  # of -sum p log q alone: q - p
    np.testing.assert_allclose(grad, q - clustering.target(q, jnp.ones(5)), atol=1e-6)


def test_rows_of_weight_0_do_not_count():
    logits = jax.random.normal(jax.random.key(0), (5, 3))
    weight = jnp.array([1.0, 1.0, 0.0, 1.0, 0.0])
    for loss in (clustering.dec, clustering.mutual_information):
        some = loss(logits[np.array([0, 1, 3])], jnp.ones(3))
        np.testing.assert_allclose(loss(logits, weight)[np.array([0, 1, 3])], some, rtol=1e-5)


def test_mutual_information_bounds():
    certain = 50.0 * jnp.eye(3)
    value = clustering.mutual_information(certain, jnp.ones(3)).mean()
    np.testing.assert_allclose(value, -np.log(3), rtol=1e-5)
    np.testing.assert_allclose(
        clustering.mutual_information(0 * certain, jnp.ones(3)), 0, atol=1e-6
    )


LOSSES = {"dec": clustering.dec, "mi": clustering.mutual_information, "kmeans": clustering.kmeans}


@pytest.mark.parametrize("name", LOSSES)
def test_kmeans_collapses_on_learned_features_and_the_others_do_not(name):
    # Three groups in 8 dimensions seen through a linear map that is trained with the centroids.
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(3), 40)
    x = (3 * rng.normal(size=(3, 8))[group] + 0.5 * rng.normal(size=(120, 8))).astype(np.float32)
    head = clustering.ClusterHead(3)
    params = {
        "map": 0.3 * jax.random.normal(jax.random.key(1), (8, 4)),
        "head": head.init(jax.random.key(2), jnp.zeros((1, 4)))["params"],
    }
    tx = optax.adam(0.02)

    def loss(params):
        logits = head.apply({"params": params["head"]}, x @ params["map"])
        return LOSSES[name](logits, jnp.ones(120)).mean()

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=400)[0][0]

    trained = train(params)
    spread = (x @ trained["map"]).std(0).sum() / (x @ params["map"]).std(0).sum()
    logits = head.apply({"params": trained["head"]}, x @ trained["map"])
    share = np.bincount(np.argmax(logits, -1), minlength=3).max() / 120
    if name == "kmeans":  # on the way to one point: a smaller map always lowers the loss
        assert spread < 0.25
    else:
        assert spread > 1.0 and share < 0.7
