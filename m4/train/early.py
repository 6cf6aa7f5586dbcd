"""Signals that ask a command to stop, and what one does that has nothing to save. Free of JAX."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from m4.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Of schedulers (Slurm's --signal, Grid Engine, LSF), of a terminal that goes, of a time limit.
OTHERS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


def leave(number: int, frame: FrameType | None) -> None:
    """Handler that ends the process at once, as one that can be repeated."""
    os._exit(Preempted.exit_code)


def free(number: int) -> bool:
    """Whether nobody else takes a signal: `nohup` ignores SIGHUP."""
    return signal.getsignal(number) in (signal.SIG_DFL, leave)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Inside, a signal that would kill the process makes it `leave`; Ctrl-C is Python's."""
    main = threading.current_thread() is threading.main_thread()
    taken = [n for n in (signal.SIGTERM, *OTHERS) if main and signal.getsignal(n) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
