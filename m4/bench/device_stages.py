"""One stage of `m4.bench.device` in JAX: reads what is asked as JSON, prints one line of JSON.

Data are made on the device, normal numbers in bfloat16 (zeros would be faster than what occurs);
routing is an argument of the compiled program, every gradient a result.

Letters: N tokens, K choices, A = N K rows, E experts, D width, F hidden units.
"""

import dataclasses
import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m4.bench import compiled as programs
from m4.bench.clock import milliseconds
from m4.moe import experts, routers
from m4.moe.engine import dispatch
from m4.moe.engine.grouped import make_plan
from m4.moe.engine.rows import sort_rows, unsort_rows
from m4.types import Array, Routing

RELU = experts.Functions(jax.nn.relu)


@dataclasses.dataclass(frozen=True)
class Case:
    """What a stage is asked."""

    asked: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.asked[name]

    @property
    def units(self) -> int:
        """Hidden units of an expert."""
        return self.asked["hidden"][str(self.experts)]

    def timed(self, step) -> dict[str, float]:
        """See `clock.milliseconds`."""
        return milliseconds(step, jax.block_until_ready, seconds=self.seconds, groups=self.groups)


def facts(case: Case) -> dict[str, Any]:
    """What the machine is."""
    del case
    device = jax.devices()[0]
    major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
    memory = device.memory_stats() or {}
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "devices": jax.device_count(),
        "capability": 10 * int(major) + int(minor) if major.isdecimal() else 0,
        "memory_gb": memory.get("bytes_limit", 0) / 1e9,
        "jax": jax.__version__,
        "triton": bool(dispatch.target_of(device).triton),
    }


def chosen(num_tokens: int, k: int, num_experts: int, how: str) -> Array:
    """Experts of every token, i32[N, K], distinct: uniform, zipf (1), one (all to the same K)."""
    power = {"uniform": 0.0, "half": 0.0, "zipf": 1.0, "one": 0.0}[how]
    weight_E = -power * jnp.log(jnp.arange(1, num_experts + 1, dtype=jnp.float32))
    if how == "one":
        weight_E = jnp.where(jnp.arange(num_experts) < k, 1e6, 0.0)
    noise_NE = jax.random.gumbel(jax.random.key(1), (num_tokens, num_experts))
    experts_NK = jax.lax.top_k(noise_NE + weight_E, k)[1].astype(jnp.int32)
    if how == "half":  # every other token names nobody
        return jnp.where(jnp.arange(num_tokens)[:, None] % 2 == 0, experts_NK, num_experts)
    return experts_NK


def normal(seed: int, shape: tuple[int, ...], scale: float = 1.0, dtype: Any = jnp.bfloat16):
    """Normal numbers, made on the device."""
    make = functools.partial(jax.random.normal, shape=shape, dtype=dtype)
    return jax.jit(lambda key: make(key) * jnp.asarray(scale, dtype))(jax.random.key(seed))


def parameters(num_experts: int, d: int, f: int, dtype: Any = jnp.bfloat16):
    """Weights of experts, scaled by fan-in."""
    scales = {"w1": d**-0.5, "b1": 0.1, "w2": f**-0.5, "b2": 0.1}
    shapes = experts.shapes(num_experts, d, f)
    made = {n: normal(i, shapes[n], scales[n], dtype) for i, n in enumerate(shapes)}
    return experts.ExpertParams(**made)


def gradients(engine: str, target: Any = None):
    """Compiled-to-be (x, weights, params, experts, g) -> every gradient of <y, g>, and y."""

    def loss(x_ND, weights_NK, params, experts_NK, g_NO):
        nothing = jnp.zeros((len(x_ND), 0))
        named_N = (experts_NK < params.w1.shape[0]).any(1)
        routing = Routing(experts_NK, weights_NK, nothing, nothing, named_N)
        kwargs = {"engine": engine, "target": target}
        y_NO, _ = dispatch.apply_experts(x_ND, routing, params, RELU, **kwargs)
        return jnp.sum((y_NO * g_NO).astype(jnp.float32)), y_NO

    return jax.grad(loss, (0, 1, 2), has_aux=True)


def right(case: Case) -> dict[str, Any]:
    """Largest relative error of values and gradients of every engine that runs here.

    In float32 against 'dense' at the highest precision; in bfloat16 likewise, at most half as much
    again as 'dense' itself has in bfloat16.
    """
    n, d, f = (8192, 256, 512) if case.side > 1000 else (256, 64, 128)
    target = dispatch.target_of(jax.devices()[0])
    runs = {"grouped": bool(target.triton), "dropless": True, "ragged": target.grouped}
    names, worst = ["dense", *(name for name, does in runs.items() if does)], {}
    for num_experts in (8, 64) if case.side > 1000 else (8,):
        params = parameters(num_experts, d, f, jnp.float32)
        x_ND, g_ND = (normal(s, (n, d), dtype=jnp.float32) for s in (7, 8))
        weights_NK = jax.nn.softmax(normal(9, (n, 2), dtype=jnp.float32))
        low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (x_ND, params, g_ND))
        steps = {name: jax.jit(gradients(name)) for name in names}
        for how in ("uniform", "zipf", "one", "half"):
            experts_NK = chosen(n, 2, num_experts, how)
            with jax.default_matmul_precision("highest"):
                want = steps["dense"](x_ND, weights_NK, params, experts_NK, g_ND)
                exact = {e: steps[e](x_ND, weights_NK, params, experts_NK, g_ND) for e in names[1:]}
            short = {e: steps[e](low[0], weights_NK, low[1], experts_NK, low[2]) for e in names}
            for kind, found in (("float32", exact), ("bfloat16", short)):
                for name, value in found.items():
                    key = f"{name} {kind}"
                    worst[key] = max(worst.get(key, 0.0), error(value, want))
    limits = {"float32": 1e-5, "bfloat16": 1.5 * worst["dense bfloat16"]}
    wrong = {k: v for k, v in worst.items() if not v <= limits[k.split()[1]]}
    if wrong:
        return {"status": "failed", "why": f"differs from 'dense': {wrong}", **worst}
    return worst


