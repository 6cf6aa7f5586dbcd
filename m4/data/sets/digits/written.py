"""What is written beside a spoken digit: an image of it, its name misspelt, sums of another image.

Images are scikit-learn's `load_digits`, 1,797 of 8 x 8 pixels, 0 to 16 (Alpaydin and Kaynak 1998).
They lie there in the order in which people wrote them, ten or so of each digit a person, so that
consecutive parts of the order are of different people.
"""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LONGEST = 8  # letters; what chance doubles is cut
SIDE = 8
SUMS = tuple(f"{what} {i}" for what in ("row", "column") for i in range(SIDE))


@functools.cache
def images() -> tuple[np.ndarray, np.ndarray]:
    """f32[1797, 8, 8] from 0 to 1, and the digits that they show."""
    found: Any = load_digits()
    return found.images.astype(np.float32) / 16, found.target


def of_person(person: int, num_people: int, digit: int) -> np.ndarray:
    """Numbers of the images of a digit in one of `num_people` consecutive parts."""
    shown_N = images()[1]
    place_N = np.arange(len(shown_N)) * num_people // len(shown_N)
    return np.flatnonzero((place_N == person) & (shown_N == digit))


def pixels(rng: np.random.Generator, number: int, noise: float) -> np.ndarray:
    """f32[1, 8, 8, 1]: an image with a blot of half its side and normal noise on every pixel."""
    image = 2 * images()[0][number] - 1
    size = SIDE // 2
    y, x = rng.integers(0, SIDE - size + 1, 2)
    if noise > 0:
        image[y : y + size, x : x + size] = 0
    image += noise * rng.standard_normal(image.shape, np.float32)
    return image[None, :, :, None]


def profile(rng: np.random.Generator, number: int, noise: float) -> np.ndarray:
    """f32[16]: sums of the rows and of the columns of an image, with normal noise."""
    image = images()[0][number]
    sums = np.concatenate([image.sum(1), image.sum(0)])
    return sums + noise * rng.standard_normal(sums.shape, np.float32)


def word(rng: np.random.Generator, digit: int, noise: float) -> np.ndarray:
    """i64[1 to 8], letters from 1 on: each lost or another one with chance `noise` / 2.

    With chance `noise` two neighbours change places, too. One letter always stays.
    """
    letters = [LETTERS.index(c) + 1 for c in WORDS[digit]]
    if rng.random() < noise:
        at = rng.integers(len(letters) - 1)
        letters[at : at + 2] = letters[at : at + 2][::-1]
    fate, other = rng.random(len(letters)), rng.integers(1, len(LETTERS) + 1, len(letters))
    found = [
        int(new) if f < noise else old
        for f, old, new in zip(fate, letters, other, strict=True)
        if f >= noise / 2
    ]
    return np.array((found or letters[:1])[:LONGEST])


def spelled(ids: Iterable[int]) -> str:
    """The letters of a word's ids."""
    return "".join(LETTERS[i - 1] for i in ids)
