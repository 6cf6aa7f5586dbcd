"""Collectives of the expert-parallel layer on virtual devices, beside the documented formulas."""

import argparse
import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from m4.bench import _program
from m4.moe import experts
from m4.moe.engine import mesh as parallel
from m4.types import Routing


def compile_layer(mesh, case, *, exchange, engine, slack=1.25, overflow: Any = "drop"):
    """Forward + backward of the layer without its gate, compiled for the mesh from shapes alone.

    `case` has tokens (of all devices), dim, hidden, top_k, experts and dtype.
    """
    dtype = jnp.dtype(case["dtype"])
    shapes = experts.shapes(case["experts"], case["dim"], case["hidden"])
    arrays: dict[str, Any] = {n: jax.ShapeDtypeStruct(s, dtype) for n, s in shapes.items()}
    abstract = experts.ExpertParams(**arrays)
    axes = parallel.Axes().on(mesh, abstract)
    rows = NamedSharding(mesh, P(axes.tokens))
    params = jax.tree.map(
        lambda a, spec: jax.ShapeDtypeStruct(a.shape, dtype, sharding=NamedSharding(mesh, spec)),
        abstract,
        axes.weights(),
    )
    shardings = jax.tree.map(lambda a: a.sharding, params)
    apply = functools.partial(
        parallel.apply_experts,
        mesh=mesh,
        exchange=exchange,
        functions=experts.Functions(jax.nn.relu),
        engine=engine,
        slack=slack,
        overflow=overflow,
    )

    def loss(x_ND, weights_NK, params, experts_NK):
        empty = jnp.zeros((x_ND.shape[0], 0))
        valid_N = jnp.ones(x_ND.shape[0], bool)
        y_ND, _ = apply(x_ND, Routing(experts_NK, weights_NK, empty, empty, valid_N), params)
        return jnp.mean(jnp.square(y_ND.astype(jnp.float32)))

    def rows_of(width, dtype):
        return jax.ShapeDtypeStruct((case["tokens"], width), dtype, sharding=rows)

    k = case["top_k"]
    args = rows_of(case["dim"], dtype), rows_of(k, jnp.float32), params, rows_of(k, jnp.int32)
    step = jax.jit(jax.grad(loss, (0, 1, 2)), out_shardings=(rows, rows, shardings))
    return step.lower(*args).compile()


def formula(mesh_shape, case, *, exchange, slack=1.25):
    """Documented bytes per device by kind of collective; see `m4.moe.engine.mesh`."""
    data, devices = mesh_shape
    size = jnp.dtype(case["dtype"]).itemsize
    tokens, k, width = case["tokens"] // (data * devices), case["top_k"], case["dim"]
    expected = {}
    if exchange == "all_to_all":
        rows = parallel.bucket_rows(tokens, k, devices, slack)
        expected["all-to-all"] = 4 * devices * rows * width * size + devices * rows * 4
    else:
        expected["all-gather"] = devices * tokens * (2 * width * size + 8 * k)
        expected["reduce-scatter"] = tokens * (2 * width * size + 4 * k)
    if data > 1:
        local = case["experts"] // devices
        expected["all-reduce"] = (
            local * (2 * width * case["hidden"] + case["hidden"] + width) * size
        )
    return expected


def main(options: str) -> None:
    """Print one table per number of experts and exchange."""
    args = argparse.Namespace(**json.loads(options))
    data, devices = args.mesh
    mesh = jax.make_mesh((data, devices), ("data", "expert"), (AxisType.Auto,) * 2)
    for num_experts in args.experts:
        case = vars(args) | {"experts": num_experts}
        for exchange in ("all_to_all", "all_gather"):
            compiled = compile_layer(mesh, case, exchange=exchange, engine="dropless")
            found = [c for c in _program.collectives(compiled) if not c[1].endswith("[]")]
            print(f"\nE={num_experts}, data {data} x expert {devices}, {exchange}")
            for kind, shapes, size in found:
                print(f"  {kind:15s} {size:12d} bytes  {shapes}")
            for kind, expected in formula(args.mesh, case, exchange=exchange).items():
                total = sum(size for k, _, size in found if k == kind)
                number = sum(k == kind for k, _, _ in found)
                print(
                    f"  sum of {number} {kind}: {total} bytes, formula {expected}"
                    f" ({total / expected - 1:+.1%})"
                )


if __name__ == "__main__":
    main(sys.argv[1])
