"""Balance losses and regularisers on a routing, and the statistics of what it did.

A loss is a function `(routing, *, ...) -> f32[]` to be minimised; it is returned unweighted, and
invalid tokens do not count. What it names is passed to it:
`modality_N` with `num_modalities`, `task_N` with `num_tasks`, learned parameters of the router
(`bias_E`), and `gate_N` with `allowed_GE`: which gate scored each token and which experts that
gate may use (one gate unless every modality has its own).

Letters: N tokens, E experts, K chosen experts, G gates, M modalities, L labels, B rows.
"""

import jax
import jax.numpy as jnp

from m4.evenness import evenness
from m4.maths import entropy as entropy_of
from m4.maths import largest, logsumexp, row_axes
from m4.types import Array, Routing

MAX_COACTIVATION = 512  # experts, above which [E, E] would be too much to fetch with every batch

# --- load -------------------------------------------------------------------------------------


def tally(routing: Routing, group_N: Array, num: int, amount: Array | None = None) -> Array:
    """Assignments per group of tokens (below `num`) and expert, f32[num, E].

    `amount`, of the shape of `routing.experts`, is summed instead of counted.
    """
    group_N = jnp.asarray(group_N)
    if routing.tokens is None:
        group = group_N[:, None]
    else:
        group = jnp.take(group_N, routing.tokens, mode="clip")
    zeros = jnp.zeros((num, routing.probs.shape[-1]))
    return zeros.at[group, routing.experts].add(1.0 if amount is None else amount, mode="drop")


def importance(routing: Routing, *, gate_N: Array, allowed_GE: Array) -> Array:
    """CV^2 of the summed weights per expert (Shazeer et al. 2017, eq. 6-7), summed over gates."""
    importance_GE = tally(routing, gate_N, allowed_GE.shape[0], routing.weights)
    return jnp.sum(cv_squared(importance_GE, allowed_GE))


def load(routing: Routing, *, gate_N: Array, allowed_GE: Array) -> Array:
    """CV^2 of the smooth load (Shazeer et al. 2017, eq. 8-11), summed over gates.

    0 where the routing carries no load estimate: evaluation, or a router without noise.
    """
    if routing.load is None:
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
    count_E = tally(routing, jnp.zeros_like(routing.valid, int), 1)[0]
    share_E = count_E / jnp.maximum(count_E.sum(), 1.0)
    return count_E.size * jnp.sum(share_E * _mean_probs(routing))


