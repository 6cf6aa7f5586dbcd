"""FuseMoE (Han et al., NeurIPS 2024): incomplete, irregular modalities fused by experts.

Every modality becomes tokens on a common grid of query times; blocks of self-attention within
a modality and a mixture of experts across them follow; a head reads all modalities.
`fidelity` chooses between three versions; docs/methods/fusemoe.md lists every difference:

- 'released': what the authors' code computes, defects included;
- 'paper': the equations of the paper; a routed unit is a patient (all times concatenated);
- 'm4': a routed unit is a token, absent modalities are masked everywhere, summaries of each
  modality attend to each other, and summary statistics of every series reach the head.

Letters: B rows, M modalities, Q query times, D width, E experts, N routed units, T tasks.
"""

from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.core import FrozenDict

from m4 import losses
from m4.moe import declare
from m4.moe.layer import MoE
from m4.nn.dense import StackedLayerNorm
from m4.nn.encoders.codes import CodesEncoder
from m4.nn.encoders.series import UTDE, SeriesSummary, stack_series, summary_statistics
from m4.nn.encoders.table import TableEncoder
from m4.nn.encoders.vectors import VectorsEncoder, VectorsSummary, clean_vectors
from m4.nn.fuse import MissingIndicator
from m4.nn.heads import TaskHeads
from m4.nn.time import TimeEmbedding, frequency_init, query_times
from m4.nn.transformer import AttentionBlock, MLPBlock
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, MoeAux, Outputs

