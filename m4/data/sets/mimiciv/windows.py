"""Where the input of a stay ends: after 48 h, with the stay, at an hour of it, or at an image."""

import hashlib
from pathlib import Path

import numpy as np

from m4.data.sets.mimiciv import catalogue, linked, studies
from m4.data.sets.mimiciv.life import Life
from m4.data.sets.mimiciv.stays import Stays
from m4.errors import DataError

FIRST_HOUR = 5  # of a window that ends within the stay


def filters(window: str, life: Life) -> list[tuple[str, np.ndarray]]:
    """(what is kept, bool[n]) of the stays that are long enough for a window."""
    if window == "48h":
        long, death = life.hours >= catalogue.HOURS, life.hours_to_death[0]
        return [("of at least 48 h", long), ("alive after 48 h", death > catalogue.HOURS)]
    if window in ("hour", "cxr"):
        return [(f"of at least {FIRST_HOUR} h", life.hours_lived[0] >= FIRST_HOUR)]
    return []


def limits(window: str, life: Life, seed: int) -> np.ndarray:
    """f64[n]: end of the input in hours since ICU admission; of 'cxr' see `some_image`."""
    hours, _ = life.hours_lived
    if window == "48h":
        return np.minimum(hours, catalogue.HOURS)
    if window != "hour":
        return hours
    # a full hour, evenly from 5 to the last (FlexCare takes one at random too)
    draws = np.array([_draw(life, row, seed) for row in range(len(life))])
    return FIRST_HOUR + np.floor(draws * (np.floor(hours) - FIRST_HOUR + 1))


def some_image(stays: Stays, raw_dir: Path, seed: int, flow: list) -> dict[int, str]:
    """Row -> study of one frontal image after hour 4, drawn evenly; ends that row's window."""
    root = linked.home(raw_dir, "cxr")
    images: dict[int, list] = {}
    for row, hour, image in studies.frontal(root, stays, flow, "window"):
        if hour > FIRST_HOUR - 1:
            images.setdefault(row, []).append((hour, image.path.parent.name[1:]))
    chosen = {}
    for row, found in sorted(images.items()):
        draw = _draw(stays.life, row, seed)
        hour, chosen[row] = sorted(found)[int(draw * len(found))]
        stays.limit[row] = hour
    if not chosen:
        raise DataError(f"{root}: no frontal chest X-ray in any ICU stay of the cohort")
    return chosen


def _draw(life: Life, row: int, seed: int) -> float:
    """In [0, 1), a function of stay and seed alone."""
    text = f"{seed}:{int(life.stay[row])}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "little") / 2**48
