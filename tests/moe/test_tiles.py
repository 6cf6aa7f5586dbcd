"""Engine 'grouped': its table of tiles, its gradients, and the kernels where Triton is there."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.moe.engine import dispatch, tiles
from m4.moe.engine.dispatch import Target, apply_experts
from m4.moe.engine.grouped import make_plan
from m4.moe.experts import ExpertParams, Functions
from tests.moe.test_dispatch import CASES, ROUTINGS, close, make_routing

D, F, O = 16, 32, 48  # noqa: E741
TRITON = importlib.util.find_spec("triton") and importlib.util.find_spec("jax_triton")
TORCH = importlib.util.find_spec("torch")


def make_params(num_experts):
    rng = np.random.default_rng(0)
    shapes = {"w1": (F, D), "b1": (F,), "w2": (F, O), "b2": (O,)}
    made = {k: jnp.asarray(rng.normal(size=(num_experts, *s))) for k, s in shapes.items()}
    return ExpertParams(**made)


def rows(x_AX, w, table, turned):
    """What `rows_kernel` says, tile by tile; what no tile has is not a number."""
    w = w.swapaxes(1, 2) if turned else w
    out_AY = jnp.full((len(x_AX), w.shape[2]), jnp.nan, x_AX.dtype)
    for t in range(table.expert_T.size):
        place_A = jnp.arange(len(x_AX))
        own_A = (place_A >= table.start_T[t]) & (place_A < table.end_T[t])
        out_AY = jnp.where(own_A[:, None], x_AX @ w[table.expert_T[t]], out_AY)
    return out_AY


def outer(x_AX, y_AY, start_E):
    place_A = jnp.arange(len(x_AX))
    own_EA = (place_A >= start_E[:-1, None]) & (place_A < start_E[1:, None])
    return jnp.einsum("ea,ax,ay->exy", own_EA.astype(x_AX.dtype), x_AX, y_AY)


@pytest.fixture
def plain(monkeypatch):
    """The engine with kernels written out, and tiles of eight rows."""
    monkeypatch.setattr(tiles, "BLOCK", 8)
    monkeypatch.setattr(tiles.tiles_of, "__defaults__", (8,))
    monkeypatch.setattr(dispatch, "_kernels", lambda target: tiles.Kernels(rows, outer))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(("num_tokens", "k", "num_experts", "name"), CASES)
def test_value_and_gradients_are_those_of_the_definition(num_tokens, k, num_experts, name):
    experts_NK = ROUTINGS[num_tokens, k, num_experts][name]
    routing = make_routing(experts_NK, num_experts)
    x_ND = jnp.asarray(np.random.default_rng(3).normal(size=(num_tokens, D)))
    functions = Functions(jnp.tanh, lambda y: jax.nn.softmax(y, axis=-1))

    def found(engine):
        def run(x_ND, weights_NK, params):
            own = routing.replace(weights=weights_NK)
            return apply_experts(x_ND, own, params, functions, engine=engine)[0]

        def both(*args):
            y_NO, vjp = jax.vjp(run, *args)
            return y_NO, *vjp(jnp.cos(jnp.arange(y_NO.size)).reshape(y_NO.shape))

        return jax.jit(both)(x_ND, routing.weights, make_params(num_experts))

    close(found("grouped"), found("dense"), 1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_tiles_have_every_row_once(seed):
    rng = np.random.default_rng(seed)
    num_experts, block = int(rng.integers(1, 9)), int(rng.integers(1, 9))
    experts_NK = rng.choice(num_experts + 1, size=(int(rng.integers(1, 40)), 2))
    plan = make_plan(jnp.asarray(experts_NK, jnp.int32), num_experts)
    table = jax.tree.map(np.asarray, tiles.tiles_of(plan, block))
    found = []
    for e, low, high in zip(table.expert_T, table.start_T, table.end_T, strict=True):
        assert high - low <= block
        found += [(int(e), r) for r in range(low, high)]
    sizes = np.bincount(experts_NK.reshape(-1), minlength=num_experts + 1)[:num_experts]
    assert found == [(int(e), i) for i, e in enumerate(np.repeat(np.arange(num_experts), sizes))]


def test_gradients_have_the_dtype_of_the_arithmetic(plain):
    del plain
    routing = make_routing(ROUTINGS[23, 2, 7]["random"], 7)
    routing = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == float else x, routing)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), make_params(7))

    def loss(params):
        x_ND = jnp.ones((23, D), jnp.bfloat16)
        return apply_experts(x_ND, routing, params, Functions(jnp.tanh), engine="grouped")[0].sum()

    text = jax.jit(jax.grad(loss)).lower(params).as_text()
    assert f"tensor<7x{F}x{D}xbf16>" in text
    assert f"tensor<7x{F}x{D}xf32>" not in text  # no stack of them in float32, even for a moment


def test_where_it_cannot_run_it_says_so():
    routing = make_routing(ROUTINGS[23, 2, 7]["random"], 7)
    for target, words in (
        (Target("cpu", False), "needs Triton on an NVIDIA GPU: here is a cpu"),
        (Target("cuda", False), r"install m4-moe\[triton\]"),
    ):
        with pytest.raises(ValueError, match=words):
            apply_experts(
                jnp.ones((23, D)), routing, make_params(7), Functions(jnp.tanh),
                engine="grouped", target=target,
            )  # fmt: skip


@pytest.mark.usefixtures("plain")
def test_widths_that_no_tensor_core_takes_are_refused():
    routing = make_routing(ROUTINGS[23, 2, 7]["random"], 7)
    params = jax.tree.map(lambda p: p[..., : p.shape[-1] - 1], make_params(7))
    with pytest.raises(ValueError, match="multiples of 16, not 15"):
        x_ND = jnp.ones((23, D - 1))
        apply_experts(x_ND, routing, params, Functions(jnp.tanh), engine="grouped")


@pytest.mark.slow
@pytest.mark.skipif(not (TRITON and TORCH), reason="needs triton, jax-triton and torch")
def test_kernels_in_the_interpreter():
    env = os.environ | {"TRITON_INTERPRET": "1"}
    answer = subprocess.run(
        [sys.executable, "-m", "tests.moe.kernels_interpreted"],
        env=env,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert json.loads(answer.stdout.splitlines()[-1]) < 1e-6


@pytest.mark.slow
@pytest.mark.skipif(not TRITON, reason="needs triton and jax-triton")
def test_kernels_compiled_for_hopper():
    answer = subprocess.run(
        [sys.executable, "-m", "tests.moe.kernels_for_hopper"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    for name, found in json.loads(answer.stdout.splitlines()[-1]).items():
        assert found["wgmma"] > 0 and found["async"] > 0, name
        assert found["shared"] <= 232_448 and not found["local"], (name, found)


@pytest.mark.slow
@pytest.mark.skipif(
    not (TRITON and importlib.util.find_spec("jax_plugins.xla_cuda12")),
    reason="needs triton, jax-triton, jax[cuda12] and nvcc's wheel",
)
def test_layer_compiled_for_hopper():
    """256 experts of 2,048 x 8,192: 41.9 GB at the peak, where 'dropless' has 71.6."""
    command = [sys.executable, "-m", "tests.moe.layer_for_hopper", "256", "8192"]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["peak"] <= 50e9, found
    assert not found["float32 stack"] and not found["turned weights"], found
