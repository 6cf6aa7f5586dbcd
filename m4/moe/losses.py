"""Balance losses and regularisers on a routing: returned unweighted, invalid tokens excluded.

A loss is a function `(routing, *, ...) -> f32[]` to be minimised. What it names is passed to it:
`modality_N` with `num_modalities`, `task_N` with `num_tasks`, learned parameters of the router
(`bias_E`), and `gate_N` with `allowed_GE`: which gate scored each token and which experts that
gate may use (one gate unless every modality has its own).

Letters: N tokens, E experts, K chosen experts, G gates, M modalities, L labels.
"""

import jax
import jax.numpy as jnp

from m4.moe.engine.slots import assignments
from m4.types import Array, Routing

# --- load -------------------------------------------------------------------------------------


def importance(routing: Routing, *, gate_N: Array, allowed_GE: Array) -> Array:
    """CV^2 of the summed weights per expert (Shazeer et al. 2017, eq. 6-7), summed over gates."""
    token_A, expert_A, weight_A = assignments(routing)
    importance_GE = jnp.zeros(allowed_GE.shape)
    importance_GE = importance_GE.at[jnp.take(gate_N, token_A, mode="clip"), expert_A].add(
        weight_A, mode="drop"
    )
    return jnp.sum(cv_squared(importance_GE, allowed_GE))


def load(routing: Routing, *, gate_N: Array, allowed_GE: Array) -> Array:
    """CV^2 of the smooth load (Shazeer et al. 2017, eq. 8-11), summed over gates.

    0 where the routing carries no load estimate: evaluation, or a router without noise.
    """
    if getattr(routing, "load", None) is None:
        return jnp.zeros(())
    return jnp.sum(cv_squared(jnp.zeros(allowed_GE.shape).at[gate_N].add(routing.load), allowed_GE))


def cv_squared(values_GE: Array, where_GE: Array) -> Array:
    """Unbiased variance / (mean^2 + 1e-10) over the experts in `where_GE`, f32[G]."""
    count_G1 = jnp.sum(where_GE, -1, keepdims=True)
    mean_G1 = jnp.sum(values_GE, -1, keepdims=True, where=where_GE) / jnp.maximum(count_G1, 1)
    squares_G1 = jnp.sum((values_GE - mean_G1) ** 2, -1, keepdims=True, where=where_GE)
    variance_G1 = squares_G1 / jnp.maximum(count_G1 - 1, 1)
    return (variance_G1 / (mean_G1**2 + 1e-10))[:, 0]


def switch(routing: Routing) -> Array:
    """E sum_e f_e P_e (Switch, arXiv 2101.03961; GShard): 1 when balanced.

    f is the share of assignments (no gradient), P the mean router distribution.
    """
    _, expert_A, _ = assignments(routing)
    num_experts = routing.probs.shape[-1]
    share_E = jnp.zeros(num_experts).at[expert_A].add(1.0, mode="drop")
    share_E = share_E / jnp.maximum(share_E.sum(), 1.0)
    return num_experts * jnp.sum(share_E * _mean_probs(routing))


