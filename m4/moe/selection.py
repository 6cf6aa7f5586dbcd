"""What the routers share: weights, the routing itself, smooth load, Sinkhorn.

Letters: N tokens, E experts, K chosen experts.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from m4.maths import softmax
from m4.types import Array, Routing

Normalise = Literal["auto", "after", "before", "none"]


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
