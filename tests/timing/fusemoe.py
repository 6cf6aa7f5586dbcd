"""FuseMoE's train step against this machine's matrix products.

Two configurations: the published one (two patients, three modalities, 16 experts, top 4, three
layers, a routed unit is a patient) and m4's default on the schema of PhysioNet 2012. A step is
forward, backward and update. Achieved FLOP/s count what the compiled program does, and are given
as a share of a float32 matrix product of side 2048, timed in turns with the step.

The published configuration has 605 million weights, of which a step of two patients uses few per
byte read: its second bound is memory, so the share of the time that copying its weights once
takes is printed, too. Its update is plain SGD, because Adam's moments need another 5 GB.

    python -m tests.timing fusemoe --only=default
"""

import argparse
import dataclasses
import json
import statistics
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict

from m4.data.sets import physionet2012
from m4.methods.fusemoe.model import FuseMoE
from m4.methods.fusemoe.paper import PaperFuseMoE
from m4.moe.options import MoEOptions
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Batch, Method, Stream, Target

SIDE = 2048
PUBLISHED = DataSpec(
    modalities=(
        ModalitySpec("vitals_labs", "series", (256, 30)),
        ModalitySpec("cxr", "vectors", (5, 1024)),
        ModalitySpec("notes", "vectors", (5, 768)),
    ),
    tasks=(TaskSpec("ihm48", "binary"),),
)


def main(argv: list[str]) -> None:
    """Parse options, measure, print a table or JSON."""
    parser = argparse.ArgumentParser("python -m tests.timing fusemoe", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", choices=("published", "default"), help="one configuration")
    parser.add_argument("--share", default="permod", choices=("joint", "permod", "disjoint"))
    parser.add_argument("--batch_size", type=int, default=64, help="of the default configuration")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    results = [
        measure(*case, repeats=args.repeats)
        for case in cases(args.share, args.batch_size)
        if args.only in (None, case[0])
    ]
    print(json.dumps(results) if args.json else table(results))


def cases(share: Any, batch_size: int) -> list[tuple[str, Method, int, Any]]:
    """Name, method, rows and optimiser of each configuration."""
    top_k = 2 if share == "disjoint" else 4
    published = PaperFuseMoE(
        PUBLISHED,
        MoEOptions(router="noisy_top_k", share=share, num_experts=16, top_k=top_k, hidden=512),
        width=128,
        depth=3,
        num_heads=8,
        num_queries=48,
        embed_time=64,
        dropout=0.1,
        utde="batch",
        aux_weights=FrozenDict({"importance": 0.01, "load": 0.01, "entropy": 0.01}),
    )
    default = FuseMoE(physionet2012.spec(), dataclasses.replace(FuseMoE.moe, share=share))
    return [
        ("published", published, 2, optax.sgd(1e-3)),
        ("default", default, batch_size, optax.adamw(1e-3)),
    ]


def measure(name: str, method: Method, rows: int, tx: Any, *, repeats: int) -> dict[str, Any]:
    """Medians over `repeats` rounds, each of one step and one matrix product."""
    batch = random_batch(method.data, rows)
    rngs = {n: jax.random.key(i) for i, n in enumerate(("params", "dropout", "gate"))}
    shapes = nn.unbox(jax.eval_shape(lambda: method.init(rngs, batch, train=False)))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.random(x.shape, x.dtype) - 0.05), shapes)

    def step(params, opt, batch):
        def loss(params):
            out = method.apply({"params": params}, batch, train=True, rngs=rngs)
            return method.loss(out, batch, jnp.zeros((), jnp.int32))[0]

        updates, opt = tx.update(jax.grad(loss)(params), opt, params)
        return optax.apply_updates(params, updates), opt

    opt = tx.init(params)
    before = time.perf_counter()
    run = jax.jit(step, donate_argnums=(0, 1)).lower(params, opt, batch).compile()
    compile_s = time.perf_counter() - before
    num_params = sum(x.size for x in jax.tree.leaves(params))
    matmul = jax.jit(jnp.matmul).lower(*[jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)] * 2)
    matmul, square = matmul.compile(), jnp.ones((SIDE, SIDE))
    copied, target = np.ones((2, min(num_params, 2**27)), np.float32)
    times: dict[str, list[float]] = {"step": [], "matmul": [], "copy": []}
    for _ in range(repeats + 1):  # the first round warms up
        start = time.perf_counter()
        params, opt = jax.block_until_ready(run(params, opt, batch))
        times["step"].append(time.perf_counter() - start)
        start = time.perf_counter()
        matmul(square, square).block_until_ready()
        times["matmul"].append(time.perf_counter() - start)
        start = time.perf_counter()
        np.copyto(target, copied)
        times["copy"].append((time.perf_counter() - start) * num_params / copied.size)
    flops = run.cost_analysis()["flops"]
    rounds = list(zip(*(times[key][1:] for key in ("step", "matmul", "copy")), strict=True))
    return {
        "name": name,
        "rows": rows,
        "params": num_params,
        "compile_s": compile_s,
        "gflop": flops / 1e9,
        "step_ms": 1e3 * statistics.median(times["step"][1:]),
        "matmul_gflops": 2 * SIDE**3 / statistics.median(times["matmul"][1:]) / 1e9,
        "share_of_matmul": statistics.median(flops / s / (2 * SIDE**3 / m) for s, m, _ in rounds),
        "share_of_copy": statistics.median(c / s for s, _, c in rounds),
    }


