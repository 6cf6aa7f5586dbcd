"""Collectives of the expert-parallel layer on virtual devices, beside the documented formulas."""

import argparse
import json
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from m4.bench import compiled as programs
from m4.bench.aot_case import compile_layer
from m4.moe.engine import mesh as parallel


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
            found = [c for c in programs.collectives(compiled) if not c[1].endswith("[]")]
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
