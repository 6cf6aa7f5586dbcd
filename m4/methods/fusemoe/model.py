"""FuseMoE (Han et al., NeurIPS 2024): incomplete, irregular modalities fused by experts.

Every modality becomes tokens on a common grid of query times; blocks of self-attention within
a modality and a mixture of experts across them follow; a head reads all modalities.
`fidelity` chooses between three versions; docs/methods/fusemoe.md lists every difference:

- 'released': what the authors' code computes, defects included;
- 'paper': the equations of the paper; a routed unit is a patient (all times concatenated);
- 'm4': a routed unit is a token; absent modalities are masked everywhere; every modality also
  has a summary token, the summaries attend to each other, and the head reads statistics.

Letters: B rows, M modalities (slots), Q query times, D width, E experts, N routed units, U
numbers of a routed unit, T tokens of a row.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.core import FrozenDict

from m4 import task_losses
from m4.moe import declare
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions
from m4.nn.encoders import mixed
from m4.nn.heads import TaskHeads
from m4.nn.layers import StackedLayerNorm, hats
from m4.nn.presence import MissingIndicator, combination_index
from m4.nn.transformer import AttentionBlock, MLPBlock
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, MoeAux, Outputs

NOTES = ("notes", "text")  # modalities whose times the release reverses
TORCH = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
AFTER = FrozenDict({"normalise": "after"})
small = nn.initializers.normal(0.02)


class FuseMoE(nn.Module):
    """Fuses any number of modalities of kinds series, vectors, table, codes and text.

    Published sizes: width 128, num_queries 48, num_heads 8, embed_time 64, depth 3, hidden 512,
    dropout 0.1, num_experts 16, top_k 4 (2 with the disjoint router), utde 'batch'.
    """

    data: DataSpec
    fidelity: Literal["released", "paper", "m4"] = "m4"
    moe: MoEOptions = MoEOptions(router="noisy_top_k", share="permod")
    width: int = 64
    depth: int = 1
    num_heads: int = 4
    num_queries: int = 12
    embed_time: int = 32
    dropout: float = 0.2
    utde: Literal["batch", "batch_seq", "batch_seq_feature"] = "batch_seq_feature"
    mix: Literal["attention", "none"] = "attention"  # between modality summaries; m4 only
    statistics_hidden: int = 256  # units that read the summary statistics directly; m4 only
    aux_weights: Mapping[str, float] = FrozenDict({"importance": 0.01, "load": 0.01})

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim].

        Training needs rngs 'dropout' and 'gate'; evaluation none, except that 'released' draws
        its gate noise in evaluation too and needs 'gate'. Raises ValueError for modality kinds
        without an encoder and for unknown choices.
        """
        self._check()
        inputs = mixed.gather(self.data, batch)
        routable_B = batch.present(self.data).any(-1) & (batch.weight > 0)
        fuse = self._fuse_tokens if self.fidelity == "m4" else self._fuse_patients
        h_BD, moe = fuse(inputs, batch.present(self.data), routable_B, train)
        heads = TaskHeads(self.data.tasks, two_logits=self.fidelity != "m4", name="heads")
        aux = {name: sum(layer.losses[name] for layer in moe.values()) for name in self.aux_weights}
        return Outputs(heads(dict.fromkeys(self.data.task_names, h_BD)), aux, moe)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Task losses plus `aux_weights` times the routing losses.

        A row without any present modality counts nowhere, whatever its weight.
        """
        del step
        some_B = batch.present(self.data).any(-1)
        batch = batch.replace(weight=batch.weight * some_B)
        terms = task_losses.task_losses(self.data, out.logits, batch)
        return task_losses.total(self.data, terms, out.aux_losses, self.aux_weights), terms

    def _check(self):
        choices = {"fidelity": ("released", "paper", "m4"), "mix": ("attention", "none")}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field}={getattr(self, field)!r}; choose one of {allowed}")
        if self.depth < 1:
            raise ValueError(f"depth={self.depth} must be at least 1")

    def _grid(self, inputs, train) -> Array:
        return mixed.GridEncoder(
            self.width,
            self.num_heads,
            self.num_queries,
            self.embed_time,
            self.utde,
            self.dropout,
            authors=self.fidelity != "m4",
            released_imputation=self.fidelity == "released",
            name="grid",
        )(inputs, train=train)

    def _moe(self) -> dict:
        """What a routed layer is told in every fidelity."""
        return {"options": self.moe, "losses": tuple(sorted(self.aux_weights))}

    # fidelity 'm4'

    def _fuse_tokens(self, inputs, present_BM, routable_B, train) -> tuple[Array, dict]:
        """Summary tokens s of all modalities and grid tokens x of the timed ones."""
        pattern_B = combination_index(present_BM, modulo=self.moe.num_experts)
        present_BM = present_BM[:, np.array(mixed.order(self.data))]
        summary = mixed.SummaryEncoder(self.data, self.width, self.dropout, name="summary")
        s_BMD, wide_BN = summary(inputs, train=train)
        s_BMD += self.param("type", small, s_BMD.shape[1:])
        rows, timed = s_BMD.shape[0], inputs.num_timed
        x_BMQD = jnp.zeros((rows, 0, self.num_queries, self.width))
        if timed:
            x_BMQD = self._grid(inputs, train) + self.param(
                "grid_type", small, (timed, 1, self.width)
            )
            x_BMQD += self.param("position", small, x_BMQD.shape[2:])
        moe = {}
        for i in range(self.depth):
            s_BMD, x_BMQD = self._attend(i, s_BMD, x_BMQD, present_BM, train)
            valid_BM = present_BM & routable_B[:, None]
            s_BMD, x_BMQD, moe[f"layer_{i}"] = self._route(
                i, s_BMD, x_BMQD, valid_BM, pattern_B, train
            )
        if timed:
            s_BMD += jnp.pad(x_BMQD.mean(2), ((0, 0), (0, s_BMD.shape[1] - timed), (0, 0)))
        s_BMD = StackedLayerNorm(name="norm")(s_BMD)
        s_BMD = MissingIndicator(s_BMD.shape[1], name="missing")(s_BMD, present_BM)
        drop = nn.Dropout(self.dropout, deterministic=not train, name="head_drop")
        h_BD = nn.Dense(self.width, name="head")(drop(rearrange(s_BMD, "b m d -> b (m d)")))
        parts = [drop(nn.gelu(h_BD)), drop(wide_BN)]
        if self.statistics_hidden and wide_BN.shape[-1]:
            dense = nn.Dense(self.statistics_hidden, name="statistics")
            parts.append(drop(nn.gelu(dense(drop(hats(wide_BN))))))
        return jnp.concatenate(parts, -1), moe

    def _attend(self, i, s_BMD, x_BMQD, present_BM, train) -> tuple[Array, Array]:
        """Within each timed modality over its summary and grid, then between the summaries."""
        timed = x_BMQD.shape[1]
        if timed:
            y_BMTD = jnp.concatenate([s_BMD[:, :timed, None], x_BMQD], axis=2)
            mask_BMT = jnp.broadcast_to(present_BM[:, :timed, None], y_BMTD.shape[:3])
            block = AttentionBlock(self.num_heads, 1, self.dropout, name=f"time_{i}")
            y_BMTD = block(y_BMTD, mask_BMT, train=train)
            s_BMD = jnp.concatenate([y_BMTD[:, :, 0], s_BMD[:, timed:]], axis=1)
            x_BMQD = y_BMTD[:, :, 1:]
        if self.mix == "attention":
            block = AttentionBlock(self.num_heads, 1, self.dropout, name=f"mix_{i}")
            s_BMD = block(s_BMD[:, None], present_BM[:, None], train=train)[:, 0]
        return s_BMD, x_BMQD

    def _route(self, i, s_BMD, x_BMQD, valid_BM, pattern_B, train) -> tuple[Array, Array, MoeAux]:
        """X + drop(MoE(layer norm(x))) on the tokens of present modalities."""
        rows, slots = s_BMD.shape[:2]
        timed, num_queries = x_BMQD.shape[1:3]
        slot_T = np.concatenate([np.arange(slots), np.repeat(np.arange(timed), num_queries)])
        x_BTD = jnp.concatenate([s_BMD, rearrange(x_BMQD, "b m q d -> b (m q) d")], axis=1)
        y_ND, aux = MoE(**self._moe(), num_modalities=slots, name=f"layer_{i}")(
            rearrange(StackedLayerNorm(name=f"norm_{i}")(x_BTD), "b t d -> (b t) d"),
            valid_N=valid_BM[:, slot_T].reshape(-1),
            modality_N=np.tile(np.array(mixed.order(self.data))[slot_T], rows),
            pattern_N=jnp.repeat(pattern_B, len(slot_T)),
            num_rows=rows,
            train=train,
        )
        drop = nn.Dropout(self.dropout, deterministic=not train, name=f"drop_{i}")
        x_BTD += drop(y_ND.reshape(x_BTD.shape))
        x_BMQD = rearrange(x_BTD[:, slots:], "b (m q) d -> b m q d", q=num_queries)
        return x_BTD[:, :slots], x_BMQD, aux

    # fidelity 'paper' and 'released'

    def _fuse_patients(self, inputs, present_BM, routable_B, train) -> tuple[Array, dict]:
        """Section 3 and appendix E of the paper; the authors' `module.py`."""
        x_BMQD = self._embed(inputs, present_BM, train)
        slots = x_BMQD.shape[1]
        everything = jnp.ones(x_BMQD.shape[:3], bool)  # absent modalities are attended
        pattern_B = combination_index(present_BM, modulo=self.moe.num_experts)
        released = self.fidelity == "released"
        moe = {}
        for i in range(self.depth):
            block = AttentionBlock(self.num_heads, slots, self.dropout, name=f"time_{i}")
            x_BMQD = block(x_BMQD, everything, train=train)
            u_BMQD = StackedLayerNorm(slots, name=f"norm_{i}")(x_BMQD)
            route = PatientMoE(FrozenDict(self._moe()), released=released, name=f"layer_{i}")
            y_BMQD, moe[f"layer_{i}"] = route(u_BMQD, routable_B, pattern_B, train=train)
            x_BMQD += nn.Dropout(self.dropout, deterministic=not train, name=f"drop_{i}")(y_BMQD)
            mlp = MLPBlock(4 * self.width, slots, self.dropout, name=f"mlp_{i}")
            x_BMQD = mlp(x_BMQD, train=train)
        last_BMD = StackedLayerNorm(slots, name="norm")(x_BMQD)[:, :, -1]
        h_BD = rearrange(last_BMD, "b m d -> b (m d)")
        hidden_BD = nn.relu(nn.Dense(h_BD.shape[-1], kernel_init=TORCH, name="head_up")(h_BD))
        hidden_BD = nn.Dropout(self.dropout, deterministic=not train, name="head_drop")(hidden_BD)
        return h_BD + nn.Dense(h_BD.shape[-1], kernel_init=TORCH, name="head_down")(hidden_BD), moe

    def _embed(self, inputs, present_BM, train) -> Array:
        """All modalities on the query grid in the spec's order, absent ones replaced."""
        released = self.fidelity == "released"
        if released:
            inputs = inputs.replace(vectors=_released_times(inputs.vectors, self.data.hours))
        static = mixed.StaticEncoder(self.data, self.width, self.dropout, name="static")
        tokens = [x_BD[:, None, None] for x_BD in static(inputs, train=train)]
        tokens = [jnp.repeat(x_B11D, self.num_queries, axis=2) for x_B11D in tokens]
        if inputs.num_timed:
            tokens.insert(0, self._grid(inputs, train))
        x_BMQD = jnp.concatenate(tokens, axis=1)[:, np.argsort(mixed.order(self.data))]
        slots, (num_queries, width) = x_BMQD.shape[1], x_BMQD.shape[2:]
        type_MD = self.param("type", nn.initializers.normal(1.0), (slots, width))
        position_QD = self.param("position", small, (num_queries, width))
        if released:
            x_BMQD += _released_types(self.data, type_MD, present_BM)[:, None]
            if slots > 2:  # models of two modalities know nothing of missing ones
                x_BMQD = jnp.where(present_BM[..., None, None], x_BMQD, 0.0)
            first = jnp.arange(num_queries)[:, None] == 0  # a padding index: no gradient
            position_QD = jnp.where(first, jax.lax.stop_gradient(position_QD), position_QD)
        else:
            x_BMQD = MissingIndicator(slots, name="missing")(x_BMQD + type_MD[:, None], present_BM)
        drop = nn.Dropout(self.dropout, deterministic=not train, name="embed_drop")
        return drop(width**0.5 * x_BMQD + position_QD)


