"""M3H (Bertsimas and Ma, arXiv 2404.18975) as we ship it: tasks that attend to each other.

Reconstructed from public descriptions: neither the paper's equations nor the authors' code could
be read. Every modality becomes a vector, every task its own projection of all of them, and tasks
read each other by attention. There are no experts and no gate. `paper.py` is our reading of the
public descriptions, `released.py` the one public head; beside them this model has trained encoders,
a non-linear task projection, a residual, and heads that read the statistics of series and tables.
docs/methods/m3h.md lists every difference and says what is known.

Which tasks are in play is an input, so one compiled step serves every coalition of a task
interaction score (`m4.eval.tim`).

Letters: B rows, M modalities, D width of a modality, T = U tasks, d task width, C columns of
statistics.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from m4.methods.m3h.cross_task import Balance, CrossTask, Identity, Norm
from m4.methods.m3h.tasks import Cluster, Weighting, affine, objective, task_logits
from m4.nn.encoders.modalities import CodesEncoder, SummaryTokens, gather
from m4.nn.layers import MissingIndicator
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs


class M3H(nn.Module):
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
        encoder = SummaryVectors(self.data, self.width, self.dropout, name="encoder")
        x_BMD, columns_BC = encoder(batch, train=train)
        x_BMD = MissingIndicator(x_BMD.shape[1], name="missing")(x_BMD, batch.present(self.data))
        drop = nn.Dropout(self.dropout, deterministic=not train, name="drop")
        attention = self.norm, self.identity, self.alpha, self.beta, self.mix, self.balance
        cross = CrossTask(len(tasks), self.task_width, "residual", *attention, name="cross_task")
        o_BTd, a_BTU = cross(drop(rearrange(x_BMD, "b m d -> b (m d)")), active_T)
        drop = nn.Dropout(self.dropout, deterministic=not train, name="head_drop")
        plain = affine(tasks)
        columns_BTC = jnp.repeat(drop(columns_BC)[:, None], len(plain), axis=1)
        h_BTD = jnp.concatenate([drop(o_BTd[:, plain]), columns_BTC], -1)
        extra = {"active": active_T, "task_attention": a_BTU}
        if self.task_weighting == "uncertainty":
            extra["sigma"] = self.param("sigma", nn.initializers.ones, (len(tasks),))
        return Outputs(task_logits(tasks, o_BTd, h_BTD), {}, {}, extra)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Weighted mean of the active tasks' losses, regression by Huber; see `tasks.objective`."""
        del step
        args = self.data, out, batch, self.task_weighting, self.cluster
        return objective(*args, squares=False)


class SummaryVectors(nn.Module):
    """The summary token of every modality in the spec's order; text as a bag of its tokens."""

    data: DataSpec
    width: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, Array]:
        """Vectors [B, M, D], of absent ones too, and the columns [B, C] of series and tables."""
        text = tuple(m for m in self.data.modalities if m.kind == "text")
        others = tuple(m for m in self.data.modalities if m.kind != "text")
        vectors, columns_BC = {}, jnp.zeros((batch.weight.shape[0], 0))
        if others:
            data = dataclasses.replace(self.data, modalities=others)
            streams = gather(data, batch)
            summary = SummaryTokens(data, self.width, self.dropout, name="summary")
            x_BMD, columns_BC = summary(streams, train=train)
            vectors = streams.by_name(x_BMD)
        for m in text:
            encoder = CodesEncoder(m.vocab, self.width, name=m.name)
            vectors[m.name] = encoder(batch.inputs[m.name])
        return jnp.stack([vectors[name] for name in self.data.modality_names], 1), columns_BC
