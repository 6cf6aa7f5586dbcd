"""FuseMoE by the equations of its paper (Han et al., NeurIPS 2024), in their order.

A routed unit is a patient, all query times side by side; absent modalities are a learned vector,
which is attended and routed like data. `authors.py` holds what the authors' code has, too: the
order of a layer, x + attention(norm x), x + MoE(norm x), x + FFN_m(norm x), and the read-out.

Letters: B rows (patients), M modalities in the spec's order, Q query times, D width.
"""

from collections.abc import Mapping

from einops import rearrange
from flax.core import FrozenDict

from m4.methods.fusemoe.authors import AuthorsFuseMoE, PatientMoE
from m4.nn.encoders.modalities import gather
from m4.nn.layers import MissingIndicator
from m4.types import Array, Batch, MoeAux


class PaperFuseMoE(AuthorsFuseMoE):
    """Section 3.3's loss: the task plus `aux_weights` times importance, load and entropy losses.

    The weight of the entropy is not given; with share 'joint' it is 0 by its formula.
    """

    aux_weights: Mapping[str, float] = FrozenDict(importance=0.01, load=0.01, entropy=0.01)

    def embed(self, batch: Batch, present_BM: Array, valid_B: Array, train: bool) -> Array:
        """Section 3.1: UTDE and mTAND at the query times; Z_m stands for an absent modality."""
        del valid_B
        streams = gather(self.data, batch)
        x_BMQD = self.on_query_times(streams, train, num_heads=self.num_heads)
        type_MD, position_QD = self.types_and_positions()
        missing = MissingIndicator(x_BMQD.shape[1], name="missing")
        return self.width**0.5 * missing(x_BMQD + type_MD[:, None], present_BM) + position_QD

    def route(
        self, name: str, u_BMQD: Array, routing: Mapping[str, Array], train: bool
    ) -> tuple[Array, MoeAux]:
        """Section 3.2: patients are the units."""
        moe = PatientMoE(self.moe, tuple(sorted(self.aux_weights)), name=name)
        y_BMU, aux = moe(rearrange(u_BMQD, "b m q d -> b m (q d)"), train=train, **routing)
        return rearrange(y_BMU, "b m (q d) -> b m q d", q=self.num_queries), aux