def loss_free(routing: Routing, *, bias_E: Array, gate_N: Array, allowed_GE: Array) -> Array:
    """Value 0, gradient sign(load_e - mean load) on the bias of `routing.loss_free`.

    arXiv 2408.15664: b_e <- b_e - u sign(load_e - mean load) is one step of gradient descent on
    it with u = learning rate * weight. Under Adam the step is about the learning rate times an
    average of the recent signs, whatever the weight.
    """
    token_A, expert_A, _ = assignments(routing)
    load_GE = jnp.zeros(allowed_GE.shape).at[jnp.take(gate_N, token_A, mode="clip"), expert_A]
    load_GE = load_GE.add(1.0, mode="drop")
    mean_G1 = jnp.sum(load_GE, -1, keepdims=True) / jnp.sum(allowed_GE, -1, keepdims=True)
    push_GE = jnp.sign(load_GE - mean_G1) * allowed_GE
    # bias_E is [G, E], or [G, E / G] where every gate has its own block of experts.
    bias_GE = jnp.tile(bias_E, (1, allowed_GE.shape[-1] // bias_E.shape[-1]))
    return jnp.sum((bias_GE - jax.lax.stop_gradient(bias_GE)) * push_GE)


def z(routing: Routing) -> Array:
    """Mean squared logsumexp of the logits (router z-loss, ST-MoE, arXiv 2202.08906)."""
    counted_N = routing.valid & jnp.any(routing.logits != -jnp.inf, axis=-1)
    # Safe before the logsumexp: its gradient is NaN where every logit is -inf.
    lse_N = jax.nn.logsumexp(jnp.where(counted_N[:, None], routing.logits, 0.0), axis=-1)
    return jnp.sum(lse_N**2 * counted_N) / jnp.maximum(counted_N.sum(), 1)


# --- entropies --------------------------------------------------------------------------------


def entropy(routing: Routing, *, modality_N: Array, num_modalities: int) -> Array:
    """Mean entropy of the modalities' expert usage minus the entropy of the mean usage.

    FuseMoE eq. 3: minus the generalised Jensen-Shannon divergence, in [-log M, 0]; lowest where
    modalities use disjoint experts. The usage of a modality is the mean router distribution of
    its valid tokens. Departure: a modality without a token in the batch does not count, where
    the paper's 1 / M would treat its undefined usage as a distribution.
    """
    usage_ME, seen_M = _usage(routing, modality_N, num_modalities)
    num_seen = jnp.maximum(seen_M.sum(), 1)
    return jnp.sum(entropy_of(usage_ME)) / num_seen - entropy_of(jnp.sum(usage_ME, 0) / num_seen)


def local_entropy(routing: Routing, *, modality_N: Array, num_modalities: int) -> Array:
    """Mean entropy of the tokens' distributions, averaged over modalities (LIMoE, 2206.02770)."""
    entropy_N = entropy_of(routing.probs) * routing.valid
    total_M = jnp.zeros(num_modalities).at[modality_N].add(entropy_N)
    count_M = jnp.zeros(num_modalities).at[modality_N].add(routing.valid.astype(jnp.float32))
    return jnp.sum(total_M / jnp.maximum(count_M, 1)) / jnp.maximum((count_M > 0).sum(), 1)


def global_entropy(
    routing: Routing, *, modality_N: Array, num_modalities: int, share: float = 1.0
) -> Array:
    """max(0, share * log E - entropy of the usage), averaged over modalities (LIMoE).

    With share = 1 it is LIMoE's unthresholded loss up to a constant; below 1 a modality may use
    about E^share experts without penalty.
    """
    usage_ME, seen_M = _usage(routing, modality_N, num_modalities)
    gap_M = jnp.maximum(share * jnp.log(usage_ME.shape[-1]) - entropy_of(usage_ME), 0.0)
    return jnp.sum(gap_M * seen_M) / jnp.maximum(seen_M.sum(), 1)


# --- mutual information (negative: minimising the loss raises it) -------------------------------


def token_information(routing: Routing) -> Array:
    """-I(token; expert) with equally likely tokens: mean entropy minus entropy of the mean."""
    entropy_N = entropy_of(routing.probs) * routing.valid
    mean_entropy = entropy_N.sum() / jnp.maximum(routing.valid.sum(), 1)
    return mean_entropy - entropy_of(_mean_probs(routing))


def modality_information(routing: Routing, *, modality_N: Array, num_modalities: int) -> Array:
    """-I(modality; expert), modalities weighted by their number of valid tokens."""
    return -mutual_information(_joint(routing, modality_N, num_modalities))


def task_information(routing: Routing, *, task_N: Array, num_tasks: int) -> Array:
    """-I(task; expert) (Mod-Squad, CVPR 2023)."""
    return -mutual_information(_joint(routing, task_N, num_tasks))


def conditional_information(
    routing: Routing, *, modality_N: Array, num_modalities: int, task_N: Array, num_tasks: int
) -> Array:
    """-I(modality; expert | task) (M4oE's published objective)."""
    joint = _joint(routing, task_N * num_modalities + modality_N, num_tasks * num_modalities)
    joint_TME = joint.reshape(num_tasks, num_modalities, -1)
    return -conditional_mutual_information(joint_TME)


def mutual_information(joint_LE: Array) -> Array:
    """I(L; E) in nats of a joint distribution."""
    return (
        entropy_of(joint_LE.sum(-1)) + entropy_of(joint_LE.sum(-2)) - entropy_of(joint_LE.ravel())
    )


def conditional_mutual_information(joint_TLE: Array) -> Array:
    """I(L; E | T) = H(L, T) + H(E, T) - H(L, E, T) - H(T) in nats."""
    pairs = entropy_of(joint_TLE.sum(-1).ravel()) + entropy_of(joint_TLE.sum(-2).ravel())
    return pairs - entropy_of(joint_TLE.ravel()) - entropy_of(joint_TLE.sum((-2, -1)))


# --- other regularisers -------------------------------------------------------------------------


def orthogonality(routing: Routing) -> Array:
    """Mean squared cosine between the experts' columns of the router distribution, in [0, 1].

    |Q'Q|^2 = |QQ'|^2 for column-normalised Q, so the smaller Gram matrix, of min(N, E)^2
    entries, is enough.
    """
    norm_E = jnp.sqrt(jnp.maximum(jnp.sum(routing.probs**2, 0), 1e-20))
    q_NE = routing.probs / norm_E
    num_tokens, num_experts = q_NE.shape
    gram = q_NE @ q_NE.T if num_tokens < num_experts else q_NE.T @ q_NE
    own = jnp.sum(jnp.sum(q_NE**2, 0) ** 2)
    return (jnp.sum(gram**2) - own) / max(num_experts * (num_experts - 1), 1)


def pattern_cross_entropy(routing: Routing, *, pattern_N: Array) -> Array:
    """Mean -log p(expert of the presence pattern) over tokens of incomplete rows (Flex-MoE).

    `pattern_N` is 0 for complete rows, which do not count, as in the release.
    """
    counted_N = routing.valid & (pattern_N > 0)
    target_N1 = (pattern_N % routing.probs.shape[-1])[:, None]
    chance_N = jnp.take_along_axis(routing.probs, target_N1, axis=-1)[:, 0]
    log_N = jnp.log(jnp.where(counted_N, jnp.maximum(chance_N, 1e-30), 1.0))
    return -jnp.sum(log_N) / jnp.maximum(counted_N.sum(), 1)


# --- arithmetic ---------------------------------------------------------------------------------


def entropy_of(probs: Array) -> Array:
    """-sum p log p over the last dimension in nats, with 0 log 0 = 0 and gradient 0 there."""
    safe = jnp.where(probs > 0.0, probs, 1.0)
    return -jnp.sum(safe * jnp.log(safe), -1)


def _mean_probs(routing):
    return routing.probs.sum(0) / jnp.maximum(routing.valid.sum(), 1)


def _joint(routing, label_N, num_labels):
    """P(label, expert) over the valid tokens, f32[L, E]."""
    joint_LE = jnp.zeros((num_labels, routing.probs.shape[-1])).at[label_N].add(routing.probs)
    return joint_LE / jnp.maximum(routing.valid.sum(), 1)


def _usage(routing, modality_N, num_modalities):
    """Mean router distribution per modality f32[M, E] (0 if unseen), and which are seen."""
    joint_ME = _joint(routing, modality_N, num_modalities)
    mass_M1 = jnp.sum(joint_ME, -1, keepdims=True)
    return joint_ME / jnp.where(mass_M1 > 0.0, mass_M1, 1.0), mass_M1[:, 0] > 0.0
