"""Standard streams that never end a run.

Whoever reads them may go (`| head`, a terminal that closes), the disk behind them may be full, and
a terminal may not know a letter. A run of days goes on without them.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator

# C0 and C1 but for tab and line break; also with what rich draws by.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
DRAWN = re.compile(
    "(?P<drawing>\r|\x1b\\[[0-9;]*[mAK]|\x1b\\[\\?25[hl])|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
FIRST = 3  # standard input, output and error


class Patient(io.FileIO):
    """A file that takes everything; what cannot be written is gone."""

    def write(self, data) -> int:
        """All of `data` counts as written."""
        with contextlib.suppress(OSError):
            written = super().write(data) or 0
            if written < memoryview(data).nbytes:  # the disk is nearly full
                super().write(memoryview(data)[written:])
        return memoryview(data).nbytes


class Plain(io.TextIOWrapper):
    """Text that cannot steer a terminal, but for what draws colours and the line of progress."""

    def write(self, text: str) -> int:
        """Writes it with every other control character as a space."""
        if not text.isprintable():
            text = (DRAWN if self.isatty() else CONTROLS).sub(_kept, text)
        return super().write(text)


def _kept(match: re.Match[str]) -> str:
    return match["drawing"] or " " if "drawing" in match.re.groupindex else " "


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Inside, `sys.stdout` and `sys.stderr` are such files, in the terminal's encoding."""
    for number in range(FIRST):  # a closed one would become some file of the run
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_patient(before[0], 1), _patient(before[1], 2))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        sys.stdout, sys.stderr = before


def _patient(stream, number: int):
    """The same stream as it was if it is somebody else's: of a test, a notebook."""
    try:
        own = isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
    except (OSError, ValueError):
        own = False
    if not own:
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    return Plain(
        io.BufferedWriter(Patient(number, "w", closefd=False)),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering or number == FIRST - 1,
        write_through=stream.write_through,
    )
