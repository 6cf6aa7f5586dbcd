"""Assignment of patients to splits by a keyed hash.

A patient's split depends on the seed and the patient alone: not on the order of the files, not on
who else is in them, so that adding rows moves nobody.

Every data set has the options `fold` and `num_folds`: with `num_folds` its patients are tested in
turns (`--mode=crossval`) instead of by its usual shares. Where the owners keep a test part for
themselves (set B, say), the folds are of the others, and nobody of that part is in any of them; but
the ten folds that PTB-XL is published in are turned whole, the tenth, its test fold, with them.
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


def part(
    patient: int | str, fractions: Mapping[str, float], seed: int, *, fold: int, num_folds: int
) -> str:
    """The split of one patient: by `fractions` or, with `num_folds`, 'test' in one of them.

    Of those who are not tested, as many are 'val' as `fractions` has for each 'train'.
    """
    if not num_folds:
        return assign(patient, fractions, seed)
    return of_fold(patient, seed, fold=fold, num_folds=num_folds, val=val_share(fractions))


def of_fold(patient: int | str, seed: int, *, fold: int, num_folds: int, val: float) -> str:
    """The split of one patient in a fold; of the rest the share `val` is for validation."""
    folds = {str(k): 1 / num_folds for k in range(num_folds)}
    if assign(patient, folds, seed) == str(fold):
        return "test"
    return assign(f"{patient} of the rest", {"train": 1 - val, "val": val}, seed)


def val_share(fractions: Mapping[str, float]) -> float:
    """Validation patients for each that is not tested."""
    return fractions["val"] / (fractions["train"] + fractions["val"])


def fold_problems(fold: int, num_folds: int) -> list[str]:
    """What is wrong with the options, a line each, for `m4.data.option_checks.check`."""
    if num_folds < 0 or num_folds == 1:
        return [f"data.options.num_folds: {num_folds} must be at least 2, or 0 for no folds"]
    if not num_folds and fold:
        return [f"data.options.fold: {fold} is of no fold without data.options.num_folds"]
    if not 0 <= fold < max(num_folds, 1):
        return [f"data.options.fold: {fold} must be from 0 to {num_folds - 1}"]
    return []
