"""The released FuseMoE layer's numbers, through m4's layer.

Inputs and weights are det(shape, phi, c) = c sin(1.7 n + phi), n the row-major index. The
values are those of the authors' torch layer (aaronhan223/FuseMoE at c5acf6f, float32, CPU) with
noise eps = det(., 3.3, 1). The release mixes exp(log_softmax(expert)) and takes the logarithm.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from m4.moe import gates, routers
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions


def det(shape, phi, c):
    return (c * np.sin(1.7 * np.arange(np.prod(shape)) + phi)).reshape(shape).astype(np.float32)


def expert_params(num_experts, width_out):
    """Torch layout is out x in; ours is that for w1, in x out for w2."""
    return {
        "w1": np.stack([det((5, 4), 0.3 + e, 0.5) for e in range(num_experts)]),
        "b1": np.stack([det((5,), 0.7 + e, 0.1) for e in range(num_experts)]),
        "w2": np.stack([det((width_out, 5), 1.1 + e, 0.5).T for e in range(num_experts)]),
        "b2": np.stack([det((width_out,), 1.9 + e, 0.1) for e in range(num_experts)]),
    }


def run(gate, x, gate_w, noise_w, eps, *, out=4, num_modalities=1, **fields):
    options = MoEOptions(
        gate=gate,
        num_experts=4,
        hidden=5,
        router="noisy_top_k",
        router_options=FrozenDict(normalise="after"),
        output="softmax",
        engine="dense",
        **fields,
    )
    layer = MoE(options, num_modalities=num_modalities, out=out, losses=("importance", "load"))
    params = expert_params(4, out)
    params[{"linear": "gate_w"}.get(gate, "gate_centre")] = gate_w
    params["router_noise"] = noise_w
    modality = np.repeat(np.arange(len(x) // 3), 3)
    given = {"valid_N": np.ones(len(x), bool), "modality_N": modality, "noise_NE": eps}
    y, aux = jax.jit(functools.partial(layer.apply, train=True))({"params": params}, x, **given)
    return y, 0.01 * (aux.losses["importance"] + aux.losses["load"]), aux


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


@pytest.mark.parametrize("gate", JOINT)
def test_joint(gate):
    w, n = det((4, 4), 0.2, 0.8), det((4, 4), 2.2, 0.3)
    y, loss, _ = run(gate, det((3, 4), 0.5, 1), w[None], n[None], det((3, 4), 3.3, 1))
    np.testing.assert_allclose(jnp.log(y), JOINT[gate][0], atol=1e-5)
    np.testing.assert_allclose(loss, JOINT[gate][1], atol=1e-6)


GATES_AND_LOAD = {
    "linear": (
        [[0, 0.408799, 0.591201, 0], [0, 0.375792, 0.624208, 0], [0, 0.365532, 0.634469, 0]],
        [0.634776, 2.812559, 2.670078, 0.276913],
    ),
    "laplace": (
        [[0, 0, 0.492559, 0.507441], [0, 0.410400, 0.589600, 0], [0, 0.401362, 0.598638, 0]],
        [0.846306, 2.299026, 1.590090, 0.894222],
    ),
    "gaussian": (
        [[0, 0.720316, 0.279684, 0], [0, 0.670903, 0.329097, 0], [0, 0.612831, 0.387169, 0]],
        [0.079498, 2.993664, 2.711866, 0.073635],
    ),
}


@pytest.mark.parametrize("gate", GATES_AND_LOAD)
def test_gates_and_load(gate):
    x, w, n = det((3, 4), 0.5, 1), det((4, 4), 0.2, 0.8), det((4, 4), 2.2, 0.3)
    got = routers.noisy_top_k(
        getattr(gates, gate)(x, w),
        np.ones(3, bool),
        k=2,
        x_ND=x,
        noise_DE=n,
        noise_NE=det((3, 4), 3.3, 1),
    )
    dense = np.zeros((3, 4))
    np.put_along_axis(dense, np.asarray(got.experts), np.asarray(got.weights), axis=1)
    np.testing.assert_allclose(dense, GATES_AND_LOAD[gate][0], atol=1e-5)
    np.testing.assert_allclose(got.load.sum(0), GATES_AND_LOAD[gate][1], atol=1e-5)


def test_permod():
    x = np.concatenate([det((3, 4), 0.5, 1), det((3, 4), 4.5, 1)])
    w = np.stack([det((4, 4), 0.2 + m, 0.8) for m in range(2)])
    n = np.stack([det((4, 4), 2.2 + m, 0.3) for m in range(2)])
    eps = np.tile(det((3, 4), 3.3, 1), (2, 1))
    y, loss, _ = run("laplace", x, w, n, eps, share="permod", num_modalities=2, out=8)
    want = [-4.167168, -4.421358, -3.849445, -4.095094, -4.564632, -3.892851, -4.011136, -4.461858]
    np.testing.assert_allclose(jnp.log(y[0]) + jnp.log(y[3]), want, atol=1e-5)
    np.testing.assert_allclose(loss, 0.02218427, atol=1e-6)


def test_disjoint():
    x = np.concatenate([det((3, 4), 0.5, 1), det((3, 4), 4.5, 1)])
    w = np.stack([det((4, 2), 0.2 + m, 0.8) for m in range(2)])
    n = np.stack([det((4, 2), 2.2 + m, 0.3) for m in range(2)])
    eps = np.tile(det((3, 2), 3.3, 1), (2, 1))
    fields = {"share": "disjoint", "num_modalities": 2, "out": 8, "top_k": 1}
    y, loss, aux = run("laplace", x, w, n, eps, **fields)
    # the release's gates are [1, 0], [0, 1], [0, 1] for both modalities
    np.testing.assert_array_equal(aux.stats["by_modality"], [[1, 2, 0, 0], [0, 0, 1, 2]])
    want = [-3.719207, -4.960048, -3.856046, -3.841114, -4.863641, -3.776390, -4.129161, -4.645640]
    np.testing.assert_allclose(jnp.log(y[0]) + jnp.log(y[3]), want, atol=1e-5)
    np.testing.assert_allclose(loss, 0.00467500, atol=1e-6)
