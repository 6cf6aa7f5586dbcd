"""The two products of `m4.moe.engine.tiles` as Triton kernels, called through jax-triton.

Needs the extra `triton`. Compiled for Hopper both use its tensor cores and asynchronous copies;
the sizes of tiles are those that fill its shared memory.

Letters: A rows, E experts, T tiles, X, Y widths; in kernels K is what a product sums over and N
the columns of its result.
"""

import functools

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

from m4.moe.engine.tiles import BLOCK, Kernels, Tiles
from m4.types import Array

GROUP = 8  # tiles of rows that share columns of weights in the cache


@triton.jit
def rows_kernel(
    a,
    b,
    expert_T,
    start_T,
    end_T,
    out,
    K: tl.constexpr,
    N: tl.constexpr,
    T: tl.constexpr,
    TURNED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    G: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[r] = a[r] @ W of the row's expert, for the rows of one tile and BN columns."""
    program = tl.program_id(0)
    columns: tl.constexpr = N // BN
    first = program // (G * columns) * G
    size = min(T - first, G)
    t = first + (program % (G * columns)) % size
    column = (program % (G * columns)) // size
    e = tl.load(expert_T + t).to(tl.int64)
    low = tl.load(start_T + t)
    high = tl.load(end_T + t)
    if low >= high:
        return
    rm = low + tl.arange(0, BM)
    rn = column * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    inside = (rm < high)[:, None]
    pa = a + rm[:, None].to(tl.int64) * K + rk[None, :]
    if TURNED:  # W[e] is [N, K]
        pb = b + e * N * K + rn[None, :] * K + rk[:, None]
    else:  # W[e] is [K, N]
        pb = b + e * N * K + rk[:, None] * N + rn[None, :]
    total = tl.zeros((BM, BN), tl.float32)
    for _ in range(0, K, BK):
        x = tl.load(pa, mask=inside, other=0.0)
        total = tl.dot(x, tl.load(pb), total, input_precision=PRECISION)
        pa += BK
        if TURNED:
            pb += BK
        else:
            pb += BK * N
    to = out + rm[:, None].to(tl.int64) * N + rn[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def outer_kernel(
    a,
    b,
    start_E,
    out,
    M: tl.constexpr,
    N: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[e] = a_e^T b_e over the rows of one expert, for BM x BN of its entries."""
    e = tl.program_id(1)
    columns: tl.constexpr = N // BN
    row = tl.program_id(0) // columns
    column = tl.program_id(0) % columns
    low = tl.load(start_E + e)
    high = tl.load(start_E + e + 1)
    rm = row * BM + tl.arange(0, BM)
    rn = column * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(low, high, BK):
        r = k + rk
        inside = (r < high)[:, None]
        x = tl.load(a + r[:, None].to(tl.int64) * M + rm[None, :], mask=inside, other=0.0)
        y = tl.load(b + r[:, None].to(tl.int64) * N + rn[None, :], mask=inside, other=0.0)
        total = tl.dot(tl.trans(x), y, total, input_precision=PRECISION)
    to = out + e.to(tl.int64) * M * N + rm[:, None] * N + rn[None, :]
    tl.store(to, total.to(out.dtype.element_ty))


def rows_sizes(k: int, n: int, dtype: jnp.dtype) -> dict[str, int | str]:
    """Tile, warps, stages and precision of `rows_kernel` for a product over `k` to `n` columns."""
    wide = dtype.itemsize > 2
    return {
        "BM": BLOCK,
        "BN": _largest(n, 128 if wide else 256),
        "BK": _largest(k, 32 if wide else 64),
        "G": GROUP,
        "PRECISION": "ieee" if wide else "tf32",
        "num_warps": 8,
        "num_stages": 3,
    }


def outer_sizes(m: int, n: int, dtype: jnp.dtype) -> dict[str, int | str]:
    """Tile, warps, stages and precision of `outer_kernel` for matrices [m, n]."""
    wide = dtype.itemsize > 2
    return {
        "BM": _largest(m, 128),
        "BN": _largest(n, 128 if wide else 256),
        "BK": 32 if wide else 64,
        "PRECISION": "ieee" if wide else "tf32",
        "num_warps": 8,
        "num_stages": 3,
    }


def _largest(size: int, limit: int) -> int:
    """The largest power of two up to `limit` that divides `size`."""
    return min(size & -size, limit)


@functools.cache
def kernels(capability: int) -> Kernels:
    """The products compiled for GPUs of a compute capability, such as 90 of Hopper."""
    return Kernels(functools.partial(_rows, capability), functools.partial(_outer, capability))


def _rows(capability: int, x_AX: Array, w: Array, tiles: Tiles, turned: bool) -> Array:
    k, n, num = x_AX.shape[1], w.shape[1 if turned else 2], tiles.expert_T.size
    sizes = rows_sizes(k, n, x_AX.dtype)
    return jax_triton.triton_call(
        x_AX,
        w,
        tiles.expert_T,
        tiles.start_T,
        tiles.end_T,
        kernel=rows_kernel,
        out_shape=jax.ShapeDtypeStruct((len(x_AX), n), x_AX.dtype),
        grid=(num * (n // int(sizes["BN"])),),
        K=k,
        N=n,
        T=num,
        TURNED=turned,
        compute_capability=capability,
        **sizes,
    )


def _outer(capability: int, x_AX: Array, y_AY: Array, start_E: Array) -> Array:
    m, n = x_AX.shape[1], y_AY.shape[1]
    sizes = outer_sizes(m, n, x_AX.dtype)
    return jax_triton.triton_call(
        x_AX,
        y_AY,
        start_E,
        kernel=outer_kernel,
        out_shape=jax.ShapeDtypeStruct((start_E.size - 1, m, n), x_AX.dtype),
        grid=((m // int(sizes["BM"])) * (n // int(sizes["BN"])), start_E.size - 1),
        M=m,
        N=n,
        compute_capability=capability,
        **sizes,
    )
