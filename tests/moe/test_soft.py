"""Soft mixtures on stacks: a loop as reference, symmetries, pooling, information, any mesh."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from m4.maths import gelu
from m4.moe.options import SoftOptions
from m4.moe.soft import SoftExperts

B, S, T, D, E, P, F = 2, 2, 5, 4, 3, 2, 6


def make(stacks, seed=0, **fields):
    module = SoftExperts(SoftOptions(num_experts=E, hidden=F, **fields), P, stacks)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, S, T, D)).astype(np.float32)
    mask = np.ones((B, S, T), bool)
    mask[0, 1, 3:] = False
    shapes = nn.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), x, mask)))["params"]
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    return module, params, x, mask


def by_loops(x, mask, p, stacks, unit_inputs, slot=0.0):
    """Soft-MoE one sequence, one slot and one token at a time, in float64."""
    normed = lambda v: v / max(np.linalg.norm(v), 1e-12)  # noqa: E731
    slots, out = np.zeros((B, S, E, P, D)), np.zeros((B, S, T, D))
    for b, s in np.ndindex(B, S):
        k = s if stacks > 1 else 0
        phi = p["gate_phi"][k].astype(np.float64).reshape(D, E, P)
        tokens = [t for t in range(T) if mask[b, s, t]]
        logit = np.zeros((T, E, P))
        for t, e, q in np.ndindex(T, E, P):
            logit[t, e, q] = p["gate_scale"][k] * (normed(x[b, s, t]) @ normed(phi[:, e, q]))
        for e, q in np.ndindex(E, P):
            d = np.exp(logit[tokens, e, q])
            d /= d.sum()
            rows = [normed(x[b, s, t]) if unit_inputs else x[b, s, t] for t in tokens]
            z = sum(w * row for w, row in zip(d, rows, strict=True)) + slot
            n = k * E + e
            hidden = np.asarray(gelu(z @ p["w1"][n].T + p["b1"][n]))
            slots[b, s, e, q] = hidden @ p["w2"][n] + p["b2"][n]
        for t in tokens:
            c = np.exp(logit[t])
            out[b, s, t] = np.einsum("ep,epd->d", c / c.sum(), slots[b, s])
    return slots, out


@pytest.mark.parametrize("stacks, inputs", [(1, "unit"), (S, "raw")])
def test_soft_moe_equals_loops(stacks, inputs):
    module, params, x, mask = make(stacks, inputs=inputs)
    found = jax.jit(module.apply)({"params": params}, x, mask)
    slots, out = by_loops(x, mask, params, stacks, inputs == "unit")
    np.testing.assert_allclose(found.outputs, slots, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.tokens(), out, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def routed():
    module, params, x, mask = make(1)
    return module, params, x, mask, jax.jit(module.apply)({"params": params}, x, mask)


def test_weights_sum_to_one(routed):
    *_, mask, slots = routed
    np.testing.assert_allclose(slots.dispatch.sum(2), 1.0, rtol=1e-5)
    np.testing.assert_allclose(slots.combine.sum((3, 4)), mask, rtol=1e-5)
    assert not slots.dispatch[0, 1, 3:].any()


def test_tokens_are_equivariant_and_slots_invariant(routed):
    module, params, x, mask, slots = routed
    order = np.array([3, 0, 4, 2, 1])
    moved = jax.jit(module.apply)({"params": params}, x[:, :, order], mask[:, :, order])
    np.testing.assert_allclose(moved.outputs, slots.outputs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved.tokens(), slots.tokens()[:, :, order], rtol=1e-4, atol=1e-5)


def test_masked_tokens_do_not_exist(routed):
    module, params, x, mask, slots = routed
    other = np.where(mask[..., None], x, 1e6).astype(np.float32)
    again = jax.jit(module.apply)({"params": params}, other, mask)
    np.testing.assert_array_equal(again.outputs, slots.outputs)


def test_task_slots_by_token_and_pooled_agree(routed):
    *_, mask, slots = routed
    for norm in ("expert_slot", "expert_per_task"):
        dense = slots.by_slot(norm)
        kept = np.where(mask[..., None, None], dense, 0).sum(2) / mask.sum(2)[..., None, None]
        np.testing.assert_allclose(slots.pooled_by_slot(norm), kept, rtol=1e-5, atol=1e-6)
    shares = slots._shares("expert_per_task").sum(3)
    np.testing.assert_allclose(shares[np.asarray(mask)], 1.0, rtol=1e-5)
    np.testing.assert_allclose(slots.by_slot().sum(3), slots.tokens(), rtol=1e-4, atol=1e-5)


def test_slot_inputs_are_added(routed):
    module, params, x, mask, _ = routed
    both = jnp.ones((P, D))
    found = jax.jit(module.apply)({"params": params}, x, mask, slot_PD=both)
    np.testing.assert_allclose(
        found.outputs, by_loops(x, mask, params, 1, False, slot=1.0)[0], rtol=1e-5, atol=1e-5
    )


def test_a_slot_embedding_reaches_only_its_slot(routed):
    module, params, x, mask, plain = routed
    second = jnp.zeros((P, D)).at[1].set(1.0)
    moved = jax.jit(module.apply)({"params": params}, x, mask, slot_PD=second)
    by_slot, by_slot_moved = plain.by_slot(), moved.by_slot()
    np.testing.assert_array_equal(by_slot[..., 0, :], by_slot_moved[..., 0, :])
    assert np.abs(np.asarray(by_slot - by_slot_moved)[..., 1, :])[mask].min() > 0


@pytest.mark.parametrize("gate", ["linear", "laplace", "gaussian"])
def test_any_gate(gate):
    module, params, x, mask = make(S, gate=gate)
    out = module.apply({"params": params}, x, mask)
    assert out.logits.shape == (B, S, T, E, P) and np.isfinite(out.tokens()).all()


# --- on a mesh ----------------------------------------------------------------------------------


def test_experts_on_a_mesh_agree_and_pooling_cuts_their_traffic():
    mesh = jax.make_mesh((2, 4), ("data", "expert"), axis_types=(AxisType.Auto,) * 2)
    module = SoftExperts(SoftOptions(num_experts=8, hidden=4), 2)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 1, 64, 16)).astype(np.float32)
    mask = np.ones((4, 1, 64), bool)
    shapes = nn.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), x, mask)))["params"]
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    put = lambda *names: NamedSharding(mesh, PartitionSpec(*names))  # noqa: E731
    where = {n: put("expert" if n in ("w1", "b1", "w2", "b2") else None) for n in params}
    largest = {}
    for name, read in (("pooled", "pooled_by_slot"), ("dense", "by_slot")):

        def run(params, x, mask, read=read):
            return getattr(module.apply({"params": params}, x, mask), read)()

        split = jax.jit(run, in_shardings=(where, put("data"), put("data")))
        program = split.lower(params, x, mask).compile()
        np.testing.assert_allclose(
            program(params, x, mask), jax.jit(run)(params, x, mask), rtol=1e-4, atol=1e-4
        )
        sums = re.findall(r"f32\[([\d,]+)\]\S* all-reduce", program.as_text())
        largest[name] = max(np.prod([int(n) for n in shape.split(",")]) for shape in sums)
    # Rows, tokens, tasks, width. What is left of the pooled form is the softmax's denominator.
    assert largest == {"pooled": 2 * 64, "dense": 2 * 64 * 2 * 16}
