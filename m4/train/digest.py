"""Digests of arrays that do not depend on how the arrays are split over devices and processes.

An array's digest is the sum modulo 2**64, over its elements, of a mixed word of (bits of the
element, its position in the whole array). A sum has no order, so every process adds up its own
shards and the parts add up to the digest of the whole. For a given position the mixing is a
bijection of the bits, so one changed element always changes the digest; several escape it with
probability about 2**-64. It detects accidents, not malice.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

CHUNK = 2**18  # elements mixed at once: 2 MiB of words stay in the cache
_MIX = tuple(np.uint64(m) for m in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_SALT = np.uint64(0xD1B54A32D192ED03)

Leaves = dict[str, list]  # name -> [dtype, shape, digest]


def of_tree(tree: Any) -> Leaves:
    """Name -> [dtype, shape, digest as 16 hex digits] of every array of `tree`.

    With several processes all of them must call it; each reads its own shards alone.
    """
    leaves = named(tree)
    sums = np.array([_own_part(leaf) for leaf in leaves.values()], np.uint64)
    if jax.process_count() > 1:
        halves = multihost_utils.process_allgather(sums.view(np.uint32).reshape(-1, 2))
        parts = np.ascontiguousarray(halves).view(np.uint64)[..., 0]
        sums = np.asarray(np.sum(parts, axis=0, dtype=np.uint64))
    return {
        name: [str(leaf.dtype), list(leaf.shape), f"{total:016x}"]
        for (name, leaf), total in zip(leaves.items(), map(int, sums), strict=True)
    }


def named(tree: Any) -> dict[str, Any]:
    """Leaves by name, as in 'params.head.kernel'."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def partial_sum(block: np.ndarray, start: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The part of an array's digest that is due to `block`, which begins at index `start`.

    `shape` is that of the whole array. Sums of parts are taken modulo 2**64.
    """
    if block.size == 0:
        return 0
    words = np.ascontiguousarray(block).view(f"u{block.dtype.itemsize}")
    rows, columns = math.prod(block.shape[:-1]), block.shape[-1] if block.ndim else 1
    words = words.reshape(rows, columns)
    first_R = np.zeros((1,) * max(block.ndim - 1, 1), np.uint64)
    stride = shape[-1] if shape else 1
    for dim in range(block.ndim - 2, -1, -1):
        place = np.arange(start[dim], start[dim] + block.shape[dim], dtype=np.uint64)
        along = [1] * (block.ndim - 1)
        along[dim] = -1
        first_R = first_R + (place * np.uint64(stride)).reshape(along)
        stride *= shape[dim]
    first_R = np.broadcast_to(first_R, block.shape[:-1] or (1,)).reshape(-1)
    offset = start[-1] if start else 0
    return _mixed_sum(words, first_R, offset)


def _mixed_sum(words_RC: np.ndarray, first_R: np.ndarray, offset: int) -> int:
    rows, columns = words_RC.shape
    step_C = min(columns, CHUNK)
    step_R = max(1, CHUNK // step_C)
    total = 0
    for r in range(0, rows, step_R):
        for c in range(0, columns, step_C):
            word = words_RC[r : r + step_R, c : c + step_C].astype(np.uint64)
            place_C = np.arange(offset + c, offset + c + word.shape[1], dtype=np.uint64)
            place = first_R[r : r + step_R, None] + place_C
            place *= _MIX[0]
            place += _SALT
            word ^= place
            word *= _MIX[1]
            word ^= word >> np.uint64(32)
            word *= _MIX[2]
            word ^= word >> np.uint64(29)
            total += int(word.sum(dtype=np.uint64))
    return total % 2**64


def _own_part(leaf: Any) -> int:
    if not isinstance(leaf, jax.Array):
        leaf = np.asarray(leaf)
        return partial_sum(leaf, (0,) * leaf.ndim, leaf.shape) if jax.process_index() == 0 else 0
    total = 0
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            start = tuple(s.start or 0 for s in shard.index)
            total += partial_sum(np.asarray(shard.data), start, leaf.shape)
    return total % 2**64
