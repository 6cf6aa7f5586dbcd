"""What Flex-MoE's three models share: sizes, and the parts of their layers.

A layer is attention, then experts in even layers and an MLP in odd ones; what is normalised and
skipped differs.

Letters: B rows, M modalities, P tokens of a modality, T = M P, D width, N = B T routed tokens.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.core import FrozenDict

from m4 import task_losses
from m4.maths import gelu
from m4.methods.flexmoe import completeness
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions
from m4.nn.layers import MLP, Dropout, SelfAttention, StackedLayerNorm, repeat
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, MoeAux, Outputs

Init = nn.initializers.Initializer
Routed = tuple[Array, dict[str, MoeAux]]


class Transformer(nn.Module):
    """Parts of a model, to be called inside its compact method; it says what a layer is.

    Published sizes are the defaults (ADNI); MIMIC-IV has num_experts 32, top_k 3.
    """

    data: DataSpec
    moe: MoEOptions = MoEOptions("linear", "noisy_top_k", num_experts=16, top_k=4, hidden=256)
    width: int = 128
    depth: int = 1  # layers: sparse, dense, sparse, ...
    scan: bool = False
    num_heads: int = 4
    dropout: float = 0.5
    aux_weights: Mapping[str, float] = FrozenDict(router=0.01, importance=0.01, load=0.01)

    own_losses: ClassVar[Mapping[str, str]] = completeness.LOSSES

    def layers(self, x_BMPD: Array, batch: Batch, *, train: bool) -> Routed:
        """All layers on all tokens, those from the bank included, and what experts did."""
        present_BM = batch.present(self.data)
        routable_B = present_BM.any(-1) & (batch.weight > 0)
        x_BMPD += self.param("position", nn.initializers.zeros, x_BMPD.shape[1:])
        x_BTD = rearrange(x_BMPD, "b m p d -> b (m p) d")

        def sparse(i: int, x_BTD: Array) -> tuple[Array, MoeAux]:
            x_BTD, routed = self.layer(2 * i, x_BTD, present_BM, routable_B, train)
            return x_BTD, routed[f"layer_{i}"]

        def pair(i: int, x_BTD: Array) -> tuple[Array, MoeAux]:
            x_BTD, aux = sparse(i, x_BTD)
            return self.layer(2 * i + 1, x_BTD, present_BM, routable_B, train)[0], aux

        pairs = self.depth // 2
        x_BTD, each = repeat(pair, pairs, x_BTD, scan=self.scan)
        if self.depth % 2:
            x_BTD, last = sparse(pairs, x_BTD)
            each.append(last)
        moe = {f"layer_{i}": aux for i, aux in enumerate(each)}
        return x_BTD.reshape(x_BMPD.shape), moe

    @nn.nowrap
    def layer(
        self, i: int, x_BTD: Array, present_BM: Array, routable_B: Array, train: bool
    ) -> Routed:
        """Layer i, of the parts below."""
        raise NotImplementedError

    @nn.nowrap
    def norms(self, i: int) -> list[nn.Module]:
        """The two of a layer."""
        return [StackedLayerNorm(name=f"norm_{i}_{n}") for n in range(2)]

    @nn.nowrap
    def drops(self, i: int, num: int, train: bool) -> list[Dropout]:
        """As many as a layer needs."""
        return [
            Dropout(self.dropout, deterministic=not train, name=f"drop_{i}_{n}") for n in range(num)
        ]

    @nn.nowrap
    def attend(self, i: int, x_BTD: Array, train: bool, init: Init | None = None) -> Array:
        """All tokens are read, those of the bank too; `init` is of all but the zero qkv bias."""
        options = {"kernel_init": init, "qkv_bias_init": None, "bias_init": init} if init else {}
        attend = SelfAttention(
            self.num_heads, dropout=self.dropout, **options, name=f"attention_{i}"
        )
        every_BMT = jnp.ones(x_BTD.shape[:2], bool)[:, None]
        return attend(x_BTD[:, None], every_BMT, train=train)[:, 0]

    @nn.nowrap
    def feed_forward(
        self, i: int, x_BTD: Array, present_BM: Array, routable_B: Array, options: MoEOptions,
        train: bool, *, kernel_init: Init | None = None, gate_init: Init | None = None,
    ) -> Routed:  # fmt: skip
        """Experts or an MLP, which has as many hidden units as an expert: [B, T, D].

        `kernel_init` and `gate_init` as in `MoE`. Parameters are 'layer_<i / 2>' and 'mlp_<i>'.
        """
        if i % 2:
            mlp = MLP(options.hidden, 1, self.dropout, gelu, name=f"mlp_{i}")
            return mlp(x_BTD, train=train), {}
        rows, tokens = x_BTD.shape[:2]
        num, name = present_BM.shape[-1], f"layer_{i // 2}"
        paths = {loss: self.own_losses.get(loss, loss) for loss in sorted(self.aux_weights)}
        layer = MoE(
            options, num, losses=tuple(paths.values()), kernel_init=kernel_init,
            gate_init=gate_init, name=name,
        )  # fmt: skip
        y_ND, aux = layer(
            rearrange(x_BTD, "b t d -> (b t) d"),
            valid_N=jnp.repeat(routable_B, tokens),
            modality_N=np.tile(np.repeat(np.arange(num), tokens // num), rows),
            pattern_N=jnp.repeat(completeness.pattern(present_BM, options.num_experts), tokens),
            num_rows=rows,
            train=train,
        )
        aux = aux.replace(losses={loss: aux.losses[path] for loss, path in paths.items()})
        return y_ND.reshape(x_BTD.shape), {name: aux}

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Task losses plus `aux_weights` times the routing losses."""
        return task_losses.objective(self.data, out, batch, self.aux_weights)
