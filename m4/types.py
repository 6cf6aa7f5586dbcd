"""What flows through m4: pytrees with static keys and shapes.

Letters: B rows, T positions of a modality, f features, D model width, N routed tokens,
K experts per token, E experts, P slots per expert, M modalities.

Invariants (asserted in `m4.data.batch`, tested for every method):
- keys and shapes are static for a run (or one of a few: `m4.data.buckets`);
- an absent modality is zeros with `present` False;
- `mask` implies `present`; `observed` implies `mask`;
- a row without any present modality has `weight` 0.
"""

from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from m4.specs import DataSpec

Array = jax.Array


class Stream(flax.struct.PyTreeNode):
    """One modality of a batch."""

    values: Array  # [B, *row]
    mask: Array  # bool[B, T], True at real positions
    present: Array  # bool[B], the patient has this modality
    times: Array | None = None  # f32[B, T], hours
    observed: Array | None = None  # bool[B, T, f] (series) or bool[B, f] (table)


class Target(flax.struct.PyTreeNode):
    """Labels of one task; `mask` 0 means no label."""

    value: Array  # [B, *out]
    mask: Array  # f32[B], or f32[B, dim] for multilabel


class Batch(flax.struct.PyTreeNode):
    """One step's input. All modalities and all tasks of the `DataSpec` are always there."""

    inputs: dict[str, Stream]
    targets: dict[str, Target]
    task: Array  # i32[B], index of the row's task, -1 = all
    weight: Array  # f32[B], 0 on rows that only fill up a batch
    uid: Array  # i32[B], row number in its split
    # Per task, the label weight that its mean loss is over; None: that of these rows. Not None
    # where they are a part of a step's (`train.accumulate`).
    labels: dict[str, Array] | None = None

    def present(self, spec: DataSpec) -> Array:
        """Presence bits, bool[B, M], in the spec's modality order."""
        return jnp.stack([self.inputs[m].present for m in spec.modality_names], axis=-1)


class Tokens(flax.struct.PyTreeNode):
    """What an encoder yields and a fuser takes."""

    x: Array  # [B, T, D]
    mask: Array  # bool[B, T]
    times: Array | None = None  # f32[B, T]


class Routing(flax.struct.PyTreeNode):
    """What a router returns: which experts serve which of N tokens, with what weights.

    Usually a token has K experts. Where experts choose, `tokens` says whom, and the first two have
    its shape. Where slots mix tokens (soft routing), `dispatch` and `combine` say how; every token
    then has all E experts, weighted by its share in their slots. Expert E, which does not exist,
    at weight 0 stands for no choice: an invalid token, a forbidden expert, an empty place.
    """

    experts: Array  # i32[N, K], or [E, C] where experts choose
    weights: Array  # f32[N, K], or [E, C]
    probs: Array  # f32[N, E], router distribution, 0 on invalid tokens
    logits: Array  # f32[N, E], scores before selection, without noise
    valid: Array  # bool[N]
    load: Array | None = None  # f32[N, E], smooth chance of selection where the router has one
    tokens: Array | None = None  # i32[E, C], N in an empty place
    num_rows: int = flax.struct.field(pytree_node=False, default=1)  # of C / num_rows places each,
    # which tokens of that row alone can take
    dispatch: Array | None = None  # f32[B, T, E, P], of tokens to slots
    combine: Array | None = None  # f32[B, T, E, P], of slots to tokens
    log_probs: Array | None = None  # f32[N, E], of `probs` where these are of scores


class MoeAux(flax.struct.PyTreeNode):
    """By-products of one MoE layer. Losses are unweighted; weights live in the config."""

    losses: dict[str, Array]
    stats: dict[str, Array]


class Outputs(flax.struct.PyTreeNode):
    """What a method returns."""

    logits: dict[str, Array]  # per task [B, dim]
    aux_losses: dict[str, Array]  # unweighted, summed over layers
    moe: dict[str, MoeAux] = flax.struct.field(default_factory=dict)  # per layer
    extra: dict[str, Array] = flax.struct.field(default_factory=dict)


class Mean(flax.struct.PyTreeNode):
    """A weighted mean kept as (total, weight) so that parts merge exactly."""

    total: Array
    weight: Array

    def merge(self, other: "Mean") -> "Mean":
        """The mean over both parts."""
        return Mean(self.total + other.total, self.weight + other.weight)

    def value(self) -> Array:
        """Total / weight, 0 where nothing was counted."""
        return self.total / jnp.where(self.weight > 0, self.weight, 1.0)


class Method(Protocol):
    """A Linen module with a loss. See `m4.methods`."""

    data: DataSpec

    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits for every task; `batch.targets` must not influence them."""
        ...

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Scalar to minimise and its unweighted terms. Pure: reads no parameters."""
        ...

    def init(self, rngs: Any, batch: Batch, **kwargs: Any) -> Any:
        """Linen's variables."""
        ...

    def apply(self, variables: Any, batch: Batch, **kwargs: Any) -> Outputs:
        """Linen's functional call."""
        ...
