"""Flex-MoE as published (Yun et al., NeurIPS 2024): its equations, in the paper's order.

Tokens of absent modalities come from the bank (section 3.2). A transformer follows whose MLPs are
experts: their router (eq. 1), its balance over complete rows ("G-router"), the combination's expert
of incomplete rows ("S-router", eq. 3) and the balance of their other choices (eq. 4). Where the
paper says nothing, the authors' code decides (`released.py`); docs/methods/flexmoe.md lists every
difference.

Letters: B rows, M modalities, P tokens of a modality, T = M P, D width, F features of the heads.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn

from m4.maths import torch_uniform
from m4.methods.flexmoe import completeness
from m4.methods.flexmoe.patches import PatchTransformer
from m4.methods.flexmoe.transformer import Routed
from m4.moe.options import MoEOptions
from m4.types import Array


class PaperFlexMoE(PatchTransformer):
    """Fuses up to 12 modalities of kinds series, vectors, table, codes, text, signal and image."""

    own_losses: ClassVar[Mapping[str, str]] = completeness.PAPER_LOSSES

    @nn.nowrap
    def layer(
        self, i: int, x_BTD: Array, present_BM: Array, routable_B: Array, train: bool
    ) -> Routed:
        """Add & Norm, as drawn: h = LN(x + drop(Attn x)), then LN(h + drop(F h))."""
        norm, drop = self.norms(i), self.drops(i, 2, train)
        a_BTD = self.attend(i, x_BTD, train, torch_uniform(self.width))
        h_BTD = norm[0](x_BTD + drop[0](a_BTD))
        options = self._softmax_first()
        y_BTD, routed = self.feed_forward(i, h_BTD, present_BM, routable_B, options, train)
        return norm[1](h_BTD + drop[1](y_BTD)), routed

    def _softmax_first(self) -> MoEOptions:
        """Eq. 1: the softmax of all scores, then the largest k of it."""
        if self.moe.router not in ("top_k", "noisy_top_k"):
            return self.moe
        return self.moe.with_router(normalise="before")