def error(found: Any, want: Any) -> float:
    """Largest difference of a leaf's Euclidean norm, relative; not a number is infinite."""
    gaps = []
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        gap = np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-6)
        gaps.append(gap if np.isfinite(gap) else np.inf)
    return float(max(gaps))


def bounds(case: Case) -> dict[str, Any]:
    """A square product and a copy: what the device can do."""
    x, y = (normal(s, (case.side, case.side)) for s in (1, 2))
    product = case.timed(functools.partial(jax.jit(jnp.matmul), x, y))
    long = normal(3, (case.side * case.side * 8,))
    copy = case.timed(functools.partial(jax.jit(lambda a: a + 1), long))
    return product | {
        "tflops": 2 * case.side**3 / product["ms"] / 1e9,
        "copy_gb_s": 2 * 2 * long.size / copy["ms"] / 1e6,
    }


def dense_products(case: Case):
    """A step of the six products of the layer on its A rows, by two matrices."""
    rows = case.tokens * case.top_k
    x_AD, g_AD = (normal(s, (rows, case.width)) for s in (11, 12))
    w1, w2 = normal(13, (case.units, case.width), 0.02), normal(14, (case.units, case.width), 0.02)

    def loss(x_AD, w1, w2):
        y_AD = jax.nn.relu(x_AD @ w1.T) @ w2
        return jnp.sum((y_AD * g_AD).astype(jnp.float32))

    return functools.partial(jax.jit(jax.grad(loss, (0, 1, 2))), x_AD, w1, w2)


def layer(case: Case) -> dict[str, Any]:
    """Forward and backward by one engine, the dense products before and after it."""
    device = jax.devices()[0]
    target = dispatch.target_of(device)
    if case.engine == "grouped" and not target.triton:
        return {"status": "skipped", "why": "no Triton kernels here"}
    flops = 12 * case.tokens * case.top_k * case.width * case.units
    before = case.timed(dense_products(case))
    params = parameters(case.experts, case.width, case.units)
    x_ND, g_ND = (normal(s, (case.tokens, case.width)) for s in (21, 22))
    weights_NK = jax.nn.softmax(normal(23, (case.tokens, case.top_k), dtype=jnp.float32))
    pick = functools.partial(chosen, case.tokens, case.top_k, case.experts)
    pick = jax.jit(pick, static_argnames="how")
    args = x_ND, weights_NK, params
    given = *args, pick(how="uniform"), g_ND
    step = jax.jit(gradients(case.engine, target)).lower(*given).compile()
    found = case.timed(functools.partial(step, *given))
    skewed = case.timed(functools.partial(step, *args, pick(how="zipf"), g_ND))
    del params, args, given
    after = case.timed(dense_products(case))
    dense = (before["ms"] + after["ms"]) / 2
    return found | {
        "tflops": flops / found["ms"] / 1e9,
        "dense_tflops": flops / dense / 1e9,
        "of_dense": dense / found["ms"],
        "drift": abs(before["ms"] - after["ms"]) / dense,
        "zipf_over_uniform": skewed["ms"] / found["ms"],
        "peak_gb": programs.peak_bytes(step) / 1e9,
    }


def parts(case: Case) -> dict[str, Any]:
    """Gate, choice, plan, gather and sum alone, milliseconds each."""
    x_ND = normal(31, (case.tokens, case.width))
    gate_DE = normal(32, (case.width, case.experts), case.width**-0.5, jnp.float32)
    with jax.default_matmul_precision("highest"):
        gate = jax.jit(lambda x, w: x.astype(jnp.float32) @ w)
        logits_NE = gate(x_ND, gate_DE)
        found = {"gate": case.timed(functools.partial(gate, x_ND, gate_DE))["ms"]}
    valid_N = jnp.ones(case.tokens, bool)
    top = jax.jit(functools.partial(routers.top_k, k=case.top_k))
    found["choice"] = case.timed(functools.partial(top, logits_NE, valid_N))["ms"]
    experts_NK = top(logits_NE, valid_N).experts
    plan_of = jax.jit(functools.partial(make_plan, num_experts=case.experts))
    found["plan"] = case.timed(functools.partial(plan_of, experts_NK))["ms"]
    plan = plan_of(experts_NK)
    take, give = jax.jit(sort_rows), jax.jit(lambda plan, x: unsort_rows(plan, x).sum(0))
    found["gather"] = case.timed(functools.partial(take, plan, x_ND))["ms"]
    found["sum"] = case.timed(functools.partial(give, plan, take(plan, x_ND)))["ms"]
    return found | {"ms": sum(found.values())}


STAGES = {"facts": facts, "right": right, "bounds": bounds, "layer": layer, "parts": parts}

if __name__ == "__main__":
    ASKED = json.loads(sys.stdin.read())
    print(json.dumps({"status": "ok"} | STAGES[ASKED["stage"]](Case(ASKED))))
