"""Routers: log-affinities -> which experts see which tokens, and with what weights.

A router is a function `(logits_NE, valid_N, *, k, ...)`. Further arguments are inputs of the
layer or options; those annotated with an initialiser are learned (see `m4.moe.route`).

It returns a `Routing`, which `routing_to` makes: K experts per token. Invalid tokens get expert E
(which does not exist), weight 0 and no gradient; a score of -inf forbids an expert, and a token
with fewer than K allowed experts fills up with E. In `expert_choice` and `soft` experts own places
or slots, and tokens compete for them.

`normalise` says what the weights are, with s = exp(logits):
- 'after':  s / sum of s over the chosen K (Shazeer et al. 2017);
- 'before': s / sum of s over all E (GShard, Switch, V-MoE); shrinks as 1/E near uniform;
- 'none':   s itself (sigmoid and ReLU gates), at most exp(80), so that sums of it stay finite;
- 'auto':   'after', but 'before' with K = 1, where 'after' is constantly 1 and the gate would get
  no gradient from the task. FuseMoE's release falls into that trap.

Letters: N tokens, D width, E experts, K chosen experts, G groups, J experts per group, B rows,
T tokens per row, C tokens per expert, P slots per expert.
"""

import functools
from typing import Annotated, Literal, get_args

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from m4.maths import by_rows, largest, logsumexp, softmax
from m4.types import Array, Routing

Normalise = Literal["auto", "after", "before", "none"]
MOST = 80.0  # score above which a weight without a normaliser does not grow
Zeros = Annotated[Array, nn.initializers.zeros]


