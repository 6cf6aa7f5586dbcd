"""The layer and its dense bound in JAX: the worker process of `tests.timing.moe`."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from m4.bench import compiled as programs
from m4.moe import experts
from m4.moe.engine import dispatch
from m4.moe.engine import mesh as parallel
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions
from m4.sharding import compiler_options
from m4.types import Routing
from tests.timing import moe_router
from tests.timing.moe_case import make_case
from tests.timing.worker_process import serve


def setup(case):
    """The variants of one case, and facts about each: loss, peak bytes, program size."""
    arrays = make_case(case)
    dtype = jnp.dtype(case["dtype"])
    variants, facts = {}, {}
    host = jax.default_backend() == "cpu"
    for devices in {1, case["cores"] if host else 1}:
        variants[f"dense_{devices}"] = _dense(case, arrays, dtype, devices)
    split = case["split"] if host else 1
    for engine in case["engines"]:
        variants[engine], facts[engine] = _layer(case, arrays, dtype, engine, split)
    if case["gate"]:
        variants["gated"] = _gated(case, arrays, dtype)
        x = jnp.asarray(arrays["x"])
        variants["router"] = moe_router.router(case, case["gate"], x)
        variants["router_bound"] = moe_router.bound(case, x)
    for _ in range(2):
        for run in variants.values():
            run()
    about = {"backend": jax.default_backend(), "device": jax.devices()[0].device_kind}
    return variants, about | {"jax": jax.__version__, "split": split, "facts": facts}


def _timed(compiled, args):
    """A run that blocks, and frees its results before it returns."""

    def run():
        jax.block_until_ready(compiled(*args))

    return run


def _dense(case, arrays, dtype, devices):
    """Bound: one two-matmul perceptron on the same T*k rows, rows split over host devices."""
    mesh = _mesh(devices)
    rows, whole = NamedSharding(mesh, P("expert")), NamedSharding(mesh, P())
    x = np.repeat(arrays["x"], case["top_k"], axis=0)
    args = [x, arrays["w1"][0], arrays["w2"][0]]
    shardings = (rows, whole, whole)

    def loss(x_ND, w1_DF, w2_FD):
        y = jax.nn.relu(x_ND @ w1_DF) @ w2_FD
        return jnp.mean(jnp.square(y.astype(jnp.float32)))

    args = jax.device_put(tuple(a.astype(dtype) for a in args), shardings)
    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), out_shardings=(whole, shardings))
    return _timed(step.lower(*args).compile(compiler_options(mesh)), args)


def _layer(case, arrays, dtype, engine, split):
    """The layer without its gate: engine and experts; gradients of all inputs."""
    arrays = arrays | {"w1": np.ascontiguousarray(arrays["w1"].swapaxes(1, 2))}
    mesh = _mesh(split)
    axes = parallel.Axes(tokens=(), fsdp=None, tensor=None)
    whole = NamedSharding(mesh, P())
    of_experts = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        axes.on(
            mesh, experts.ExpertParams(*(arrays[n] for n in ("w1", "b1", "w2", "b2")))
        ).weights(),
    )
    apply = functools.partial(dispatch.apply_experts)
    if split > 1:
        apply = functools.partial(
            parallel.apply_experts, mesh=mesh, axes=axes, exchange="replicated"
        )

    def loss(x_ND, weights_NK, params, chosen):
        empty = jnp.zeros((x_ND.shape[0], 0))
        routing = Routing(chosen, weights_NK, empty, empty, jnp.ones(x_ND.shape[0], bool))
        y_ND, lost_NK = apply(x_ND, routing, params, experts.Functions(jax.nn.relu), engine=engine)
        dropped = jnp.zeros(()) if lost_NK is None else lost_NK.mean()
        return jnp.mean(jnp.square(y_ND.astype(jnp.float32))), dropped

    params = experts.ExpertParams(*(arrays[n].astype(dtype) for n in ("w1", "b1", "w2", "b2")))
    shardings = (whole, whole, of_experts)
    # The routing is an argument: of a constant the compiler would sort the assignments itself.
    args = (arrays["x"].astype(dtype), arrays["weights"], params, arrays["experts"].astype("int32"))
    args = jax.device_put(args, (*shardings, whole))
    step = jax.jit(
        jax.value_and_grad(loss, (0, 1, 2), has_aux=True),
        out_shardings=((whole, whole), shardings),
    )
    lowered = step.lower(*args)
    compiled = lowered.compile(compiler_options(mesh))
    (value, dropped), _ = compiled(*args)
    facts = {
        "loss": float(value),
        "dropped": float(dropped),
        "peak_bytes": programs.peak_bytes(compiled) * split,
        "program_bytes": len(lowered.as_text()),
    }
    return _timed(compiled, args), facts


def _gated(case, arrays, dtype):
    """The whole Linen layer with its gate and top-k, on one device."""
    options = MoEOptions(
        num_experts=case["experts"],
        top_k=case["top_k"],
        hidden=case["hidden"],
        gate=case["gate"],
        activation="relu",
        engine=case["engines"][0],
    )
    layer = MoE(options)
    x = jnp.asarray(arrays["x"], dtype)
    given = {"valid_N": jnp.ones(x.shape[0], bool), "train": False}
    variables = jax.jit(lambda: layer.init(jax.random.key(0), x, **given))()
    step = jax.jit(
        jax.grad(
            lambda v, x: jnp.mean(jnp.square(layer.apply(v, x, **given)[0].astype(jnp.float32))),
            (0, 1),
        )
    )
    return _timed(step.lower(variables, x).compile(), (variables, x))


def _mesh(devices):
    return jax.make_mesh((devices,), ("expert",), (AxisType.Auto,), devices=jax.devices()[:devices])


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve(setup)
