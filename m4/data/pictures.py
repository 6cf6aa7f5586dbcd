"""Image files, opened only if they are of a size that pictures have."""

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m4.errors import DataError

MOST = 1 << 26  # pixels: ten times those of an X-ray or a photograph of an eye


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A PIL image, nothing of it decoded. Raises DataError for more pixels than `MOST`."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
            picture = Image.open(path)
    except Image.DecompressionBombError as error:  # beyond PIL's own limit, with the size in it
        size = int((re.findall(r"\d+", str(error)) or [0])[0])
        raise DataError(f"{size:,} pixels, the limit is {MOST:,}") from None
    with picture:
        if (size := picture.width * picture.height) > MOST:
            raise DataError(f"{size:,} pixels, the limit is {MOST:,}")
        yield picture
