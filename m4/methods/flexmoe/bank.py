"""Which modalities a row has, as a number, and learned tokens for those that it lacks (Flex-MoE).

A combination is a non-empty set of modalities. Combinations are numbered by decreasing size, in
lexicographic order within a size, as in Flex-MoE: of I, G, C and B, 0 is all four, 1 IGC, 2 IGB,
3 ICB, 4 GCB, 5 IG, ... and 14 is B alone.

Letters: B rows, M modalities, C combinations, R units, P tokens of a modality, D width.
"""

import itertools
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from m4.types import Array

FULL_LIMIT = 6  # modalities up to which 'auto' keeps one cell per combination


def combination_index(present_BM: Array, *, modulo: int | None = None) -> Array:
    """Number of each row's combination, i32[B], modulo `modulo`; 2^M - 1 for an empty row.

    Computed from binomial coefficients, without a table of 2^M entries: with `modulo` any number
    of modalities is possible, without it up to 30.
    """
    num = present_BM.shape[-1]
    if modulo is None and num > 30:
        raise ValueError(f"{num} modalities have more combinations than 32 bits can count")
    shrink = lambda n: n if modulo is None else n % modulo  # noqa: E731
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


class FullBank(nn.Module):
    """One learned block of tokens per combination and missing modality (Flex-MoE section 3.2)."""

    scale: float = 1.0

    @nn.compact
    def __call__(self, x_BMPD: Array, present_BM: Array) -> Array:
        """`x_BMPD` with the blocks of absent modalities replaced."""
        num, init = present_BM.shape[-1], nn.initializers.normal(self.scale)
        cells_CMPD = self.param("cells", init, (2**num - 1, *x_BMPD.shape[1:]))
        cells_BMPD = jnp.take(cells_CMPD, combination_index(present_BM), axis=0, mode="clip")
        return jnp.where(present_BM[..., None, None], x_BMPD, cells_BMPD)


class FactorisedBank(nn.Module):
    """A bank of size R (M P D + M + 1) + M P D instead of (2^M - 1) M P D. Not in the paper.

    cell(S, m) = base_m + sum_r relu(<w_r, S> + b_r) value_rm, with S the row's presence bits.
    While there are at most R combinations every one has a unit of its own, which starts as its
    indicator, and the bank starts as a full one with the same values (`factorise`). Beyond that
    combinations share R units.
    """

    rank: int = 16
    scale: float = 1.0

    @nn.compact
    def __call__(self, x_BMPD: Array, present_BM: Array) -> Array:
        """`x_BMPD` with the blocks of absent modalities replaced."""
        num, block = present_BM.shape[-1], x_BMPD.shape[1:]
        exact = 2**num - 1 <= self.rank
        units = 2**num - 1 if exact else self.rank
        weight_MR, bias_R = indicators(num) if exact else (None, None)
        normal = nn.initializers.normal(self.scale)
        constant = lambda value: lambda *_: jnp.asarray(value)  # noqa: E731
        weight_init = constant(weight_MR) if exact else nn.initializers.normal(num**-0.5)
        bias_init = constant(bias_R) if exact else nn.initializers.zeros
        weight_MR = self.param("weight", weight_init, (num, units))
        bias_R = self.param("bias", bias_init, (units,))
        value_RMPD = self.param("value", normal, (units, *block))
        base_MPD = self.param("base", nn.initializers.zeros if exact else normal, block)
        unit_BR = nn.relu(present_BM.astype(jnp.float32) @ weight_MR + bias_R)
        cells_BMPD = base_MPD + jnp.einsum("br,rmpd->bmpd", unit_BR, value_RMPD)
        return jnp.where(present_BM[..., None, None], x_BMPD, cells_BMPD)


def indicators(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [M, C] and biases [C] with which unit c is 1 on combination c and 0 on all others.

    <2c - 1, S> - |c| + 1 = 1 - |S without c| - |c without S|.
    """
    sets_CM = combinations(num).astype(np.float32)
    return (2 * sets_CM - 1).T, 1 - sets_CM.sum(-1)


def factorise(cells_CMPD: Array) -> dict[str, Array]:
    """Parameters of a `FactorisedBank` of rank 2^M - 1 that equals this full bank exactly."""
    weight_MR, bias_R = indicators(cells_CMPD.shape[1])
    base_MPD = np.zeros(cells_CMPD.shape[1:], np.float32)
    return {"weight": weight_MR, "bias": bias_R, "value": cells_CMPD, "base": base_MPD}
