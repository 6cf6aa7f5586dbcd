"""Every gate: hand-computed scores, identities, spread, memory, gradients.

The token is x = (3, 4), so |x| = 5; letters as in m4.moe.gates.
"""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from m4.moe import gates, route, routers, soft
from m4.moe.options import known

pytestmark = pytest.mark.usefixtures("quick_compile")
X = np.array([[3.0, 4.0]], np.float32)
NAMES = known("gate")
LEARNED = [n for n in NAMES if route.parameters(getattr(gates, n), dict.fromkeys("DERGQM", 2))]
AXES_DE = np.array([[1.0, 0.0], [0.0, -1.0]], np.float32)  # experts (1, 0) and (0, -1)
CENTRES_DE = np.array([[0.0, 3.0], [0.0, 0.0]], np.float32)  # (0, 0) and (3, 0): 5 and 4 away
Z2 = np.zeros(2, np.float32)


def log_sigmoid(z):
    return -math.log1p(math.exp(-z))


def draw(name, num_tokens, width, num_experts, seed=0):
    """Tokens of unit variance, the gate bound to its inputs, and its parameters."""
    gate = getattr(gates, name)
    rng = np.random.default_rng(seed)
    x_ND = rng.normal(size=(num_tokens, width)).astype(np.float32)
    dims = {"D": width, "E": num_experts, "R": 4, "Q": 3}
    keys = jax.random.split(jax.random.key(seed), 8)
    declared = route.parameters(gate, dims).items()
    params = {a: init(k, shape) for k, (a, (shape, init)) in zip(keys, declared, strict=False)}
    given = {
        "num_experts": num_experts,
        "modality_N": np.arange(num_tokens) % 3,
        "num_modalities": 3,
        "slot_N": np.arange(num_tokens) % 6,
        "query_NQ": rng.normal(size=(num_tokens, 3)).astype(np.float32),
    }
    given = {k: v for k, v in given.items() if k in inspect.signature(gate).parameters}
    return x_ND, jax.jit(lambda x, params: gate(x, **params, **given)), params


HAND = {
    "linear": (gates.linear(X, AXES_DE), [3.0, -4.0]),
    "noisy_linear": (gates.noisy_linear(X, AXES_DE, 0 * AXES_DE), [3.0, -4.0]),
    # temperature 2 halves
    "dense_to_sparse": (gates.dense_to_sparse(X, AXES_DE, temperature=2.0), [1.5, -2.0]),
    "sigmoid": (
        gates.sigmoid(X, AXES_DE, np.array([0.5, 1.0], np.float32)),
        [log_sigmoid(3.5), log_sigmoid(-3.0)],
    ),
    "sqrt_softplus": (
        gates.sqrt_softplus(X, AXES_DE),
        [0.5 * math.log(math.log1p(math.exp(3))), 0.5 * math.log(math.log1p(math.exp(-4)))],
    ),
    "relu": (gates.relu(X, AXES_DE), [math.log(3.0), -math.inf]),
    # task embedding 2 with v = (1, 10): adds 2 and 20
    "task_additive": (
        gates.task_additive(X, AXES_DE, np.float32([[1, 10]]), query_NQ=np.float32([[2]])),
        [5.0, 16.0],
    ),
    # P = identity: cosines 3/5 and -4/5, tau = 0.5
    "cosine": (
        gates.cosine(X, np.eye(2, dtype=np.float32), 7 * AXES_DE, jnp.log(0.5)),
        [1.2, -1.6],
    ),
    # |x| + 1 = 6, |w| + 1 = 2
    "perturbed_cosine": (
        gates.perturbed_cosine(X, AXES_DE, jnp.zeros(()), offset_x=1.0, offset_w=1.0),
        [3 / 12, -4 / 12],
    ),
    "laplace": (gates.laplace(X, CENTRES_DE), [-5.0, -4.0]),
    "gaussian": (gates.gaussian(X, CENTRES_DE), [-25.0, -16.0]),
    # nu = 3: -2 log(1 + d^2 / 3)
    "student_t": (
        gates.student_t(X, CENTRES_DE, nu=3.0),
        [-2 * math.log(1 + 25 / 3), -2 * math.log(1 + 16 / 3)],
    ),
    "polynomial": (gates.polynomial(X, CENTRES_DE, power=1.0), [-math.log(6), -math.log(5)]),
    # sqrt(2 D) = 2, tau = 0.5: (b + 2 - d) / tau
    "euclidean_sigmoid": (
        gates.euclidean_sigmoid(X, CENTRES_DE, np.float32([0, 2]), jnp.log(0.5)),
        [log_sigmoid(-6.0), log_sigmoid(0.0)],
    ),
    # R = 1, u = v = expert axis: <x, u>^2 + c
    "quadratic_monomial": (
        gates.quadratic_monomial(X, AXES_DE[None], AXES_DE[None], np.float32([0, 1])),
        [9.0, 17.0],
    ),
    "quadratic": (
        gates.quadratic(X, AXES_DE[None], AXES_DE[None], AXES_DE, np.float32([0, 1])),
        [12.0, 13.0],
    ),
    "fixed_random": (gates.fixed_random(X, 7 * AXES_DE), [3.0, -4.0]),
    # modality 1 of 2: the second half of the experts
    "oracle": (
        gates.oracle(X, num_experts=4, modality_N=np.array([1]), num_modalities=2),
        [-math.inf, -math.inf, 0.0, 0.0],
    ),
}


