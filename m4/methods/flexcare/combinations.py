"""Combinations of modalities: which there are, which a row has, and the experts of their tokens.

Letters: B rows, M modalities, C combinations, K tasks, D width, N = B K C routed tokens, E experts.
"""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.maths import combination_index, combinations
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions
from m4.types import Array, MoeAux

LIMIT = 256  # combinations
BY_COMBINATION = ("by_modality", "by_row", "dropped_by_modality")


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


def route(
    z_BKCD: Array,
    q_BKD: Array,
    counted_BC: Array,
    present_BM: Array,
    member_CM: np.ndarray,
    options: MoEOptions,
    aux_weights: Mapping[str, float],
    *,
    gate_init: nn.initializers.Initializer | None = None,
    train: bool,
) -> tuple[Array, MoeAux]:
    """Experts for the combinations' tokens z, chosen by z and the task's token q.

    [B, K, C, D], 0 outside `counted_BC`; statistics are by modality, as reports read them: what a
    combination's token does counts for all its members. Losses are those of `aux_weights` but
    'covariance'. Parameters are 'layer_0'; called inside a compact method.
    """
    rows, num_tasks, combined, width = z_BKCD.shape
    losses = tuple(sorted(set(aux_weights) - {"covariance"}))
    pattern_B = combination_index(present_BM, modulo=options.num_experts)
    layer = MoE(options, combined, losses=losses, gate_init=gate_init, name="layer_0")
    y_ND, aux = layer(
        rearrange(z_BKCD, "b k c d -> (b k c) d"),
        valid_N=jnp.repeat(counted_BC, num_tasks, axis=0).reshape(-1),
        modality_N=np.tile(np.arange(combined), rows * num_tasks),
        pattern_N=jnp.repeat(pattern_B, num_tasks * combined),
        query_NQ=jnp.repeat(q_BKD.reshape(-1, width), combined, axis=0),
        num_rows=rows,
        train=train,
    )
    stats = dict(aux.stats)
    for name in set(BY_COMBINATION) & set(stats):
        how = "...c,cm->...m" if name == "dropped_by_modality" else "...ce,cm->...me"
        stats[name] = jnp.einsum(how, stats[name], member_CM.astype(np.float32))
    return y_ND.reshape(z_BKCD.shape), aux.replace(stats=stats)
