"""Inputs of one benchmark case, the same in every worker. NumPy only."""

import numpy as np


def make_case(case):
    """Arrays x [T, D], experts [T, K], weights [T, K], and stacked expert parameters.

    Experts are the top k of random scores plus `zipf` * -log(1 + e): distinct, and with zipf > 0
    some are far busier than others.
    """
    tokens, dim, hidden = case["tokens"], case["dim"], case["hidden"]
    num_experts, k = case["experts"], case["top_k"]
    rng = np.random.default_rng(case["seed"])
    scores = rng.gumbel(size=(tokens, num_experts)) - case["zipf"] * np.log1p(
        np.arange(num_experts)
    )
    chosen = np.argpartition(scores, -k, axis=1)[:, -k:] if k < num_experts else scores.argsort(1)
    weights = rng.uniform(0.1, 1, size=(tokens, k)).astype(np.float32)

    def normal(scale, *shape):
        return (rng.standard_normal(shape, np.float32) * np.float32(scale)).reshape(shape)

    return {
        "x": normal(1, tokens, dim),
        "experts": chosen.astype(np.int64),
        "weights": weights / weights.sum(1, keepdims=True),
        "w1": normal(dim**-0.5, num_experts, dim, hidden),
        "b1": normal(0.1, num_experts, hidden),
        "w2": normal(hidden**-0.5, num_experts, hidden, dim),
        "b2": normal(0.1, num_experts, dim),
    }