def loss_free(routing: Routing, *, bias_E: Array, gate_N: Array, allowed_GE: Array) -> Array:
    """Value 0, gradient sign(load_e - mean load) on the bias of `routing.loss_free`.

    arXiv 2408.15664: b_e <- b_e - u sign(load_e - mean load) is one step of gradient descent on
    it with u = learning rate * weight. Under Adam the step is about the learning rate times an
    average of the recent signs, whatever the weight.
    """
    load_GE = tally(routing, gate_N, allowed_GE.shape[0])
    mean_G1 = jnp.sum(load_GE, -1, keepdims=True) / jnp.sum(allowed_GE, -1, keepdims=True)
    push_GE = jnp.sign(load_GE - mean_G1) * allowed_GE
    # bias_E is [G, E], or [G, E / G] where every gate has its own block of experts.
    bias_GE = jnp.tile(bias_E, (1, allowed_GE.shape[-1] // bias_E.shape[-1]))
    return jnp.sum((bias_GE - jax.lax.stop_gradient(bias_GE)) * push_GE)


def z(routing: Routing) -> Array:
    """Mean squared logsumexp of the logits (router z-loss, ST-MoE, arXiv 2202.08906)."""
    counted_N = routing.valid & jnp.any(routing.logits != -jnp.inf, axis=-1)
    lse_N = jnp.where(counted_N, logsumexp(routing.logits), 0.0)
    return jnp.sum(lse_N**2) / jnp.maximum(counted_N.sum(), 1)


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
    entries, is enough; on a mesh the one that is a sum over rows, which stay where they are.
    """
    # The cosine does not depend on a column's size, and squares of small ones would be 0.
    size_E = jax.lax.stop_gradient(routing.probs.max(0))
    q_NE = routing.probs / jnp.where(size_E > 0.0, size_E, 1.0)
    q_NE = q_NE / jnp.sqrt(jnp.maximum(jnp.sum(q_NE**2, 0), 0.5))
    num_tokens, num_experts = q_NE.shape
    by_token = num_tokens < num_experts and not row_axes()
    gram = q_NE @ q_NE.T if by_token else q_NE.T @ q_NE
    own = jnp.sum(jnp.sum(q_NE**2, 0) ** 2)
    return (jnp.sum(gram**2) - own) / max(num_experts * (num_experts - 1), 1)


def pattern_cross_entropy(routing: Routing, *, pattern_N: Array) -> Array:
    """Mean -log p(expert of the presence pattern) over tokens of incomplete rows (Flex-MoE).

    `pattern_N` is 0 for complete rows, which do not count, as in the release.
    """
    counted_N = routing.valid & (pattern_N > 0)
    target_N1 = (pattern_N % routing.probs.shape[-1])[:, None]
    log_NE = routing.log_probs
    if log_NE is None:
        log_NE = jnp.log(jnp.maximum(routing.probs, 1e-30))
    log_N = jnp.take_along_axis(log_NE, target_N1, axis=-1)[:, 0]
    log_N = jnp.where(log_N <= -1e29, jnp.log(1e-30), log_N)  # an expert that is forbidden
    return -jnp.sum(jnp.where(counted_N, log_N, 0.0)) / jnp.maximum(counted_N.sum(), 1)


# --- statistics ---------------------------------------------------------------------------------


def statistics(
    routing: Routing,
    lost_NK: Array | None,
    *,
    modality_N: Array,
    num_modalities: int,
    train: bool,
    num_rows: int | None = None,
    task_N: Array | None = None,
    num_tasks: int = 0,
) -> dict[str, Array]:
    """Counts, shares and scalars, at a cost of a few passes over [N, E]; no gradient.

    'load' and 'importance' f32[E] are shares of assignments and weights; 'entropy' (nats) and
    'margin' (probability of the best choice minus that of the second) means over valid tokens;
    'dropped' is the share of assignments in `lost_NK`; 'by_modality' f32[M, E] counts assignments.
    In evaluation 'by_row' f32[B, M, E] does too, and the scalars of `m4.evenness` say how even the
    counts are (where there are none, as if they were). What needs whole data sets is computed from
    'by_row' on the host, in `m4.eval.specialisation`.

    Raises ValueError unless the tokens divide into `num_rows` rows.
    """
    num_tokens, num_experts = routing.probs.shape
    by_token = routing.tokens is None and routing.combine is None
    by_modality = tally(routing, modality_N, num_modalities)
    count_E, num_valid = by_modality.sum(0), jnp.maximum(routing.valid.sum(), 1)
    weight_E = tally(routing, jnp.zeros(num_tokens, int), 1, routing.weights)[0]
    stats = {
        "load": count_E / jnp.maximum(count_E.sum(), 1.0),
        "importance": weight_E / jnp.maximum(weight_E.sum(), 1e-30),
        "entropy": jnp.sum(entropy_of(routing.probs)) / num_valid,
        "margin": jnp.sum(_margin(routing, by_token)) / num_valid,
        "dropped": jnp.zeros(()),
        "by_modality": by_modality,
    }
    if not train:  # a step does not log them
        stats |= evenness(jnp.where(count_E.sum() > 0, count_E, 1.0))
    groups = {"modality": (modality_N, num_modalities)}
    if task_N is not None:
        groups["task"] = task_N, num_tasks
    if num_rows is not None and not train:
        if num_tokens % num_rows:
            raise ValueError(f"{num_tokens} tokens cannot be {num_rows} rows of equal length")
        row_N = jnp.arange(num_tokens) // (num_tokens // num_rows)
        both = tally(routing, row_N * num_modalities + modality_N, num_rows * num_modalities)
        stats["by_row"] = both.reshape(num_rows, num_modalities, -1)
        if by_token and num_experts <= MAX_COACTIVATION:
            stats["coactivation"] = _coactivation(routing)
    if lost_NK is not None:
        lost_NK = lost_NK.astype(jnp.float32)
        stats["dropped"] = lost_NK.sum() / jnp.maximum(count_E.sum(), 1.0)
        for name, (index_N, num) in groups.items():
            stats[f"dropped_by_{name}"] = tally(routing, index_N, num, lost_NK).sum(-1)
        if num_rows is not None:
            stats["dropped_by_row"] = lost_NK.reshape(num_rows, -1).sum(-1)
    return jax.lax.stop_gradient(stats)


def _margin(routing, by_token):
    """Of the first two choices if there are two: a search over all E would double the cost."""
    if by_token and routing.experts.shape[-1] > 1:
        chosen_N2 = jnp.minimum(routing.experts[:, :2], routing.probs.shape[-1] - 1)
    else:
        chosen_N2 = largest(routing.probs, min(2, routing.probs.shape[-1]))
    best_N2 = jnp.take_along_axis(routing.probs, chosen_N2, axis=-1)
    return best_N2[:, 0] - best_N2[:, -1]


def _coactivation(routing):
    """How many tokens visit both experts, f32[E, E]; the diagonal counts visits."""
    num_experts = routing.probs.shape[-1]
    first_NKK, second_NKK = routing.experts[:, :, None], routing.experts[:, None, :]
    pairs = jnp.zeros((num_experts, num_experts))
    return pairs.at[first_NKK, second_NKK].add(1.0, mode="drop")


# --- shared by the losses -----------------------------------------------------------------------


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