class PatientMoE(nn.Module):
    """One expert decision per patient ('joint') or per patient and modality.

    Experts of 'permod' and 'disjoint' read one modality and write to all; the outputs of a
    patient's modalities are added (authors' `sparse_moe.py`). With `released`, experts end in a
    softmax, mixtures are taken to log space, noise is drawn in evaluation too and rows are
    flattened with `mixing_flatten`.
    """

    layer: Mapping
    released: bool

    @nn.compact
    def __call__(
        self, u_BMQD: Array, valid_B: Array, pattern_B: Array, *, train: bool
    ) -> tuple[Array, MoeAux]:
        """[B, M, Q, D] -> [B, M, Q, D]."""
        rows, slots, num_queries, width = u_BMQD.shape
        flatten = mixing_flatten if self.released else patient_flatten
        u_BMU = flatten(u_BMQD)
        joint = self.layer["options"].share == "joint"
        units = 1 if joint else slots
        cls, options = MoE, dict(self.layer)
        if self.released:  # with top_k 1 the authors' weights are constantly 1
            moe = options["options"]
            router_options = FrozenDict({**AFTER, **moe.router_options})
            moe = dataclasses.replace(moe, router_options=router_options, output="softmax")
            cls, options["options"] = ReleasedMoE, moe
        y_NU, aux = cls(
            **options,
            num_modalities=units,
            out=slots * num_queries * width,
            name="moe",
        )(
            u_BMU.reshape(rows * units, -1),
            valid_N=jnp.repeat(valid_B, units),
            modality_N=None if joint else np.tile(np.arange(slots), rows),
            pattern_N=jnp.repeat(pattern_B, units),
            num_rows=rows,
            train=train or self.released,
        )
        if self.released:
            y_NU = jnp.log(jnp.where(y_NU == 0, 2.2e-16, y_NU))
        y_BMU = y_NU.reshape(rows, units, slots, -1).sum(1)
        if joint:  # a patient's decision is every modality's
            for name in {"by_modality", "by_row"} & set(aux.stats):
                aux.stats[name] = jnp.repeat(aux.stats[name], slots, axis=-2)
        unflatten = mixing_unflatten if self.released else patient_unflatten
        return unflatten(y_BMU, num_queries), aux


