"""Soft mixtures of experts on stacks of token sequences.

Every slot is a convex mix of a sequence's tokens, every token a convex mix of slot outputs
(Puigcerver et al., arXiv 2308.00951). A stack has experts of its own, so that one call serves the
mixtures of all modalities; a stack of 1 is shared by all sequences. What becomes of the slot
outputs is the caller's: tokens, one output per task slot, or pooled right away.

Letters: B rows, S sequences of a row, T tokens, E experts, P slots per expert, D width, M
modalities, N tokens.
"""

from typing import Annotated

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.maths import entropy, softmax
from m4.moe import experts, route, routers
from m4.moe.engine import slots as mixing
from m4.moe.options import SoftOptions
from m4.resolve import check_fields
from m4.types import Array, MoeAux


def _per_width(key, shape, dtype=jnp.float32):
    return shape[-2] ** -0.5 * jax.random.normal(key, shape, dtype)


def scaled_cosine(
    x_ND: Array,
    phi_DE: Annotated[Array, _per_width],
    scale: Annotated[Array, nn.initializers.ones],
) -> Array:
    """Scale * <x / |x|, phi_e / |phi_e|>, a gate: Soft-MoE's own, its scale learned."""
    return jnp.einsum("nd,de->ne", unit(x_ND), unit(phi_DE, dim=0) * scale, precision="highest")


def unit(x: Array, *, dim: int = -1) -> Array:
    """Length 1: x / max(|x|, 1e-12), with gradient 0 at x = 0."""
    square = jnp.sum(jnp.square(x), dim, keepdims=True)
    zero = square <= 1e-24  # not true of NaN, which must not become 0
    return jnp.where(zero, 0.0, x) * jax.lax.rsqrt(jnp.where(zero, 1.0, square))


@flax.struct.dataclass
class SoftSlots:
    """Routing of every sequence and the outputs of every slot."""

    dispatch: Array  # f32[B, S, T, E, P], sums to 1 over T
    combine: Array  # f32[B, S, T, E, P], sums to 1 over (E, P); 0 at masked tokens
    logits: Array  # f32[B, S, T, E, P]
    outputs: Array  # [B, S, E, P, D]
    mask: Array  # bool[B, S, T]

    def tokens(self) -> Array:
        """Every token's mix of slots, [B, S, T, D]."""
        return mixing.mix(self.outputs, self.combine)

    def by_slot(self, norm: str = "expert_slot") -> Array:
        """Slot p belongs to task p: sum over experts only, [B, S, T, P, D]."""
        return jnp.einsum("bstep,bsepd->bstpd", self._shares(norm), self.outputs)

    def pooled_by_slot(self, norm: str = "expert_slot") -> Array:
        """`by_slot` averaged over tokens, [B, S, P, D], without ever making it.

        The mean moves into the combine weights. On a mesh each expert's part is then summed over
        the expert axis at [B, S, P, D] instead of [B, S, T, P, D]: T times less traffic.
        """
        num_BS = jnp.maximum(self.mask.sum(-1), 1)
        mean_BSEP = self._shares(norm).sum(2) / num_BS[..., None, None]
        return jnp.einsum("bsep,bsepd->bspd", mean_BSEP, self.outputs)

    def _shares(self, norm):
        """'expert_slot' as routed; 'expert_per_task' lets every task's shares sum to 1."""
        if norm == "expert_slot":
            return self.combine
        # Not `combine` over its sum, which underflows where tasks' scores lie far apart.
        return softmax(self.logits, self.mask[..., None, None], axis=3)


