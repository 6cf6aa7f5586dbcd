"""Signals that ask a command to stop, and what one does that has nothing to save. Free of JAX."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from m4.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Of schedulers (Slurm's --signal, Grid Engine, LSF), of a terminal that goes, of a time limit.
OTHERS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
ENDS = (signal.SIGTERM, *OTHERS)  # what would kill the process


class Leave:
    """Handler that ends the process at once, as one that can be repeated, after `farewells`."""

    def __init__(self, *farewells: Callable[[], object]):
        self._farewells = farewells

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Ends the process."""
        self.part()
        os._exit(Preempted.exit_code)

    def part(self) -> None:
        """Says farewell, and stays."""
        for call in self._farewells:
            with contextlib.suppress(Exception):
                call()

    def after(self, call: Callable[[], object]) -> "Leave":
        """A handler that calls something before the rest."""
        return Leave(call, *self._farewells)


def free(number: int) -> bool:
    """Whether nobody else takes a signal: `nohup` ignores SIGHUP."""
    handler = signal.getsignal(number)
    return handler is signal.SIG_DFL or isinstance(handler, Leave)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Inside, a signal that would kill the process makes it `Leave`; Ctrl-C is Python's.

    Also in the middle of a compilation, where Python runs no handler: a thread waits for signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    with _instead({n: Leave() for n in ENDS if signal.getsignal(n) is signal.SIG_DFL}):
        before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_listen, args=(ears,), daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            mouth.close()  # ends the thread


def _listen(ears: socket.socket) -> None:
    with ears:
        while received := ears.recv(64):
            for number in received:
                if isinstance(handler := signal.getsignal(number), Leave):
                    handler(number, None)


@contextlib.contextmanager
def farewell(call: Callable[[], object]) -> Iterator[None]:
    """Inside, a process that is made to leave calls something first."""
    handlers = ((n, signal.getsignal(n)) for n in ENDS)
    with _instead({n: h.after(call) for n, h in handlers if isinstance(h, Leave)}):
        yield


@contextlib.contextmanager
def _instead(handlers: Mapping[signal.Signals, Leave]) -> Iterator[None]:
    """Other handlers for some signals, for a while; on another than the main thread none."""
    main = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, handler) for n, handler in handlers.items() if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
