"""How evenly counts lie over experts, of NumPy or JAX arrays alike, without loading JAX.

Letters: E experts.
"""

from typing import Any


def evenness(count_E: Any) -> dict[str, Any]:
    """How evenly counts (not all 0) lie over experts: scalars, of NumPy or JAX arrays alike.

    'cv' std / mean; 'max_vio' max / mean - 1; 'min_vio' 1 - min / mean; 'gini' mean absolute
    difference / (2 mean), from 0 (equal) to 1 - 1/E (all on one); 'dead' share of experts below
    1 % of the mean; 'effective' exp(H), the number of evenly used experts of the same entropy H.
    """
    xp = count_E.__array_namespace__()
    num, share_E = count_E.shape[-1], count_E / count_E.sum()
    safe_E = xp.where(share_E > 0.0, share_E, 1.0)
    # sum_ij |x_i - x_j| = 2 sum_i (2 i - E - 1) x_(i), i counted from 1
    rank_E = 2.0 * xp.arange(1, num + 1) - num - 1
    return {
        "cv": xp.std(share_E) * num,
        "max_vio": share_E.max() * num - 1.0,
        "min_vio": 1.0 - share_E.min() * num,
        "gini": xp.sum(rank_E * xp.sort(share_E)) / num,
        "dead": xp.mean(share_E < 0.01 / num),
        "effective": xp.exp(-xp.sum(safe_E * xp.log(safe_E))),
    }
