"""The information in a soft mixture's routing: by hand, its bounds, and what raising it does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m4.methods.m4oe import information

MODALITY = np.array([0, 0, 1, 1, 2])


def joint_of(logits, modality=MODALITY, mask=None):
    """Of three modalities, nobody's token masked."""
    logits = jnp.asarray(logits, jnp.float32)
    mask = jnp.ones(logits.shape[:2], bool) if mask is None else mask
    return information.log_joint(logits, mask, modality, 3)


def released(logits):
    logits = jnp.asarray(logits, jnp.float32)
    return information.released_information(logits, jnp.ones(logits.shape[:2], bool))


def test_information_of_independence_and_of_a_partition():
    flat = joint_of(np.zeros((1, 5, 6, 2)))
    np.testing.assert_allclose(information.conditional_information(flat), 0.0, atol=1e-6)
    # Every modality has two experts of its own, in both tasks, and a third of the mass.
    logits = np.full((1, 5, 6, 2), -40.0)
    for t, m in enumerate(MODALITY):
        logits[0, t, 2 * m : 2 * m + 2] = -np.log((m == MODALITY).sum())
    split = joint_of(logits)
    np.testing.assert_allclose(information.conditional_information(split), np.log(3), rtol=1e-5)
    np.testing.assert_allclose(information.utilisation(split), 1 / 3, rtol=1e-5)


def test_information_by_hand_and_its_bounds():
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(4, 5, 2, 3))
    joint = np.exp(logits)
    joint /= joint.sum((1, 2, 3), keepdims=True)
    p = np.stack([joint[:, m == MODALITY].sum(1) for m in range(3)], 1)
    log_p = joint_of(logits)
    np.testing.assert_allclose(np.exp(log_p), p, rtol=1e-4)
    t, mt, et = p.sum((1, 2)), p.sum(2), p.sum(1)
    expected = p * np.log(p * t[:, None, None] / (mt[:, :, None] * et[:, None]))
    found = information.conditional_information(log_p)
    np.testing.assert_allclose(found, expected.sum((1, 2, 3)), rtol=1e-4)
    assert (found > 0).all() and (found <= np.log(2)).all()  # two experts, three modalities
    np.testing.assert_allclose(
        information.log_joint_of(joint, MODALITY, 3), log_p, rtol=1e-4, atol=1e-5
    )


def test_released_information_by_hand():
    rng = np.random.default_rng(0)
    joint = np.exp(rng.normal(size=(2, 5, 2, 3)))
    joint /= joint.sum((1, 2, 3), keepdims=True)
    c = joint.sum(2)
    ratio = c / (c.sum(2, keepdims=True) * c.sum(1, keepdims=True))
    found = released(np.log(joint))
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
        logits = jnp.einsum("btd,dep->btep", x, phi)
        if name == "released":
            return released(logits).mean()
        return information.conditional_information(joint_of(logits, modality)).mean()

    def share(phi):
        joint = joint_of(jnp.einsum("btd,dep->btep", x, phi), modality)
        return information.utilisation(joint).mean((0, 2))

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
    mask = jnp.array([[True, True, False, False, True]])

    def value(logits):
        return information.conditional_information(joint_of(logits, mask=mask)).sum()

    logits = jax.random.normal(jax.random.key(0), (1, 5, 2, 2))
    found, grad = jax.value_and_grad(value)(logits)
    assert np.isfinite(found) and np.isfinite(grad).all()
    assert not grad[:, 2:4].any() and grad[:, :2].any()
    used = information.utilisation(joint_of(logits, mask=mask))
    np.testing.assert_allclose(used[0, 1], 0.0, atol=1e-6)
