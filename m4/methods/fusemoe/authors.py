"""What FuseMoE's paper and its authors' code have in common.

Letters: B rows (patients), M modalities, Q query times, D width, U numbers of a modality (Q D),
N routed units, O output numbers of a unit (M Q D).
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.maths import torch_uniform
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions
from m4.nn.encoders.modalities import StaticTokens, Streams
from m4.nn.encoders.query_tokens import QueryTokens
from m4.nn.layers import StackedLayerNorm
from m4.types import Array, MoeAux


def on_query_times(
    streams: Streams, timed: QueryTokens, static: StaticTokens, *, train: bool
) -> Array:
    """[B, M, Q, D] in the spec's order; a modality without times has Q equal tokens."""
    tokens = [timed(streams, train=train)] if streams.num_timed else []
    for x_BD in static(streams, train=train):
        tokens.append(jnp.repeat(x_BD[:, None, None], timed.num_queries, axis=2))
    return jnp.concatenate(tokens, axis=1)[:, np.argsort(streams.modality)]


class PatientMoE(nn.Module):
    """One expert decision per patient ('joint') or per patient and modality.

    Experts of 'permod' and 'disjoint' read one modality and write to all; what those of a patient's
    modalities say is added (authors' `sparse_moe.py`).
    """

    options: MoEOptions
    losses: tuple[str, ...]
    gate_init: nn.initializers.Initializer | None = None  # see `MoE`
    fixed_gates: bool = False
    mixed: Callable[[Array], Array] | None = None  # function of every unit's mixture

    @nn.compact
    def __call__(
        self, u_BMU: Array, valid_B: Array, pattern_B: Array, *, train: bool
    ) -> tuple[Array, MoeAux]:
        """[B, M, U] -> [B, M, U]; statistics of every modality, 'joint' ones repeated."""
        rows, num, size = u_BMU.shape
        joint = self.options.share == "joint"
        units = 1 if joint else num
        layer = MoE(
            self.options,
            num_modalities=units,
            out=num * size,
            losses=self.losses,
            gate_init=self.gate_init,
            fixed_gates=self.fixed_gates,
            name="moe",
        )
        y_NO, aux = layer(
            u_BMU.reshape(rows * units, -1),
            valid_N=jnp.repeat(valid_B, units),
            modality_N=None if joint else np.tile(np.arange(num), rows),
            pattern_N=jnp.repeat(pattern_B, units),
            num_rows=rows,
            train=train,
        )
        y_NO = y_NO if self.mixed is None else self.mixed(y_NO)
        if joint:  # a patient's decision is every modality's
            names = {"by_modality", "by_row"} & set(aux.stats)
            every = {name: jnp.repeat(aux.stats[name], num, axis=-2) for name in names}
            aux = aux.replace(stats=aux.stats | every)
        return y_NO.reshape(rows, units, num, size).sum(1), aux


def read_out(x_BMQD: Array, *, dropout: float, train: bool) -> Array:
    """The last query of every modality through a residual MLP, [B, M D].

    Parameters 'norm', 'head_up' and 'head_down' belong to the module that calls.
    """
    last_BMD = StackedLayerNorm(x_BMQD.shape[1], name="norm")(x_BMQD)[:, :, -1]
    h_BD = rearrange(last_BMD, "b m d -> b (m d)")
    hidden_BD = nn.relu(nn.Dense(h_BD.shape[-1], kernel_init=torch_uniform(), name="head_up")(h_BD))
    hidden_BD = nn.Dropout(dropout, deterministic=not train, name="head_drop")(hidden_BD)
    return h_BD + nn.Dense(h_BD.shape[-1], kernel_init=torch_uniform(), name="head_down")(hidden_BD)
