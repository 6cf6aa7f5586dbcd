"""FlexCare as released (mhxu1998/FlexCare, commit c6a210e): what the authors' code computes.

Its mask adds 1 to the scores of forbidden pairs, which favours them. All tokens then depend on the
task, so every task needs a pass of its own: evaluation makes all, training one, for the task of
each row. `paper.py` holds the published framework; golden numbers of the authors' modules fix this
file (tests/methods/test_flexcare_released.py).

Letters: B rows, P passes, M modalities, C combinations, K tasks (1 in a pass of one task), L data
tokens, T = K + C + L, D width, E experts, N routed tokens, F features of a head.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from m4 import task_losses
from m4.maths import torch_uniform
from m4.methods.flexcare.combinations import attention_bias, available, members
from m4.methods.flexcare.covariance import covariance_of_all
from m4.methods.flexcare.framework import Framework
from m4.methods.flexcare.tokens import data_tokens
from m4.nn.layers import TaskHeads
from m4.resolve import check_fields
from m4.specs import TaskSpec
from m4.types import Array, Batch, Mean, Outputs, Target

zeros = nn.initializers.zeros


class ReleasedFlexCare(Framework):
    """Any number of modalities, any tasks."""

    patch: int = 16  # pixels of an image's token
    mask_mode: Literal["additive_one", "strict"] = "additive_one"  # the release's, or -inf

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]. Training needs rngs 'dropout' and 'gate'.

        With the additive mask training answers one task of each row, `batch.task` (a row without
        takes that of its place in the batch); other tasks' logits mean nothing.
        Raises ValueError for impossible fields, kinds without tokens and too many combinations.
        """
        check_fields(self, depth=1)
        num_tasks = len(self.data.tasks)
        member_CM = members(len(self.data.modalities), self.max_size)
        ready_BC = available(batch.present(self.data), member_CM)

        # Tokens.
        x_BLD, mask_BL, owner_L = data_tokens(self.data, batch, self.width, self.patch)
        task_KD = self.param("task", nn.initializers.normal(1.0), (num_tasks, self.width))
        token_CD = self.param("combination", zeros, (len(member_CM), self.width))
        single_C = member_CM.sum(-1) == 1
        readable_BC = ready_BC | ~single_C  # only single modalities' tokens are ever masked

        # Transformer.
        query_BKD, task_B, passes = self._ask(task_KD, batch, train)
        if passes > 1:
            x_BLD, readable_BC, mask_BL = (
                jnp.repeat(x, passes, axis=0) for x in (x_BLD, readable_BC, mask_BL)
            )
        additive = self.mask_mode == "additive_one"
        bias_TT = attention_bias(member_CM, owner_L, query_BKD.shape[1], additive=additive)
        q_BKD, z_BCD = self.encode(
            query_BKD, token_CD, x_BLD, readable_BC, mask_BL, bias_TT, train=train
        )
        q_BKD = rearrange(q_BKD, "(b p) k d -> b (p k) d", p=passes)
        z_BPCD = rearrange(z_BCD, "(b p) c d -> b p c d", p=passes)
        z_BKCD = jnp.broadcast_to(z_BPCD, (*q_BKD.shape[:2], *z_BPCD.shape[2:]))

        # Experts, fusion, heads.
        counted_BC = ready_BC & (batch.weight > 0)[:, None]
        init = zeros if self.moe.gate == "task_additive" else None
        y_BKCD, moe = self.route(
            z_BKCD, q_BKD, counted_BC, batch, member_CM, gate_init=init, train=train
        )
        h_BKF = self.fuse(q_BKD, y_BKCD, ready_BC)
        own = range(num_tasks) if h_BKF.shape[1] == num_tasks else [0] * num_tasks
        h = {name: h_BKF[:, k] for name, k in zip(self.data.task_names, own, strict=True)}
        heads = TaskHeads(self.data.tasks, kernel_init=torch_uniform(), name="heads")
        aux = dict(moe.losses)
        if "covariance" in self.aux_weights:
            aux["covariance"] = covariance_of_all(z_BKCD, batch.weight > 0)
        return Outputs(heads(h), aux, {"layer_0": moe}, {"task": task_B})

    def _ask(self, task_KD: Array, batch: Batch, train: bool) -> tuple[Array, Array, int]:
        """Task tokens of every row and pass [(B P), K, D], the rows' tasks, and P.

        A single pass asks for all tasks or, with the additive mask, for that of each row; to
        evaluate with it takes a pass for every task.
        """
        num_tasks, rows = len(task_KD), batch.uid.shape[0]
        query_BKD = jnp.broadcast_to(task_KD, (rows, *task_KD.shape))
        if self.mask_mode == "strict":
            return query_BKD, batch.task, 1
        if not train:
            return rearrange(query_BKD, "b k d -> (b k) 1 d"), batch.task, num_tasks
        task_B = jnp.where(batch.task < 0, jnp.arange(rows) % num_tasks, batch.task)
        return task_KD[task_B][:, None], task_B, 1

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Losses of the rows' tasks plus `aux_weights` times the other losses.

        The other losses are scaled by the weight of the batch's task. A row with nothing present
        counts like any other.
        """
        batch = batch.replace(task=out.extra["task"])
        weight_K = jnp.array([task.weight for task in self.data.tasks])
        total = jnp.sum(batch.weight * weight_K[batch.task])
        scale = total / jnp.maximum(jnp.sum(batch.weight), 1.0)
        aux = {name: scale * x for name, x in out.aux_losses.items()}
        terms = task_losses.task_losses(self.data, out.logits, batch, row_loss=per_entry)
        return task_losses.total(self.data, terms, aux, self.aux_weights), terms


def per_entry(task: TaskSpec, logits: Array, target: Target) -> tuple[Array, Array]:
    """As `task_losses.row_loss`, but a row of several labels weighs as many as are known.

    The mean is then over all known entries of the batch.
    """
    loss_B, known_B = task_losses.row_loss(task, logits, target)
    if task.kind == "multilabel":
        known_B = jnp.broadcast_to(target.mask.reshape(len(loss_B), -1), logits.shape).sum(-1)
    return loss_B, known_B
