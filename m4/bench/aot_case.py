"""Compile one case of `m4.bench.aot` and print what was found as one line of JSON."""

import functools
import json
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from m4.bench import compiled as programs
from m4.bench.aot import CASES, LAYER, SLACK
from m4.moe import experts
from m4.moe.engine import mesh as parallel
from m4.moe.engine.dispatch import target_of
from m4.types import Routing


def main(name: str, exchange: str) -> None:
    """Compile and check the case."""
    topology, shape, tokens = CASES[name]
    description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    # An axis of 64 on a 16x16x16 torus is one whole side of it and a part of another.
    grid = mesh_utils.create_device_mesh(shape, description.devices, allow_split_physical_axes=True)
    mesh = Mesh(grid, ("data", "expert"), axis_types=(AxisType.Auto,) * 2)
    case = LAYER | {"experts": int(name.split("x")[1]), "tokens": tokens * math.prod(shape)}
    compiled = compile_layer(mesh, case, exchange=exchange, engine="ragged", slack=SLACK)
    print(json.dumps(examine(compiled, name, shape, tokens, case, exchange)))


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
        target=target_of(mesh.devices.flat[0]),
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


def examine(compiled, name, shape, tokens, case, exchange="all_to_all"):
    """Facts and checks of a compiled case."""
    data, devices = shape
    found = programs.collectives(compiled, loops=True)
    rows = parallel.bucket_rows(tokens, case["top_k"], devices, SLACK)
    exchanged = devices * rows * case["dim"] * jnp.dtype(case["dtype"]).itemsize
    sizes = {exchanged}
    if exchange == "ragged_all_to_all":  # back to the senders: as many rows as assignments
        sizes.add(exchanged // (devices * rows) * tokens * case["top_k"])
    kind_of_rows = exchange.replace("_", "-")
    exchanges = sum(kind == kind_of_rows and size in sizes for kind, _, size in found)
    local = case["experts"] // devices * case["dim"] * case["hidden"]
    # Between chips of one `expert` group no array of the size of a weight matrix may travel;
    # over `data` its gradient is summed once.
    moved = [kind for kind, _, size in found if "all-to-all" not in kind and size >= 2 * local]
    model_flops = 12 * case["top_k"] * tokens * case["dim"] * case["hidden"]
    peak, expected = programs.peak_bytes(compiled), model_bytes(shape, tokens, case)
    ratio = (programs.flops(compiled) or math.inf) / model_flops
    gradients = jax.tree.leaves(compiled.output_shardings[2])
    weights = jax.tree.leaves(compiled.input_shardings[0][2])
    dims = [len(shape) for shape in experts.shapes(1, 1, 1).values()]
    return {
        "case": name,
        "topology": CASES[name][0],
        "mesh": shape,
        "flops_ratio": ratio,
        "peak_bytes": peak,
        "model_bytes": expected,
        "exchanges": exchanges,
        "collectives": found,
        "checks": {
            "flops": ratio <= 1.27,
            "exchanges": exchanges == 4,
            "memory": abs(peak / expected - 1) <= 0.05,
            "weights_stay": set(moved) <= ({"all-reduce"} if data > 1 else set()),
            "gradient_split": all(
                a.is_equivalent_to(b, n) for a, b, n in zip(gradients, weights, dims, strict=True)
            ),
        },
    }


def model_bytes(shape, tokens, case):
    """Peak memory of one chip by the cost model of docs/moe.md.

    Arguments and results stand beside each other: weights and their gradients, tokens with their
    weights and choices. On top comes what is alive where the gradient passes the second matrix:
    its transposed copy, three arrays of hidden rows (before and after the activation, and the
    gradient), four of rows (received, their outputs, the outputs' gradient as it came and as it
    is sorted) and the K outputs of each token.
    """
    devices, k = shape[1], case["top_k"]
    size, width, hidden = jnp.dtype(case["dtype"]).itemsize, case["dim"], case["hidden"]
    weights = case["experts"] // devices * (2 * width * hidden + hidden + width) * size
    held = 2 * (weights + tokens * (width * size + 4 * k)) + 4 * k * tokens
    matrix = case["experts"] // devices * width * hidden
    rows = devices * parallel.bucket_rows(tokens, k, devices, SLACK)
    return held + size * (matrix + rows * (3 * hidden + 4 * width) + k * tokens * width)


if __name__ == "__main__":
    main(*sys.argv[1:])
