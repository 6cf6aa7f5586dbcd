"""FuseMoE as released: vectors made with the authors' code, and its defects, each by name.

Reference vectors: 3 patients, width 4, 4 experts with 5 hidden units, top 2, no dropout, fixed
noise. `det` fills every array deterministically.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.methods.fusemoe import released as fusemoe
from m4.methods.fusemoe import torch_layout
from m4.methods.fusemoe.authors import PatientMoE
from m4.methods.fusemoe.paper import PaperFuseMoE
from m4.methods.fusemoe.released import impute_released, mixing_flatten, mixing_unflatten
from m4.moe.options import MoEOptions
from m4.nn.encoders.modalities import gather
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests import properties
from tests.methods.test_fusemoe import small
from tests.nn.test_query_tokens import GOLDEN_M, GOLDEN_T, GOLDEN_X, stack

options = functools.partial(
    MoEOptions, num_experts=4, top_k=2, hidden=5, router="noisy_top_k", engine="dense"
)
released_layer = functools.partial(fusemoe.released_layer, name=None)
LOSSES = ("importance", "load")
PATTERNS = jnp.zeros(3, jnp.int32)  # of three rows; only routers by pattern look at them


def det(shape, phase, scale):
    n = np.arange(np.prod(shape))
    return (scale * np.sin(1.7 * n + phase)).reshape(shape).astype(np.float32)


def golden_params(inputs, outputs, gates, experts_per_gate, share="joint"):
    """The authors' tensors through their table; it has no untrained gates, so those are added."""
    entries = torch_layout.experts("moe", "moe", list(range(gates)), share, 4, "laplace")
    names = [entry.names for entry in entries[:4]]
    state = {}
    for e in range(4):
        state[names[0][e]] = det((5, inputs), 0.3 + e, 0.5)
        state[names[1][e]] = det((5,), 0.7 + e, 0.1)
        state[names[2][e]] = det((outputs, 5), 1.1 + e, 0.5)
        state[names[3][e]] = det((outputs,), 1.9 + e, 0.1)
    params = {e.path.split("/")[1]: e.join([state[n] for n in e.names]) for e in entries[:4]}
    return params | {
        "gate": np.stack([det((4, experts_per_gate), 0.2 + m, 0.8) for m in range(gates)]),
        "router_noise": np.stack([det((4, experts_per_gate), 2.2 + m, 0.3) for m in range(gates)]),
    }


def run_golden(monkeypatch, u_BMQD, params, *, noise, **layer):
    """The released layer with the given noise per unit of a gate; routers as parameters."""

    def normal(key, shape, *_):  # shapes of initial values are asked for, too
        return jnp.asarray(noise) if shape == noise.shape else jnp.zeros(shape)

    monkeypatch.setattr(jax.random, "normal", normal)
    module = released_layer(options(**layer), LOSSES).clone(fixed_gates=False)
    stem = "gate_w" if layer.get("gate") == "linear" else "gate_centre"
    params = {stem if name == "gate" else name: x for name, x in params.items()}
    rows = jnp.ones(u_BMQD.shape[0], bool)
    patterns, rngs = jnp.zeros(len(u_BMQD), jnp.int32), {"gate": jax.random.key(0)}
    u_BMU, variables = mixing_flatten(u_BMQD, rows), {"params": {"moe": params}}
    y_BMU, aux = module.apply(variables, u_BMU, rows, patterns, train=True, rngs=rngs)
    return mixing_unflatten(y_BMU, rows, u_BMQD.shape[2]), aux


X = det((3, 4), 0.5, 1.0)
NOISE = det((3, 4), 3.3, 1.0)
JOINT = {
    "linear": (
        [
            [-1.372393, -1.556059, -1.334252, -1.301294],
            [-1.402166, -1.638357, -1.179562, -1.377438],
            [-1.477346, -1.644417, -1.048736, -1.477305],
        ],
        0.02169430,
    ),
    "laplace": (
        [
            [-1.459780, -1.392374, -1.323112, -1.374672],
            [-1.396638, -1.649040, -1.178438, -1.376031],
            [-1.468995, -1.650960, -1.054949, -1.470686],
        ],
        0.01120568,
    ),
    "gaussian": (
        [
            [-1.323453, -1.663899, -1.310271, -1.292296],
            [-1.355983, -1.733347, -1.170014, -1.365507],
            [-1.421077, -1.690474, -1.092431, -1.432489],
        ],
        0.02838195,
    ),
}


