"""What follows attention in a layer of Flex-MoE: experts in even layers, an MLP in odd ones.

Letters: B rows, M modalities, T tokens of a row (M x P), D width, N = B T routed tokens.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.maths import gelu
from m4.methods.flexmoe import completeness
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions
from m4.nn.layers import MLP
from m4.types import Array, MoeAux


def feed_forward(
    i: int,
    x_BTD: Array,
    present_BM: Array,
    routable_B: Array,
    options: MoEOptions,
    losses: Mapping[str, str],
    *,
    dropout: float,
    kernel_init: nn.initializers.Initializer | None = None,
    gate_init: nn.initializers.Initializer | None = None,
    train: bool,
) -> tuple[Array, dict[str, MoeAux]]:
    """Layer i on all tokens, those from the bank included: [B, T, D], and its losses and counts.

    `losses` are names and functions; `kernel_init` and `gate_init` as in `MoE`. Parameters are
    'layer_<i / 2>' of experts and 'mlp_<i>' of an MLP, which has as many hidden units as an expert.
    Called inside a compact method.
    """
    if i % 2:
        return MLP(options.hidden, 1, dropout, gelu, name=f"mlp_{i}")(x_BTD, train=train), {}
    rows, tokens = x_BTD.shape[:2]
    num, name = present_BM.shape[-1], f"layer_{i // 2}"
    paths = tuple(losses.values())
    layer = MoE(options, num, losses=paths, kernel_init=kernel_init, gate_init=gate_init, name=name)
    y_ND, aux = layer(
        rearrange(x_BTD, "b t d -> (b t) d"),
        valid_N=jnp.repeat(routable_B, tokens),
        modality_N=np.tile(np.repeat(np.arange(num), tokens // num), rows),
        pattern_N=jnp.repeat(completeness.pattern(present_BM, options.num_experts), tokens),
        num_rows=rows,
        train=train,
    )
    aux = aux.replace(losses={loss: aux.losses[path] for loss, path in losses.items()})
    return y_ND.reshape(x_BTD.shape), {name: aux}
