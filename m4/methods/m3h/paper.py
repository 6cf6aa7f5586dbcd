"""M3H (Bertsimas and Ma, arXiv 2404.18975): our reading of the paper's public descriptions.

The paper's equations could not be read; docs/methods/m3h.md says what is known and lists the
equations that stand here, in the order of its table.

Letters: B rows, M modalities, D width of a modality, T = U tasks, d task width, C columns of
statistics.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from m4.methods.m3h.cross_task import Balance, CrossTask, Form, Identity, Norm
from m4.methods.m3h.haim import HaimVectors
from m4.methods.m3h.tasks import Cluster, Weighting, affine, objective, task_logits
from m4.nn.layers import Dropout, MissingIndicator
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs


class PaperM3H(nn.Module):
    """Any modalities; binary, multilabel, multiclass, regression, clustering and survival tasks.

    A clustering task has `dim` clusters and needs no labels; a survival task has `dim` intervals
    of time (`m4.task_losses.survival_loss`).
    """

    data: DataSpec
    width: int = 64  # of an encoded modality
    task_width: int = 64
    dropout: float = 0.1
    norm: Norm = "absmax"  # of the scores
    identity: Identity = "logit"
    alpha: float = 1.0  # cross-exploration
    beta: float | None = None  # self-exploitation; None: 1 + log(tasks - 1)
    mix: float = 0.5  # share of the identity with identity='mix'
    balance: Balance = "fixed"  # of alpha, and of mix
    task_weighting: Weighting = "class"  # each kind of task weighs the same
    cluster: Cluster = "dec"

    form: ClassVar[Form] = "linear"  # of a task's view of the row
    squares: ClassVar[bool] = True  # loss of a regression

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool, active_T: Array | None = None) -> Outputs:
        """Logits of every task; those of tasks outside `active_T` (bool[T]) mean nothing.

        Training needs the rng 'dropout'. A task outside `active_T` is neither read nor trained;
        a single active task gives a single-task model. `extra` holds 'task_attention' [B, T, U].
        Raises ValueError for modality kinds without an encoder and for unknown choices.
        """
        check_fields(self)
        tasks = self.data.tasks
        active_T = jnp.ones(len(tasks), bool) if active_T is None else active_T
        # x_m, or a learned vector where m is absent; x = [x_1, ..., x_M]
        x_BMD, columns_BC = self.encode(batch, train)
        x_BMD = MissingIndicator(x_BMD.shape[1], name="missing")(x_BMD, batch.present(self.data))
        drop = Dropout(self.dropout, deterministic=not train, name="drop")
        x_BN = drop(rearrange(x_BMD, "b m d -> b (m d)"))
        # e_t = W_t x; A = softmax_u(beta I + alpha S / max |S|); o_t = sum_u A_tu W_V e_u
        attention = self.norm, self.identity, self.alpha, self.beta, self.mix, self.balance
        cross = CrossTask(len(tasks), self.task_width, self.form, *attention, name="cross_task")
        o_BTd, a_BTU = cross(x_BN, active_T)
        extra = {"active": active_T, "task_attention": a_BTU}
        if self.task_weighting == "uncertainty":
            extra["sigma"] = self.param("sigma", nn.initializers.ones, (len(tasks),))
        # one affine head per task; of clustering, centroids in the space of o
        h_BTD = self.read(o_BTd[:, affine(tasks)], columns_BC, train)
        return Outputs(task_logits(tasks, o_BTd, h_BTD), {}, {}, extra)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Weighted mean of the active tasks' losses; see `tasks.objective`."""
        del step
        args = self.data, out, batch, self.task_weighting, self.cluster
        return objective(*args, squares=self.squares)

    def encode(self, batch: Batch, train: bool) -> tuple[Array, Array]:
        """A vector of every modality, [B, M, D], and what heads read beside, [B, C]."""
        encoder = HaimVectors(self.data, self.width, self.dropout, name="encoder")
        return encoder(batch, train=train), jnp.zeros((batch.weight.shape[0], 0))

    def read(self, o_BTd: Array, columns_BC: Array, train: bool) -> Array:
        """What the affine heads read, [B, T, D]."""
        del columns_BC, train
        return o_BTd
