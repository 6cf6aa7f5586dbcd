"""What the routers share: a softmax that knows forbidden experts, weights, smooth load, Sinkhorn.

Letters: N tokens, E experts, K chosen experts, G blocks of J experts.
"""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from einops import rearrange

from m4.types import Array, Routing

Normalise = Literal["auto", "after", "before", "none"]

MOST_ROUNDS = 4  # largest K that XLA:CPU finds faster in rounds than by sorting
FEW = 16  # entries of a row that XLA:CPU searches in registers
LOWEST = jnp.iinfo(jnp.int32).min


def largest(scores_NE: Array, k: int) -> Array:
    """Indices i32[N, K] of the K largest scores, largest first; ties go to the lower index.

    As `jax.lax.top_k`, in the same total order (NaN above infinity, 0 above -0). On a CPU, where
    that partially sorts every row, a small K is found in K rounds of maxima instead.
    """
    scores_NE = jax.lax.stop_gradient(scores_NE)

    def sort(scores_NE):
        return jax.lax.top_k(scores_NE, k)[1]

    if k > MOST_ROUNDS or scores_NE.dtype != jnp.float32:
        return sort(scores_NE)
    search = functools.partial(_in_two_stages, k=k)
    return jax.lax.platform_dependent(scores_NE, cpu=search, default=sort)


