"""Laws that every router obeys, on many random draws: few shapes, draws vectorised.

A hypothesis example is a batch of 250 draws of 8 tokens, routed in one compiled call.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m4.moe import routers, selection, stats

pytestmark = pytest.mark.usefixtures("quick_compile")
DRAWS, N, E, G = 250, 8, 6, 3
QUICK, MANY = 4, 60  # examples: 8,000 and 120,000 routed tokens for every router


def extras(key):
    """Per-token and shared inputs of the routers."""
    keys = jax.random.split(key, 4)
    return {
        "noise_NE": jax.random.normal(keys[0], (N, E)),
        "outer_NG": jax.random.normal(keys[1], (N, G)),
        "pattern_N": jax.random.randint(keys[2], (N,), 0, 20),
        "bias_E": jax.random.normal(keys[3], (E,)),
    }


def noisy(logits, valid, x, *, k, normalise):
    given = {"x_ND": jnp.zeros((N, E)), "noise_DE": jnp.zeros((E, E)), "noise_NE": x["noise_NE"]}
    return routers.noisy_top_k(logits, valid, k=k, normalise=normalise, **given)


def plain(name, *inputs, **options):
    def route(logits, valid, x, *, k, normalise):
        named = {i: x[i] for i in inputs}
        function = getattr(routers, name)
        return function(logits, valid, k=k, normalise=normalise, **named, **options)

    return route


ROUTERS = {
    "top_k": plain("top_k"),
    "noisy_top_k": noisy,
    "group_limited": plain("group_limited", num_groups=G, groups_kept=2),
    "hierarchical": plain("hierarchical", "outer_NG", groups_kept=1),
    "loss_free": plain("loss_free", "bias_E"),
    "sinkhorn": plain("sinkhorn", train=True),
    "modality_pattern": plain("modality_pattern", "pattern_N"),
}
BY_EXPERT = ("top_k", "noisy_top_k", "loss_free", "sinkhorn")  # no structure among experts
BATCH_FREE = set(ROUTERS) - {"sinkhorn"}  # which balances over the batch when training
PER_EXPERT = {"noise_NE": 1, "bias_E": 0}  # dimension of the experts


def dense(r):
    """Weights as f32[N, E]."""
    hot = jax.nn.one_hot(r.experts, E)
    return jnp.einsum("nk,nke->ne", r.weights, hot)


def total_law(r, logits, name, k, normalise):
    """Whether the weights of valid, routable tokens obey the law of `normalise`."""
    allowed = (r.experts < E).any(-1)
    total = r.weights.sum(-1)
    if normalise == "none" and name != "hierarchical":
        scores = jnp.where(jnp.isinf(logits), 0.0, jnp.exp(logits))
        picked = jnp.take_along_axis(scores, jnp.minimum(r.experts, E - 1), -1)
        empty = (r.experts == E) & (r.weights == 0)  # fewer than k allowed experts
        law = (jnp.isclose(r.weights, picked, rtol=1e-4) | empty).all(-1)
    elif normalise == "after" and (name, k) != ("hierarchical", 1):
        law = jnp.abs(total - 1) < 1e-5
    else:
        law = total <= 1 + 1e-5
    return law | ~allowed


def clear_choice(logits, valid, k):
    """Tokens whose k-th and next entries of Sinkhorn's plan differ by more than rounding, [N, 1].

    Sums in another order flip near ties; with a single valid token the whole plan is one.
    """
    plan = jnp.sort(selection.sinkhorn(logits, valid, num_iterations=8), axis=-1)
    kept, left = plan[:, -k, None], plan[:, -k - 1, None]
    return ~valid[:, None] | (left == -jnp.inf) | (kept - left > 1e-3)


@functools.cache
def checker(name, k, normalise):
    route = functools.partial(ROUTERS[name], k=k, normalise=normalise)

    def one(key, scale, ties, forbid, share):
        k1, k2, k3, k4, k5, k6 = jax.random.split(key, 6)
        logits = scale * jax.random.normal(k1, (N, E))
        logits = jnp.where(ties, jnp.round(2 * logits / scale) / 2, logits)
        barred = forbid & (jax.random.uniform(k2, (N, E)) < 0.5)
        logits = jnp.where(barred, -jnp.inf, logits)
        valid = jax.random.uniform(k3, (N,)) < share
        x = extras(k4)
        if name == "noisy_top_k":  # its scores, on which the weights depend
            law_logits = logits + (jax.nn.softplus(0.0) + 0.01) * x["noise_NE"]
        else:
            law_logits = logits
        r = route(logits, valid, x)
        sorted_NK = jnp.sort(r.experts, -1)
        ok = {
            "weights are not negative": r.weights >= 0,
            "weights obey the law": total_law(r, law_logits, name, k, normalise) | ~valid,
            "experts are distinct": (jnp.diff(sorted_NK) > 0) | (sorted_NK[:, 1:] == E),
            "exactly k": forbid | (~valid | (r.experts < E).all(-1)),
            "forbidden experts are never chosen": (dense(r) == 0) | ~barred,
            "invalid tokens go nowhere": valid[:, None] | ((r.experts == E) & (r.weights == 0)),
            "no probability on invalid tokens": valid[:, None] | (r.probs == 0),
        }
        perm = jax.random.permutation(k5, N)
        moved = {i: v[perm] if i != "bias_E" else v for i, v in x.items()}
        other = route(logits[perm], valid[perm], moved)
        clear_N1 = clear_choice(logits, valid, k) if name == "sinkhorn" else jnp.ones((N, 1), bool)
        if name == "sinkhorn":
            same = jnp.abs(dense(other) - dense(r)[perm]) <= 1e-4
            ok["tokens permute"] = same | ~clear_N1[perm]
        else:
            ok["tokens permute"] = other.experts == r.experts[perm]
            ok["weights permute"] = jnp.abs(other.weights - r.weights[perm]) <= 1e-5 * scale_of(r)
        if name in BY_EXPERT:
            q = jax.random.permutation(k6, E)
            moved = {
                i: jnp.take(v, q, PER_EXPERT[i]) if i in PER_EXPERT else v for i, v in x.items()
            }
            same = jnp.abs(dense(route(logits[:, q], valid, moved)) - dense(r)[:, q])
            ok["experts permute"] = ties | (same <= 1e-4 * scale_of(r)) | ~clear_N1
        if name in BATCH_FREE:
            half = jnp.arange(N) < N // 2
            mixed = route(jnp.where(half[:, None], logits, logits[::-1] + 1), valid | ~half, x)
            ok["other tokens do not matter"] = (mixed.experts == r.experts) | ~half[:, None]
        coefficient = jax.random.normal(k6, r.weights.shape)
        grad = jax.grad(lambda a: jnp.sum(route(a, valid, x).weights * coefficient))(logits)
        ok["gradients are finite"] = jnp.isfinite(grad)
        ok["invalid tokens have no gradient"] = valid[:, None] | (grad == 0)
        return {law: jnp.all(holds) for law, holds in ok.items()}

    def many(seed, scale, ties, forbid, share):
        keys = jax.random.split(jax.random.key(seed), DRAWS)
        laws = jax.vmap(one, in_axes=(0, None, None, None, None))
        return jax.tree.map(jnp.all, laws(keys, scale, ties, forbid, share))

    return jax.jit(many)


def scale_of(r):
    return jnp.maximum(r.weights.max(), 1.0)


def check(name, k, normalise, examples):
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(
        seed=st.integers(0, 2**31 - 1),
        scale=st.sampled_from([0.1, 1.0, 10.0]),
        ties=st.booleans(),
        forbid=st.booleans(),
        share=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def laws(**draw):
        broken = [law for law, holds in checker(name, k, normalise)(**draw).items() if not holds]
        assert not broken, broken

    laws()


CASES = [(name, 2, "after") for name in ROUTERS]
CASES += [("top_k", 1, "before"), ("top_k", 3, "before"), ("top_k", 2, "none")]


@pytest.mark.parametrize(("name", "k", "normalise"), CASES)
def test_router_laws(name, k, normalise):
    check(name, k, normalise, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "k", "normalise"), CASES)
def test_router_laws_on_many_draws(name, k, normalise):
    check(name, k, normalise, MANY)


@functools.cache
def capacity_checker(strategy, factor):
    """Laws of a limited capacity, for choices of any skew with any number of tokens invalid."""
    capacity = int(np.ceil(factor * N * 2 / E))

    def one(key, skew, share):
        k1, k2 = jax.random.split(key)
        score = jax.random.gumbel(k1, (N, E)) - skew * jnp.arange(E)
        valid = jax.random.uniform(k2, (N,)) < share
        r = routers.top_k(score, valid, k=2)
        lost = stats.unserved(r, strategy=strategy, capacity_factor=factor)
        served = jnp.where(lost.experts < E, E, r.experts)
        load, dropped = (jnp.bincount(e.ravel(), length=E + 1)[:E] for e in (served, lost.experts))
        best = r.weights.max(-1)
        # A first choice that is dropped was preferred by no kept first choice of lower rank.
        first_lost, first_kept = lost.experts[:, :1] < E, (served[:, :1] < E).T
        same = r.experts[:, :1] == r.experts[:, 0]
        order = -best if strategy == "capacity_prioritised" else jnp.arange(N)
        return {
            "capacity is never exceeded": load <= capacity,
            "kept + dropped = valid": (load + dropped).sum() == 2 * valid.sum(),
            "only a full expert drops": (dropped == 0) | (load == capacity),
            "in order": ~(first_lost & first_kept & same) | (order[:, None] >= order),
        }

    def many(seed, skew, share):
        laws = jax.vmap(one, in_axes=(0, None, None))
        keys = jax.random.split(jax.random.key(seed), DRAWS)
        return jax.tree.map(jnp.all, laws(keys, skew, share))

    return jax.jit(many)


def check_capacity(strategy, factor, examples):
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(
        seed=st.integers(0, 2**31 - 1),
        skew=st.sampled_from([0.0, 0.3, 3.0]),
        share=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def laws(**draw):
        found = capacity_checker(strategy, factor)(**draw)
        assert all(found.values()), [law for law, holds in found.items() if not holds]

    laws()


CAPACITIES = [("capacity", 0.5), ("capacity", 1.25), ("capacity_prioritised", 0.8)]


@pytest.mark.parametrize(("strategy", "factor"), CAPACITIES)
def test_capacity_laws(strategy, factor):
    check_capacity(strategy, factor, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "factor"), CAPACITIES)
def test_capacity_laws_on_many_draws(strategy, factor):
    check_capacity(strategy, factor, MANY)


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_slot_router_laws(share):
    """Rows of four tokens. Slots are means, experts take distinct valid tokens, rows are alone."""

    def one(key):
        k1, k2 = jax.random.split(key)
        logits = jax.random.normal(k1, (N, E))
        valid = jax.random.uniform(k2, (N,)) < share
        soft = routers.soft(logits, valid, num_rows=2, num_experts=G)
        some = valid.reshape(2, 4).any(1)[:, None, None]
        choice = routers.expert_choice(logits, valid, k=2, num_rows=2, compete="row")
        taken = jnp.sort(choice.tokens, -1)
        other = logits.at[4:].set(-logits[4:])
        row = [r.combine[0] for r in (soft, routers.soft(other, valid, num_rows=2, num_experts=G))]
        return {
            "a slot is a mean": jnp.abs(soft.dispatch.sum(1) - some) < 1e-5,
            "a token is a mean": jnp.abs(soft.combine.sum((2, 3)).ravel() - valid) < 1e-5,
            "nothing from invalid tokens": valid[:, None] | (soft.dispatch.reshape(N, -1) == 0),
            "rows are alone": jnp.abs(row[0] - row[1]) < 1e-6,
            "distinct tokens": (jnp.diff(taken) > 0) | (taken[:, 1:] == N),
            "only valid tokens": (choice.tokens == N) | valid[jnp.minimum(choice.tokens, N - 1)],
            "weights are probabilities": (choice.weights >= 0) & (choice.weights <= 1),
        }

    laws = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 500))
    broken = [law for law, holds in laws.items() if not np.all(holds)]
    assert not broken
