"""Learned tokens for the modalities that a row lacks (Flex-MoE, section 3.2).

A bank is indexed by (combination of the present modalities, absent one).

Letters: B rows, M modalities, C combinations, R units, P tokens of a modality, D width.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from m4.maths import combination_index, combinations
from m4.types import Array

FULL_LIMIT = 6  # modalities up to which 'auto' keeps one cell per combination
MOST = 12  # modalities of a full bank


def complete(
    x_BMPD: Array,
    present_BM: Array,
    *,
    kind: Literal["auto", "full", "factorised"] = "full",
    rank: int = 16,
    scale: float = 1.0,
    columns: tuple[int, ...] = (),
    total: int = 0,
) -> Array:
    """`x_BMPD` with the tokens of absent modalities from a bank, whose parameters are 'bank'.

    One modality alone leaves nothing to tell: it has no bank, and its absent tokens are 0. Called
    inside a compact method. `columns` and `total` as of `FullBank`. Raises ValueError for a full
    bank of more than 12 modalities.
    """
    num = present_BM.shape[-1]
    if num == 1:
        return jnp.where(present_BM[..., None, None], x_BMPD, 0.0)
    if kind == "factorised" or (kind == "auto" and num > FULL_LIMIT):
        return FactorisedBank(rank, scale, name="bank")(x_BMPD, present_BM)
    if num > MOST:
        raise ValueError(
            f"bank='full' of {num} modalities has {2**num - 1} rows; choose bank='factorised'"
        )
    return FullBank(scale, columns, total, name="bank")(x_BMPD, present_BM)


class FullBank(nn.Module):
    """One learned block of tokens per combination and missing modality.

    The modalities have the `columns` of a bank of `total` modalities; else it is of them alone.
    """

    scale: float = 1.0
    columns: tuple[int, ...] = ()
    total: int = 0

    @nn.compact
    def __call__(self, x_BMPD: Array, present_BM: Array) -> Array:
        """`x_BMPD` with the blocks of absent modalities replaced."""
        num, init = present_BM.shape[-1], nn.initializers.normal(self.scale)
        shape = 2**num - 1, self.total or num, *x_BMPD.shape[2:]
        cells_CMPD = self.param("cells", init, shape)
        if self.columns:
            cells_CMPD = cells_CMPD[:, np.array(self.columns)]
        cells_BMPD = jnp.take(cells_CMPD, combination_index(present_BM), axis=0, mode="clip")
        return jnp.where(present_BM[..., None, None], x_BMPD, cells_BMPD)


class FactorisedBank(nn.Module):
    """A bank of size R (M P D + M + 1) + M P D instead of (2^M - 1) M P D. Not in the paper.

    cell(S, m) = base_m + sum_r relu(<w_r, S> + b_r) value_rm, with S the row's presence bits.
    While there are at most R combinations every one has a unit of its own, which starts as its
    indicator, and the bank starts as a full one with the same values. Beyond that
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
        normal, zeros = nn.initializers.normal(self.scale), nn.initializers.zeros
        weight_init, bias_init = nn.initializers.normal(num**-0.5), zeros
        if exact:
            weight_init, bias_init = (lambda *_, x=x: jnp.asarray(x) for x in indicators(num))
        weight_MR = self.param("weight", weight_init, (num, units))
        bias_R = self.param("bias", bias_init, (units,))
        value_RMPD = self.param("value", normal, (units, *block))
        base_MPD = self.param("base", zeros if exact else normal, block)
        unit_BR = nn.relu(present_BM.astype(jnp.float32) @ weight_MR + bias_R)
        cells_BMPD = base_MPD + jnp.einsum("br,rmpd->bmpd", unit_BR, value_RMPD)
        return jnp.where(present_BM[..., None, None], x_BMPD, cells_BMPD)


def indicators(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [M, C] and biases [C] with which unit c is 1 on combination c and 0 on all others.

    <2c - 1, S> - |c| + 1 = 1 - |S without c| - |c without S|.
    """
    sets_CM = combinations(num).astype(np.float32)
    return (2 * sets_CM - 1).T, 1 - sets_CM.sum(-1)
