"""Routers by hand, against brute force, and their refusals."""

import inspect
import itertools
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.moe import routers as plain
from m4.moe.options import known

pytestmark = pytest.mark.usefixtures("quick_compile")
STATIC = {"k", "normalise", "num_groups", "groups_kept", "train", "num_iterations"}
STATIC |= {"num_rows", "compete", "num_experts"}


def compiled(name):
    function = getattr(plain, name)
    static = STATIC & set(inspect.signature(function).parameters)
    return jax.jit(function, static_argnames=tuple(static))


# Compiled as in a step, which is also many times faster than operation by operation.
routing = types.SimpleNamespace(**{n: compiled(n) for n in known("router")})
LOG = np.log
# affinities s of two tokens to four experts; the logits are their logarithms
S = np.array([[4.0, 2.0, 1.0, 1.0], [1.0, 1.0, 2.0, 6.0]], np.float32)
VALID = np.array([True, True])


def draw(num_tokens=64, num_experts=8, seed=0):
    return np.random.default_rng(seed).normal(size=(num_tokens, num_experts)).astype(np.float32)


def test_top_k_weights():
    """Token 0 keeps 4 and 2: 4/6, 2/6 after; 4/8, 2/8 before; 4, 2 raw. Token 1: 6 and 2."""
    for normalise, want in {
        "after": [[4 / 6, 2 / 6], [6 / 8, 2 / 8]],
        "auto": [[4 / 6, 2 / 6], [6 / 8, 2 / 8]],
        "before": [[4 / 8, 2 / 8], [6 / 10, 2 / 10]],
        "none": [[4, 2], [6, 2]],
    }.items():
        got = routing.top_k(LOG(S), VALID, k=2, normalise=normalise)
        np.testing.assert_array_equal(got.experts, [[0, 1], [3, 2]])
        np.testing.assert_allclose(got.weights, want, rtol=1e-6)
        np.testing.assert_allclose(got.probs, S / S.sum(1, keepdims=True), rtol=1e-6)


def test_k1_is_normalised_before_selection():
    """Else the weight is constantly 1 and the gate gets no gradient (the k = 1 trap)."""

    def first_weight(logits, normalise):
        return routing.top_k(logits, VALID, k=1, normalise=normalise).weights[0, 0]

    assert first_weight(LOG(S), "auto") == pytest.approx(0.5)
    # d p / d a_0 = p (1 - p) = 0.25, d p / d a_e = -p p_e
    np.testing.assert_allclose(
        jax.grad(first_weight)(LOG(S), "auto")[0], [0.25, -0.125, -0.0625, -0.0625], rtol=1e-6
    )
    assert first_weight(LOG(S), "after") == 1.0
    np.testing.assert_array_equal(jax.grad(first_weight)(LOG(S), "after"), 0.0)