def balance(aux):
    """The authors weigh both squared coefficients of variation by 0.01."""
    return 0.01 * (aux.losses["importance"] + aux.losses["load"])


@pytest.mark.parametrize("gate", JOINT)
def test_joint_router_golden_vectors(monkeypatch, gate):
    params = golden_params(4, 4, 1, 4)
    y_BMQD, aux = run_golden(monkeypatch, X[:, None, None], params, noise=NOISE, gate=gate)
    expected, loss = JOINT[gate]
    np.testing.assert_allclose(y_BMQD[:, 0, 0], expected, atol=1e-5)
    np.testing.assert_allclose(balance(aux), loss, atol=1e-5)


TWO = np.stack([X, det((3, 4), 4.5, 1.0)], axis=1)[:, :, None]  # B M Q D


def test_permod_router_golden_vector(monkeypatch):
    # Every modality's gate draws for its own units; both see the same noise.
    params, noise = golden_params(4, 8, 2, 4, "permod"), NOISE
    y_BMQD, aux = run_golden(monkeypatch, TWO, params, noise=noise, share="permod")
    expected = [
        -4.167168, -4.421358, -3.849445, -4.095094, -4.564632, -3.892851, -4.011136, -4.461858,
    ]  # fmt: skip
    np.testing.assert_allclose(y_BMQD[0].ravel(), expected, atol=1e-5)
    np.testing.assert_allclose(balance(aux), 0.02218427, atol=1e-5)


def test_disjoint_router_golden_vector(monkeypatch):
    params, noise = golden_params(4, 8, 2, 2, "disjoint"), det((3, 2), 3.3, 1.0)
    y_BMQD, aux = run_golden(monkeypatch, TWO, params, noise=noise, share="disjoint", top_k=1)
    expected = [
        -3.719207, -4.960048, -3.856046, -3.841114, -4.863641, -3.776390, -4.129161, -4.645640,
    ]  # fmt: skip
    np.testing.assert_allclose(y_BMQD[0].ravel(), expected, atol=1e-5)
    np.testing.assert_allclose(balance(aux), 0.00467500, atol=1e-5)


def test_mixing_flatten_by_hand():
    # 2 patients a and b, 1 modality, times 0 to 2, width 1. Time-major storage is
    # a0 b0 a1 b1 a2 b2; cut into two rows it mixes the patients.
    x = np.array([[0, 1, 2], [10, 11, 12]], np.float32)[:, None, :, None]
    u_BMU = mixing_flatten(x, jnp.ones(2, bool))
    np.testing.assert_array_equal(u_BMU[:, 0], [[0, 10, 1], [11, 2, 12]])
    np.testing.assert_array_equal(mixing_unflatten(u_BMU, jnp.ones(2, bool), 3), x)


def test_mixing_is_among_the_rows_that_count():
    # a and b as above, between rows that only fill up the batch.
    x = np.array([[7, 7, 7], [0, 1, 2], [8, 8, 8], [10, 11, 12]], np.float32)[:, None, :, None]
    valid = jnp.array([False, True, False, True])
    u_BMU = mixing_flatten(x, valid)
    np.testing.assert_array_equal(u_BMU[[1, 3], 0], [[0, 10, 1], [11, 2, 12]])
    y_BMQD = mixing_unflatten(u_BMU, valid, 3)
    np.testing.assert_array_equal(y_BMQD[np.array([1, 3])], x[[1, 3]])


def test_mixing_flatten_is_right_for_one_patient():
    x = np.arange(24.0).reshape(1, 2, 4, 3)
    u_BMU = mixing_flatten(x, jnp.ones(1, bool))
    np.testing.assert_array_equal(u_BMU, x.reshape(1, 2, 12))  # all times of a modality


SPEC = DataSpec(
    modalities=(
        ModalitySpec("vitals", "series", (5, 3)),
        ModalitySpec("cxr", "vectors", (2, 4)),
        ModalitySpec("notes", "vectors", (2, 5)),
        ModalitySpec("ecg", "vectors", (2, 3)),
    ),
    tasks=(TaskSpec("death", "binary"),),
)


@pytest.fixture(scope="module")
def released():
    method = small(SPEC, fidelity="released", moe={"share": "joint"})
    return properties.probe(method)


def test_released_mixes_patients_of_a_batch(released):
    """Regression test of the defect: changing the last patient changes the others."""
    other = properties.replace_rows(released.batch, properties.random_batch(SPEC, seed=9), [5])
    before, after = released.predict(released.batch), released.predict(other)
    assert np.abs(before["death"] - after["death"])[:5].max() > 1e-3


