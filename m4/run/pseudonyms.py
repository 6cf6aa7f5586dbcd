"""Patients as keyed hashes; the key is made once per work directory, for its owner alone."""

import hashlib
import os
import secrets
from pathlib import Path

import numpy as np


def of(patient_N: np.ndarray, folder: Path) -> np.ndarray:
    """A hash of each patient, the same in every file of the work directory, str[N]."""
    key = _key(folder)
    return np.array(
        [
            hashlib.blake2b(str(int(p)).encode(), key=key, digest_size=16).hexdigest()
            for p in patient_N
        ],
        dtype="U32",
    )


def _key(folder: Path) -> bytes:
    """Key of the hashes, readable by its owner only."""
    path = folder / "key"
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
    return path.read_bytes()
