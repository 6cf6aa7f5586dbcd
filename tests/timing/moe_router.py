"""Gate, top-k and weights against their bound: the worker of `tests.timing.moe --part=router`."""

import contextlib
import functools

import jax
import jax.numpy as jnp

from m4 import sharding
from m4.moe import route, routers
from m4.resolve import resolve
from tests.timing.worker_process import serve


def setup(case):
    """The bound, and one variant per gate; all forward."""
    x_ND = jax.random.normal(jax.random.key(case["seed"]), (case["tokens"], case["dim"]))
    devices = case["cores"] if jax.default_backend() == "cpu" else 1
    variants = {f"bound_{n}": bound(case, x_ND, n) for n in {1, devices}}
    variants |= {gate: router(case, gate, x_ND, devices) for gate in case["gates"]}
    for _ in range(3):
        for run in variants.values():
            run()
    return variants, {"backend": jax.default_backend(), "jax": jax.__version__}


def bound(case, x_ND, devices=1):
    """One matmul [T, D] x [D, E] and one pass over its result, the maximum of every row."""
    w_DE = jax.random.normal(jax.random.key(1), (case["dim"], case["experts"]))
    return _timed(lambda x_ND, w_DE: jnp.max(x_ND @ w_DE, axis=1), devices, x_ND, w_DE)


def router(case, gate, x_ND, devices=1):
    """What the engine needs: the chosen experts and their weights."""
    function = resolve(gate, "m4.moe.gates")
    dims = {"D": case["dim"], "E": case["experts"], "R": 8, "Q": 0, "G": 1}
    params = {
        name: init(jax.random.key(i), shape)
        for i, (name, (shape, init)) in enumerate(route.parameters(function, dims).items())
    }
    valid_N = jnp.ones(case["tokens"], bool)

    def choose(x_ND, params):
        logits_NE = route.call(function, x_ND, options={}, **params)
        chosen = routers.top_k(logits_NE, valid_N, k=case["top_k"])
        return chosen.experts, chosen.weights

    return _timed(choose, devices, x_ND, params)


def _timed(function, devices, x_ND, params):
    """Rows split over host devices, as on the mesh of a training step; parameters on each."""
    mesh = sharding.make_mesh({"data": devices})
    args = sharding.put_batch(x_ND, mesh), jax.device_put(params, sharding.replicated(mesh))
    lowered = jax.jit(function, out_shardings=sharding.rows(mesh)).lower(*args)
    compiled = lowered.compile(sharding.compiler_options(mesh))
    return functools.partial(_block, compiled, args)


def _block(compiled, args):
    jax.block_until_ready(compiled(*args))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve(setup)