NOTES = ("notes", "text")  # modalities whose times the release reverses
KINDS = ("series", "vectors", "table", "codes")  # timed kinds first
TORCH = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class FuseMoE(nn.Module):
    """Fuses any number of modalities of kinds series, vectors, table and codes.

    Published sizes: width 128, num_queries 48, num_heads 8, embed_time 64, depth 3, hidden 512,
    dropout 0.1, num_experts 16, top_k 4 (2 with the disjoint router).
    """

    data: DataSpec
    fidelity: Literal["released", "paper", "m4"] = "m4"
    gate: str = "laplace"  # any name in m4.moe.gates
    router: Literal["joint", "permod", "disjoint"] = "permod"
    routing: str = "noisy_top_k"  # any name in m4.moe.routing
    num_experts: int = 16
    top_k: int = 2
    hidden: int = 128
    dispatch: str = "auto"
    width: int = 64
    depth: int = 1
    num_heads: int = 4
    num_queries: int = 12
    embed_time: int = 32
    dropout: float = 0.2
    utde: Literal["batch", "batch_seq", "batch_seq_feature"] = "batch_seq_feature"
    mix: Literal["attention", "none"] = "attention"  # between modality summaries; m4 only
    aux_weights: Mapping[str, float] = FrozenDict({"importance": 0.01, "load": 0.01})

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim].

        Training needs rngs 'dropout' and 'gate'; evaluation none, except that 'released' draws
        its gate noise in evaluation too and needs 'gate'. Raises ValueError for modality kinds
        without an encoder and for unknown choices.
        """
        self._check()
        fuse = self._token_level if self.fidelity == "m4" else self._patient_level
        h, moe = fuse(batch, train)
        heads = TaskHeads(self.data.tasks, two_logits=self.fidelity != "m4", name="heads")
        aux = {name: sum(layer.losses[name] for layer in moe.values()) for name in self.aux_weights}
        return Outputs(heads(dict.fromkeys(self.data.task_names, h)), aux, moe)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Task losses plus `aux_weights` times the routing losses.

        A row without any present modality counts nowhere, whatever its weight.
        """
        del step
        some_B = batch.present(self.data).any(-1)
        batch = batch.replace(weight=batch.weight * some_B)
        terms = losses.task_losses(self.data, out.logits, batch)
        return losses.total(self.data, terms, out.aux_losses, self.aux_weights), terms

    def _check(self):
        """Refuse what the layers below would not name."""
        choices = {"fidelity": ("released", "paper", "m4"), "mix": ("attention", "none")}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field}={getattr(self, field)!r}; choose one of {allowed}")
        if self.depth < 1:
            raise ValueError(f"depth={self.depth} must be at least 1")
        for m in self.data.modalities:
            if m.kind not in KINDS:
                raise ValueError(
                    f"modality {m.name}: fusemoe has no encoder for kind {m.kind!r}; embed it "
                    f"when the data are built (kind 'vectors'), or choose from {KINDS}"
                )

    def _slots(self, batch: Batch) -> tuple[list[int], Array]:
        """Spec positions with timed kinds first, and presence in that order."""
        kinds = [m.kind for m in self.data.modalities]
        order = sorted(range(len(kinds)), key=lambda m: KINDS.index(kinds[m]))
        return order, batch.present(self.data)[:, np.array(order)]

    def _streams(self, batch: Batch, kind: str):
        """Name, spec and stream of every modality of a kind."""
        return [(m.name, m, batch.inputs[m.name]) for m in self.data.modalities if m.kind == kind]

    def _grid(self, series, vectors, train) -> Array:
        """Timed modalities -> [B, M, Q, D]: series first, then vectors."""
        m4 = self.fidelity == "m4"
        init = {"weight_init": frequency_init(self.num_queries)} if m4 else {}
        embed = TimeEmbedding(self.embed_time, **init, name="time")
        query_QK = embed(query_times(self.num_queries))
        rate = 0.0 if m4 else self.dropout
        tokens = []
        if series is not None:
            utde = UTDE(
                self.width, self.num_heads, series.mask.shape[1], self.utde, rate,
                released_imputation=self.fidelity == "released", name="series",
            )  # fmt: skip
            tokens.append(utde(series, query_QK, embed(series.times), train=train))
        for name, x in vectors.items():
            encoder = VectorsEncoder(self.width, self.num_heads, rate, project=m4, name=name)
            tokens.append(encoder(x, query_QK, embed(x.times), train=train)[:, None])
        return jnp.concatenate(tokens, axis=1)

    def _static(self, batch, train) -> list[Array]:
        """Tables, then codes -> one token [B, D] each."""
        tables = [
            TableEncoder(self.width, self.dropout, name=name)(stream, train=train)
            for name, _, stream in self._streams(batch, "table")
        ]
        return tables + [
            CodesEncoder(spec.vocab, self.width, name=name)(stream)
            for name, spec, stream in self._streams(batch, "codes")
        ]

    def _token_level(self, batch: Batch, train: bool) -> tuple[Array, dict[str, MoeAux]]:
        """Fidelity 'm4': summary tokens of all modalities, grid tokens of the timed ones."""
        order, present_BM = self._slots(batch)
        series, vectors = self._timed(batch)
        timed = (0 if series is None else series.mask.shape[1]) + len(vectors)
        s_BMD, wide_BN = self._summaries(batch, series, vectors, train)
        type_init = nn.initializers.normal(0.02)
        s_BMD += self.param("type", type_init, s_BMD.shape[1:])
        x_BMQD = jnp.zeros((s_BMD.shape[0], 0, self.num_queries, self.width))
        if timed:
            x_BMQD = self._grid(series, vectors, train)
            x_BMQD += self.param("grid_type", type_init, (timed, 1, self.width))
            x_BMQD += self.param("position", type_init, x_BMQD.shape[2:])
        moe = {}
        for i in range(self.depth):
            s_BMD, x_BMQD = self._attend(i, s_BMD, x_BMQD, present_BM, train)
            s_BMD, x_BMQD, moe[f"layer_{i}"] = self._route_tokens(
                i, s_BMD, x_BMQD, present_BM, order, batch.weight > 0, train
            )
        if timed:
            pad = ((0, 0), (0, s_BMD.shape[1] - timed), (0, 0))
            s_BMD += jnp.pad(x_BMQD.mean(2), pad)
        s_BMD = StackedLayerNorm(name="norm")(s_BMD)
        s_BMD = MissingIndicator(s_BMD.shape[1], name="missing")(s_BMD, present_BM)
        drop = nn.Dropout(self.dropout, deterministic=not train, name="head_drop")
        h_BD = nn.gelu(
            nn.Dense(self.width, name="head")(drop(rearrange(s_BMD, "b m d -> b (m d)")))
        )
        return jnp.concatenate([drop(h_BD), drop(wide_BN)], -1), moe

    def _timed(self, batch):
        """Cleaned inputs of the timed modalities: a stack of series (or None), vectors by name."""
        series = [stream for _, _, stream in self._streams(batch, "series")]
        stack = stack_series(series, hours=self.data.hours) if series else None
        vectors = {}
        for name, _, stream in self._streams(batch, "vectors"):
            raw = self.fidelity == "released"
            x = clean_vectors(stream, hours=1.0 if raw else self.data.hours)
            if raw and name in NOTES:
                x = x.replace(times=1.0 - x.times / self.data.hours)
            vectors[name] = x
        return stack, vectors

    def _summaries(self, batch, series, vectors, train) -> tuple[Array, Array]:
        """One token per modality [B, M, D], and the statistics and table columns [B, N]."""
        tokens, columns = [], []
        if series is not None:
            x_BMN = rearrange(jnp.clip(summary_statistics(series), -6, 6), "b m f s -> b m (f s)")
            summary = SeriesSummary(self.width, x_BMN.shape[1], self.dropout, name="summary")
            tokens.append(summary(x_BMN, train=train))
            columns.append(rearrange(x_BMN, "b m n -> b (m n)"))
        for name, x in vectors.items():
            tokens.append(VectorsSummary(self.width, name=f"{name}_summary")(x)[:, None])
        for _, _, stream in self._streams(batch, "table"):
            seen = stream.observed & stream.present[:, None]
            columns.append(jnp.where(seen, stream.values, 0.0))
        tokens += [x_BD[:, None] for x_BD in self._static(batch, train)]
        wide = jnp.concatenate(columns, -1) if columns else jnp.zeros((batch.weight.shape[0], 0))
        return jnp.concatenate(tokens, 1), 0.3 * wide

    def _attend(self, i, s_BMD, x_BMQD, present_BM, train):
        """Within each timed modality over its summary and grid, then between the summaries."""
        timed = x_BMQD.shape[1]
        if timed:
            y = jnp.concatenate([s_BMD[:, :timed, None], x_BMQD], axis=2)
            mask = jnp.broadcast_to(present_BM[:, :timed, None], y.shape[:3])
            block = AttentionBlock(self.num_heads, 1, self.dropout, name=f"time_{i}")
            y = block(y, mask, train=train)
            s_BMD = jnp.concatenate([y[:, :, 0], s_BMD[:, timed:]], axis=1)
            x_BMQD = y[:, :, 1:]
        if self.mix == "attention":
            block = AttentionBlock(self.num_heads, 1, self.dropout, name=f"mix_{i}")
            s_BMD = block(s_BMD[:, None], present_BM[:, None], train=train)[:, 0]
        return s_BMD, x_BMQD

    def _route_tokens(self, i, s_BMD, x_BMQD, present_BM, order, counts_B, train):
        """One mixture-of-experts block on all tokens of present modalities."""
        modality_M = np.array(order)
        timed, num_queries = x_BMQD.shape[1:3]
        slot_T = np.concatenate([np.arange(len(order)), np.repeat(np.arange(timed), num_queries)])
        x_BTD = jnp.concatenate([s_BMD, rearrange(x_BMQD, "b m q d -> b (m q) d")], axis=1)
        valid_BT = (present_BM & counts_B[:, None])[:, slot_T]
        y_ND, aux = self._moe(i, num_modalities=len(order))(
            rearrange(StackedLayerNorm(name=f"norm_{i}")(x_BTD), "b t d -> (b t) d"),
            valid_N=valid_BT.reshape(-1),
            modality_N=jnp.tile(modality_M[slot_T], x_BTD.shape[0]),
            num_rows=x_BTD.shape[0],
            train=train,
        )
        drop = nn.Dropout(self.dropout, deterministic=not train, name=f"drop_{i}")
        x_BTD += drop(y_ND.reshape(x_BTD.shape))
        grid = rearrange(x_BTD[:, len(order) :], "b (m q) d -> b m q d", q=num_queries)
        return x_BTD[:, : len(order)], grid, aux

    def _moe(self, i, cls=MoE, **kwargs):
        return cls(
            num_experts=self.num_experts, top_k=self.top_k, hidden=self.hidden, gate=self.gate,
            router=self.routing, sharing=self.router, dispatch=self.dispatch,
            losses=tuple(sorted(self.aux_weights)), name=f"layer_{i}", **kwargs,
        )  # fmt: skip

    def _patient_level(self, batch: Batch, train: bool) -> tuple[Array, dict[str, MoeAux]]:
        """Fidelity 'paper' and 'released' (section 3 and appendix E; authors' `module.py`)."""
        x_BMQD = self._embed_patients(batch, train)
        stacks, valid_B = x_BMQD.shape[1], batch.present(self.data).any(-1) & (batch.weight > 0)
        everything = jnp.ones(x_BMQD.shape[:3], bool)  # absent modalities are attended
        moe = {}
        for i in range(self.depth):
            block = AttentionBlock(self.num_heads, stacks, self.dropout, name=f"time_{i}")
            x_BMQD = block(x_BMQD, everything, train=train)
            u_BMQD = StackedLayerNorm(stacks, name=f"norm_{i}")(x_BMQD)
            y_BMQD, moe[f"layer_{i}"] = self._route_patients(i, u_BMQD, valid_B, train)
            x_BMQD += nn.Dropout(self.dropout, deterministic=not train, name=f"drop_{i}")(y_BMQD)
            mlp = MLPBlock(4 * self.width, stacks, self.dropout, name=f"mlp_{i}")
            x_BMQD = mlp(x_BMQD, train=train)
        last_BMD = StackedLayerNorm(stacks, name="norm")(x_BMQD)[:, :, -1]
        h_BD = rearrange(last_BMD, "b m d -> b (m d)")
        hidden_BD = nn.relu(nn.Dense(h_BD.shape[-1], kernel_init=TORCH, name="head_up")(h_BD))
        drop = nn.Dropout(self.dropout, deterministic=not train, name="head_drop")
        down = nn.Dense(h_BD.shape[-1], kernel_init=TORCH, name="head_down")
        return down(drop(hidden_BD)) + h_BD, moe

    def _embed_patients(self, batch, train) -> Array:
        """All modalities on the query grid in the spec's order, absent ones replaced."""
        order, _ = self._slots(batch)
        series, vectors = self._timed(batch)
        shape = (batch.weight.shape[0], 1, self.num_queries, self.width)
        tokens = [jnp.broadcast_to(x[:, None, None], shape) for x in self._static(batch, train)]
        if series is not None or vectors:
            tokens.insert(0, self._grid(series, vectors, train))
        x_BMQD = jnp.concatenate(tokens, axis=1)[:, np.argsort(order)]
        present_BM = batch.present(self.data)
        init = nn.initializers.normal
        type_MD = self.param("type", init(1.0), (x_BMQD.shape[1], self.width))
        position_QD = self.param("position", init(0.02), shape[2:])
        if self.fidelity == "released":
            x_BMQD += _released_types(self.data, type_MD, present_BM)[:, None]
            x_BMQD = jnp.where(present_BM[..., None, None], x_BMQD, 0.0)
            first = jnp.arange(self.num_queries)[:, None] == 0  # a padding index: no gradient
            position_QD = jnp.where(first, jax.lax.stop_gradient(position_QD), position_QD)
        else:
            x_BMQD = x_BMQD + type_MD[:, None]
            x_BMQD = MissingIndicator(x_BMQD.shape[1], name="missing")(x_BMQD, present_BM)
        drop = nn.Dropout(self.dropout, deterministic=not train, name="embed_drop")
        return drop(self.width**0.5 * x_BMQD + position_QD)

    def _route_patients(self, i, u_BMQD, valid_B, train) -> tuple[Array, MoeAux]:
        """One expert decision per patient ('joint') or per patient and modality."""
        released = self.fidelity == "released"
        batch, stacks, num_queries, width = u_BMQD.shape
        u_BMU = mixing_flatten(u_BMQD) if released else rearrange(u_BMQD, "b m q d -> b m (q d)")
        joint = self.router == "joint"
        units = 1 if joint else stacks
        layer = self._moe(
            i, ReleasedMoE if released else MoE, num_modalities=units,
            out=stacks * num_queries * width, output="softmax" if released else None,
        )  # fmt: skip
        y_NO, aux = layer(
            u_BMU.reshape(batch * units, -1),
            valid_N=jnp.repeat(valid_B, units),
            modality_N=None if joint else jnp.tile(jnp.arange(stacks), batch),
            num_rows=batch,
            train=train or released,  # the release adds gate noise in evaluation too
        )
        if released:
            y_NO = jnp.log(jnp.where(y_NO == 0, 2.2e-16, y_NO))
        y_BMU = y_NO.reshape(batch, units, stacks, -1).sum(1)
        if joint:  # a patient's decision is every modality's
            for name, dim in {"by_modality": 0, "by_row": 1}.items():
                if name in aux.stats:
                    aux.stats[name] = jnp.repeat(aux.stats[name], stacks, axis=dim)
        if released:
            return mixing_unflatten(y_BMU, num_queries), aux
        return rearrange(y_BMU, "b m (q d) -> b m q d", q=num_queries), aux


