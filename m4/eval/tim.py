"""Task interaction (TIM): what learning task j beside task i is worth to task i.

A coalition is a set of tasks trained together; v_i(S) is the test score of task i when S and i are.
M3H's own formula is not public. Ours carries Shapley values over inputs (HAIM) to the outputs:

    pairwise       (v_i({j}) - v_i({})) / |v_i({})|
    leave-one-out  (v_i(all) - v_i(all but j)) / |v_i({})|
    Shapley        sum over S of |S|! (n - |S| - 1)! / n! * (v_i(S and j) - v_i(S)), n = T - 1

The last sums over j to v_i(all) - v_i({}), the whole gain of i from the others. Training itself is
the caller's: `M3H` takes the mask of a coalition as an input, so one compiled step trains them all.

Letters: T tasks; entry [j, i] of a matrix is the effect of j on i, the diagonal is 0.
"""

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np

Coalition = frozenset[int]
# trained tasks -> score of each, f64[T], NaN if not in it
Value = Callable[[Coalition], np.ndarray]
EXACT_UP_TO = 6  # tasks: 63 trainings


def cached(train: Callable[[np.ndarray], np.ndarray], num_tasks: int) -> Value:
    """`train(mask bool[T]) -> scores f64[T]`, called once per coalition."""

    @functools.cache
    def value(coalition: Coalition) -> np.ndarray:
        return np.asarray(train(np.isin(np.arange(num_tasks), [*coalition])), np.float64)

    return value


def pairwise(value: Value, num_tasks: int) -> np.ndarray:
    """Relative gain of i from j alone, f64[T, T]. Needs T (T + 1) / 2 coalitions."""
    out = np.zeros((num_tasks, num_tasks))
    for j, i in itertools.permutations(range(num_tasks), 2):
        alone = value(frozenset({i}))[i]
        out[j, i] = (value(frozenset({i, j}))[i] - alone) / abs(alone)
    return out


def leave_one_out(value: Value, num_tasks: int) -> np.ndarray:
    """Relative loss of i when j is left out of all, f64[T, T]. Needs 2 T + 1 coalitions."""
    everyone = frozenset(range(num_tasks))
    out = np.zeros((num_tasks, num_tasks))
    for j, i in itertools.permutations(range(num_tasks), 2):
        loss = value(everyone)[i] - value(everyone - {j})[i]
        out[j, i] = loss / abs(value(frozenset({i}))[i])
    return out


def shapley(
    value: Value, num_tasks: int, *, num_permutations: int | None = None, seed: int = 0
) -> np.ndarray:
    """Shapley value of j for i, f64[T, T], in units of the score.

    Exact (2^T - 1 coalitions) up to `EXACT_UP_TO` tasks unless `num_permutations` is given; else
    the mean over so many random orders (20 by default), each used forwards and backwards.
    """
    out = np.zeros((num_tasks, num_tasks))
    if num_permutations is None and num_tasks <= EXACT_UP_TO:
        for j, i in itertools.permutations(range(num_tasks), 2):
            others = {*range(num_tasks)} - {i, j}
            for size in range(len(others) + 1):
                weight = 1 / ((num_tasks - 1) * math.comb(num_tasks - 2, size))
                for some in itertools.combinations(sorted(others), size):
                    with_i = frozenset(some) | {i}
                    out[j, i] += weight * (value(with_i | {j})[i] - value(with_i)[i])
        return out
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(num_tasks) for _ in range(num_permutations or 20)]
    orders += [order[::-1] for order in orders]
    for order, i in itertools.product(orders, range(num_tasks)):
        coalition = frozenset({i})
        for j in (int(j) for j in order if j != i):
            out[j, i] += (value(coalition | {j})[i] - value(coalition)[i]) / len(orders)
            coalition |= {j}
    return out
