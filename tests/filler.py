"""Deterministic weights of the golden values: a hash of (tensor number, element number)."""

import numpy as np


def filler(number: int, size: int) -> np.ndarray:
    """H(number), f64[size] in [-0.5, 0.5): Murmur-like hash of the element's place."""
    bits = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(2654435761)
    bits = (bits + np.uint64((number + 1) * 97531)) & np.uint64(0xFFFFFFFF)
    for shift, factor in ((15, 2246822519), (13, 3266489917)):
        bits ^= bits >> np.uint64(shift)
        bits = (bits * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    bits ^= bits >> np.uint64(16)
    return bits / 2.0**32 - 0.5


def filled(number: int, shape: tuple[int, ...], scale: float = 2.0) -> np.ndarray:
    """`scale` times H(number) in C order."""
    return (scale * filler(number, int(np.prod(shape)))).reshape(shape)


def state_dict(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A torch state: tensor r in the order of names, scaled by its fan; norms are near 1."""
    state = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        fan = np.prod(shape) / shape[0]
        state[name] = filled(number, shape, 2 / fan**0.5 if len(shape) > 1 else 0.4)
        if "norm" in name and name.endswith("weight"):
            state[name] += 1
    return state
