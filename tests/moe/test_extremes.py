"""Kernels with exponentials, logarithms, quotients and roots, at scores from 1 to 1,000.

Value and gradient in float32 must be finite and those of the plain formula in float64.

Letters as in m4.moe.routers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4 import maths
from m4.moe import gates, losses, product_keys, routers, soft
from m4.types import Routing

SIZES = [1, 30, 100, 1000]
N, E, D = 7, 5, 3


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def compare(kernel, plain, *args, tolerance=2e-5):
    """`kernel` in float32 against `plain` in float64: value, and gradient of a weighted sum."""

    def run(function, *args):
        y, vjp = jax.vjp(function, *args)
        return y, *vjp(jnp.asarray(normal(*y.shape, seed=1), y.dtype))

    found = jax.jit(functools.partial(run, kernel))(*args)
    with jax.enable_x64(True):
        want = jax.jit(functools.partial(run, plain))(*(np.asarray(a, np.float64) for a in args))
        want = jax.tree.map(np.asarray, want)
    for ours, theirs in zip(found, want, strict=True):
        assert np.isfinite(theirs).all()
        assert np.isfinite(ours).all()
        size = max(np.abs(theirs).max(), 0.1)  # what cancels is no better than its parts
        np.testing.assert_allclose(ours / size, theirs / size, atol=tolerance)


def log_softmax(x, axis=-1):
    shifted = x - x.max(axis, keepdims=True)
    return shifted - jnp.log(jnp.exp(shifted).sum(axis, keepdims=True))


def plain_softmax(x, axis=-1):
    return jnp.exp(log_softmax(x, axis))


def plain_entropy(x):
    """Of softmax(x), from its logarithm."""
    return -jnp.sum(plain_softmax(x) * log_softmax(x), -1)


# Rounding of a score of size s moves a weight by s times 2^-24.
def rounding(size):
    return 2e-5 + 1e-6 * size


# --- gates ----------------------------------------------------------------------------------------


def distance(x, w):
    return jnp.sqrt(jnp.sum((x[:, :, None] - w) ** 2, 1))


PLAIN_GATES = {
    "sigmoid": lambda x, w, b: -jnp.logaddexp(0.0, -(x @ w + b)),
    # softplus(z) = exp(z) to 13 digits below -30
    "sqrt_softplus": lambda x, w: (
        0.5
        * jnp.where(x @ w < -30.0, x @ w, jnp.log(jnp.logaddexp(0.0, jnp.maximum(x @ w, -30.0))))
    ),
    "laplace": lambda x, w: -distance(x, w),
    "gaussian": lambda x, w: -(distance(x, w) ** 2),
    "student_t": lambda x, w: -jnp.log(1 + distance(x, w) ** 2),
    "polynomial": lambda x, w: -jnp.log(1 + distance(x, w) ** 2),
    "euclidean_sigmoid": lambda x, w, b: -jnp.logaddexp(0.0, -(b + 6**0.5 - distance(x, w))),
    "cosine": lambda x, p, k: (
        (x @ p) @ k / jnp.linalg.norm(x @ p, axis=1)[:, None] / jnp.linalg.norm(k, axis=0)
    ),
    "perturbed_cosine": lambda x, w: (
        x @ w / (jnp.linalg.norm(x, axis=1)[:, None] + 0.1) / (jnp.linalg.norm(w, axis=0) + 0.1)
    ),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PLAIN_GATES)
def test_gates(name, size):
    more = {"sigmoid": [normal(E)], "euclidean_sigmoid": [normal(E)], "cosine": [normal(2, E)]}
    first = normal(D, 2, seed=2) if name == "cosine" else normal(D, E, seed=2)
    fixed = [np.float32(0)] if name in ("cosine", "perturbed_cosine", "euclidean_sigmoid") else []
    gate = getattr(gates, name)

    def kernel(x, *params):
        return gate(x, *params, *fixed)

    # Both at that size: a distance is known to the rounding of the norms that it is between.
    args = [normal(N, D) * size, first * size, *more.get(name, [])]
    compare(kernel, PLAIN_GATES[name], *args, tolerance=1e-4)


@pytest.mark.parametrize("power", [1.0, 8.0, 40.0])
def test_polynomial_of_any_power(power):
    """The power of a distance of 1,000 overflows; its logarithm does not."""

    def plain(x, w):
        return -jnp.logaddexp(0.0, power * jnp.log(distance(x, w)))

    gate = functools.partial(gates.polynomial, power=power)
    compare(gate, plain, normal(N, D) * 1000, normal(D, E, seed=2) * 1000, tolerance=1e-4)


@pytest.mark.parametrize("log_tau", [-6.0, 60.0, 100.0])
@pytest.mark.parametrize("name", ["cosine", "perturbed_cosine", "euclidean_sigmoid"])
def test_temperatures_of_any_size(name, log_tau):
    x, w = normal(N, D), normal(D, E, seed=2)
    gate = getattr(gates, name)
    more = {"cosine": [np.eye(D, dtype=np.float32), w], "euclidean_sigmoid": [w, np.zeros(E)]}
    args = more.get(name, [w])
    score = jax.jit(jax.value_and_grad(lambda x, t: gate(x, *args, t).sum(), argnums=(0, 1)))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(score(x, np.float32(log_tau))))


# --- routers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_softmax_entropy_and_logsumexp(size, masked):
    scores, mask = normal(N, E) * size, np.ones((N, E), bool)
    if masked:
        mask[0], mask[1, 2] = [True] + [False] * (E - 1), False
    low = np.where(mask, 0.0, -1e9)
    softmax = functools.partial(maths.softmax, mask=mask)
    compare(softmax, lambda x: plain_softmax(x + low), scores, tolerance=rounding(size))
    compare(
        lambda x: maths.entropy(softmax(x)),
        lambda x: plain_entropy(x + low),
        scores,
        tolerance=5 * rounding(size),
    )
    barred = jnp.where(mask, 0.0, -jnp.inf)
    compare(lambda x: maths.logsumexp(x + barred), lambda x: jax.nn.logsumexp(x + low, -1), scores)


def test_nothing_to_sum_has_no_gradient():
    scores = jnp.full((2, E), -jnp.inf)
    value, grad = jax.value_and_grad(lambda x: jnp.where(True, 0.0, maths.logsumexp(x).sum()))(
        scores
    )
    assert value == 0 and np.isfinite(grad).all()
    assert (maths.logsumexp(scores) == -jnp.inf).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("normalise", ["after", "before"])
def test_weights_of_top_k(normalise, size):
    logits = normal(N, E) * size
    chosen = np.argsort(-logits, axis=1)[:, :2]

    def plain(x):
        kept = jnp.take_along_axis(x, chosen, 1)
        return (
            plain_softmax(kept)
            if normalise == "after"
            else (jnp.take_along_axis(plain_softmax(x), chosen, 1))
        )

    def kernel(x):
        return routers.top_k(x, np.ones(N, bool), k=2, normalise=normalise).weights

    compare(kernel, plain, logits, tolerance=rounding(size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sigma", [0.01, 1.0])
def test_smooth_load(sigma, size):
    clean, noisy, k = normal(N, E) * size, normal(N, E) * size + normal(N, E, seed=3), 2

    def plain(clean):
        top = jnp.sort(noisy.astype(np.float64), -1)[:, ::-1]
        bar = jnp.where(noisy > top[:, k : k + 1], top[:, k : k + 1], top[:, k - 1 : k])
        return jax.scipy.stats.norm.cdf((clean - bar) / sigma)

    def kernel(clean):
        sigmas = jnp.full((N, E), sigma, jnp.float32)
        return routers.smooth_load(clean, noisy, sigmas, np.ones(N, bool), k=k)

    compare(kernel, plain, clean, tolerance=rounding(size) + 1e-5 * size / sigma)


@pytest.mark.parametrize("size", SIZES)
def test_hierarchical_weights(size):
    outer, inner = normal(N, 2) * size, normal(N, 4, seed=4) * size
    group = np.argmax(outer, 1)
    best = np.argmax(inner.reshape(N, 2, 2)[np.arange(N), group], 1)

    def plain(outer, inner):
        own = inner.reshape(N, 2, 2)[np.arange(N), group]
        both = plain_softmax(outer)[np.arange(N), group] * plain_softmax(own)[np.arange(N), best]
        return both[:, None]

    def kernel(outer, inner):
        return routers.hierarchical(inner, np.ones(N, bool), k=1, outer_NG=outer).weights

    compare(kernel, plain, outer, inner, tolerance=rounding(size))


@pytest.mark.parametrize("size", SIZES)
def test_balanced_plan(size):
    scores = normal(N, E) * size

    def plain(x):
        for _ in range(8):
            x = x - jax.nn.logsumexp(x, axis=0, keepdims=True) + jnp.log(N / E)
            x = x - jax.nn.logsumexp(x, axis=1, keepdims=True)
        return x

    found = routers.balanced_plan(scores, np.ones(N, bool), num_iterations=8)
    with jax.enable_x64(True):
        want = np.asarray(plain(scores.astype(np.float64)))
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5 * size)


@pytest.mark.parametrize("normalise", ["auto", "none"])
def test_what_no_expert_takes_has_no_gradient(normalise):
    """exp(1,000) is infinite; the score of a token that was not taken must not matter."""
    logits = np.float32([[1, 2], [-1000, 1000], [3, 1]])
    valid = np.array([True, False, True])

    def total(x):
        return routers.expert_choice(x, valid, k=1, normalise=normalise).weights.sum()

    assert np.isfinite(jax.grad(total)(logits)).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("router", [routers.top_k, routers.expert_choice])
def test_weights_without_a_normaliser(router, size):
    """exp(score) as it is up to scores of 80, and finite with its gradient above them."""
    logits = normal(N, E) * size
    taken = router(logits, np.ones(N, bool), k=1, normalise="none")
    token = np.arange(N)[:, None] if taken.tokens is None else taken.tokens

    def kernel(x):
        return router(x, np.ones(N, bool), k=1, normalise="none").weights

    def plain(x):
        return jnp.exp(jnp.minimum(x[token, taken.experts], 80.0))

    compare(kernel, plain, logits, tolerance=rounding(size))
    up, grad = jax.value_and_grad(lambda x: kernel(x).sum())(np.abs(logits))
    assert np.isfinite(up) and np.isfinite(grad).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("norm", ["expert_slot", "expert_per_task"])
def test_soft_shares(norm, size):
    """Shares of experts within a task's slot, however far apart the tasks' scores are."""
    logits = normal(1, 1, N, 3, 2) * size
    logits[..., 1] -= 2 * size  # the second task's slots

    def plain(x):
        flat = plain_softmax(x.reshape(N, 6)).reshape(x.shape)
        return flat if norm == "expert_slot" else plain_softmax(x, axis=3)

    def kernel(x):
        routed = routers.soft(x.reshape(N, 6), np.ones(N, bool), num_rows=1, num_experts=3)
        outputs = jnp.broadcast_to(jnp.eye(3)[None, None, :, None], (1, 1, 3, 2, 3))
        mask = jnp.ones((1, 1, N), bool)
        slots = soft.SoftSlots(routed.dispatch[None], routed.combine[None], x, outputs, mask)
        return slots.by_slot(norm).swapaxes(-1, -2)  # outputs are one-hot: the shares

    compare(kernel, plain, logits, tolerance=rounding(size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("normalise", ["after", "before"])
def test_product_keys(normalise, size):
    query, keys = normal(N, 1, 4) * size, normal(2, 3, 2, seed=5)

    def kernel(query):
        return product_keys.product_keys(query, keys, k=2, normalise=normalise)[1]

    chosen = np.asarray(product_keys.product_keys(query, keys, k=2)[0])

    def plain(query):
        first, second = query[..., :2] @ keys[0].T, query[..., 2:] @ keys[1].T
        all_pairs = (first[..., :, None] + second[..., None, :]).reshape(N, 1, 9)
        if normalise == "before":
            return jnp.take_along_axis(plain_softmax(all_pairs), chosen, -1)
        return plain_softmax(jnp.take_along_axis(all_pairs, chosen, -1))

    compare(kernel, plain, query, tolerance=rounding(5 * size))


# --- losses ---------------------------------------------------------------------------------------


def routing_of(logits):
    return routers.top_k(logits, np.ones(N, bool), k=2)


def plain_information(x):
    return plain_entropy(x).mean() + jnp.sum(
        jax.scipy.special.xlogy(plain_softmax(x).mean(0), plain_softmax(x).mean(0))
    )


@pytest.mark.parametrize("size", SIZES)
def test_losses(size):
    logits = normal(N, E) * size
    one = {"modality_N": np.zeros(N, int), "num_modalities": 1}

    def check(loss, plain, tolerance=10.0, **given):
        compare(
            lambda x: loss(routing_of(x), **given),
            plain,
            logits,
            tolerance=tolerance * rounding(size),
        )

    check(losses.z, lambda x: jnp.mean(jax.nn.logsumexp(x, -1) ** 2))
    check(losses.token_information, plain_information)
    check(losses.local_entropy, lambda x: plain_entropy(x).mean(), **one)


def test_orthogonality_does_not_depend_on_how_rare_an_expert_is():
    """The cosine of two columns is that of their directions, also where squares underflow."""
    probs = np.abs(normal(N, E)) * np.float32([1, 1e-8, 1e-16, 1e-24, 1e-30])

    def plain(probs):
        q = probs / jnp.linalg.norm(probs, axis=0)
        return (jnp.sum((q.T @ q) ** 2) - E) / (E * (E - 1))

    def kernel(probs):
        valid = np.ones(N, bool)
        none = np.zeros((N, 2))
        return losses.orthogonality(Routing(none.astype(int), none, probs, jnp.log(probs), valid))

    with jax.enable_x64(True):
        want = float(plain(probs.astype(np.float64)))
    assert float(kernel(probs)) == pytest.approx(want, rel=1e-5)
    assert np.isfinite(jax.grad(kernel)(probs)).all()


def test_a_soft_router_with_experts_that_are_off_has_a_gradient():
    """All slots of an expert at -inf, as a rectified gate has it: the z-loss is finite."""
    logits = np.array([[-np.inf, -np.inf, 1.0, 2.0]] * 2, np.float32)

    def loss(x):
        return losses.z(routers.soft(x, np.ones(2, bool), num_rows=1, num_experts=2))

    value, grad = jax.value_and_grad(loss)(logits)
    assert np.isfinite(value) and np.isfinite(grad).all()