def random_batch(spec: DataSpec, rows: int) -> Batch:
    """Everything present, half of all measurements observed."""
    rng = np.random.default_rng(0)

    def stream(m: ModalitySpec) -> Stream:
        mask = np.ones((rows, m.length), bool)
        values = rng.standard_normal((rows, *m.shape), np.float32)
        observed = rng.random(values.shape) < 0.5 if m.kind in ("series", "table") else None
        times = np.sort(rng.uniform(0, spec.hours, mask.shape)).astype(np.float32)
        return Stream(
            values=values if observed is None else values * observed,
            mask=mask,
            present=np.ones(rows, bool),
            times=times if m.timed else None,
            observed=observed,
        )

    ones = np.ones(rows, np.float32)
    labels = {}
    for t in spec.tasks:
        classes = t.kind == "multiclass"
        value = np.ones(rows, np.int32) if classes else np.ones((rows, t.dim), np.float32)
        labels[t.name] = Target(value, np.ones_like(value) if t.kind == "multilabel" else ones)
    return Batch(
        inputs={m.name: stream(m) for m in spec.modalities},
        targets=labels,
        task=np.full(rows, -1, np.int32),
        weight=ones,
        uid=np.arange(rows, dtype=np.int32),
    )


def table(results: list[dict[str, Any]]) -> str:
    head = (
        f"{'':<11}{'rows':>5}{'params':>13}{'compile':>10}{'step':>11}{'examples/s':>12}"
        f"{'GFLOP':>9}{'GFLOP/s':>9}{'of matmul':>11}{'of copy':>9}"
    )
    lines = [
        f"{r['name']:<11}{r['rows']:>5}{r['params']:>13,}{r['compile_s']:>8.1f} s"
        f"{r['step_ms']:>8.1f} ms{1e3 * r['rows'] / r['step_ms']:>12,.0f}{r['gflop']:>9.2f}"
        f"{1e3 * r['gflop'] / r['step_ms']:>9.1f}{r['share_of_matmul']:>11.1%}"
        f"{r['share_of_copy']:>9.1%}"
        for r in results
    ]
    peak = statistics.median(r["matmul_gflops"] for r in results)
    note = f"matrix product: {peak:.0f} GFLOP/s; copy: the time to copy every weight once / step"
    return "\n".join([head, *lines, note])