def test_every_gate_is_computed_by_hand():
    assert set(HAND) | {"hash", "uniform", "hash_modality"} == set(NAMES)  # below, by their laws


@pytest.mark.parametrize("name", HAND)
def test_by_hand(name):
    got, want = HAND[name]
    np.testing.assert_allclose(got[0], want, rtol=2e-6, atol=1e-6)


def test_gaussian_is_a_biased_linear_gate():
    """-|x - w|^2 = 2 <x, w> - |w|^2 - |x|^2, and a softmax does not see the last term."""
    x, score, params = draw("gaussian", 50, 6, 12)
    w = params["centre_DE"]
    linear = gates.linear(x, 2 * w) - jnp.sum(w**2, 0)
    np.testing.assert_allclose(
        jax.nn.softmax(score(x, params)), jax.nn.softmax(linear), rtol=2e-5, atol=1e-7
    )
    top = [jax.lax.top_k(s, 3)[1] for s in (score(x, params), linear)]
    np.testing.assert_array_equal(*top)


def test_laplace_is_linear_in_direction_far_from_the_centres():
    """|x| >> |w|: -|x - w| = -|x| + <x, w> / |x| + O(|w|^2 / |x|)."""
    x, score, params = draw("laplace", 20, 16, 8)
    far, w = 200.0 * x, params["centre_DE"]
    norm = np.linalg.norm(far, axis=-1, keepdims=True)
    bound = float(jnp.sum(w**2, 0).max() / norm.min())
    got = score(far, params) + norm
    np.testing.assert_allclose(got, gates.linear(far / norm, w), atol=1.1 * bound / 2)


def test_soft_moe_score_is_the_cosine_without_offsets():
    x, _, params = draw("perturbed_cosine", 9, 5, 4)
    got = gates.perturbed_cosine(x, **params, offset_x=0.0, offset_w=0.0)
    identity = gates.cosine(x, np.eye(5, dtype=np.float32), params["w_DE"], jnp.zeros(()))
    np.testing.assert_allclose(got, identity, rtol=1e-5, atol=1e-6)


