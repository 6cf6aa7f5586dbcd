"""A sound small method, and the same with one defect each, which an audit has to find.

Letters: B rows, T positions, D width, M modalities.
"""

from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from m4 import task_losses
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Batch, Outputs

SPEC = DataSpec(
    modalities=(
        ModalitySpec("vitals", "series", (4, 3)),
        ModalitySpec("static", "table", (5,)),
        ModalitySpec("notes", "vectors", (2, 4)),
    ),
    tasks=(TaskSpec("death", "binary"), TaskSpec("stay", "regression")),
)
CALLS = iter(range(10**6))
# Defect -> the check that has to find it.
METHOD = {
    "batch statistics": "batch_composition_invariance",
    "neighbour": "batch_composition_invariance",
    "any lacks": "absence_stays_in_its_row",
    "place in the batch": "patient_permutation_equivariance",
    "routed by place": "patient_permutation_equivariance",
    "dropout": "evaluation_draws_nothing",
    "fixed dropout": "evaluation_draws_nothing",
    "drawn when traced": "evaluation_draws_nothing",
    "counts its calls": "evaluation_is_deterministic",
    "fixed gate": "gates_are_parameters",
    "bias alone": "routing_follows_inputs",
    "stopped gate": "every_parameter_learns",
    "reads absent": "garbage_changes_no_bit",
    "absent is zero": "absence_is_no_zero",
    "reads numbers": "row_numbers_do_not_influence_logits",
    "reads even numbers": "row_numbers_do_not_influence_logits",
    "reads labels": "targets_do_not_influence_logits",
    "reads what is known": "targets_do_not_influence_logits",
    "reads weights": "weights_and_tasks_do_not_influence_logits",
    "reads tasks": "weights_and_tasks_do_not_influence_logits",
    "deaf": "every_modality_matters",
    "division by none": "empty_row_counts_nowhere",
    "mean over all": "padding_rows_count_nowhere",
    "label mask": "missing_labels_give_no_gradient",
}


Learned = Annotated[jax.Array, nn.initializers.normal(1.0)]


def bias_alone(x_ND: jax.Array, bias_E: Learned) -> jax.Array:
    """A gate that looks at nothing."""
    return jnp.zeros((len(x_ND), 1)) + bias_E


def stopped(x_ND: jax.Array, w_DE: Learned) -> jax.Array:
    """A gate that no gradient reaches."""
    return x_ND @ jax.lax.stop_gradient(w_DE)


def by_place(x_ND: jax.Array, w_DE: Learned) -> jax.Array:
    """A gate that looks at the number of the token in the batch, too."""
    return x_ND @ w_DE + jnp.sin(jnp.arange(len(x_ND)))[:, None] * jnp.arange(w_DE.shape[1])


GATES = {"bias alone": "bias_alone", "stopped gate": "stopped", "routed by place": "by_place"}


