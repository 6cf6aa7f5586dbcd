"""Compile one case of `m4.bench.aot` and print what was found as one line of JSON."""

import json
import math
import sys

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh

from m4.bench import _moe_mesh, _program
from m4.bench.aot import CASES, LAYER, SLACK
from m4.moe import parallel


def main(name: str) -> None:
    """Compile and check the case."""
    topology, shape, tokens = CASES[name]
    description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    grid = mesh_utils.create_device_mesh(shape, description.devices)
    mesh = Mesh(grid, ("data", "expert"), axis_types=(AxisType.Auto,) * 2)
    case = LAYER | {"experts": int(name.split("x")[1]), "tokens": tokens * math.prod(shape)}
    compiled = _moe_mesh.compile_layer(
        mesh, case, exchange="all_to_all", strategy="ragged", slack=SLACK
    )
    print(json.dumps(examine(compiled, name, shape, tokens, case)))


def examine(compiled, name, shape, tokens, case):
    """Facts and checks of a compiled case."""
    data, devices = shape
    found = _program.collectives(compiled, loops=True)
    rows = parallel.bucket_rows(tokens, case["top_k"], devices, SLACK)
    exchanged = devices * rows * case["dim"] * jnp.dtype(case["dtype"]).itemsize
    exchanges = sum(kind == "all-to-all" and size == exchanged for kind, _, size in found)
    local = case["experts"] // devices * case["dim"] * case["hidden"]
    # Between chips of one `expert` group no array of the size of a weight matrix may travel;
    # over `data` its gradient is summed once.
    moved = [kind for kind, _, size in found if kind != "all-to-all" and size >= 2 * local]
    model_flops = 12 * case["top_k"] * tokens * case["dim"] * case["hidden"]
    peak, model_peak = _program.peak_bytes(compiled), peak_model(shape, tokens, case)
    ratio = (_program.flops(compiled) or math.inf) / model_flops
    split = [s.shard_shape for s in jax.tree.leaves(compiled.output_shardings[2])]
    params = jax.tree.leaves(compiled.input_shardings[0][2])
    return {
        "case": name,
        "topology": CASES[name][0],
        "mesh": shape,
        "flops_ratio": ratio,
        "peak_bytes": peak,
        "peak_ratio": peak / model_peak,
        "exchanges": exchanges,
        "collectives": found,
        "checks": {
            "flops": ratio <= 1.27,
            "exchanges": exchanges == 4,
            "weights_stay": set(moved) <= ({"all-reduce"} if data > 1 else set()),
            "gradient_split": len(split) == 4
            and all(
                a.is_equivalent_to(b, 3 if i % 2 else 2)
                for i, (a, b) in enumerate(
                    zip(jax.tree.leaves(compiled.output_shardings[2]), params, strict=True)
                )
            ),
            "peak": abs(peak / model_peak - 1) <= 0.05,
        },
    }


def peak_model(shape, tokens, case):
    """Bytes of one chip: weights and their gradients, rows in flight, activations."""
    raise NotImplementedError


if __name__ == "__main__":
    main(sys.argv[1])
