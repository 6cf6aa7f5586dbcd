"""Token-choice routers: log-affinities -> which K experts each token visits, and their weights.

A router is a function `(logits_NE, valid_N, *, k, ...) -> Routing`. Further arguments are
passed by name if it names them; those annotated with an initialiser are learned (see
`m4.moe.declare`). Invalid tokens get expert E (which does not exist), weight 0 and no gradient.
A score of -inf forbids an expert; a token with fewer than K allowed experts fills up with E.

`normalise` says what the weights are, with s = exp(logits):
- 'after':  s / sum of s over the chosen K (Shazeer et al. 2017);
- 'before': s / sum of s over all E (GShard, Switch, V-MoE); shrinks as 1/E near uniform;
- 'none':   s itself (sigmoid and ReLU gates);
- 'auto':   'after', but 'before' with K = 1, where 'after' is constantly 1 and the gate would get
  no gradient from the task. FuseMoE's release falls into that trap.

Letters: N tokens, D width, E experts, K chosen experts.
"""

from typing import Annotated, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from m4.types import Array, Routing

Normalise = Literal["auto", "after", "before", "none"]
Zeros = Annotated[Array, nn.initializers.zeros]


def top_k(logits_NE: Array, valid_N: Array, *, k: int, normalise: Normalise = "auto") -> Routing:
    """The K best experts of every token; ties go to the lower index."""
    return _routing(logits_NE, logits_NE, _largest(logits_NE, k), valid_N, normalise)


def noisy_top_k(
    logits_NE: Array,
    valid_N: Array,
    *,
    k: int,
    x_ND: Array,
    noise_DE: Zeros,
    key: Array | None = None,
    noise_NE: Array | None = None,
    normalise: Normalise = "auto",
    floor: float = 0.01,
) -> Routing:
    """Top-k of logits + sigma * eps, sigma = softplus(x N) + floor (Shazeer et al. 2017, eq. 4).

    Selection and weights use the noisy logits. `load` is the smooth estimate of Shazeer's
    appendix A. `noise_NE` replaces the draw of eps from `key`; with neither (evaluation) there
    is no noise and no load. FuseMoE's release adds noise at evaluation too; we do not.
    """
    if noise_NE is None:
        if key is None:
            return _routing(logits_NE, logits_NE, _largest(logits_NE, k), valid_N, normalise)
        noise_NE = jax.random.normal(key, logits_NE.shape, logits_NE.dtype)
    sigma_NE = jax.nn.softplus(jnp.matmul(x_ND, noise_DE, precision="highest")) + floor
    noisy_NE = logits_NE + sigma_NE * noise_NE
    routing = _routing(noisy_NE, logits_NE, _largest(noisy_NE, k), valid_N, normalise)
    return routing.replace(load=_smooth_load(logits_NE, noisy_NE, sigma_NE, valid_N, k))


def _largest(scores_NE, k):
    """Indices of the K largest scores, largest first."""
    return jax.lax.top_k(jax.lax.stop_gradient(scores_NE), k)[1]


def _routing(scores_NE, logits_NE, experts_NK, valid_N, normalise):
    """Routing to `experts_NK` with weights from `scores_NE`."""
    if normalise not in get_args(Normalise):
        raise ValueError(f"normalise={normalise!r} is not one of {get_args(Normalise)}")
    if normalise == "auto":
        normalise = "before" if experts_NK.shape[-1] == 1 else "after"
    probs_NE = jnp.where(valid_N[:, None], _softmax(scores_NE), 0.0)
    chosen_NK = jnp.take_along_axis(scores_NE, experts_NK, axis=-1)
    if normalise == "none":
        weights_NK = jnp.exp(chosen_NK)
    elif normalise == "before":
        weights_NK = jnp.take_along_axis(probs_NE, experts_NK, axis=-1)
    else:
        weights_NK = _softmax(chosen_NK)
    # Not isfinite: a NaN score must reach the loss, where it is noticed.
    real_NK = valid_N[:, None] & (chosen_NK != -jnp.inf)
    return Routing(
        experts=jnp.where(real_NK, experts_NK, logits_NE.shape[-1]).astype(jnp.int32),
        weights=jnp.where(real_NK, weights_NK, 0.0),
        probs=probs_NE,
        logits=logits_NE,
        valid=valid_N,
    )


def _softmax(scores):
    """Softmax over the last dimension that gives zeros where every score is -inf."""
    peak = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    powers = jnp.exp(scores - jnp.where(peak == -jnp.inf, 0.0, peak))
    total = powers.sum(-1, keepdims=True)
    return powers / jnp.where(total == 0.0, 1.0, total)


def _smooth_load(logits_NE, noisy_NE, sigma_NE, valid_N, k):
    """Probability that a fresh draw of its own noise leaves an expert among the K.

    Phi((a - u) / sigma) if the expert is chosen now, else Phi((a - v) / sigma), where u and v are
    the (K+1)-th and K-th largest noisy logits: the bar set by the other experts. 1 if K = E.
    """
    if k == logits_NE.shape[-1]:
        return jnp.broadcast_to(valid_N[:, None], logits_NE.shape).astype(logits_NE.dtype)
    top_NK = jax.lax.top_k(noisy_NE, k + 1)[0]
    bar_NE = jnp.where(noisy_NE > top_NK[:, k:], top_NK[:, k:], top_NK[:, k - 1 : k])
    # A forbidden expert (a = -inf) is never chosen; without a rival (u = -inf) one always is.
    sure_NE = bar_NE == -jnp.inf
    open_NE = ~sure_NE & (logits_NE != -jnp.inf)
    margin_NE = jnp.where(open_NE, logits_NE, 0.0) - jnp.where(open_NE, bar_NE, 0.0)
    chance_NE = jax.scipy.stats.norm.cdf(margin_NE / sigma_NE)
    chance_NE = jnp.where(open_NE, chance_NE, (sure_NE & (logits_NE != -jnp.inf)).astype(float))
    return jnp.where(valid_N[:, None], chance_NE, 0.0)