def _in_two_stages(scores_NE, *, k):
    """The K blocks of experts with the largest maxima, then the K largest of their entries.

    The only pass over all scores is the one for the blocks' maxima. Blocks are contiguous and
    are searched in order of their index, so that ties still go to the lower expert.
    """
    num_tokens, num_experts = scores_NE.shape
    if num_experts <= FEW or num_experts <= 2 * k:
        return _in_rounds(_ordered(scores_NE), k)
    size = min(max(num_experts // FEW, 2), FEW)
    num_blocks = -(-num_experts // size)
    padding = ((0, 0), (0, num_blocks * size - num_experts))
    padded_NE = jnp.pad(scores_NE, padding, constant_values=-jnp.inf)
    scores_NGJ = rearrange(padded_NE, "n (g j) -> n g j", j=size)
    blocks_NK = _ascending(_in_rounds(_ordered(scores_NGJ).max(-1), min(k, num_blocks)))
    within_NKJ = jnp.take_along_axis(scores_NGJ, blocks_NK[:, :, None], axis=1)
    best_NK = _in_rounds(_ordered(rearrange(within_NKJ, "n k j -> n (k j)")), k)
    return jnp.take_along_axis(blocks_NK, best_NK // size, axis=1) * size + best_NK % size


def _in_rounds(keys_NE, k):
    """Indices of the K largest integers: the first maximum, K times, each time without the last."""
    expert_E = jnp.arange(keys_NE.shape[-1], dtype=jnp.int32)
    chosen = []
    for _ in range(k):
        chosen.append(jax.lax.argmax(keys_NE, 1, jnp.int32))
        keys_NE = jnp.where(expert_E == chosen[-1][:, None], LOWEST, keys_NE)
    return jnp.stack(chosen, axis=-1)


def _ascending(index_NK):
    """Sorted rows, by exchanges: for a few columns `jnp.sort` costs as much as a search."""
    columns = list(index_NK.T)
    for last in range(len(columns) - 1, 0, -1):
        for i in range(last):
            low, high = columns[i], columns[i + 1]
            columns[i], columns[i + 1] = jnp.minimum(low, high), jnp.maximum(low, high)
    return jnp.stack(columns, axis=-1)


def _ordered(scores):
    """Integers in the total order of float32 scores, above `LOWEST`: -inf can still be chosen."""
    bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def softmax(scores: Array, axis: int = -1) -> Array:
    """Softmax along `axis` that gives zeros where every score is -inf."""
    peak = jax.lax.stop_gradient(scores.max(axis, keepdims=True))
    powers = jnp.exp(scores - jnp.where(peak == -jnp.inf, 0.0, peak))
    total = powers.sum(axis, keepdims=True)
    return powers / jnp.where(total == 0.0, 1.0, total)


def weigh(scores: Array, chosen: Array, normalise: Normalise) -> Array:
    """Weights [..., K] of the entries `chosen` i32[..., K] of `scores` [..., E]; 0 at -inf.

    Raises ValueError for an unknown `normalise`; `m4.moe.routers` says what each means.
    """
    if normalise not in get_args(Normalise):
        raise ValueError(f"normalise={normalise!r} is not one of {get_args(Normalise)}")
    if normalise == "auto":
        normalise = "before" if chosen.shape[-1] == 1 else "after"
    if normalise == "before":
        return jnp.take_along_axis(softmax(scores), chosen, axis=-1)
    kept = jnp.take_along_axis(scores, chosen, axis=-1)
    return softmax(kept) if normalise == "after" else jnp.exp(kept)


def routing_to(
    experts_NK: Array,
    logits_NE: Array,
    valid_N: Array,
    normalise: Normalise,
    *,
    scores_NE: Array | None = None,
) -> Routing:
    """The `Routing` to given experts, weighted by `scores_NE` (default: the logits)."""
    scores_NE = logits_NE if scores_NE is None else scores_NE
    return assemble(
        experts_NK,
        weigh(scores_NE, experts_NK, normalise),
        softmax(scores_NE),
        logits_NE,
        valid_N,
        allowed_NK=jnp.take_along_axis(scores_NE, experts_NK, axis=-1) != -jnp.inf,
    )


def assemble(
    experts_NK: Array,
    weights_NK: Array,
    probs_NE: Array,
    logits_NE: Array,
    valid_N: Array,
    *,
    allowed_NK: Array,
) -> Routing:
    """A `Routing` with expert E and weight 0 on invalid tokens and forbidden choices.

    `allowed_NK` is computed as "not -inf" rather than "finite": a NaN score has to reach the
    loss, where it is noticed, instead of silently routing nowhere.
    """
    real_NK = valid_N[:, None] & allowed_NK
    return Routing(
        experts=jnp.where(real_NK, experts_NK, logits_NE.shape[-1]).astype(jnp.int32),
        weights=jnp.where(real_NK, weights_NK, 0.0),
        probs=jnp.where(valid_N[:, None], probs_NE, 0.0),
        logits=logits_NE,
        valid=valid_N,
    )


def smooth_load(
    logits_NE: Array, noisy_NE: Array, sigma_NE: Array, valid_N: Array, *, k: int
) -> Array:
    """Chance that a fresh draw of its own noise leaves each expert among the K, f32[N, E].

    Shazeer et al. 2017, appendix A: Phi((a - u) / sigma) if the expert is chosen now, else
    Phi((a - v) / sigma), with u and v the (K+1)-th and K-th largest noisy logits, the bar set by
    the other experts. With K = E every allowed expert is certain.
    """
    allowed_NE = valid_N[:, None] & (logits_NE != -jnp.inf)
    if k == logits_NE.shape[-1]:
        return allowed_NE.astype(logits_NE.dtype)
    top_NK = jax.lax.top_k(noisy_NE, k + 1)[0]
    bar_NE = jnp.where(noisy_NE > top_NK[:, k:], top_NK[:, k:], top_NK[:, k - 1 : k])
    open_NE = allowed_NE & (bar_NE != -jnp.inf)  # without a rival an expert is certain
    margin_NE = jnp.where(open_NE, logits_NE, 0.0) - jnp.where(open_NE, bar_NE, 0.0)
    chance_NE = jax.scipy.stats.norm.cdf(margin_NE / sigma_NE)
    return jnp.where(open_NE, chance_NE, allowed_NE.astype(logits_NE.dtype))


def sinkhorn(logits_NE: Array, valid_N: Array, *, num_iterations: int) -> Array:
    """Logarithm of the balanced plan: valid rows sum to 1, columns to num_valid / E. No gradient.

    Alternating normalisation in log space (Sinkhorn-Knopp), ending with the rows.
    """
    logits_NE = jax.lax.stop_gradient(jnp.where(valid_N[:, None], logits_NE, -jnp.inf))
    target = jnp.log(jnp.maximum(valid_N.sum(), 1) / logits_NE.shape[-1])

    def lse(plan, axis):
        total = jax.nn.logsumexp(plan, axis=axis, keepdims=True)
        return jnp.where(total == -jnp.inf, 0.0, total)

    def iterate(plan_NE, _):
        plan_NE = plan_NE - lse(plan_NE, 0) + target
        return plan_NE - lse(plan_NE, 1), None

    return jax.lax.scan(iterate, logits_NE, None, length=num_iterations)[0]
