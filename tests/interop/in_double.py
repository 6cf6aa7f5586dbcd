"""Parity in double precision, in a process of its own: `JAX_ENABLE_X64=1 python -m ...`.

m4 says float32 where it must not be less. Here that word means double, so that m4 and the original
must agree to the last digits; what they differ by in float32 is then rounding. FuseMoE is not asked
at larger weights: its release takes what float32 rounds to 0 for 2.2e-16, and m4 as it does. Nor
are volumes, whose convolutions take minutes in double precision.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from m4 import maths
from tests.interop import parity, test_parity

RTOL = 1e-8  # the worst is a gradient of FlexCare at size 4, 2e-9; in float32 that is 3e-4


def double(x):
    """Numbers in double precision."""
    x = np.asarray(x)
    return x.astype(np.float64) if x.dtype == np.float32 else x


def main() -> int:
    """0 where every case of weights of sizes 1, 4 and 12 agrees."""
    setattr(jnp, "float32", jnp.float64)  # noqa: B010 (as all of m4 spells it)
    setattr(maths, "MOST_ROUNDS", 0)  # noqa: B010 (a search of float32 numbers alone)
    wrong, count = [], 0
    for size in (1, 4, 12):
        for kind, case in test_parity.fresh(7, size, volumes=False):
            if kind == "fusemoe" and size > 1:
                continue
            expected = parity.of_torch(case)
            found = parity.errors(parity.of_m4(case, double), expected, case.least)
            count += 1
            wrong += [(kind, size, n, x) for n, x in found.items() if not x <= RTOL]
    print(f"{count} cases", *wrong, sep="\n")
    return int(bool(wrong) or not jax.config.jax_enable_x64)


if __name__ == "__main__":
    sys.exit(main())
