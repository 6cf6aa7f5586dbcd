"""Laws that every router obeys, on many random draws: few shapes, draws vectorised.

A hypothesis example is a batch of 250 draws of 8 tokens, routed in one compiled call.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m4.moe import options, route, routers
from m4.moe.engine.dispatch import apply_experts
from m4.moe.experts import ExpertParams, Functions
from m4.types import Routing

pytestmark = pytest.mark.usefixtures("quick_compile")
DRAWS, N, E, G = 250, 8, 6, 3
QUICK, MANY = 4, 60  # examples: 8,000 and 120,000 routed tokens for every router


DIMS = {"N": N, "D": 5, "E": E, "G": G, "R": 2, "Q": 3}


def extras(name, key):
    """What a router may name: arrays of the tokens (without signal: x is 0), and learned ones."""
    keys = jax.random.split(key, 9)
    learned = route.parameters(getattr(routers, name), DIMS)
    given = {
        "x_ND": jnp.zeros((N, DIMS["D"])),
        "noise_NE": jax.random.normal(keys[0], (N, E)),
        "outer_NG": jax.random.normal(keys[1], (N, G)),
        "pattern_N": jax.random.randint(keys[2], (N,), 0, 20),
        "modality_N": jnp.arange(N) % 3,
    }
    drawn = {
        n: jax.random.normal(k, shape)
        for k, (n, (shape, _)) in zip(keys[3:], learned.items(), strict=False)
    }
    return given | drawn


def routed(name, logits, valid, x, *, k, normalise):
    """By the router of that name, told it trains."""
    names = inspect.signature(function := getattr(routers, name)).parameters
    others = {"num_groups": G, "num_experts": E, "num_modalities": 3, "num_rows": 2, "train": True}
    given = {"normalise": normalise}
    if "groups_kept" in names:
        given["groups_kept"] = 2 if names["groups_kept"].default is inspect.Parameter.empty else 1
    options = {n: value for n, value in given.items() if n in names}
    return route.call(function, logits, valid, options=options, k=k, **others, **x)


def chooses(name):
    """Whether tokens choose experts: then the laws below are the router's."""
    x = jax.eval_shape(functools.partial(extras, name), jax.random.key(0))
    shapes = jax.ShapeDtypeStruct((N, E), jnp.float32), jax.ShapeDtypeStruct((N,), bool)
    normalise = "auto"
    r = jax.eval_shape(functools.partial(routed, name, k=2, normalise=normalise), *shapes, x)
    return isinstance(r, Routing) and r.tokens is None and r.combine is None


ROUTERS = tuple(filter(chooses, options.known("router")))  # a new one is found here


def names(router, *inputs):
    return bool(set(inputs) & set(inspect.signature(getattr(routers, router)).parameters))


# A router may tell experts apart if it knows of groups or patterns; its tokens may matter to each
# other if it knows that it trains.
BY_EXPERT = {r for r in ROUTERS if not names(r, "num_groups", "outer_NG", "pattern_N")}
BATCH_FREE = {r for r in ROUTERS if not names(r, "train")}


def dense(r):
    """Weights as f32[N, E]."""
    hot = jax.nn.one_hot(r.experts, E)
    return jnp.einsum("nk,nke->ne", r.weights, hot)


def total_law(r, logits, name, k, normalise):
    """Whether the weights of valid, routable tokens obey the law of `normalise`."""
    allowed = (r.experts < E).any(-1)
    total = r.weights.sum(-1)
    if normalise == "none" and not names(name, "outer_NG"):
        scores = jnp.where(jnp.isinf(logits), 0.0, jnp.exp(logits))
        picked = jnp.take_along_axis(scores, jnp.minimum(r.experts, E - 1), -1)
        empty = (r.experts == E) & (r.weights == 0)  # fewer than k allowed experts
        law = (jnp.isclose(r.weights, picked, rtol=1e-4) | empty).all(-1)
    elif normalise == "after" and not (names(name, "outer_NG") and k == 1):
        law = jnp.abs(total - 1) < 1e-5
    else:
        law = total <= 1 + 1e-5
    return law | ~allowed


def clear_choice(logits, valid, k):
    """Tokens whose k-th and next entries of Sinkhorn's plan differ by more than rounding, [N, 1].

    Sums in another order flip near ties; with a single valid token the whole plan is one.
    """
    plan = jnp.sort(routers.balanced_plan(logits, valid, num_iterations=8), axis=-1)
    kept, left = plan[:, -k, None], plan[:, -k - 1, None]
    return ~valid[:, None] | (left == -jnp.inf) | (kept - left > 1e-3)