class Sound(nn.Module):
    """Means of what was observed, one token a modality, a mixture of experts, heads."""

    data: DataSpec
    width: int = 8
    defect: str = ""

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task."""
        present_BM = batch.present(self.data)
        if self.defect == "absent is zero":
            present_BM = jnp.ones_like(present_BM)
        if self.defect == "deaf":
            present_BM = present_BM.at[:, 1].set(False)
        tokens = [self.token(m.name, batch.inputs[m.name]) for m in self.data.modalities]
        x_BMD = self.altered(jnp.stack(tokens, axis=1), batch, present_BM, train)
        y_BMD, aux = self.experts(x_BMD, present_BM & (batch.weight > 0)[:, None], train)
        x_BMD = (x_BMD + y_BMD) * present_BM[..., None]
        count_B1 = present_BM.sum(-1, keepdims=True)
        if self.defect != "division by none":
            count_B1 = jnp.maximum(count_B1, 1)
        h_BD = jnp.tanh(x_BMD.sum(1) / count_B1)
        heads = {t.name: nn.Dense(t.dim, name=f"head_{t.name}")(h_BD) for t in self.data.tasks}
        if self.defect == "reads numbers":
            heads["stay"] += 0.01 * jnp.sin(batch.uid.astype(jnp.float32))[:, None]
        told = {
            "reads even numbers": batch.uid % 2,
            "reads labels": batch.targets["death"].value[:, 0],
            "reads what is known": batch.targets["death"].mask,
            "reads weights": batch.weight,
            "reads tasks": batch.task,
        }
        if self.defect in told:
            heads["death"] += 0.1 * told[self.defect][:, None]
        return Outputs(heads, {}, {"layer_0": aux})

    def token(self, name: str, stream: Any) -> jax.Array:
        """[B, D] of a modality."""
        seen = stream.mask if stream.observed is None else stream.observed
        values = stream.values
        seen = seen if seen.ndim == values.ndim else seen[..., None]
        known = jnp.where(seen, values, 0.0)
        if self.defect == "reads absent":
            known = known + 0.01 * jnp.tanh(values)
        if known.ndim == 3:
            known = known.sum(1) / jnp.maximum(stream.mask.sum(1, keepdims=True), 1)
        return nn.Dense(self.width, name=f"encode_{name}")(known)

    def altered(self, x_BMD, batch, present_BM, train):
        """The tokens, with what the defect makes of them."""
        x_BMD = x_BMD * present_BM[..., None]
        rows = len(batch.uid)
        if self.defect == "batch statistics":
            return x_BMD - x_BMD.mean(0, keepdims=True)
        if self.defect == "neighbour":  # the last two rows alone
            return x_BMD.at[-1].add(0.1 * x_BMD[-2])
        if self.defect == "any lacks":
            return jnp.where(present_BM.all(), x_BMD, 0.9 * x_BMD)
        if self.defect == "place in the batch":
            return x_BMD + 0.1 * jnp.arange(rows)[:, None, None]
        if self.defect == "dropout":
            return nn.Dropout(0.1, rng_collection="dropout")(x_BMD, deterministic=False)
        if self.defect == "fixed dropout":
            return x_BMD * jax.random.bernoulli(jax.random.key(0), 0.9, x_BMD.shape[1:])
        if self.defect == "drawn when traced":
            return x_BMD * np.random.default_rng().random(x_BMD.shape[1:], np.float32)
        if self.defect == "counts its calls":
            like = jax.ShapeDtypeStruct((), jnp.float32)
            return x_BMD + 0 * train + io_callback(lambda: np.float32(next(CALLS)), like)
        return x_BMD

    def experts(self, x_BMD, valid_BM, train):
        """What experts make of the tokens."""
        name = GATES.get(self.defect)
        gate = f"{__name__}:{name}" if name else "linear"
        options = MoEOptions(gate=gate, num_experts=4, top_k=2, hidden=8, engine="dense")
        fixed = self.defect == "fixed gate"
        layer = MoE(options, num_modalities=x_BMD.shape[1], fixed_gates=fixed, name="layer_0")
        x_ND = x_BMD.reshape(-1, self.width)
        kwargs = {"valid_N": valid_BM.reshape(-1), "num_rows": len(x_BMD), "train": train}
        modality_N = np.tile(np.arange(x_BMD.shape[1]), len(x_BMD))
        y_ND, aux = layer(x_ND, modality_N=modality_N, **kwargs)
        return y_ND.reshape(x_BMD.shape), aux

    def loss(self, out: Outputs, batch: Batch, step: jax.Array):
        """The tasks' mean."""
        if self.defect == "mean over all":
            batch = batch.replace(weight=jnp.ones_like(batch.weight))
        if self.defect == "label mask":
            known = {n: t.replace(mask=jnp.ones_like(t.mask)) for n, t in batch.targets.items()}
            batch = batch.replace(targets=known)
        return task_losses.objective(self.data, out, batch, {})
