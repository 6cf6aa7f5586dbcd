"""Which modalities a row has: as a number, in a mean, and as a learned vector where one is absent.

A combination is a non-empty set of modalities. Combinations are numbered by decreasing size, in
lexicographic order within a size, as in Flex-MoE: of I, G, C and B, 0 is all four, 1 IGC, 2 IGB,
3 ICB, 4 GCB, 5 IG, ... and 14 is B alone.

Letters: B rows, M modalities, C combinations, T tokens of a modality, D model width.
"""

import itertools
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from m4.types import Array


def combination_index(present_BM: Array, *, modulo: int | None = None) -> Array:
    """Number of each row's combination, i32[B], modulo `modulo`; 2^M - 1 for an empty row.

    Computed from binomial coefficients, without a table of 2^M entries: with `modulo` any number
    of modalities is possible, without it up to 30.
    """
    num = present_BM.shape[-1]
    if modulo is None and num > 30:
        raise ValueError(f"{num} modalities have more combinations than 32 bits can count")

    def shrink(n):
        return n if modulo is None else n % modulo

    # Of sets of size k, the last one: all larger sets, and its own size, come before.
    until_K = [sum(math.comb(num, s) for s in range(k, num + 1)) - 1 for k in range(num + 1)]
    after_MK = [[shrink(math.comb(num - 1 - m, k)) for k in range(num + 1)] for m in range(num)]
    here_BM = present_BM.astype(jnp.int32)
    rest_BM = jnp.cumsum(here_BM[:, ::-1], axis=-1)[:, ::-1]  # present here and later
    after_BM = jnp.array(after_MK, jnp.int32)[jnp.arange(num), rest_BM]
    last_B = jnp.array([shrink(n) for n in until_K], jnp.int32)[here_BM.sum(-1)]
    index_B = last_B - jnp.sum(after_BM * here_BM, axis=-1)
    return index_B if modulo is None else index_B % modulo


def combinations(num: int, *, max_size: int | None = None) -> np.ndarray:
    """All combinations in order, bool[C, M]; with `max_size` the full set and the small ones."""
    sizes = [num, *range(min(max_size or num, num - 1), 0, -1)]
    sets = [chosen for size in sizes for chosen in itertools.combinations(range(num), size)]
    return np.array([[m in chosen for m in range(num)] for chosen in sets])


def masked_mean(x: Array, mask: Array, *, dim: int) -> Array:
    """Mean over dimension `dim` of what `mask` keeps; 0 where it keeps nothing.

    `mask` has the dimensions of `x` but the last.
    """
    kept = mask[..., None]
    total = jnp.where(kept, x, 0).sum(dim)
    return total / jnp.maximum(kept.sum(dim), 1)


class MissingIndicator(nn.Module):
    """Replaces absent modalities by a learned vector Z_m (FuseMoE section 3.1).

    Replaced by `where`: nothing of an absent slot survives, and its gradient is zero.
    """

    num_modalities: int

    @nn.compact
    def __call__(self, x: Array, present_BM: Array) -> Array:
        """[B, M, ..., D], bool[B, M] -> the same shape as x."""
        init = nn.initializers.normal(0.02)
        z_MD = self.param("embedding", init, (self.num_modalities, x.shape[-1]))
        lift = (1,) * (x.ndim - 3)
        present = present_BM.reshape(*present_BM.shape, *lift, 1)
        return jnp.where(present, x, z_MD.reshape(z_MD.shape[0], *lift, z_MD.shape[1]))
