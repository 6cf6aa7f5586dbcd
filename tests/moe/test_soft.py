"""Soft mixtures on stacks: a loop as reference, symmetries, pooling, information, any mesh."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from m4.moe import soft
from m4.moe.soft import SoftExperts, SoftSlots
from m4.nn.encoders.vit import gelu

B, S, T, D, E, P, F = 2, 2, 5, 4, 3, 2, 6


def make(stacks, seed=0, **fields):
    module = SoftExperts(E, F, P, stacks, **fields)
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


@pytest.mark.parametrize("gate", ["linear", "laplace", "gaussian"])
def test_any_gate(gate):
    module, params, x, mask = make(S, gate=gate)
    out = module.apply({"params": params}, x, mask)
    assert out.logits.shape == (B, S, T, E, P) and np.isfinite(out.tokens()).all()


# --- information --------------------------------------------------------------------------------

MODALITY = np.array([0, 0, 1, 1, 2])


def slots_of(logits):
    """Slots of one sequence per row with the given logits [B, T, E, P]."""
    logits = jnp.asarray(logits, jnp.float32)[:, None]
    mask = jnp.ones(logits.shape[:3], bool)
    return SoftSlots(logits, logits, logits, logits, mask)


def test_information_of_independence_and_of_a_partition():
    flat = soft.log_joint(slots_of(np.zeros((1, 5, 6, 2))), MODALITY, 3)
    np.testing.assert_allclose(soft.conditional_information(flat), 0.0, atol=1e-6)
    # Every modality has two experts of its own, in both tasks, and a third of the mass.
    logits = np.full((1, 5, 6, 2), -40.0)
    for t, m in enumerate(MODALITY):
        logits[0, t, 2 * m : 2 * m + 2] = -np.log((m == MODALITY).sum())
    split = soft.log_joint(slots_of(logits), MODALITY, 3)
    np.testing.assert_allclose(soft.conditional_information(split), np.log(3), rtol=1e-5)
    np.testing.assert_allclose(soft.utilisation(split), 1 / 3, rtol=1e-5)


def test_information_by_hand_and_its_bounds():
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(4, 5, 2, 3))
    joint = np.exp(logits)
    joint /= joint.sum((1, 2, 3), keepdims=True)
    p = np.stack([joint[:, m == MODALITY].sum(1) for m in range(3)], 1)
    log_p = soft.log_joint(slots_of(logits), MODALITY, 3)
    np.testing.assert_allclose(np.exp(log_p), p, rtol=1e-4)
    t, mt, et = p.sum((1, 2)), p.sum(2), p.sum(1)
    expected = p * np.log(p * t[:, None, None] / (mt[:, :, None] * et[:, None]))
    found = soft.conditional_information(log_p)
    np.testing.assert_allclose(found, expected.sum((1, 2, 3)), rtol=1e-4)
    assert (found > 0).all() and (found <= np.log(2)).all()  # two experts, three modalities
    np.testing.assert_allclose(soft.log_joint_of(joint, MODALITY, 3), log_p, rtol=1e-4, atol=1e-5)


def test_released_information_by_hand():
    rng = np.random.default_rng(0)
    joint = np.exp(rng.normal(size=(2, 5, 2, 3)))
    joint /= joint.sum((1, 2, 3), keepdims=True)
    c = joint.sum(2)
    ratio = c / (c.sum(2, keepdims=True) * c.sum(1, keepdims=True))
    found = soft.released_information(slots_of(np.log(joint)))
    np.testing.assert_allclose(found, (c * np.log(ratio)).sum((1, 2)), rtol=1e-4, atol=1e-6)
    assert (found <= np.log(3)).all()


@pytest.mark.parametrize("name", ["joint", "released"])
def test_only_the_conditional_information_evens_out_modalities(name):
    # 3 modalities of 4 tokens; a bias gives the first 95 % of the mass.
    modality = np.repeat(np.arange(3), 4)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 12, 16)).astype(np.float32)
    x[..., 0] = np.where(modality == 0, 3.0, 0.0)
    phi = (0.1 * rng.normal(size=(16, 6, 2))).astype(np.float32)
    phi[0] = 1.4

    def value(phi):
        slots = slots_of(jnp.einsum("btd,dep->btep", x, phi))
        if name == "released":
            return soft.released_information(slots).mean()
        return soft.conditional_information(soft.log_joint(slots, modality, 3)).mean()

    def share(phi):
        slots = slots_of(jnp.einsum("btd,dep->btep", x, phi))
        return soft.utilisation(soft.log_joint(slots, modality, 3)).mean((0, 2))

    tx = optax.adam(0.03)

    @jax.jit
    def ascend(phi):
        def step(carry, _):
            phi, state = carry
            updates, state = tx.update(-jax.grad(value)(phi), state)
            return (optax.apply_updates(phi, updates), state), None

        return share(jax.lax.scan(step, (phi, tx.init(phi)), length=400)[0][0])

    assert share(phi)[0] > 0.9
    spread = np.abs(np.asarray(ascend(phi)) - 1 / 3).max()
    assert (spread < 0.05) == (name == "joint")


def test_absent_tokens_carry_no_mass_and_gradients_stay_finite():
    mask = jnp.array([[[True, True, False, False, True]]])

    def value(logits):
        slots = slots_of(logits).replace(mask=mask)
        return soft.conditional_information(soft.log_joint(slots, MODALITY, 3)).sum()

    logits = jax.random.normal(jax.random.key(0), (1, 5, 2, 2))
    found, grad = jax.value_and_grad(value)(logits)
    assert np.isfinite(found) and np.isfinite(grad).all()
    assert not grad[:, 2:4].any() and grad[:, :2].any()
    used = soft.utilisation(soft.log_joint(slots_of(logits).replace(mask=mask), MODALITY, 3))
    np.testing.assert_allclose(used[0, 1], 0.0, atol=1e-6)


# --- on a mesh ----------------------------------------------------------------------------------


def test_experts_on_a_mesh_agree_and_pooling_cuts_their_traffic():
    mesh = jax.make_mesh((2, 4), ("data", "expert"), axis_types=(AxisType.Auto,) * 2)
    module = SoftExperts(8, 4, 2)
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
