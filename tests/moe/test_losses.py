"""Losses by hand: two experts, three valid tokens of modalities 0, 0, 1 and one invalid token."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.moe import losses, route
from m4.moe.options import known
from m4.types import Routing

pytestmark = pytest.mark.usefixtures("quick_compile")
PROBS = np.float32([[0.75, 0.25], [0.25, 0.75], [1.0, 0.0], [0.0, 0.0]])
ROUTING = Routing(
    experts=np.int32([[0], [1], [0], [2]]),
    weights=np.float32([[0.75], [0.75], [1.0], [0.0]]),
    probs=PROBS,
    logits=np.float32([[0, 1], [2, 0], [1, 1], [7, 7]]),
    valid=np.array([True, True, True, False]),
    load=np.float32([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.0, 0.0]]),
)
MODALITY = {"modality_N": np.array([0, 0, 1, 1]), "num_modalities": 2}
ONE_GATE = {"gate_N": np.zeros(4, int), "allowed_GE": np.ones((1, 2), bool)}


def h(*probs):
    return -sum(p * math.log(p) for p in probs if p)


def test_cv_squared():
    """(1, 3): mean 2, variance 2, CV^2 = 0.5. Masked to one value: 0. All zero: 0."""
    values = jnp.float32([[1.0, 3.0], [5.0, 9.0], [0.0, 0.0]])
    where = np.array([[True, True], [True, False], [True, True]])
    np.testing.assert_allclose(losses.cv_squared(values, where), [0.5, 0.0, 0.0], rtol=1e-6)


def test_importance():
    """Sums 1.75 and 0.75: mean 1.25, variance 0.5, CV^2 = 0.5 / 1.5625 = 0.32."""
    assert losses.importance(ROUTING, **ONE_GATE) == pytest.approx(0.32)


def test_importance_per_gate():
    """Gate 0 sees (0.75, 0.75): 0. Gate 1 sees (1, 0): variance 0.5, mean 0.5, CV^2 = 2."""
    gates = {"gate_N": MODALITY["modality_N"], "allowed_GE": np.ones((2, 2), bool)}
    assert losses.importance(ROUTING, **gates) == pytest.approx(2.0)


def test_load():
    """Sums 1.8 and 1.2: mean 1.5, variance 0.18, CV^2 = 0.08."""
    assert losses.load(ROUTING, **ONE_GATE) == pytest.approx(0.08)
    assert losses.load(ROUTING.replace(load=None), **ONE_GATE) == 0.0


def test_switch():
    """f = (2/3, 1/3), P = (2, 1)/3: 2 (4/9 + 1/9) = 10/9."""
    assert losses.switch(ROUTING) == pytest.approx(10 / 9)


def test_z():
    """logsumexp of (0, 1), (2, 0), (1, 1); the invalid token does not count."""
    lse = [math.log(1 + math.e), math.log(1 + math.e**2), 1 + math.log(2)]
    assert losses.z(ROUTING) == pytest.approx(sum(v**2 for v in lse) / 3, rel=1e-6)


def test_z_of_a_token_without_allowed_expert_is_0():
    nowhere = ROUTING.replace(logits=jnp.full((4, 2), -jnp.inf))
    value, grad = jax.value_and_grad(lambda a: losses.z(ROUTING.replace(logits=a)))(nowhere.logits)
    assert value == 0.0
    np.testing.assert_array_equal(grad, 0.0)


def test_fusemoe_entropy():
    """Modality 0 uses (1/2, 1/2), modality 1 (1, 0), their mean (3/4, 1/4)."""
    want = (h(0.5, 0.5) + 0) / 2 - h(0.75, 0.25)
    assert losses.entropy(ROUTING, **MODALITY) == pytest.approx(want, rel=1e-6)


def test_fusemoe_entropy_range():
    """-log M for disjoint experts, 0 for equal usage; an unseen modality does not count."""
    disjoint = ROUTING.replace(probs=np.float32([[1, 0], [1, 0], [0, 1], [0, 0]]))
    assert losses.entropy(disjoint, **MODALITY) == pytest.approx(-math.log(2))
    equal = ROUTING.replace(probs=np.float32([[0.3, 0.7]] * 3 + [[0, 0]]))
    assert losses.entropy(equal, **MODALITY) == pytest.approx(0.0, abs=1e-6)
    more = {"modality_N": MODALITY["modality_N"], "num_modalities": 5}
    assert losses.entropy(ROUTING, **more) == pytest.approx(
        float(losses.entropy(ROUTING, **MODALITY)), rel=1e-6
    )


def test_limoe_entropies():
    """Local: modality 0 has tokens (3/4, 1/4), (1/4, 3/4), modality 1 has (1, 0).

    Global: log 2 - H of the usages, which are (1/2, 1/2) and (1, 0).
    """
    local = (h(0.75, 0.25) + 0) / 2
    assert losses.local_entropy(ROUTING, **MODALITY) == pytest.approx(local, rel=1e-6)
    spread = (0 + math.log(2)) / 2
    assert losses.global_entropy(ROUTING, **MODALITY) == pytest.approx(spread, rel=1e-6)
    # half of log 2 suffices: modality 1 misses it by log(2) / 2
    half = losses.global_entropy(ROUTING, **MODALITY, share=0.5)
    assert half == pytest.approx(math.log(2) / 4, rel=1e-6)


def test_token_information():
    """I = H(2/3, 1/3) - (2 H(3/4, 1/4) + 0) / 3."""
    want = h(2 / 3, 1 / 3) - 2 * h(0.75, 0.25) / 3
    assert losses.token_information(ROUTING) == pytest.approx(-want, rel=1e-6)


JOINT = np.array([[1 / 3, 1 / 3], [1 / 3, 0]])  # P(modality, expert)


def test_modality_information():
    want = h(2 / 3, 1 / 3) + h(2 / 3, 1 / 3) - h(*JOINT.ravel())
    assert losses.modality_information(ROUTING, **MODALITY) == pytest.approx(-want, rel=1e-5)


def test_task_information_has_the_same_form():
    task = {"task_N": MODALITY["modality_N"], "num_tasks": 2}
    assert losses.task_information(ROUTING, **task) == pytest.approx(
        float(losses.modality_information(ROUTING, **MODALITY)), rel=1e-6
    )


def test_conditional_information():
    """With one task it is the plain one; with task = modality nothing is left."""
    one = {"task_N": np.zeros(4, int), "num_tasks": 1}
    plain = float(losses.modality_information(ROUTING, **MODALITY))
    assert losses.conditional_information(ROUTING, **MODALITY, **one) == pytest.approx(plain)
    same = {"task_N": MODALITY["modality_N"], "num_tasks": 2}
    assert losses.conditional_information(ROUTING, **MODALITY, **same) == pytest.approx(
        0.0, abs=1e-6
    )


def test_mutual_information_of_product_and_copy():
    p, q = np.float32([0.2, 0.8]), np.float32([0.5, 0.3, 0.2])
    assert losses.mutual_information(jnp.outer(p, q)) == pytest.approx(0.0, abs=1e-6)
    assert losses.mutual_information(jnp.diag(q)) == pytest.approx(h(*q), rel=1e-6)
    xor = jnp.float32([[[0.25, 0.0], [0.0, 0.25]], [[0.0, 0.25], [0.25, 0.0]]])
    assert losses.mutual_information(xor.sum(0)) == pytest.approx(0.0, abs=1e-6)
    assert losses.conditional_mutual_information(xor) == pytest.approx(math.log(2), rel=1e-6)


def test_orthogonality():
    """Columns (3, 1, 4)/4 and (1, 3, 0)/4: cosine (3 + 3) / sqrt(26 * 10), squared 36/260.

    The Gram matrix of the smaller side gives the same: here 2 experts against 4 tokens, and
    against the transposed problem of 4 experts and 2 tokens.
    """
    assert losses.orthogonality(ROUTING) == pytest.approx(36 / 260, rel=1e-5)
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(7), size=3).astype(np.float32)
    wide = losses.orthogonality(ROUTING.replace(probs=probs))
    unit = probs / np.linalg.norm(probs, axis=0)
    cosines = (unit.T @ unit)[~np.eye(7, dtype=bool)]
    assert wide == pytest.approx(float(np.mean(cosines**2)), rel=1e-5)


def test_pattern_cross_entropy():
    """Patterns 0 (complete), 1, 2 -> expert 0: only tokens 1 and 2 count: -log 3/4, -log 1."""
    got = losses.pattern_cross_entropy(ROUTING, pattern_N=np.array([0, 1, 2, 1]))
    assert got == pytest.approx(-math.log(0.75) / 2, rel=1e-6)


def test_loss_free_moves_the_bias_against_the_load():
    """Loads (2, 1) around 1.5: gradient (1, -1), value 0."""
    bias = jnp.float32([[5.0, -3.0]])
    value, grad = jax.value_and_grad(lambda b: losses.loss_free(ROUTING, bias_E=b, **ONE_GATE))(
        bias
    )
    assert value == 0.0
    np.testing.assert_array_equal(grad, [[1.0, -1.0]])


def test_loss_free_with_a_block_of_experts_per_gate():
    """Gates 0 and 1 own experts {0, 1} and {2, 3}; loads (2, 0) and (0, 1)."""
    routing = Routing(
        experts=np.int32([[0], [0], [3]]),
        weights=np.ones((3, 1), np.float32),
        probs=np.full((3, 4), 0.25, np.float32),
        logits=np.zeros((3, 4), np.float32),
        valid=np.ones(3, bool),
    )
    allowed = np.array([[True, True, False, False], [False, False, True, True]])
    grad = jax.grad(
        lambda b: losses.loss_free(
            routing, bias_E=b, gate_N=np.array([0, 0, 1]), allowed_GE=allowed
        )
    )(jnp.zeros((2, 2)))
    np.testing.assert_array_equal(grad, [[1.0, -1.0], [-1.0, 1.0]])


INPUTS = {
    **ONE_GATE,
    **MODALITY,
    "task_N": np.zeros(4, int),
    "num_tasks": 2,
    "pattern_N": np.ones(4, int),
    "bias_E": np.zeros((1, 2), np.float32),
}


def test_every_loss_has_hand_computed_numbers():
    """Each is called by name in a test above, which says how its numbers come about."""
    text = Path(__file__).read_text()
    assert not [name for name in known("losses") if f"losses.{name}(" not in text]


@pytest.mark.parametrize("name", known("losses"))  # a new one is found here
def test_an_invalid_token_changes_nothing_and_gets_no_gradient(name):
    """Not even with other logits; and with no valid token at all everything stays finite."""

    def value(logits, probs, routing):
        routing = routing.replace(logits=logits, probs=probs)
        return route.call(getattr(losses, name), routing, **INPUTS)

    both = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
    loss, (by_logits, by_probs) = both(ROUTING.logits, PROBS, ROUTING)
    np.testing.assert_array_equal(by_logits[3], 0.0)
    assert np.isfinite(by_probs).all() and np.isfinite(loss)
    other = ROUTING.logits.copy()
    other[3] = 99.0
    assert both(other, PROBS, ROUTING)[0] == loss
    empty = ROUTING.replace(
        experts=np.full((4, 1), 2, np.int32),
        weights=np.zeros((4, 1), np.float32),
        valid=np.zeros(4, bool),
        load=np.zeros((4, 2), np.float32),
    )
    loss, grads = both(ROUTING.logits, np.zeros((4, 2), np.float32), empty)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in grads)
