"""SimMLM (Li, Chen and Han, ICCV 2025, arXiv 2507.19264): a dynamic mixture of modality experts.

Section 3.2: every modality has a network that answers alone, and a gate that sees all of them gives
each a weight for every output, a softmax over what the row has. The paper's ranking loss (section
3.3) is an option of every method, `train.ranking`, 0.1 there; its first stage, which trains the
experts alone, is a loss beside the joint one. docs/methods/baselines.md lists the differences.

Letters: B rows, M modalities, D width, C outputs of a task.
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from m4 import task_losses
from m4.maths import softmax
from m4.nn.encoders.summary import ModalitySummary
from m4.nn.fusion import HeadsOfEach, Hidden, mean_of_present
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs


class SimMLM(nn.Module):
    """Any number of modalities of any kind; tasks of the generic kinds."""

    data: DataSpec
    width: int = 64
    hidden: int = 64  # units of the gate
    dropout: float = 0.2
    alone: float = 1.0  # weight of the experts' own losses, for the paper's training of each

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]; of every expert in `extra`, [B, M, dim].

        Training needs the rng 'dropout'. Raises ValueError for modality kinds without an encoder.
        """
        summary = ModalitySummary(self.data, self.width, self.dropout, name="summary")
        x_BMD, _ = summary(batch, train=train)
        present_BM = batch.present(self.data)
        each = HeadsOfEach(self.data.tasks, name="experts")(nn.gelu(x_BMD))
        seen_BMD = jnp.where(present_BM[..., None], x_BMD, 0.0)
        row_BN = jnp.concatenate([rearrange(seen_BMD, "b m d -> b (m d)"), present_BM], -1)
        h_BD = Hidden(self.hidden, 1, self.dropout, name="gate")(row_BN, train=train)
        logits = {}
        for name, each_BMC in each.items():
            score = nn.Dense(each_BMC[0].size, name=f"weights_{name}")
            score_BMC = score(h_BD).reshape(each_BMC.shape)
            weight_BMC = softmax(score_BMC, present_BM[..., None], axis=1)
            logits[name] = mean_of_present(each_BMC, weight_BMC)
        return Outputs(logits, {}, extra=each)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """The mixture's, plus `alone` times the mean loss of a row's experts."""
        del step
        loss, terms = task_losses.objective(self.data, out, batch, {})
        if self.alone:
            present_BM = batch.present(self.data)
            own, _ = task_losses.of_each(self.data, out.extra, batch, present_BM)
            loss += self.alone * own
        return loss, terms