def test_forbidden_experts_and_invalid_tokens():
    """-inf forbids: one allowed expert fills up with E; none at all routes nowhere."""
    logits = np.full((3, 4), -np.inf, np.float32)
    logits[0, 2] = 5.0
    logits[2] = 1.0
    got = routing.top_k(logits, np.array([True, True, False]), k=2)
    np.testing.assert_array_equal(got.experts, [[2, 4], [4, 4], [4, 4]])
    np.testing.assert_array_equal(got.weights, [[1, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(got.probs, [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_a_nan_score_is_not_hidden():
    got = routing.top_k(np.float32([[np.nan, 1.0, 2.0]]), np.array([True]), k=2)
    assert np.isnan(got.weights).any()


def test_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="'sum' is not one of"):
        routing.top_k(LOG(S), VALID, k=2, normalise="sum")


def test_smooth_load_is_the_chance_of_selection():
    """Against redrawing each expert's own noise 20,000 times with the others' fixed."""
    num_experts, k = 5, 2
    clean, eps = draw(1, num_experts, 1), draw(1, num_experts, 2)
    sigma = np.abs(draw(1, num_experts, 3)) + 0.1
    noisy = clean + sigma * eps
    load = jax.jit(plain.smooth_load, static_argnames="k")
    got = load(clean, noisy, sigma, np.array([True]), k=k)[0]
    fresh = np.random.default_rng(0).normal(size=20_000)
    for e in range(num_experts):
        others = np.sort(np.delete(noisy[0], e))[::-1]
        chance = np.mean(clean[0, e] + sigma[0, e] * fresh > others[k - 1])
        # sd of a share of 20,000 draws is at most 0.0035
        assert got[e] == pytest.approx(chance, abs=5 * 0.0035)


def test_load_with_k_equal_to_e_counts_valid_tokens():
    logits = draw(6, 3)
    valid = np.arange(6) < 4
    got = routing.noisy_top_k(
        logits, valid, k=3, x_ND=logits, noise_DE=np.zeros((3, 3)), key=jax.random.key(0)
    )
    np.testing.assert_array_equal(got.load.sum(0), 4)


def test_smooth_load_of_forbidden_experts():
    """Two allowed, K = 2: both certain; with K = 1 they compete; forbidden never. No NaN."""
    logits = np.float32([[0.0, 0.5, -np.inf]])
    x, noise = np.ones((1, 2), np.float32), np.ones((2, 3), np.float32)

    def load(noise, k):
        noise_NE = np.float32([[0.1, 0.2, 0.3]])
        return routing.noisy_top_k(
            logits, np.array([True]), k=k, x_ND=x, noise_DE=noise, noise_NE=noise_NE
        ).load

    np.testing.assert_array_equal(load(noise, 2), [[1, 1, 0]])
    one = load(noise, 1)
    assert 0 < one[0, 0] < 1 and 0 < one[0, 1] < 1 and one[0, 2] == 0
    assert np.isfinite(jax.jit(jax.grad(lambda n: load(n, 1).sum()))(noise)).all()


def test_noisy_top_k_without_key_is_top_k():
    logits = draw(8, 4)
    quiet = routing.noisy_top_k(
        logits, np.ones(8, bool), k=2, x_ND=logits, noise_DE=np.ones((4, 4))
    )
    assert quiet.load is None
    jax.tree.map(np.testing.assert_array_equal, quiet, routing.top_k(logits, np.ones(8, bool), k=2))


def test_group_limited():
    """Groups {0, 1} and {2, 3} of token 0 score 4+2 and 1+1; of token 1: 1+1 and 2+6.

    With one group kept both choices come from it, with weights over the kept two.
    """
    got = routing.group_limited(LOG(S), VALID, k=2, num_groups=2, groups_kept=1)
    np.testing.assert_array_equal(got.experts, [[0, 1], [3, 2]])
    # a group wins by the sum of two: {0, 1} = 3 + 3 beats {2, 3} = 5 + 0.5
    got = routing.group_limited(
        LOG([[3.0, 3, 5, 0.5]]), VALID[:1], k=2, num_groups=2, groups_kept=1
    )
    np.testing.assert_array_equal(np.sort(got.experts), [[0, 1]])
    everything = routing.group_limited(LOG(S), VALID, k=3, num_groups=2, groups_kept=2)
    jax.tree.map(np.testing.assert_array_equal, everything, routing.top_k(LOG(S), VALID, k=3))
    with pytest.raises(ValueError, match="3 experts cannot come from 1 of 2 groups"):
        routing.group_limited(LOG(S), VALID, k=3, num_groups=2, groups_kept=1)
    with pytest.raises(ValueError, match="4 experts cannot form 3 equal groups"):
        routing.group_limited(LOG(S), VALID, k=2, num_groups=3, groups_kept=1)


def test_hierarchical():
    """Outer affinities 3 : 1 for token 0. Group 0 has 4 : 2, group 1 has 1 : 1."""
    outer = LOG(np.float32([[3, 1], [1, 3]]))
    both = routing.hierarchical(LOG(S), VALID, k=2, outer_NG=outer, groups_kept=2)
    np.testing.assert_array_equal(both.experts[0], [0, 2])  # the best of each kept group
    # one expert per group: normalised before, 4/6 and 1/2
    np.testing.assert_allclose(both.weights[0], [3 / 4 * 4 / 6, 1 / 4 * 1 / 2], rtol=1e-6)
    np.testing.assert_allclose(
        both.probs[0], [3 / 4 * 4 / 6, 3 / 4 * 2 / 6, 1 / 8, 1 / 8], rtol=1e-6
    )
    one = routing.hierarchical(LOG(S), VALID, k=2, outer_NG=outer, groups_kept=1)
    np.testing.assert_array_equal(one.experts, [[0, 1], [3, 2]])
    # the outer level keeps one: its weight is 3/4, which has a gradient
    np.testing.assert_allclose(one.weights[0], [3 / 4 * 4 / 6, 3 / 4 * 2 / 6], rtol=1e-6)
    with pytest.raises(ValueError, match="k must be a multiple of groups_kept"):
        routing.hierarchical(LOG(S), VALID, k=3, outer_NG=outer, groups_kept=2)


def test_loss_free_bias_selects_but_does_not_weigh():
    """log 4, log 2, 0, 0 + bias (0, 0, 9, 0): experts 2 and 0 with weights 1/5 and 4/5."""
    bias = np.float32([0, 0, 9, 0])
    got = routing.loss_free(LOG(S), VALID, k=2, bias_E=bias)
    np.testing.assert_array_equal(got.experts[0], [2, 0])
    np.testing.assert_allclose(got.weights[0], [1 / 5, 4 / 5], rtol=1e-6)
    grad = jax.grad(lambda b: routing.loss_free(LOG(S), VALID, k=2, bias_E=b).weights[0, 0])(bias)
    np.testing.assert_array_equal(grad, 0.0)


def test_sinkhorn_plan_is_balanced():
    """The plan has the marginals, and assignments by it are more even than by the scores."""
    logits, valid = draw(96, 8) + np.linspace(0, 4, 8, dtype=np.float32), np.arange(96) % 4 > 0
    balance = jax.jit(plain.balanced_plan, static_argnames="num_iterations")
    plan = np.exp(balance(logits, valid, num_iterations=200))
    np.testing.assert_allclose(plan[valid].sum(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(plan.sum(0), 72 / 8, rtol=1e-3)
    np.testing.assert_array_equal(plan[~valid], 0.0)

    def most(train):
        got = routing.sinkhorn(logits, valid, k=1, train=train, num_iterations=50)
        return np.bincount(np.ravel(got.experts), minlength=9)[:8].max()

    assert most(True) < most(False) / 2  # soft marginals bound the hard load only loosely
    jax.tree.map(
        np.testing.assert_array_equal,
        routing.sinkhorn(logits, valid, k=2, train=False),
        routing.top_k(logits, valid, k=2),
    )


def test_modality_pattern():
    """Pattern 6 of 4 experts owns expert 2; token 0's best other is 0. Token 1: pattern 3."""
    got = routing.modality_pattern(LOG(S), VALID, k=2, pattern_N=np.array([6, 3]))
    np.testing.assert_array_equal(got.experts, [[2, 0], [3, 2]])
    np.testing.assert_allclose(got.weights, [[1 / 5, 4 / 5], [6 / 8, 2 / 8]], rtol=1e-6)


def test_expert_choice():
    """p = softmax over experts. Three tokens, of which the last is invalid, and two experts: with
    K = 1 each takes C = ceil(2 / 2) = 1 token, with K = 2 both.
    """
    s = np.float32([[3, 1], [1, 1], [9, 1]])
    got = routing.expert_choice(LOG(s), np.array([True, True, False]), k=2)
    np.testing.assert_array_equal(got.tokens, [[0, 1, 3], [1, 0, 3]])
    np.testing.assert_allclose(got.weights, [[3 / 4, 1 / 2, 0], [1 / 2, 1 / 4, 0]], rtol=1e-6)
    one = routing.expert_choice(LOG(s), np.array([True, True, False]), k=1)
    np.testing.assert_array_equal(one.tokens, [[0, 3], [1, 3]])
    np.testing.assert_allclose(one.weights, [[3 / 4, 0], [1 / 2, 0]], rtol=1e-6)
    only = routing.expert_choice(LOG(s), np.array([False, True, False]), k=1)
    np.testing.assert_array_equal(only.tokens, [[1, 3], [1, 3]])  # 3 = no token
    np.testing.assert_array_equal(only.weights[:, 1], 0.0)
    with pytest.raises(ValueError, match="compete='all'"):
        routing.expert_choice(LOG(s), np.ones(3, bool), k=1, compete="all")


def test_expert_choice_by_row_ignores_other_rows():
    logits, valid = draw(24, 4), np.arange(24) % 5 > 0
    whole = routing.expert_choice(logits, valid, k=2, num_rows=3, compete="row")
    for row in range(3):
        part = slice(8 * row, 8 * row + 8)
        alone = routing.expert_choice(logits[part], valid[part], k=2)
        columns = slice(4 * row, 4 * row + 4)
        want = np.where(np.asarray(alone.tokens) < 8, np.asarray(alone.tokens) + 8 * row, 24)
        np.testing.assert_array_equal(whole.tokens[:, columns], want)
        np.testing.assert_array_equal(whole.weights[:, columns], alone.weights)


def test_soft():
    """One row of two tokens, one invalid; two experts of one slot: s = (3, 1) and ignored."""
    logits = LOG(np.float32([[3, 1], [7, 9]]))
    got = routing.soft(logits, np.array([True, False]), num_rows=1, num_experts=2)
    np.testing.assert_allclose(got.dispatch[0, :, :, 0], [[1, 1], [0, 0]])
    np.testing.assert_allclose(got.combine[0, :, :, 0], [[3 / 4, 1 / 4], [0, 0]], rtol=1e-6)
    both = routing.soft(logits, np.ones(2, bool), num_rows=1, num_experts=2)
    np.testing.assert_allclose(both.dispatch[0, :, :, 0], [[0.3, 0.1], [0.7, 0.9]], rtol=1e-6)


@pytest.mark.parametrize("num_keys", [3, 8])
def test_ties_go_to_the_lower_index(num_keys):
    got = routing.top_k(np.zeros((2, num_keys), np.float32), VALID, k=2)
    np.testing.assert_array_equal(got.experts, [[0, 1], [0, 1]])


def test_top_k_is_the_best_subset():
    """Brute force: no other pair has a larger sum of affinities."""
    logits = draw(20, 6)
    got = routing.top_k(logits, np.ones(20, bool), k=2)
    for row, chosen in zip(np.exp(logits), np.asarray(got.experts), strict=True):
        assert row[chosen].sum() == max(sum(p) for p in itertools.combinations(row, 2))
    np.testing.assert_array_equal(jnp.sum(got.weights, -1).round(5), 1.0)


def test_every_router_has_hand_computed_numbers():
    """Each is called by name in a test above, which says how its numbers come about."""
    text = Path(__file__).read_text()
    assert not [name for name in known("router") if f"routing.{name}(" not in text]