def test_full_rank_quadratic_is_any_quadratic_form():
    """With R = D, u = identity and v = sqrt(D) A' the form is x' A x."""
    rng = np.random.default_rng(0)
    a_EDD, x = rng.normal(size=(3, 4, 4)).astype(np.float32), rng.normal(size=(5, 4))
    u_RDE = np.repeat(np.eye(4, dtype=np.float32)[:, :, None], 3, axis=2)
    v_RDE = 2.0 * np.einsum("erd->rde", a_EDD)
    got = gates.quadratic_monomial(x.astype(np.float32), u_RDE, v_RDE, np.zeros(3, np.float32))
    np.testing.assert_allclose(got, np.einsum("nr,erd,nd->ne", x, a_EDD, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_spread_does_not_depend_on_the_number_of_experts(name):
    spreads = []
    for num_experts in (16, 1024):
        x, score, params = draw(name, 256, 32, num_experts)
        logits = np.asarray(score(x, params))
        if np.isinf(logits).any():  # relu and oracle: the affinities themselves
            logits = np.exp(logits)
        spreads.append(np.mean(np.std(logits, axis=1)))
    if name == "uniform":  # a tie-break of 1e-3 per expert
        assert max(spreads) < 1e-3
    else:
        np.testing.assert_allclose(spreads[1], spreads[0], rtol=0.15)


def intermediate_sizes(jaxpr):
    for eqn in jaxpr.eqns:
        yield from (math.prod(v.aval.shape) for v in eqn.outvars)
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from intermediate_sizes(inner)


@pytest.mark.parametrize("name", NAMES)
def test_no_array_of_tokens_by_width_by_experts(name):
    """Forward and backward; the largest array allowed is that of the scores or parameters."""
    num_tokens, width, num_experts = 64, 128, 96
    x, score, params = draw(name, num_tokens, width, num_experts)
    loss = jax.grad(lambda x, p: score(x, p).sum(), argnums=(0, 1))
    jaxpr = jax.make_jaxpr(loss)(x, params).jaxpr
    largest = max([num_tokens * num_experts, *(p.size for p in params.values())])
    largest = max(largest, num_tokens * width)
    assert max(intermediate_sizes(jaxpr)) <= largest
    assert largest < num_tokens * width * num_experts / 8


def test_the_memory_test_sees_a_broadcast():
    naive = jax.jit(lambda x_ND, w_DE: jnp.sum((x_ND[:, :, None] - w_DE) ** 2, 1))
    jaxpr = jax.make_jaxpr(naive)(np.zeros((4, 3)), np.zeros((3, 5))).jaxpr
    assert max(intermediate_sizes(jaxpr)) == 4 * 3 * 5


@pytest.mark.parametrize("name", [n for n in LEARNED if n != "fixed_random"])
def test_gradients_match_finite_differences(name):
    x, score, params = draw(name, 3, 4, 5, seed=1)
    finite = jax.jit(lambda x, p: jnp.exp(score(x, p)) if name == "relu" else score(x, p))
    check_grads(finite, (x, params), order=1, modes=["rev"], atol=3e-2, rtol=3e-2, eps=1e-2)


@pytest.mark.parametrize("name", LEARNED)
def test_nan_is_never_hidden(name):
    """A damaged router must be seen in its logits: not as a 0, not as an expert that is off."""
    x, score, params = draw(name, 3, 4, 5)
    assert np.isnan(score(jnp.full_like(x, jnp.nan), params)).any()
    assert np.isnan(score(x, jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params))).any()


def test_nan_is_no_vector_of_length_0():
    assert np.isnan(soft.unit(jnp.full((2, 3), jnp.nan))).all()
    np.testing.assert_array_equal(soft.unit(jnp.zeros((2, 3))), 0)


DISTANCES = ("laplace", "gaussian", "student_t", "polynomial", "euclidean_sigmoid")


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("width", [2, 128])
def test_token_on_its_centre(name, width):
    """The distance is 0 in spite of rounding, and that pair gets no gradient."""
    x, score, params = draw(name, 4, width, 4)
    params["centre_DE"] = jnp.asarray(x.T)
    logits = score(x, params)
    assert jnp.all(jnp.argmax(logits, -1) == jnp.arange(4))
    if name not in ("euclidean_sigmoid",):
        np.testing.assert_array_equal(jnp.diag(logits), 0.0)
    own = jax.jit(jax.grad(lambda x: jnp.sum(jnp.diag(score(x, params)))))(x)
    np.testing.assert_allclose(own, 0.0, atol=1e-6)


def test_distance_keeps_its_digits_far_from_the_origin():
    """Against float64 by broadcasting, with |x| of the size that a layer norm gives."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(64, 128)), rng.normal(size=(128, 32))
    want = -np.sqrt(((x[:, :, None] - w) ** 2).sum(1))
    got = gates.laplace(x.astype(np.float32), w.astype(np.float32))
    np.testing.assert_allclose(got, want, rtol=2e-6)


@pytest.mark.parametrize("name", LEARNED)
def test_zero_token_and_zero_weights_have_finite_gradients(name):
    x, score, params = draw(name, 2, 3, 4)
    params = jax.tree.map(np.zeros_like, params)
    total = jax.jit(jax.grad(lambda x, p: jnp.sum(jnp.exp(score(x, p))), argnums=(0, 1)))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(total(0 * x, params)))


def test_sqrt_softplus_deep_in_the_tail():
    """softplus(z) = exp(z) there, so log sqrt is z / 2; continuous at the switch."""
    z = np.float32([[-100.0, -15.001, -14.999]])
    got = gates.sqrt_softplus(np.ones((1, 1), np.float32), z)
    np.testing.assert_allclose(got, z / 2, rtol=1e-5)


def test_noise_only_with_a_key():
    for name in ("noisy_linear", "dense_to_sparse"):
        x, _, params = draw(name, 4, 3, 5)
        gate = getattr(gates, name)
        quiet, loud = gate(x, **params), gate(x, **params, key=jax.random.key(0))
        np.testing.assert_array_equal(quiet, gates.linear(x, params["w_DE"]))
        assert float(jnp.abs(quiet - loud).min()) > 0


def murmur(bits):
    """The finaliser of MurmurHash3, in Python's integers."""
    bits = (bits ^ bits >> 16) * 0x85EBCA6B % 2**32
    bits = (bits ^ bits >> 13) * 0xC2B2AE35 % 2**32
    return bits ^ bits >> 16


def fixed(row, column):
    return (murmur(murmur((row + 0x9E3779B9) % 2**32) ^ column) >> 8) / 2**23 - 1


def test_hash_by_hand():
    """Eight directions of x = (3, 4), eight waves on each, and a triangle of period 1."""
    along = [(3 * fixed(0, r) + 4 * fixed(1, r)) * 1.5**0.5 for r in range(8)]
    cycles = [sum(8 * a * fixed(r, e) for r, a in enumerate(along)) + fixed(0, e) for e in range(5)]
    want = [abs(2 * (c - math.floor(c)) - 1) for c in cycles]
    np.testing.assert_allclose(gates.hash(X, num_experts=5)[0], want, atol=1e-4)
    np.testing.assert_allclose(gates.uniform(X, num_experts=5)[0], 1e-3 * np.array(want), atol=1e-7)


def knowledge(expert_N, label_N, num_experts):
    """(I - I of permuted labels) / (H(label) - the same), 1 where the expert tells the label."""

    def information(label_N):
        table = np.zeros((num_experts, label_N.max() + 1))
        np.add.at(table, (expert_N, label_N), 1 / len(expert_N))
        product = table.sum(1, keepdims=True) * table.sum(0)
        return np.sum(table[table > 0] * np.log(table[table > 0] / product[table > 0]))

    rng = np.random.default_rng(0)
    chance = np.mean([information(rng.permutation(label_N)) for _ in range(5)])
    share = np.bincount(label_N) / len(label_N)
    return (information(label_N) - chance) / (-np.sum(share * np.log(share)) - chance)


@pytest.mark.parametrize("num_experts", [3, 15, 16, 256])
@pytest.mark.parametrize("name", ["hash", "uniform", "hash_modality", "oracle"])
def test_null_gates_know_nothing(name, num_experts):
    """4 modalities of means far apart, a token each; a tenth of the tokens' size is their own.

    Whether modalities divide the experts or not; and what is no null gate is seen.
    """
    rng, rows = np.random.default_rng(1), 2000
    modality, row = np.arange(4 * rows) % 4, np.arange(4 * rows) // 4
    x = rng.normal(size=(4, 32))[modality] + 0.1 * rng.normal(size=(4 * rows, 32))
    given = {"num_experts": num_experts, "modality_N": modality, "num_modalities": 4}
    given |= {"slot_N": modality}
    score = getattr(gates, name)
    given = {n: v for n, v in given.items() if n in inspect.signature(score).parameters}
    expert = np.argmax(score(x.astype(np.float32), **given), axis=-1)
    known_of = [knowledge(expert, label, num_experts) for label in (modality, row % 5)]
    if name in ("hash", "uniform"):
        np.testing.assert_allclose(known_of, 0.0, atol=0.02)
        load = np.bincount(expert, minlength=num_experts) / expert.size
        sd = (1 / num_experts / expert.size) ** 0.5
        np.testing.assert_allclose(load, 1 / num_experts, atol=6 * sd + 0.05 / num_experts)
    else:
        assert known_of[0] > 0.5


def test_uniform_weighs_its_experts_alike():
    x, score, params = draw("uniform", 50, 6, 12)
    np.testing.assert_allclose(jax.nn.softmax(score(x, params)), 1 / 12, rtol=1e-3)
    assert len(np.unique(np.argmax(score(x, params), axis=-1))) > 8
    assert len(np.unique(np.argmax(score(0 * x, params), axis=-1))) == 1


def test_uniform_knows_no_place_after_a_softmax_in_float32():
    # known bad: scores that differ by 1e-6 tie, and ties go to the lower place (720 against 364)
    x_ND, rows = jax.random.normal(jax.random.key(0), (2048, 16)), 256
    scores_NE, valid_N = gates.uniform(x_ND, num_experts=16), jnp.ones(2048, bool)
    chosen = routers.expert_choice(scores_NE, valid_N, k=2, num_rows=rows)
    by_place = np.bincount(np.asarray(chosen.tokens).ravel() % 8, minlength=8)
    assert by_place.max() < 1.2 * by_place.min()


def test_hash_modality_depends_on_modality_and_position_only():
    x, _, _ = draw("linear", 12, 3, 8)
    modality, slot = np.arange(12) // 6, np.arange(12) % 3  # every pair occurs twice
    given = {"num_experts": 8, "modality_N": modality, "slot_N": slot}
    logits = np.asarray(gates.hash_modality(x, **given))
    np.testing.assert_array_equal(logits, gates.hash_modality(5 * x, **given))
    for m in range(2):
        np.testing.assert_array_equal(logits[6 * m : 6 * m + 3], logits[6 * m + 3 : 6 * m + 6])
    assert len(np.unique(logits)) == 2 * 3 * 8
    assert logits.min() >= 0 and logits.max() < 1


def test_hash_modality_is_spread_evenly():
    slot = np.arange(20_000)
    logits = gates.hash_modality(
        np.zeros((slot.size, 1), np.float32), num_experts=10, modality_N=0 * slot, slot_N=slot
    )
    share = np.bincount(np.argmax(logits, -1), minlength=10) / slot.size
    # binomial: sd of a share is sqrt(.1 * .9 / 20000) = 0.0021
    np.testing.assert_allclose(share, 0.1, atol=5 * 0.0021)


def test_fixed_random_is_not_trained_even_by_weight_decay():
    x, score, params = draw("fixed_random", 6, 4, 5)
    grads = jax.grad(lambda p: score(x, p).sum())(params)
    np.testing.assert_array_equal(grads["w_DE"], 0.0)
    shrunk = jax.tree.map(lambda p: 0.3 * p, params)
    np.testing.assert_allclose(score(x, shrunk), score(x, params), rtol=1e-5, atol=1e-6)


def test_oracle_with_more_modalities_than_experts():
    logits = gates.oracle(
        np.zeros((3, 1), np.float32),
        num_experts=2,
        modality_N=np.array([0, 1, 2]),
        num_modalities=3,
    )
    np.testing.assert_array_equal(np.argmax(logits, -1), [0, 1, 0])
