"""The sequence [tasks | combinations | data]: who may read whom, and the transformer that reads.

Letters: B rows, M modalities, C combinations, K tasks, L data tokens, T = K + C + L, D width.
"""

import jax.numpy as jnp
import numpy as np

from m4.nn.layers import MLP, Dropout, SelfAttention, StackedLayerNorm
from m4.types import Array


def encode(
    query_BKD: Array,
    token_CD: Array,
    x_BLD: Array,
    readable_BC: Array,
    mask_BL: Array,
    bias_TT: Array,
    *,
    depth: int,
    num_heads: int,
    mlp: int,
    dropout: float,
    train: bool,
) -> tuple[Array, Array]:
    """Post-norm layers over the sequence; returns the tasks' [B, K, D] and combinations' [B, C, D].

    h = LN(x + drop(Attn x)), then LN(h + drop(MLP h)); nobody reads a token outside `readable_BC`
    and `mask_BL`. Called inside a compact method.
    """
    rows, num_tasks, combined = *query_BKD.shape[:2], len(token_CD)
    token_BCD = jnp.broadcast_to(token_CD, (rows, *token_CD.shape))
    x_BTD = jnp.concatenate([query_BKD, token_BCD, x_BLD], axis=1)
    every_BK = jnp.ones((rows, num_tasks), bool)
    mask_BT = jnp.concatenate([every_BK, readable_BC, mask_BL], axis=1)
    for i in range(depth):
        drop = Dropout(dropout, deterministic=not train, name=f"drop_{i}")
        attend = SelfAttention(num_heads, dropout=dropout, name=f"attention_{i}")
        a_BTD = attend(x_BTD[:, None], mask_BT[:, None], train=train, bias_TT=bias_TT)[:, 0]
        x_BTD = StackedLayerNorm(name=f"norm_{i}_0")(x_BTD + drop(a_BTD))
        y_BTD = MLP(mlp, dropout=dropout, name=f"mlp_{i}")(x_BTD, train=train)
        x_BTD = StackedLayerNorm(name=f"norm_{i}_1")(x_BTD + drop(y_BTD))
    return x_BTD[:, :num_tasks], x_BTD[:, num_tasks : num_tasks + combined]


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
