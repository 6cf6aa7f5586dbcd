"""Invented windows of PAM and segments of CMU-MOSI and CMU-MOSEI. Letters: n rows, T steps."""

from pathlib import Path

import numpy as np

from m4.data.fake import fresh

WINDOWS = 10  # per patient of PAM
SEGMENTS = 3  # per video


def pam(folder: Path, *, patients: int, seed: int) -> Path:
    """`PAMdata/`: sensor s swings faster for higher classes; some sensors are silent."""
    root, rng = fresh(folder / "PAMdata"), np.random.default_rng(seed)
    label_n = rng.integers(0, 8, patients * WINDOWS)
    steps_T = np.arange(600) / 100
    phase = rng.uniform(0, 6, (len(label_n), 1, 17))
    waves = np.sin((1 + label_n)[:, None, None] * steps_T[:, None] + phase)
    waves *= rng.random((len(label_n), 1, 17)) < 0.9
    (root / "processed_data").mkdir()
    np.save(root / "processed_data" / "PTdict_list.npy", waves)
    np.save(root / "processed_data" / "arr_outcomes.npy", label_n[:, None].astype(float))
    return root


def mosi(folder: Path, *, patients: int, seed: int, name: str = "cmu-mosi") -> Path:
    """`cmu-mosi/`: sentences of 1 to 50 words, padded in front; some without voice or face."""
    root, rng = fresh(folder / name), np.random.default_rng(seed)
    video = 0
    for part, share in (("train", 0.6), ("valid", 0.2), ("test", 0.2)):
        number = max(int(share * patients), 1) * SEGMENTS
        labels = rng.uniform(-3, 3, number)
        arrays = {"labels": labels[:, None, None]}
        length = rng.integers(1, 51, number)
        word = np.arange(50) >= 50 - length[:, None]
        for modality, width in (("text", 300), ("audio", 74), ("vision", 35)):
            values = rng.normal(labels[:, None, None] * (np.arange(width) < 4), 1)
            values = values + rng.normal(0, 0.1, (number, 50, width))
            there = (rng.random(number) < 0.85) | (modality == "text")
            arrays[modality] = values * word[..., None] * there[:, None, None]
        arrays["audio"][0, -1, 0] = -np.inf
        arrays["id"] = np.array([f"video{video + k // SEGMENTS}$_${k}" for k in range(number)])
        video += number // SEGMENTS
        np.savez(root / f"{part}.npz", **arrays)
    return root


def mosei(folder: Path, *, patients: int, seed: int) -> Path:
    """`cmu-mosei/`, as `mosi`."""
    return mosi(folder, patients=patients, seed=seed, name="cmu-mosei")
