"""Prints what the Triton kernels become for Hopper (sm_90), compiled without a GPU."""

import json
import tempfile

import jax.numpy as jnp
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from m4.moe.engine import triton_kernels as kernels

WIDTH, HIDDEN, TILES = 2048, 8192, 2112
BF16 = jnp.dtype("bfloat16")


def compiled(kernel, how, **more) -> dict:
    """Tensor-core products, asynchronous copies, shared bytes, spills of one kernel."""
    options = {name: how.pop(name) for name in ("num_warps", "num_stages")}
    constants = how | more
    arrays = [(i, arg) for i, arg in enumerate(kernel.arg_names) if arg not in constants]
    signature = dict.fromkeys(kernel.arg_names, "constexpr")
    signature |= {arg: "*bf16" if arg in ("a", "b", "out") else "*i32" for _, arg in arrays}
    aligned = {(i,): [["tt.divisibility", 16]] for i, _ in arrays}
    source = ASTSource(kernel, signature, constants, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    text = made.asm["ptx"]
    return {
        "wgmma": text.count("wgmma.mma_async"),
        "async": text.count("cp.async"),
        "shared": made.metadata.shared,
        "local": ".local" in text,
    }


def main() -> None:
    """The four products of a layer of width 2,048 and 8,192 hidden units."""
    d, f, rows = WIDTH, HIDDEN, kernels.rows_kernel
    found = {
        "x w1^T": compiled(rows, kernels.rows_sizes(d, f, BF16), K=d, N=f, T=TILES, TURNED=True),
        "a w2": compiled(rows, kernels.rows_sizes(f, d, BF16), K=f, N=d, T=TILES, TURNED=False),
        "dW": compiled(kernels.outer_kernel, kernels.outer_sizes(f, d, BF16), M=f, N=d),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        triton.knobs.cache.dir = folder  # jax-triton has none, without which nothing is compiled
        main()