def top_k(logits_NE: Array, valid_N: Array, *, k: int, normalise: Normalise = "auto") -> Routing:
    """The K best experts of every token; ties go to the lower index."""
    return routing_to(largest(logits_NE, k), logits_NE, valid_N, normalise)


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

    Selection and weights use the noisy logits; `load` is the smooth estimate. `noise_NE`
    replaces the draw of eps from `key`; with neither (evaluation) there is no noise and no load.
    FuseMoE's release adds noise at evaluation too; we do not.
    """
    if noise_NE is None:
        if key is None:
            return top_k(logits_NE, valid_N, k=k, normalise=normalise)
        noise_NE = jax.random.normal(key, logits_NE.shape, logits_NE.dtype)
    sigma_NE = jax.nn.softplus(jnp.matmul(x_ND, noise_DE, precision="highest")) + floor
    noisy_NE = logits_NE + sigma_NE * noise_NE
    experts_NK = largest(noisy_NE, k)
    routing = routing_to(experts_NK, logits_NE, valid_N, normalise, scores_NE=noisy_NE)
    load_NE = smooth_load(logits_NE, noisy_NE, sigma_NE, valid_N, k=k)
    return routing.replace(load=load_NE)


def group_limited(
    logits_NE: Array,
    valid_N: Array,
    *,
    k: int,
    num_groups: int,
    groups_kept: int,
    normalise: Normalise = "auto",
) -> Routing:
    """Top-k within the best groups of experts (DeepSeek-V3, arXiv 2412.19437).

    A group's score is the sum of its two best affinities. Groups are contiguous blocks, as
    experts are on the devices of a mesh, so a token visits at most `groups_kept` devices.
    """
    logits_NGJ = _blocks(logits_NE, num_groups)
    if not k <= groups_kept * logits_NGJ.shape[-1] or not groups_kept <= num_groups:
        raise ValueError(f"{k} experts cannot come from {groups_kept} of {num_groups} groups")
    best_NG2 = largest(logits_NGJ, min(2, logits_NGJ.shape[-1]))
    best_NG2 = jnp.take_along_axis(logits_NGJ, best_NG2, axis=-1)
    groups_NK = largest(jax.nn.logsumexp(best_NG2, axis=-1), groups_kept)
    kept_NG = (groups_NK[:, :, None] == jnp.arange(num_groups)).any(1)
    within_NE = jnp.where(kept_NG[..., None], logits_NGJ, -jnp.inf).reshape(logits_NE.shape)
    return routing_to(largest(within_NE, k), logits_NE, valid_N, normalise)


def hierarchical(
    logits_NE: Array,
    valid_N: Array,
    *,
    k: int,
    outer_NG: Array,
    groups_kept: int = 1,
    normalise: Normalise = "auto",
) -> Routing:
    """Two levels: groups by the outer gate, then K / groups_kept experts in each (HMoE).

    arXiv 2410.02935: p = p_g p_{i|g}. Each level is normalised on its own, so that with 'auto' a
    level that keeps a single entry still gets a gradient. `outer_NG` are the scores of the
    layer's `outer_gate`.
    """
    logits_NGJ = _blocks(logits_NE, outer_NG.shape[-1])
    num_inner = k // groups_kept
    if k % groups_kept or num_inner > logits_NGJ.shape[-1] or groups_kept > outer_NG.shape[-1]:
        raise ValueError(
            f"k={k} experts from groups_kept={groups_kept} of {outer_NG.shape[-1]} groups of "
            f"{logits_NGJ.shape[-1]}: k must be a multiple of groups_kept and fit"
        )
    groups_NK = largest(outer_NG, groups_kept)
    kept_NKJ = jnp.take_along_axis(logits_NGJ, groups_NK[..., None], axis=1)
    inner_NKI = largest(kept_NKJ, num_inner)
    weights_NKI = _weigh(outer_NG, groups_NK, normalise)[..., None] * _weigh(
        kept_NKJ, inner_NKI, normalise
    )
    allowed_NKI = jnp.take_along_axis(kept_NKJ, inner_NKI, axis=-1) != -jnp.inf
    experts_NKI = groups_NK[..., None] * logits_NGJ.shape[-1] + inner_NKI
    probs_NGJ = softmax(outer_NG)[..., None] * softmax(logits_NGJ)
    return _assemble(
        rearrange(experts_NKI, "n k i -> n (k i)"),
        rearrange(weights_NKI, "n k i -> n (k i)"),
        rearrange(probs_NGJ, "n g j -> n (g j)"),
        rearrange(outer_NG[..., None] + logits_NGJ, "n g j -> n (g j)"),
        valid_N,
        allowed_NK=rearrange(allowed_NKI, "n k i -> n (k i)"),
    )


def loss_free(
    logits_NE: Array, valid_N: Array, *, k: int, bias_E: Zeros, normalise: Normalise = "auto"
) -> Routing:
    """Top-k of logits + bias, weighted by the logits (loss-free balancing, arXiv 2408.15664).

    The bias gets no gradient from the task; `losses.loss_free` moves it against the load.
    Departure: the bias is added to the log-affinity, so that it means the same for every gate.
    """
    experts_NK = largest(logits_NE + bias_E, k)
    return routing_to(experts_NK, logits_NE, valid_N, normalise)


def sinkhorn(
    logits_NE: Array,
    valid_N: Array,
    *,
    k: int,
    train: bool = False,
    num_iterations: int = 8,
    normalise: Normalise = "auto",
) -> Routing:
    """Training: top-k of the balanced plan, weighted by the scores; evaluation: top-k.

    BASE layers (arXiv 2103.16716) solve the assignment exactly; S-BASE (arXiv 2202.01169) uses
    Sinkhorn's iteration as here. The plan depends on the batch, hence not at evaluation.
    """
    plan_NE = logits_NE
    if train:
        plan_NE = balanced_plan(logits_NE, valid_N, num_iterations=num_iterations)
    return routing_to(largest(plan_NE, k), logits_NE, valid_N, normalise)


def modality_pattern(
    logits_NE: Array, valid_N: Array, *, k: int, pattern_N: Array, normalise: Normalise = "auto"
) -> Routing:
    """The expert of the row's presence pattern, then the K - 1 best others.

    The assignment that Flex-MoE's S-router describes: pattern c belongs to expert c mod E. (Its
    release only nudges the router there with `losses.pattern_cross_entropy`.) `pattern_N` is
    an input of the layer.
    """
    own_NE = (pattern_N % logits_NE.shape[-1])[:, None] == jnp.arange(logits_NE.shape[-1])
    experts_NK = largest(jnp.where(own_NE, jnp.inf, logits_NE), k)
    return routing_to(experts_NK, logits_NE, valid_N, normalise)


def expert_choice(
    logits_NE: Array,
    valid_N: Array,
    *,
    k: int,
    num_rows: int | None = None,
    compete: Literal["row", "batch"] = "row",
    train: bool = False,
    normalise: Normalise = "auto",
) -> Routing:
    """Every expert takes the C = ceil(V K / E) best of V valid tokens (arXiv 2202.09368).

    The affinity is the softmax over experts, and so is the weight ('auto', 'before'); 'none'
    takes s instead. Tokens compete within their row (without `num_rows` all are one), so that no
    patient's output depends on another's. With compete='batch' they compete in training as in the
    paper, over the whole batch; in evaluation within their row all the same.
    """
    if normalise not in ("auto", "before", "none"):
        raise ValueError(f"expert_choice cannot normalise {normalise!r}")
    if compete not in ("row", "batch"):
        raise ValueError(f"compete={compete!r}: choose 'row' or 'batch'")
    num_tokens, num_experts = logits_NE.shape
    rows = 1 if compete == "batch" and train else num_rows or 1
    probs_NE = jnp.where(valid_N[:, None], softmax(logits_NE), 0.0)
    bids_BET = rearrange(
        jnp.where(valid_N[:, None], probs_NE, -jnp.inf), "(b t) e -> b e t", b=rows
    )
    most = min(-(-bids_BET.shape[-1] * k // num_experts), bids_BET.shape[-1])
    best = functools.partial(jax.lax.top_k, k=most)
    bids_BET = jax.lax.stop_gradient(bids_BET)
    bids_BEC, taken_BEC = by_rows(best, bids_BET) if rows > 1 else best(bids_BET)
    # Of valid tokens: with the places that padding has, it would decide how many are taken.
    capacity_B = -(-valid_N.reshape(rows, -1).sum(-1) * k // num_experts)
    within_BEC = jnp.arange(most) < capacity_B[:, None, None]
    first_B = jnp.arange(rows) * (num_tokens // rows)
    tokens_EC = rearrange(taken_BEC + first_B[:, None, None], "b e c -> e (b c)")
    real_EC = rearrange((bids_BEC > -jnp.inf) & within_BEC, "b e c -> e (b c)")
    scores_NE = logits_NE if normalise == "none" else probs_NE
    scores_BET = rearrange(scores_NE, "(b t) e -> b e t", b=rows)
    weights_BEC = jnp.take_along_axis(scores_BET, taken_BEC, axis=-1)
    weights_EC = rearrange(weights_BEC, "b e c -> e (b c)")
    weights_EC = _power(weights_EC) if normalise == "none" else weights_EC
    expert_E1 = jnp.arange(num_experts, dtype=jnp.int32)[:, None]
    return Routing(
        tokens=jnp.where(real_EC, tokens_EC, num_tokens).astype(jnp.int32),
        experts=jnp.where(real_EC, expert_E1, num_experts),
        weights=jnp.where(real_EC, weights_EC, 0.0),
        probs=probs_NE,
        logits=logits_NE,
        valid=valid_N,
        num_rows=rows,
    )


def soft(logits_NE: Array, valid_N: Array, *, num_rows: int, num_experts: int) -> Routing:
    """Every slot is a mean of its row's tokens, every token a mean of slots (Soft-MoE).

    arXiv 2308.00951: dispatch = softmax over tokens, combine = softmax over slots. The gate
    scores E * P columns; Soft-MoE's own is `gates.perturbed_cosine` with both offsets 0.
    Rows do not see each other.
    """
    logits_BTEP = rearrange(logits_NE, "(b t) (e p) -> b t e p", b=num_rows, e=num_experts)
    valid_BT11 = rearrange(valid_N, "(b t) -> b t 1 1", b=num_rows)
    open_BTEP = jnp.where(valid_BT11, logits_BTEP, -jnp.inf)
    flat_BTS = rearrange(open_BTEP, "b t e p -> b t (e p)")
    combine_BTEP = softmax(flat_BTS).reshape(open_BTEP.shape)
    share_NE = rearrange(combine_BTEP.sum(-1), "b t e -> (b t) e")
    return Routing(
        experts=jnp.where(valid_N[:, None], jnp.arange(num_experts), num_experts),
        weights=share_NE,
        probs=share_NE,
        logits=rearrange(logsumexp(logits_BTEP), "b t e -> (b t) e"),
        valid=valid_N,
        dispatch=softmax(open_BTEP, axis=1),
        combine=combine_BTEP,
    )


# --- what routers share -------------------------------------------------------------------------


def _blocks(logits_NE, num_groups):
    if logits_NE.shape[-1] % num_groups:
        raise ValueError(f"{logits_NE.shape[-1]} experts cannot form {num_groups} equal groups")
    return rearrange(logits_NE, "n (g j) -> n g j", g=num_groups)


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
    routing = _assemble(
        experts_NK,
        _weigh(scores_NE, experts_NK, normalise),
        softmax(scores_NE),
        logits_NE,
        valid_N,
        allowed_NK=jnp.take_along_axis(scores_NE, experts_NK, axis=-1) != -jnp.inf,
    )
    return routing.replace(log_probs=jax.nn.log_softmax(jnp.maximum(scores_NE, -1e30)))


def _weigh(scores: Array, chosen: Array, normalise: Normalise) -> Array:
    """Weights [..., K] of the entries `chosen` i32[..., K] of `scores` [..., E]; 0 at -inf.

    Raises ValueError for an unknown `normalise`.
    """
    if normalise not in get_args(Normalise):
        raise ValueError(f"normalise={normalise!r} is not one of {get_args(Normalise)}")
    if normalise == "auto":
        normalise = "before" if chosen.shape[-1] == 1 else "after"
    if normalise == "before":
        return jnp.take_along_axis(softmax(scores), chosen, axis=-1)
    kept = jnp.take_along_axis(scores, chosen, axis=-1)
    return softmax(kept) if normalise == "after" else _power(kept)


def _power(scores: Array) -> Array:
    """exp(scores) without a normaliser; float32 would be infinite, and NaN behind it, from 89."""
    return jnp.exp(jnp.minimum(scores, MOST))


def _assemble(
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
    top_NK = jnp.take_along_axis(noisy_NE, largest(noisy_NE, k + 1), axis=-1)
    bar_NE = jnp.where(noisy_NE > top_NK[:, k:], top_NK[:, k:], top_NK[:, k - 1 : k])
    open_NE = allowed_NE & (bar_NE != -jnp.inf)  # without a rival an expert is certain
    margin_NE = jnp.where(open_NE, logits_NE, 0.0) - jnp.where(open_NE, bar_NE, 0.0)
    chance_NE = jax.scipy.stats.norm.cdf(margin_NE / sigma_NE)
    return jnp.where(open_NE, chance_NE, allowed_NE.astype(logits_NE.dtype))


def balanced_plan(scores_NE: Array, valid_N: Array, *, num_iterations: int) -> Array:
    """Logarithm of the balanced plan: valid rows sum to 1, columns to num_valid / E. No gradient.

    Alternating normalisation in log space (Sinkhorn-Knopp), ending with the rows.
    """
    scores_NE = jax.lax.stop_gradient(jnp.where(valid_N[:, None], scores_NE, -jnp.inf))
    target = jnp.log(jnp.maximum(valid_N.sum(), 1) / scores_NE.shape[-1])

    def lse(plan, axis):
        total = jax.nn.logsumexp(plan, axis=axis, keepdims=True)
        return jnp.where(total == -jnp.inf, 0.0, total)

    def iterate(plan_NE, _):
        plan_NE = plan_NE - lse(plan_NE, 0) + target
        return plan_NE - lse(plan_NE, 1), None

    return jax.lax.scan(iterate, scores_NE, None, length=num_iterations)[0]
