"""Slots: expert choice and soft routing against loops written from the equations."""

import types

import jax
import numpy as np
import pytest

from m4.moe import losses
from m4.moe import routers as plain
from m4.moe.engine import slots
from m4.moe.experts import ExpertParams, Functions, relu

pytestmark = pytest.mark.usefixtures("quick_compile")
routing = types.SimpleNamespace(
    top_k=jax.jit(plain.top_k, static_argnames=("k", "normalise")),
    expert_choice=jax.jit(plain.expert_choice, static_argnames="k"),
    soft=jax.jit(plain.soft, static_argnames=("num_rows", "num_experts")),
)
B, T, D, E, P, F = 2, 5, 3, 4, 2, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B * T, D)).astype(np.float32)
VALID = np.array([1, 1, 0, 1, 1, 1, 0, 0, 1, 1], bool)
PARAMS = ExpertParams(
    w1=RNG.normal(size=(E, F, D)).astype(np.float32),
    b1=RNG.normal(size=(E, F)).astype(np.float32),
    w2=RNG.normal(size=(E, F, D)).astype(np.float32),
    b2=RNG.normal(size=(E, D)).astype(np.float32),
)


def expert(e, x):
    hidden = np.maximum(x @ PARAMS.w1[e].T + PARAMS.b1[e], 0)
    return hidden @ PARAMS.w2[e] + PARAMS.b2[e]


def test_apply_choice_is_the_loop():
    logits = RNG.normal(size=(B * T, E)).astype(np.float32)
    choice = routing.expert_choice(logits, VALID, k=2)
    want = np.zeros((B * T, D))
    for e in range(E):
        for n, w in zip(np.asarray(choice.tokens[e]), np.asarray(choice.weights[e]), strict=True):
            if n < B * T:
                want[n] += w * expert(e, X[n])
    got = slots.apply_experts(X, choice, PARAMS, Functions(relu))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_apply_soft_is_the_loop():
    """Soft-MoE's equations for each row: D, C, slots, experts, mix."""
    logits = RNG.normal(size=(B * T, E * P)).astype(np.float32)
    soft = routing.soft(logits, VALID, num_rows=B, num_experts=E)
    want = np.zeros((B, T, D))
    for b in range(B):
        s = np.exp(logits.reshape(B, T, E, P)[b]) * VALID.reshape(B, T)[b][:, None, None]
        for e in range(E):
            for p in range(P):
                out = expert(e, (s[:, e, p] / s[:, e, p].sum()) @ X.reshape(B, T, D)[b])
                combine = s[:, e, p] / np.maximum(s.sum((1, 2)), 1e-30)
                want[b] += combine[:, None] * out
    got = slots.apply_experts(X, soft, PARAMS, Functions(relu))
    np.testing.assert_allclose(got, want.reshape(B * T, D), rtol=1e-4, atol=1e-5)


def test_output_function_is_applied_before_mixing():
    logits = RNG.normal(size=(B * T, E)).astype(np.float32)
    choice = routing.expert_choice(logits, VALID, k=1)
    got = slots.apply_experts(X, choice, PARAMS, Functions(relu, lambda y: 0 * y + 1))
    total = np.zeros(B * T + 1)
    np.add.at(total, np.ravel(choice.tokens), np.ravel(choice.weights))
    np.testing.assert_allclose(got, np.repeat(total[:-1, None], D, 1), rtol=1e-6)


def test_assignments_of_both_kinds_agree():
    """Expert choice with C = N and top-k with K = E assign every valid token to every expert."""
    logits = RNG.normal(size=(B * T, E)).astype(np.float32)
    every = routing.top_k(logits, VALID, k=E, normalise="before")
    taken = routing.expert_choice(logits, VALID, k=E)
    tables = []
    for r in (every, taken):
        assert (np.asarray(r.experts) < E).sum() == VALID.sum() * E
        tables.append(losses.tally(r, np.arange(B * T), B * T, r.weights))
    np.testing.assert_allclose(*tables, rtol=1e-5)


def test_places_that_nobody_took_leave_no_trace():
    """A row of fewer tokens than places; y / |y| of a row of zeros has no gradient."""
    valid = np.array([1, 0, 0, 0, 0] + [1] * 5, bool)
    choice = routing.expert_choice(RNG.normal(size=(B * T, E)).astype(np.float32), valid, k=2)
    assert (np.asarray(choice.tokens) >= B * T).any()
    unit = Functions(relu, lambda y: y / jax.numpy.linalg.norm(y, axis=-1, keepdims=True))
    params = PARAMS.replace(b1=abs(PARAMS.b1) * 0, b2=PARAMS.b2 * 0, w1=abs(PARAMS.w1))

    def loss(x, params):
        return slots.apply_experts(abs(x), choice, params, unit).sum()

    for grad in jax.tree.leaves(jax.grad(loss, (0, 1))(X, params)):
        assert np.isfinite(grad).all()
