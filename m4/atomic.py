"""Files that are replaced at once: a reader sees the old content or the new, never half of it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; if the block ends well, that file replaces `path`."""
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    os.replace(partial, path)


def write(path: Path, text: str) -> None:
    """Replaces a text file."""
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")
