"""FuseMoE as its authors' code computes it (aaronhan223/FuseMoE, c5acf6f), defects included.

Each defect has a function or a comment of its own below; docs/methods/fusemoe.md names the test of
each. Use it to study the published numbers.

Letters: B rows (patients), M modalities in the spec's order, Q query times, D width, U = Q D.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.core import FrozenDict

from m4 import task_losses
from m4.maths import combination_index, torch_uniform
from m4.methods.fusemoe.authors import PatientMoE, on_query_times, read_out
from m4.moe.options import MoEOptions
from m4.nn.encoders.modalities import SeriesStack, StaticTokens, Vectors, gather
from m4.nn.encoders.query_tokens import Level, QueryTokens
from m4.nn.layers import AttentionBlock, MLPBlock, StackedLayerNorm, TaskHeads
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs

NOTES: tuple[str, ...] = ("notes", "text")  # modalities whose times run backwards


class ReleasedFuseMoE(nn.Module):
    """Fuses any number of modalities of kinds series, vectors, table, codes and text.

    Published sizes: see `PaperFuseMoE`. The release computes its balance losses and never adds
    them: `aux_weights` {} or 0 is what it trains with.
    """

    data: DataSpec
    moe: MoEOptions = MoEOptions(router="noisy_top_k", share="permod")
    width: int = 64
    depth: int = 1
    num_heads: int = 4
    num_queries: int = 12
    embed_time: int = 32
    dropout: float = 0.2
    utde: Level = "batch_seq_feature"
    aux_weights: Mapping[str, float] = FrozenDict({"importance": 0.01, "load": 0.01})

    eval_rngs: ClassVar[tuple[str, ...]] = ("gate",)  # noise is drawn in evaluation, too

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]; those of a row depend on the whole batch.

        Needs the rng 'gate', training also 'dropout'. Raises ValueError for modality kinds without
        an encoder and for unknown choices.
        """
        check_fields(self, depth=1)
        present_BM, moe = batch.present(self.data), {}
        x_BMQD = self._embed(batch, present_BM, train)
        every_BMQ = jnp.ones(x_BMQD.shape[:3], bool)  # absent modalities are attended, too
        for i in range(self.depth):
            block = AttentionBlock(self.num_heads, x_BMQD.shape[1], self.dropout, name=f"time_{i}")
            x_BMQD = block(x_BMQD, every_BMQ, train=train)
            x_BMQD, moe[f"layer_{i}"] = self._route(i, x_BMQD, batch, present_BM, train)
        h_BD = read_out(x_BMQD, dropout=self.dropout, train=train)
        heads = TaskHeads(self.data.tasks, two_logits=True, name="heads")
        aux = task_losses.over_layers(moe, self.aux_weights)
        return Outputs(heads(dict.fromkeys(self.data.task_names, h_BD)), aux, moe)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """See `task_losses.objective`."""
        del step
        return task_losses.objective(self.data, out, batch, self.aux_weights)

    def _embed(self, batch: Batch, present_BM: Array, train: bool) -> Array:
        """All modalities at the query times, absent ones zeros (`module.py`)."""
        streams = gather(self.data, batch)
        streams = streams.replace(vectors=released_times(streams.vectors, self.data.hours))
        sizes = self.width, self.num_heads, self.num_queries, self.embed_time
        timed = QueryTokens(
            *sizes,
            self.utde,
            self.dropout,
            torch_uniform(1),
            project=False,
            impute=impute_released,
            name="grid",
        )
        static = StaticTokens(self.data, self.width, self.dropout, name="static")
        x_BMQD = on_query_times(streams, timed, static, train=train)
        num, (num_queries, width) = x_BMQD.shape[1], x_BMQD.shape[2:]
        type_MD = self.param("type", nn.initializers.normal(1.0), (num, width))
        position_QD = self.param("position", nn.initializers.normal(0.02), (num_queries, width))
        x_BMQD += released_types(self.data, type_MD, present_BM)[:, None]
        if num > 2:  # models of two modalities know nothing of missing ones
            x_BMQD = jnp.where(present_BM[..., None, None], x_BMQD, 0.0)
        first = jnp.arange(num_queries)[:, None] == 0  # a padding index: no gradient
        position_QD = jnp.where(first, jax.lax.stop_gradient(position_QD), position_QD)
        drop = nn.Dropout(self.dropout, deterministic=not train, name="embed_drop")
        return drop(width**0.5 * x_BMQD + position_QD)

    def _route(self, i: int, x_BMQD: Array, batch: Batch, present_BM: Array, train: bool):
        """X + MoE(norm x) with rows that mix patients, then x + FFN_m(norm x)."""
        num, num_queries = x_BMQD.shape[1:3]
        u_BMQD = StackedLayerNorm(num, name=f"norm_{i}")(x_BMQD)
        y_BMU, aux = released_layer(self.moe, tuple(sorted(self.aux_weights)), name=f"layer_{i}")(
            mixing_flatten(u_BMQD),
            present_BM.any(-1) & (batch.weight > 0),
            combination_index(present_BM, modulo=self.moe.num_experts),
            train=True,
        )
        y_BMQD = mixing_unflatten(y_BMU, num_queries)
        x_BMQD += nn.Dropout(self.dropout, deterministic=not train, name=f"drop_{i}")(y_BMQD)
        mlp = MLPBlock(4 * self.width, num, self.dropout, name=f"mlp_{i}")
        return mlp(x_BMQD, train=train), aux