@functools.cache
def checker(name, k, normalise):
    choose = functools.partial(routed, name, k=k, normalise=normalise)

    def one(key, scale, ties, forbid, share):
        k1, k2, k3, k4, k5, k6 = jax.random.split(key, 6)
        logits = scale * jax.random.normal(k1, (N, E))
        logits = jnp.where(ties, jnp.round(2 * logits / scale) / 2, logits)
        barred = forbid & (jax.random.uniform(k2, (N, E)) < 0.5)
        logits = jnp.where(barred, -jnp.inf, logits)
        valid = jax.random.uniform(k3, (N,)) < share
        x = extras(name, k4)
        if names(name, "noise_NE"):  # its scores, on which the weights depend
            law_logits = logits + (jax.nn.softplus(0.0) + 0.01) * x["noise_NE"]
        else:
            law_logits = logits
        r = choose(logits, valid, x)
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
        moved = {i: v[perm] if route.shape_of(i)[0] == "N" else v for i, v in x.items()}
        other = choose(logits[perm], valid[perm], moved)
        sure = name in BATCH_FREE
        clear_N1 = jnp.ones((N, 1), bool) if sure else clear_choice(logits, valid, k)
        if not sure:
            same = jnp.abs(dense(other) - dense(r)[perm]) <= 1e-4
            ok["tokens permute"] = same | ~clear_N1[perm]
        else:
            ok["tokens permute"] = other.experts == r.experts[perm]
            ok["weights permute"] = jnp.abs(other.weights - r.weights[perm]) <= 1e-5 * scale_of(r)
        if name in BY_EXPERT:
            q = jax.random.permutation(k6, E)
            at = {i: route.shape_of(i).find("E") for i in x}
            moved = {i: v if at[i] < 0 else jnp.take(v, q, at[i]) for i, v in x.items()}
            same = jnp.abs(dense(choose(logits[:, q], valid, moved)) - dense(r)[:, q])
            ok["experts permute"] = ties | (same <= 1e-4 * scale_of(r)) | ~clear_N1
        if name in BATCH_FREE:
            half = jnp.arange(N) < N // 2
            mixed = choose(jnp.where(half[:, None], logits, logits[::-1] + 1), valid | ~half, x)
            ok["other tokens do not matter"] = (mixed.experts == r.experts) | ~half[:, None]
        coefficient = jax.random.normal(k6, r.weights.shape)
        grad = jax.grad(lambda a: jnp.sum(choose(a, valid, x).weights * coefficient))(logits)
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
def capacity_checker(engine, factor):
    """Laws of a limited capacity, for choices of any skew with any number of tokens invalid."""
    capacity = int(np.ceil(factor * N * 2 / E))

    def one(key, skew, share):
        k1, k2 = jax.random.split(key)
        score = jax.random.gumbel(k1, (N, E)) - skew * jnp.arange(E)
        valid = jax.random.uniform(k2, (N,)) < share
        r = routers.top_k(score, valid, k=2)
        none = ExpertParams(*(jnp.zeros((E, 1, 1)), jnp.zeros((E, 1))) * 2)
        limits = {"engine": engine, "capacity": factor}
        _, lost_NK = apply_experts(jnp.zeros((N, 1)), r, none, Functions(jnp.tanh), **limits)
        served, lost = (jnp.where(a, r.experts, E) for a in (~lost_NK, lost_NK))
        load, dropped = (jnp.bincount(e.ravel(), length=E + 1)[:E] for e in (served, lost))
        best = r.weights.max(-1)
        # A first choice that is dropped was preferred by no kept first choice of lower rank.
        first_lost, first_kept = lost[:, :1] < E, (served[:, :1] < E).T
        same = r.experts[:, :1] == r.experts[:, 0]
        order = -best if engine == "capacity_prioritised" else jnp.arange(N)
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


def check_capacity(engine, factor, examples):
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(
        seed=st.integers(0, 2**31 - 1),
        skew=st.sampled_from([0.0, 0.3, 3.0]),
        share=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def laws(**draw):
        found = capacity_checker(engine, factor)(**draw)
        assert all(found.values()), [law for law, holds in found.items() if not holds]

    laws()


CAPACITIES = [("capacity", 0.5), ("capacity", 1.25), ("capacity_prioritised", 0.8)]


@pytest.mark.parametrize(("engine", "factor"), CAPACITIES)
def test_capacity_laws(engine, factor):
    check_capacity(engine, factor, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "factor"), CAPACITIES)
def test_capacity_laws_on_many_draws(engine, factor):
    check_capacity(engine, factor, MANY)


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
