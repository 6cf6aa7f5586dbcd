"""Image files, opened only if they are of a kind and size that pictures have; central squares."""

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m4 import regular
from m4.errors import DataError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # by content; for some others PIL starts programs
BILINEAR = 2  # PIL's number of it
MOST = 1 << 26  # pixels: ten times those of an X-ray or a photograph of an eye


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A PIL image, nothing of it decoded.

    Raises DataError for more pixels than `MOST`, OSError for what is no file, or one of no format
    of `FORMATS`. A damaged file may raise anything.
    """
    from PIL import Image

    with regular.opened(path) as file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
                picture = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError as error:  # beyond PIL's own limit, with the size in it
            size = int((re.findall(r"\d+", str(error)) or [0])[0])
            raise DataError(f"{size:,} pixels, the limit is {MOST:,}") from None
        with picture:
            if (size := picture.width * picture.height) > MOST:
                raise DataError(f"{size:,} pixels, the limit is {MOST:,}")
            yield picture


def square(path: Path, size: int, channels: int) -> np.ndarray:
    """uint8[size, size, channels]: the central square, in grey (1) or colour (3).

    Grey of more than eight bits is stretched from its smallest to its largest value. Raises
    as `opened`.
    """
    with opened(path) as picture:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = (left, top, left + side, top + side)
        if picture.mode[0] in "IF":  # 16 or 32 bits a pixel
            values_hw = np.asarray(picture.crop(box), np.float64)
            low, high = values_hw.min(), values_hw.max()
            scaled_hw = (values_hw - low) * (255 / max(high - low, 1e-12))
            picture, box = picture.convert("L").crop(box), (0, 0, side, side)
            picture.frombytes(scaled_hw.astype(np.uint8).tobytes())
        shown = picture.convert("L" if channels == 1 else "RGB").crop(box)
        shown = shown.resize((size, size), BILINEAR)
        return np.asarray(shown, np.uint8).reshape(size, size, channels)
