"""M4oE (Wu et al., ICLR 2025): soft mixtures of experts per modality and per task.

Every modality becomes tokens (images by a ViT of their own). A mixture per modality (MSoE) reads
its own tokens; one mixture over the tokens of all (MToE) has a slot per task in every expert; per
task, a fusion block lets the MToE token read the MSoE tokens. There is no top-k: dispatch and
combine are softmaxes, and a regulariser raises I(modality; expert | task) of their joint
distribution. `fidelity` chooses between three versions; docs/methods/m4oe.md lists every
difference:

- 'released': the modules of the authors' code (`tangzhengxu2001/m4oe`, commit fb2906c), its other
  information loss, and rows that only train with all labels;
- 'paper': the paper as described in public, absent modalities masked;
- 'm4': raw tokens into the experts, generic task losses, heads that read statistics.

Letters: B rows, M modalities, T tokens of a modality, D width, E experts, P = tasks, N columns.
"""

from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.core import FrozenDict

from m4 import task_losses
from m4.methods.m4oe import information
from m4.methods.m4oe.grid import GridTokens, TokenGrid, modality_of_token
from m4.moe import soft
from m4.moe.options import SoftOptions
from m4.moe.soft import SoftExperts
from m4.nn import segmentation
from m4.nn.heads import StackedHeads
from m4.nn.layers import StackedDense, StackedLayerNorm
from m4.nn.presence import masked_mean
from m4.nn.segmentation import SegHead
from m4.nn.transformer import AttentionBlock
from m4.specs import DataSpec, TaskSpec
from m4.types import Array, Batch, Mean, Outputs, Target

EPSILON = 1e-6  # of layer norms outside the ViTs
INFORMATION = ("cmi_joint", "cmi_dispatch", "cmi_combine", "code", "none")


