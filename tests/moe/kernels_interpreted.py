"""Prints the largest error of the Triton kernels, in Triton's interpreter, against float64.

Needs torch, whose tensors the interpreter takes, and TRITON_INTERPRET=1. Letters: X, Y widths,
A rows, E experts.
"""

import json

import numpy as np
import torch
from triton.runtime import interpreter

from m4.moe.engine import triton_kernels as kernels

SIZES = ([0, 17, 513, 0, 300, 1], [0, 0, 0], [129], [1, 1, 1, 0])  # rows of every expert
FLOAT = np.dtype("float32")


def main() -> None:
    """Both kernels on every list of sizes; the outputs are not numbers before."""
    rng, worst = np.random.default_rng(0), []
    for sizes in SIZES:
        for k, n, turned in ((64, 48, True), (32, 64, False)):
            x_AX = rng.normal(size=(sum(sizes) + 5, k)).astype(np.float32)
            y_AY = rng.normal(size=(sum(sizes) + 5, n)).astype(np.float32)
            shape = (n, k) if turned else (k, n)
            w = rng.normal(size=(len(sizes), *shape)).astype(np.float32)
            worst += [rows(x_AX, w, sizes, turned), outer(x_AX, y_AY, sizes)]
    print(json.dumps(max(worst)))


def rows(x_AX, w, sizes, turned) -> float:
    """Largest error of `rows_kernel`; what belongs to no expert must stay unwritten."""
    start, block = np.concatenate([[0], np.cumsum(sizes)]), kernels.BLOCK
    table = [
        (e, low, min(low + block, start[e + 1]))
        for e in range(len(sizes))
        for low in range(start[e], start[e + 1], block)
    ]
    table += [(len(sizes) - 1, 0, 0)] * (len(x_AX) // block + len(sizes) - len(table))
    columns = (torch.tensor(np.array(column, np.int32)) for column in zip(*table, strict=True))
    k, n = x_AX.shape[1], w.shape[1 if turned else 2]
    how, out = kernels.rows_sizes(k, n, FLOAT), torch.full((len(x_AX), n), float("nan"))
    grid = (len(table) * (n // how["BN"]),)
    given = torch.tensor(x_AX), torch.tensor(w), *columns, out
    kernels.rows_kernel[grid](*given, K=k, N=n, T=len(table), TURNED=turned, **how)
    of = np.repeat(np.arange(len(sizes)), sizes)
    wide = w.swapaxes(1, 2) if turned else w
    want = np.einsum("ak,akn->an", x_AX[: len(of)].astype(float), wide[of])
    assert np.isnan(out.numpy()[len(of) :]).all()
    return error(out.numpy()[: len(of)], want)


def outer(x_AX, y_AY, sizes) -> float:
    """Largest error of `outer_kernel`."""
    start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    m, n = x_AX.shape[1], y_AY.shape[1]
    how, out = kernels.outer_sizes(m, n, FLOAT), torch.full((len(sizes), m, n), float("nan"))
    grid = ((m // how["BM"]) * (n // how["BN"]), len(sizes))
    given = (torch.tensor(array) for array in (x_AX, y_AY, start))
    kernels.outer_kernel[grid](*given, out, M=m, N=n, **how)
    pairs = zip(start[:-1], start[1:], strict=True)
    want = np.stack([x_AX[low:high].T.astype(float) @ y_AY[low:high] for low, high in pairs])
    return error(out.numpy(), want)


def error(found, want) -> float:
    """Relative to the largest number, which counts as at least 1; not a number is infinite."""
    gap = np.abs(found - want).max(initial=0) / max(1, np.abs(want).max(initial=0))
    return float(gap) if np.isfinite(gap) else float("inf")


def with_loaded_bounds(patch):
    """Triton's patch of its tensors, which with NumPy 2 takes no loaded number for a range."""

    def patched(tensor, *args):
        patch(tensor, *args)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    return patched


if __name__ == "__main__":
    interpreter._patch_lang_tensor = with_loaded_bounds(interpreter._patch_lang_tensor)
    main()