class SoftExperts(nn.Module):
    """Experts with P slots each on every sequence."""

    options: SoftOptions = SoftOptions()
    num_slots: int = 1
    num_stacks: int = 1

    @nn.compact
    def __call__(
        self, x_BSTD: Array, mask_BST: Array, *, slot_PD: Array | None = None
    ) -> SoftSlots:
        """`slot_PD` is added to the inputs of slot p of every expert."""
        check_fields(self.options)
        logits_BSTEP = self._score(x_BSTD.astype(jnp.float32))
        rows, stacks, tokens = mask_BST.shape
        soft = routers.soft(
            rearrange(logits_BSTEP, "b s t e p -> (b s t) (e p)"),
            mask_BST.reshape(-1),
            num_rows=rows * stacks,
            num_experts=self.options.num_experts,
        )
        split = lambda x: rearrange(x, "(b s) t e p -> b s t e p", b=rows)  # noqa: E731
        dispatch, combine = split(soft.dispatch), split(soft.combine)
        combine = jnp.where(mask_BST[..., None, None], combine, 0.0)
        x_BSTD = unit(x_BSTD) if self.options.inputs == "unit" else x_BSTD
        z_BSEPD = mixing.fill(x_BSTD, dispatch)
        z_BSEPD = z_BSEPD if slot_PD is None else z_BSEPD + slot_PD
        return SoftSlots(dispatch, combine, logits_BSTEP, self._run(z_BSEPD), mask_BST)

    def _score(self, x_BSTD) -> Array:
        gate = route.named("gate", self.options.gate, "gates")
        num_experts = self.options.num_experts
        dims = {"D": x_BSTD.shape[-1], "E": num_experts * self.num_slots, "R": self.options.rank}
        learned = {}
        for argument, (shape, init) in route.parameters_of("gate", gate, dims).items():
            name = f"gate_{route.stem(argument)}"
            learned[argument] = self.param(name, init, (self.num_stacks, *shape))

        def score(x_ND, params):
            options = self.options.gate_options
            return route.call_for(
                "gate", gate, x_ND, options=options, num_experts=dims["E"], **params
            )

        # Rows come first where dimensions merge: on a mesh they are split.
        rows, stacks = x_BSTD.shape[:2]
        if self.num_stacks == 1:
            first = {name: value[0] for name, value in learned.items()}
            logits_NE = score(rearrange(x_BSTD, "b s t d -> (b s t) d"), first)
            sizes = {"b": rows, "s": stacks, "e": num_experts}
            return rearrange(logits_NE, "(b s t) (e p) -> b s t e p", **sizes)
        logits_SNE = jax.vmap(score)(rearrange(x_BSTD, "b s t d -> s (b t) d"), learned)
        return rearrange(logits_SNE, "s (b t) (e p) -> b s t e p", b=rows, e=num_experts)

    def _run(self, z_BSEPD) -> Array:
        """Every expert on its slots, in the dtype of the input."""
        o, (rows, width) = self.options, (z_BSEPD.shape[0], z_BSEPD.shape[-1])
        params = experts.create(self, self.num_stacks * o.num_experts, width, o.hidden)
        slots, stacked = "b s e p d", "e (b s p) d" if self.num_stacks == 1 else "(s e) (b p) d"
        z_ECD = rearrange(z_BSEPD, f"{slots} -> {stacked}")
        functions = experts.Functions.named(o.activation, o.output)
        y_ECD = mixing.run(z_ECD.astype(o.dtype or z_ECD.dtype), params, functions)
        sizes = {"b": rows, "s": z_BSEPD.shape[1], "p": self.num_slots}
        return rearrange(y_ECD, f"{stacked} -> {slots}", **sizes).astype(z_BSEPD.dtype)


def stats(slots: SoftSlots, modality_T: np.ndarray, num_modalities: int, *, train: bool) -> MoeAux:
    """What reports read, for one sequence per row. Assignments are shares of combine weights.

    'by_modality' f32[M, E] and, in evaluation, 'by_row' f32[B, M, E] count the tokens' shares.
    """
    share_BTE = slots.combine[:, 0].sum(-1)
    member_TM = np.eye(num_modalities, dtype=np.float32)[modality_T]
    by_row_BME = jnp.einsum("bte,tm->bme", share_BTE, member_TM)
    load_E = by_row_BME.sum((0, 1))
    load_E = load_E / jnp.maximum(load_E.sum(), 1e-30)
    num = jnp.maximum(slots.mask.sum(), 1)
    found = {
        "load": load_E,
        "importance": load_E,
        "entropy": jnp.sum(entropy(share_BTE)) / num,
        "dropped": jnp.zeros(()),
        "by_modality": by_row_BME.sum(0),
    }
    return MoeAux({}, jax.lax.stop_gradient(found if train else found | {"by_row": by_row_BME}))