def test_paper_does_not_mix_patients():
    method = small(SPEC, fidelity="paper", moe={"share": "joint"})
    properties.batch_composition_invariance(properties.probe(method))


@pytest.mark.parametrize("share", ["joint", "permod", "disjoint"])
def test_released_rows_that_only_fill_up_a_batch_change_nothing(share, monkeypatch):
    # The authors' last batch is a smaller one; here it is filled up, at any place, and what fills
    # it up may lack an ECG, which would give all others the type vector of text.
    monkeypatch.setattr(jax.random, "normal", lambda key, shape=(), *_: jnp.zeros(shape))
    method = small(SPEC, fidelity="released", moe={"share": share, "num_experts": 12})
    params, batch = properties.random_params(method), properties.random_batch(SPEC)
    ecg = batch.inputs["ecg"]
    there = ecg.replace(mask=ecg.mask | (np.arange(2) == 0), present=np.ones(6, bool))
    batch = batch.replace(inputs=batch.inputs | {"ecg": there})
    order, places = np.array([1, 0, 3, 2, 0, 5, 1, 4]), np.array([0, 3, 5, 7])
    filled = properties.take(batch, order)
    filled = filled.replace(weight=np.isin(np.arange(8), places).astype(np.float32))
    empty = properties.drop_modalities(filled, row=4)
    rngs = {"gate": jax.random.key(0)}
    predict = jax.jit(
        lambda b: method.apply({"params": params}, b, train=False, rngs=rngs).logits["death"]
    )
    expected = predict(properties.take(batch, order[places]))
    for some in (filled, empty):
        np.testing.assert_allclose(predict(some)[places], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("low", [1, 80, 95, 103])
def test_released_mixtures_keep_numbers_as_small_as_pytorch_does(low):
    # float32 below 2^-126 (e^-87.3): kept by PyTorch, flushed to 0 by XLA.
    x = jnp.array([[0.0, -low]])

    def mixture(x):
        return fusemoe.log_mixture(0.5 * fusemoe.lifted_softmax(x))

    y, grad = jax.jit(mixture)(x), jax.jit(jax.grad(lambda x: mixture(x)[0, 1]))(x)
    expected = np.log(0.5) + np.array([0.0, -low]) - np.log1p(np.exp(-low))
    np.testing.assert_allclose(y[0], expected, rtol=1e-6)
    share = np.exp(expected - np.log(0.5))  # d log p_1 / dx = 1_1 - p
    np.testing.assert_allclose(grad[0], [-share[0], 1 - share[1]], rtol=1e-5)


def test_released_mixtures_that_are_0_in_pytorch_are_its_floor():
    x = jnp.array([[0.0, -110.0, -1e4]])
    y = fusemoe.log_mixture(fusemoe.lifted_softmax(x))
    floor = np.log(np.finfo(float).eps)
    np.testing.assert_allclose(y[0], [0.0, floor, floor], rtol=1e-6, atol=1e-6)
    grad = jax.grad(lambda x: fusemoe.log_mixture(fusemoe.lifted_softmax(x))[0, 1])(x)
    np.testing.assert_array_equal(grad, 0.0)


def test_released_attention_over_times_has_eight_heads_whatever_num_heads():
    trees = {n: properties.parameter_tree(small(SPEC, "released", num_heads=n)) for n in (2, 4)}
    assert trees[2] == trees[4]
    assert "grid/notes/mtand/out/kernel (1, 40, 8)" in trees[2]  # 8 heads of 5 channels
    with pytest.raises(ValueError, match="embed_time: 8 heads cannot split a time embedding of 4"):
        properties.parameter_tree(small(SPEC, "released", embed_time=4))


def test_released_adds_no_balance_loss_and_the_paper_three():
    assert not fusemoe.ReleasedFuseMoE(SPEC).aux_weights
    assert set(PaperFuseMoE(SPEC).aux_weights) == {"importance", "load", "entropy"}


def test_released_draws_noise_in_evaluation(released):
    params = {"params": released.params}
    run = jax.jit(
        lambda key: released.method.apply(
            params, released.batch, train=False, rngs={"gate": key}
        ).logits["death"]
    )
    one, two = run(jax.random.key(0)), run(jax.random.key(1))
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_array_equal(one, run(jax.random.key(0)))


@pytest.mark.parametrize("share", ["joint", "permod", "disjoint"])
def test_released_routers_of_permod_and_disjoint_are_no_parameters(share):
    method = small(SPEC, fidelity="released", moe={"share": share, "num_experts": 12})
    tree = properties.parameter_tree(method)
    assert ("gate_centre" in tree) == (share == "joint")
    assert ("router_noise" in tree) == (share == "joint")


def test_released_gates_have_the_layer_s_names():
    def names(fidelity):
        moe = {"share": "joint", "gate": "cosine"}
        tree = properties.parameter_tree(small(SPEC, fidelity=fidelity, moe=moe))
        return {line.split()[0] for line in tree.splitlines() if "/gate_" in line}

    assert names("released") == names("paper") and len(names("paper")) > 1


def test_released_joint_router_starts_at_zero():
    module = released_layer(options(), LOSSES)
    rngs, u_BMU = {"params": jax.random.key(0), "gate": jax.random.key(1)}, TWO[:, :, 0]
    init = jax.jit(lambda: module.init(rngs, u_BMU, jnp.ones(3, bool), PATTERNS, train=True))
    params = nn.unbox(init())["params"]["moe"]
    assert not params["gate_centre"].any() and not params["router_noise"].any()
    assert params["w1"].any()


@pytest.mark.parametrize("released", [False, True])
def test_paper_mixture_is_linear_in_the_experts(released):
    # Twice the last layer of every expert gives twice the output; not so after a softmax.
    module = (released_layer if released else PatientMoE)(options(router="top_k"), ())
    rows, u_BMU = jnp.ones(3, bool), TWO[:, :, 0]
    init = jax.jit(lambda: module.init(jax.random.key(0), u_BMU, rows, PATTERNS, train=False))
    params = nn.unbox(init())["params"]["moe"]
    double = params | {name: 2 * params[name] for name in ("w2", "b2")}
    one, two = (
        module.apply({"params": {"moe": p}}, u_BMU, rows, PATTERNS, train=False)[0]
        for p in (params, double)
    )
    assert np.allclose(two, 2 * one, atol=1e-6) == (not released)


def test_released_first_position_does_not_learn(released):
    _, grads = released.grads(released.batch)
    assert not np.any(grads["position"][0]) and np.any(grads["position"][1])


def test_released_types_of_ecg():
    types = np.arange(8.0).reshape(4, 2)
    all_there, one_missing = np.ones((3, 4), bool), np.ones((3, 4), bool)
    one_missing[1, 3] = False
    np.testing.assert_array_equal(fusemoe.released_types(SPEC, types, all_there), types)
    expected = types[[0, 1, 2, 1]]
    np.testing.assert_array_equal(fusemoe.released_types(SPEC, types, one_missing), expected)


def test_released_time_units():
    vectors = gather(SPEC, properties.random_batch(SPEC)).vectors
    times = fusemoe.released_times(vectors, SPEC.hours)
    share = vectors["notes"].times
    np.testing.assert_allclose(times["notes"].times, 1.0 - share, rtol=1e-6)
    np.testing.assert_allclose(times["ecg"].times, 48.0 * vectors["ecg"].times, rtol=1e-6)


def test_released_zeroes_absent_modalities_and_paper_learns_them():
    names = {f: properties.parameter_tree(small(SPEC, fidelity=f)) for f in ("released", "paper")}
    assert "missing/embedding" not in names["released"]
    assert "missing/embedding" in names["paper"]


def test_released_imputation_golden_case():
    # The observed 2 of hour 1 is lost to the later row of the same hour; hour 2 has no row.
    series = stack(GOLDEN_X, GOLDEN_M, GOLDEN_T, np.ones(4, bool), bins=5)
    got = jnp.concatenate(impute_released(series, 5), -1)[0, 0]
    expected = [[1, 5, 1, 1], [1, 6, 1, 1], [0, 0, 0, 0], [3, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(got, expected)


def test_released_imputation_of_bin_0_reads_the_last_bin():
    # Rows at hours 4.5 and 0.5 (out of order, as the loop allows): the second row does not
    # observe the feature and takes the last bin's 7. Its flag stays 0.
    series = stack([[7.0], [0.0]], [[True], [False]], [4.5, 0.5], [True, True], bins=5)
    value, flag = impute_released(series, 5)
    np.testing.assert_array_equal(value[0, 0, :, 0], [7, 0, 0, 0, 7])
    np.testing.assert_array_equal(flag[0, 0, :, 0], [0, 0, 0, 0, 1])
