"""Combinations of modalities: which there are, which a row has, and what their tokens may read.

Letters: B rows, M modalities, C combinations, K tasks, L data tokens, T = K + C + L.
"""

import math

import jax.numpy as jnp
import numpy as np

from m4.maths import combinations
from m4.types import Array

LIMIT = 256  # combinations


def members(num: int, max_size: int | None) -> np.ndarray:
    """Members of every combination, bool[C, M]: the full set and those of at most `max_size`.

    Raises ValueError for more than 256 combinations.
    """
    size = num if max_size is None else max_size
    if size < 1:
        raise ValueError(f"max_size={max_size} must be at least 1")
    count = 1 + sum(math.comb(num, s) for s in range(1, min(size, num - 1) + 1))
    if count > LIMIT:
        raise ValueError(
            f"{num} modalities have {count} combinations of up to {size} or all, at most"
            f" {LIMIT} are possible; choose a smaller max_size than {size}"
        )
    return combinations(num, max_size=size)


def available(present_BM: Array, member_CM: np.ndarray) -> Array:
    """Combinations all of whose members a row has, bool[B, C]; none of a row with nothing."""
    return (present_BM[:, None] | ~member_CM).all(-1) & present_BM.any(-1)[:, None]


def attention_bias(
    member_CM: np.ndarray, owner_L: np.ndarray, num_tasks: int, *, additive: bool
) -> Array:
    """f32[T, T] over [tasks | combinations | data]: 0 where a query (row) may read a key.

    Elsewhere -inf, or with `additive` the release's +1, which favours what it should forbid.
    A task reads everything but other tasks; a combination itself and its members' data tokens;
    a data token those of its modality.
    """
    combined = len(member_CM)
    tasks, sets = slice(num_tasks), slice(num_tasks, num_tasks + combined)
    data = slice(num_tasks + combined, None)
    size = num_tasks + combined + len(owner_L)
    allowed_TT = np.zeros((size, size), bool)
    allowed_TT[tasks] = True
    allowed_TT[tasks, tasks] = np.eye(num_tasks, dtype=bool)
    allowed_TT[sets, sets] = np.eye(combined, dtype=bool)
    allowed_TT[sets, data] = member_CM[:, owner_L]
    allowed_TT[data, data] = owner_L[:, None] == owner_L
    return jnp.asarray(np.where(allowed_TT, 0.0, 1.0 if additive else -np.inf), jnp.float32)
