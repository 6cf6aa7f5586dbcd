"""Assignment of patients to splits by a keyed hash.

A patient's split depends on the seed and the patient alone: not on the order of the files, not on
who else is in them, so that adding rows moves nobody.
"""

import hashlib
import math
from collections.abc import Mapping


def assign(patient: int | str, fractions: Mapping[str, float], seed: int) -> str:
    """The split of one patient.

    Args:
      patient: identifier; 7 and "7" are the same patient.
      fractions: split name -> share, summing to 1. Order matters: moving the border between two
        neighbours moves only patients between those two.
      seed: key of the hash.

    Raises:
      ValueError: shares that are negative or do not sum to 1.
    """
    if min(fractions.values()) < 0 or not math.isclose(sum(fractions.values()), 1.0):
        raise ValueError(f"split fractions {dict(fractions)} must be >= 0 and sum to 1")
    key = int(seed).to_bytes(8, "little", signed=True)
    digest = hashlib.blake2b(str(patient).encode(), digest_size=8, key=key).digest()
    position = (int.from_bytes(digest, "little") >> 11) / 2**53  # exact in [0, 1)
    border = 0.0
    for name, share in fractions.items():
        border += share
        if position < border:
            return name
    return [name for name, share in fractions.items() if share > 0][-1]  # rounding of the sum