class ReleasedMoE(MoE):
    """Routers as released: they start at zero, and 'permod' and 'disjoint' ones stay there.

    The authors keep those in a Python list, outside the module's parameters: they are neither
    trained nor saved, and routing is random.
    """

    def _learned(self, function, prefix, dims, num_gates):
        learned = {}
        for argument, (shape, _) in declare.parameters(function, dims).items():
            name = f"{prefix}_{argument.rpartition('_')[0] or argument}"
            shape = (num_gates, *shape)
            learned[argument] = (
                self.param(name, nn.initializers.zeros, shape)
                if self.options.share == "joint"
                else jnp.zeros(shape)
            )
        return learned


def patient_flatten(x_BMQD: Array) -> Array:
    """[B, M, Q, D] -> [B, M, Q * D]: all times of a patient's modality."""
    return rearrange(x_BMQD, "b m q d -> b m (q d)")


def patient_unflatten(y_BMU: Array, num_queries: int) -> Array:
    """Inverse of `patient_flatten`."""
    return rearrange(y_BMU, "b m (q d) -> b m q d", q=num_queries)


def mixing_flatten(x_BMQD: Array) -> Array:
    """The release's flattening: reshapes time-major data to rows without a transpose.

    With more than one patient, a row then holds time steps of several of them.
    """
    rows, slots = x_BMQD.shape[:2]
    return rearrange(x_BMQD, "b m q d -> m q b d").reshape(slots, rows, -1).swapaxes(0, 1)


def mixing_unflatten(y_BMU: Array, num_queries: int) -> Array:
    """Inverse of `mixing_flatten`."""
    rows, slots = y_BMU.shape[:2]
    y_MQBD = y_BMU.swapaxes(0, 1).reshape(slots, num_queries, rows, -1)
    return rearrange(y_MQBD, "m q b d -> b m q d")


def _released_times(vectors, hours):
    """Times as released: of notes reversed, of images and ECGs in hours instead of windows."""
    return {
        name: x.replace(times=1.0 - x.times if name in NOTES else x.times * hours)
        for name, x in vectors.items()
    }


def _released_types(data: DataSpec, type_MD: Array, present_BM: Array) -> Array:
    """Type rows as released: ECG takes row 1 (text's) if any patient of the batch lacks it."""
    rows = list(type_MD)
    if "ecg" in data.modality_names and len(rows) > 1:
        m = data.modality_names.index("ecg")
        rows[m] = jnp.where(present_BM[:, m].all(), rows[m], rows[1])
    return jnp.stack(rows)