def released_layer(options: MoEOptions, losses: tuple[str, ...], *, name: str) -> PatientMoE:
    """Experts end in a softmax, mixtures are taken to log space; top_k 1 has constant weight 1.

    Routers start at zero, and those of 'permod' and 'disjoint' stay there: the authors keep them in
    a Python list, outside the module's parameters, so they are neither trained nor saved, and
    routing is random. Raises ValueError for another `options.output`.
    """
    if options.output not in (None, "softmax"):
        raise ValueError(f"output={options.output!r}: released experts end in 'softmax'")
    options = dataclasses.replace(options.with_router(normalise="after"), output="softmax")
    fixed = options.share != "joint"
    return PatientMoE(options, losses, nn.initializers.zeros, fixed, log_mixture, name=name)


def log_mixture(y_NO: Array) -> Array:
    """Logarithm of a mixture of softmax outputs, with the authors' floor."""
    return jnp.log(jnp.where(y_NO == 0, 2.2e-16, y_NO))


def mixing_flatten(x_BMQD: Array) -> Array:
    """[B, M, U]: reshapes time-major data to rows without a transpose.

    With more than one patient, a row then holds time steps of several of them.
    """
    rows, num = x_BMQD.shape[:2]
    return rearrange(x_BMQD, "b m q d -> m q b d").reshape(num, rows, -1).swapaxes(0, 1)


def mixing_unflatten(y_BMU: Array, num_queries: int) -> Array:
    """Inverse of `mixing_flatten`."""
    rows, num = y_BMU.shape[:2]
    y_MQBD = y_BMU.swapaxes(0, 1).reshape(num, num_queries, rows, -1)
    return rearrange(y_MQBD, "m q b d -> b m q d")


def released_times(vectors: Mapping[str, Vectors], hours: float) -> dict[str, Vectors]:
    """Times of notes reversed, of images and ECGs in hours instead of windows."""
    return {
        name: x.replace(times=1.0 - x.times if name in NOTES else x.times * hours)
        for name, x in vectors.items()
    }


def released_types(data: DataSpec, type_MD: Array, present_BM: Array) -> Array:
    """Type rows; ECG takes row 1 (text's) if any patient of the batch lacks it."""
    rows = list(type_MD)
    if "ecg" in data.modality_names and len(rows) > 1:
        m = data.modality_names.index("ecg")
        rows[m] = jnp.where(present_BM[:, m].all(), rows[m], rows[1])
    return jnp.stack(rows)


def impute_released(series: SeriesStack, *, num_bins: int) -> tuple[Array, Array]:
    """The hourly imputation with its three defects.

    A bin without a row stays 0 and breaks the chain; a later row of the same bin in which a
    feature is unobserved overwrites the bin's value by the previous bin's; bin 0 reads the last
    bin. Returns values and observed flags, [B, M, num_bins, f].
    """
    bins = jnp.floor(series.times * num_bins).astype(jnp.int32)

    def row(carry, inputs):
        value, flag = carry
        x, seen, index, valid = inputs
        here = valid & (index < num_bins)
        before = value[(index - 1) % num_bins]
        now = jnp.where(seen, x, jnp.where(before != 0, before, value[index]))
        value = value.at[index].set(jnp.where(here, now, value[index]))
        flag = flag.at[index].set(jnp.where(here & seen, 1.0, flag[index]))
        return (value, flag), None

    def one(x, seen, index, valid):
        empty = jnp.zeros((num_bins, x.shape[-1]))
        return jax.lax.scan(row, (empty, empty), (x, seen, index, valid))[0]

    return jax.vmap(jax.vmap(one))(series.values, series.observed, bins, series.mask)