class M4oE(nn.Module):
    """Any modalities; binary, multilabel, multiclass, regression and segmentation tasks.

    Published sizes: width 768, vit_depth 12, patch 16, num_experts 128, modality_experts 32,
    fusion_experts 16, depth and fusion_depth 2, hidden 3072, num_heads 8 (12 in the ViTs).
    """

    data: DataSpec
    fidelity: Literal["released", "paper", "m4"] = "m4"
    gate: str = "m4.moe.soft:scaled_cosine"  # or any name in m4.moe.gates
    num_experts: int = 16  # of the MToE
    modality_experts: int = 4
    fusion_experts: int = 4
    hidden: int = 128
    width: int = 64
    num_heads: int = 4
    depth: int = 1  # of every MSoE
    fusion_depth: int = 1
    dropout: float = 0.1
    vit_depth: int = 2
    vit_heads: int = 4
    patch: int = 8
    timed: Literal["grid", "summary"] = "grid"  # tokens of series and vectors
    num_queries: int = 4
    segment_widths: tuple = (384, 192, 96, 48)  # channels per doubling
    residual: Literal["attention", "none"] = "attention"  # of the MToE's task branches
    combine_norm: Literal["expert_slot", "expert_per_task"] = "expert_slot"
    inputs: Literal["unit", "raw"] | None = None  # into experts; None: 'raw' in 'm4', else 'unit'
    information: Literal["cmi_joint", "cmi_dispatch", "cmi_combine", "code", "none"] | None = None
    aggregate: Literal["row", "batch"] = "row"  # information of a row, or of the mean row
    weighting: Literal["uniform", "uncertainty"] = "uniform"
    labels: Literal["any", "all"] | None = None  # None: 'all' in 'released': rows with every label
    focal: float = 2.0  # not in 'm4'
    class_weights: Mapping = FrozenDict({})  # task -> weight per class; not in 'm4'
    aux_weights: Mapping[str, float] = FrozenDict({"information": 0.05})

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task; a segmentation task's are a map [B, h, w, dim].

        Training needs the rng 'dropout'. `extra` holds 'utilisation' P(modality | task) [B, M, P]
        and 'features', what the encoder of each modality says [B, M, D].
        Raises ValueError for modality kinds without an encoder and for unknown choices.
        """
        self._check()
        grid, present_BM = self._tokens(batch, train)
        s_BMD = self._msoe(grid, train)
        g_BPD, maps, slots = self._mtoe(grid, train)
        modality_T = modality_of_token(grid)
        shape = modality_T, len(self.data.modalities)
        f_BPD = self._fuse(g_BPD, s_BMD, present_BM, train)
        if self.fidelity == "m4":
            drop = nn.Dropout(self.dropout, deterministic=not train, name="head_drop")
            wide_BPN = jnp.repeat(drop(grid.wide)[:, None], f_BPD.shape[1], axis=1)
            f_BPD = jnp.concatenate([drop(nn.gelu(f_BPD)), wide_BPN], -1)
        extra = {"utilisation": information.utilisation(_joint(slots, shape)), "features": s_BMD}
        if self.weighting == "uncertainty":
            extra["sigma"] = self.param("sigma", nn.initializers.ones, (len(self.data.tasks),))
        counted_B = (present_BM.sum(-1) > 1) & (batch.weight > 0)
        value = self._information(slots, shape, counted_B)
        aux = dict.fromkeys(self.aux_weights, value)
        moe = {"layer_0": soft.stats(slots, *shape, train=train)}
        return Outputs(self._heads(f_BPD, maps), aux, moe, extra)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Sum of task losses minus `aux_weights['information']` times the information."""
        del step
        spec, some_B = self.data, batch.present(self.data).any(-1)
        batch = batch.replace(weight=batch.weight * some_B)
        if (self.labels or ("all" if self.fidelity == "released" else "any")) == "all":
            batch = batch.replace(weight=batch.weight * all_labels(batch))
        terms = task_losses.task_losses(spec, out.logits, batch, row_loss=self._row_loss)
        weighed = terms
        if "sigma" in out.extra:
            weighed = {}
            for task, sigma in zip(spec.tasks, out.extra["sigma"], strict=True):
                term = terms[task.name]
                value = jnp.where(
                    term.weight > 0, task_losses.uncertainty(term.value(), sigma), 0.0
                )
                weighed[task.name] = Mean(value, jnp.ones(()))
        return task_losses.total(spec, weighed, out.aux_losses, self.aux_weights), terms

    def _check(self):
        choices = {
            "fidelity": ("released", "paper", "m4"),
            "timed": ("grid", "summary"),
            "residual": ("attention", "none"),
            "combine_norm": ("expert_slot", "expert_per_task"),
            "inputs": (None, "unit", "raw"),
            "information": (None, *INFORMATION),
            "aggregate": ("row", "batch"),
            "weighting": ("uniform", "uncertainty"),
            "labels": (None, "any", "all"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field}={getattr(self, field)!r}; choose one of {allowed}")
        if {*self.aux_weights} - {"information"}:
            raise ValueError(f"aux_weights {sorted(self.aux_weights)}; there is only 'information'")

    def _tokens(self, batch, train) -> tuple[TokenGrid, Array]:
        """Tokens and presence; as released, an absent modality is a zero image like any other."""
        present_BM = batch.present(self.data)
        grid = GridTokens(
            self.data,
            self.width,
            self.vit_heads,
            self.dropout,
            self.vit_depth,
            self.patch,
            self.timed,
            self.num_queries,
            epsilon=EPSILON if self.fidelity == "m4" else 1e-12,
            name="tokens",
        )(batch, train=train)
        if self.fidelity == "released":
            present_BM = jnp.ones_like(present_BM)
        return grid.replace(mask=grid.mask & present_BM[..., None]), present_BM

    def _inputs(self) -> str:
        return self.inputs or ("raw" if self.fidelity == "m4" else "unit")

    def _experts(self, name, num, stacks=1, slots=1) -> SoftExperts:
        options = SoftOptions(self.gate, num, self.hidden, inputs=self._inputs())
        return SoftExperts(options, slots, stacks, name=name)

    def _attend(self, name, x, mask, stacks, train) -> Array:
        block = AttentionBlock(self.num_heads, stacks, self.dropout, EPSILON, name=name)
        return block(x, mask, train=train)

    def _block(self, name, x, mask, num, stacks, train) -> Array:
        """Pre-norm residual attention, then soft mixture, within each sequence of a stack."""
        x = self._attend(f"{name}_attention", x, mask, stacks, train)
        u = StackedLayerNorm(stacks, EPSILON, name=f"{name}_norm")(x)
        y = self._experts(f"{name}_experts", num, stacks)(u, mask).tokens()
        return x + nn.Dropout(self.dropout, deterministic=not train, name=f"{name}_drop")(y)

    def _msoe(self, grid: TokenGrid, train) -> Array:
        """One vector per modality, [B, M, D]: blocks of its own, then the mean over its tokens."""
        x_BMTD, num = grid.x, grid.x.shape[1]
        for i in range(self.depth):
            x_BMTD = self._block(f"msoe_{i}", x_BMTD, grid.mask, self.modality_experts, num, train)
        return masked_mean(x_BMTD, grid.mask, dim=2)

    def _mtoe(self, grid: TokenGrid, train) -> tuple[Array, dict[str, Array], soft.SoftSlots]:
        """One vector per task, [B, P, D]; patch tokens of segmentation tasks; the routing.

        The block is not public. Ours: attention over all tokens, then the mixture in the place of
        the MLP; every task's branch adds its mix of expert outputs to the same residual stream.
        """
        x_BSTD = rearrange(grid.x, "b m t d -> b 1 (m t) d")
        mask_BST = rearrange(grid.mask, "b m t -> b 1 (m t)")
        x_BSTD = self._attend("mtoe_attention", x_BSTD, mask_BST, 1, train)
        u_BSTD = StackedLayerNorm(1, EPSILON, name="mtoe_norm")(x_BSTD)
        tasks = len(self.data.tasks)
        task_PD = self.param("task", nn.initializers.zeros, (tasks, self.width))
        experts = self._experts("mtoe_experts", self.num_experts, slots=tasks)
        slots = experts(u_BSTD, mask_BST, slot_PD=task_PD)
        g_BPD = slots.pooled_by_slot(self.combine_norm)[:, 0]
        stream = self.residual == "attention"
        if stream:
            g_BPD += masked_mean(x_BSTD[:, 0], mask_BST[:, 0], dim=1)[:, None]
        maps = {}
        for p, task in enumerate(self.data.tasks):
            if task.kind == "segmentation":  # needs every token, the others only their mean
                h_BTD = slots.by_slot(self.combine_norm)[:, 0, :, p] + x_BSTD[:, 0] * stream
                h_BMTD = rearrange(h_BTD, "b (m t) d -> b m t d", m=grid.x.shape[1])
                m = self._pictured(task)
                skip = nn.Dense(self.width, name=f"skip_{task.name}")(grid.x[:, m])
                maps[task.name] = h_BMTD[:, m] + skip
        return g_BPD, maps, slots

    def _pictured(self, task: TaskSpec) -> int:
        """The image that a segmentation task is about: the first it needs, else the first."""
        names = task.needs or self.data.modality_names
        images = [n for n in names if self.data.modality(n).kind == "image"]
        if not images:
            raise ValueError(f"task {task.name}: nothing to segment, no modality is an image")
        return self.data.modality_names.index(images[0])

    def _fuse(self, g_BPD, s_BMD, present_BM, train) -> Array:
        """Per task, its token reads the modalities'; blocks are shared by tasks. [B, P, D]."""
        tasks = g_BPD.shape[1]
        s_BPMD = jnp.repeat(s_BMD[:, None], tasks, axis=1)
        x_BPTD = jnp.concatenate([g_BPD[:, :, None], s_BPMD], 2)
        mask_BT = jnp.pad(present_BM, ((0, 0), (1, 0)), constant_values=True)
        mask_BPT = jnp.repeat(mask_BT[:, None], tasks, axis=1)
        for i in range(self.fusion_depth):
            x_BPTD = self._block(f"fusion_{i}", x_BPTD, mask_BPT, self.fusion_experts, 1, train)
        f_BPD = StackedLayerNorm(tasks, EPSILON, name="norm")(x_BPTD[:, :, 0])
        return StackedDense(self.width, tasks, name="project")(f_BPD)

    def _heads(self, f_BPD, maps) -> dict[str, Array]:
        tasks = self.data.tasks
        plain = [p for p, task in enumerate(tasks) if task.kind != "segmentation"]
        logits = {}
        if plain:
            heads = StackedHeads([tasks[p] for p in plain], name="heads")
            logits = heads(f_BPD[:, jnp.array(plain)])
        for p, task in enumerate(tasks):
            if task.kind == "segmentation":
                _, height, width, _ = self.data.modalities[self._pictured(task)].shape
                context = nn.Dense(self.width, name=f"context_{task.name}")(f_BPD[:, p])
                patch_BND = maps[task.name][:, 1 : 1 + height * width // self.patch**2]
                x_ByxD = rearrange(
                    patch_BND + context[:, None], "b (y x) d -> b y x d", x=width // self.patch
                )
                head = SegHead(task.dim, self.segment_widths, name=f"segment_{task.name}")
                logits[task.name] = head(x_ByxD, size=(height, width))
        return {task.name: logits[task.name] for task in tasks}

    def _information(self, slots, shape, counted_B) -> Array:
        """Minus the information of the routing: its mean over rows with two modalities or more.

        As released ('code'): I(token; task), summed over rows.
        """
        kind = self.information or ("code" if self.fidelity == "released" else "cmi_joint")
        if kind == "none":
            return jnp.zeros(())
        if kind == "code":
            return -jnp.sum(
                information.released_information(slots.logits[:, 0], slots.mask[:, 0]) * counted_B
            )
        if kind == "cmi_joint":
            log_p = _joint(slots, shape)
        else:
            weights = slots.dispatch if kind == "cmi_dispatch" else slots.combine
            log_p = information.log_joint_of(weights[:, 0], *shape)
        num = jnp.maximum(counted_B.sum(), 1)
        if self.aggregate == "batch":
            there = jnp.where(counted_B[:, None, None, None], log_p, information.FAR)
            log_p = jax.nn.logsumexp(there, 0, keepdims=True) - jnp.log(num)
            return -jnp.where(counted_B.any(), information.conditional_information(log_p)[0], 0.0)
        return -jnp.sum(jnp.where(counted_B, information.conditional_information(log_p), 0.0)) / num

    def _row_loss(self, task: TaskSpec, logits: Array, target: Target) -> tuple[Array, Array]:
        """Focal loss of classes ('released', 'paper'), cross-entropy and Dice of maps."""
        if task.kind == "segmentation":
            mask_B = target.mask.astype(jnp.float32)
            value = jnp.where(mask_B[:, None, None, None] > 0, target.value, 0.0)
            return segmentation.loss(logits, value), mask_B
        if self.fidelity != "m4" and task.kind in ("binary", "multiclass"):
            weights = jnp.array(self.class_weights.get(task.name, (1.0,) * max(task.dim, 2)))
            return focal(logits, target, weights, self.focal)
        return task_losses.row_loss(task, logits, target)


def _joint(slots, shape):
    return information.log_joint(slots.logits[:, 0], slots.mask[:, 0], *shape)


def focal(logits_BC: Array, target: Target, weight_C: Array, gamma: float) -> tuple[Array, Array]:
    """(1 - p_y)^gamma w_y (-log p_y) and label mask per row; a single logit stands for two classes.

    As released, p_y in the first factor has no gradient.
    """
    logits_BC = logits_BC.astype(jnp.float32)
    if logits_BC.shape[-1] == 1:
        logits_BC = jnp.concatenate([jnp.zeros_like(logits_BC), logits_BC], -1)
    mask_B = target.mask.reshape(-1).astype(jnp.float32)
    label_B = jnp.where(mask_B > 0, target.value.reshape(-1), 0).astype(jnp.int32)
    log_BC = jax.nn.log_softmax(logits_BC)
    log_B = jnp.take_along_axis(log_BC, label_B[:, None], -1)[:, 0]
    easy_B = jax.lax.stop_gradient(jnp.exp(log_B))
    return -((1.0 - easy_B) ** gamma) * weight_C[label_B] * log_B, mask_B


def all_labels(batch: Batch) -> Array:
    """1 for rows with every label, else 0, f32[B]."""
    known = [
        jnp.asarray(t.mask).reshape(t.mask.shape[0], -1).all(-1) for t in batch.targets.values()
    ]
    return jnp.stack(known, -1).all(-1).astype(jnp.float32)