class ReleasedMoE(MoE):
    """Routers as released: they start at zero, and 'permod' and 'disjoint' ones stay there.

    The authors keep those in a Python list, outside the module's parameters: they are neither
    trained nor saved, and routing is random.
    """

    def _learned(self, function, prefix, dims, num_groups):
        learned = {}
        for argument, (shape, _) in declare.parameters(function, dims).items():
            stem = argument.rpartition("_")[0] or argument
            shape = (num_groups, *shape)
            learned[argument] = (
                self.param(f"{prefix}_{stem}", nn.initializers.zeros, shape)
                if self.sharing == "joint"
                else jnp.zeros(shape)
            )
        return learned


def mixing_flatten(x_BMQD: Array) -> Array:
    """The release's flattening, [B, M, Q * D]: reshapes time-major data without a transpose.

    With B > 1 a row then holds time steps of several patients (authors' `module.py`).
    """
    batch, stacks = x_BMQD.shape[:2]
    return rearrange(x_BMQD, "b m q d -> m q b d").reshape(stacks, batch, -1).swapaxes(0, 1)


def mixing_unflatten(y_BMU: Array, num_queries: int) -> Array:
    """Inverse of `mixing_flatten`: [B, M, Q * D] -> [B, M, Q, D]."""
    batch, stacks = y_BMU.shape[:2]
    y_MQBD = y_BMU.swapaxes(0, 1).reshape(stacks, num_queries, batch, -1)
    return rearrange(y_MQBD, "m q b d -> b m q d")


def _released_types(data: DataSpec, type_MD: Array, present_BM: Array) -> Array:
    """Type rows as released: ECG takes row 1 (text's) if any patient of the batch lacks it."""
    rows = list(type_MD)
    if "ecg" in data.modality_names and len(rows) > 1:
        m = data.modality_names.index("ecg")
        rows[m] = jnp.where(present_BM[:, m].all(), rows[m], rows[1])
    return jnp.stack(rows)
