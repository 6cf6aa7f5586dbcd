"""Signals that ask a command to stop, and what one does that has nothing to save. Free of JAX.

They are this process's alone. A child that is forked (by `multiprocessing`, of a data set's own
module perhaps) takes signals as if nobody had asked for them: it has nothing to say farewell to.
"""

import _thread
import contextlib
import functools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import NoReturn

from m4.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Of schedulers (Slurm's --signal, Grid Engine, LSF), of a terminal that goes, of a time limit.
OTHERS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
ENDS = (*SIGNALS, *OTHERS)  # what would kill the process
MOMENT = 5.0  # seconds for all farewells together


def end(code: int, *calls: Callable[[], object], seconds: float = MOMENT) -> NoReturn:
    """Ends the process at once with an exit code; `calls` are made before, all at a time.

    Those that have not returned after `seconds` are left: nobody may read what one has to say, and
    a file system may not answer another. Nor does it matter what they raise.
    """
    deadline = time.monotonic() + seconds
    for done in [_begun(call) for call in calls]:
        done.acquire(timeout=max(0.0, deadline - time.monotonic()))
    os._exit(code)


def say(text: str) -> Callable[[], object]:
    """A call that writes a line to standard error, past everything in between."""
    return functools.partial(os.write, 2, f"{text}\n".encode(errors="replace"))


def _begun(call: Callable[[], object]) -> _thread.LockType:
    """A lock that is free when a call, in a thread, has returned.

    Of `threading` nothing: what a signal has interrupted may hold its locks.
    """
    running = _thread.allocate_lock()

    def run() -> None:
        with contextlib.suppress(BaseException):
            call()
        running.release()

    running.acquire()
    try:
        _thread.start_new_thread(run, ())
    except RuntimeError:  # no more threads: the process may be at its end
        running.release()
    return running


class Leave:
    """Handler that ends the process at once, as one that can be repeated, after `farewells`."""

    _turn = threading.RLock()  # of the thread that ends it: its handler runs in two

    def __init__(self, *farewells: Callable[[], object]):
        self._farewells = farewells
        self._process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Ends the process."""
        self._turn.acquire(timeout=MOMENT)
        end(Preempted.exit_code, self.part, say("m4: stopped: run the same command again"))

    def part(self) -> None:
        """Says farewell, and stays; what a child has inherited is its parent's to say."""
        for call in self._farewells if os.getpid() == self._process else ():
            with contextlib.suppress(Exception):
                call()

    def after(self, call: Callable[[], object]) -> "Leave":
        """A handler that calls something before the rest."""
        return Leave(call, *self._farewells)


class Own:
    """Another handler of this process alone."""

    def __init__(self, handle: Callable[[int, FrameType | None], object]):
        self._handle = handle

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        self._handle(number, frame)


def free(number: int) -> bool:
    """Whether nobody else takes a signal: `nohup` ignores SIGHUP."""
    handler = signal.getsignal(number)
    return handler is signal.SIG_DFL or isinstance(handler, Leave)


@contextlib.contextmanager
def leaving(*, alone: bool = False) -> Iterator[None]:
    """Inside, a signal that would kill the process makes it `Leave`; Ctrl-C is Python's.

    Also in the middle of a compilation, where Python runs no handler: a thread waits for signals.
    `alone` is a process that ends with what is inside: there Ctrl-C is such a signal too, and
    afterwards all of them are ignored, so that none changes the exit code of what is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heed_forks()
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    fatal = (signal.SIG_DFL, signal.default_int_handler) if alone else (signal.SIG_DFL,)
    taken = {n: Leave() for n in ENDS if signal.getsignal(n) in fatal}
    with _instead(taken, signal.SIG_IGN if alone else None):
        before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_listen, args=(ears,), daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            mouth.close()  # ends the thread


@functools.cache
def heed_forks() -> None:
    """From now on a forked child has no `Leave` and no `Own`, nor tells us of its signals.

    Python is told once, and cannot be told otherwise; without such handlers nothing is done.
    """
    kept = threading.local()

    def hold() -> None:  # a signal that comes to the child before it has let go of our handlers
        kept.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)

    def go_on() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept.mask)

    def let_go() -> None:
        _forget()
        go_on()

    os.register_at_fork(before=hold, after_in_parent=go_on, after_in_child=let_go)


def _forget() -> None:
    ours = [n for n in ENDS if isinstance(signal.getsignal(n), Leave | Own)]
    if not ours:
        return
    signal.set_wakeup_fd(-1)  # what is written there, the parent reads
    for number in {*ours, signal.SIGTERM}:  # which JAX may have, and Python does not know of
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        if number in ours or signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, default)


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
def _instead(
    handlers: Mapping[signal.Signals, Leave], after: signal.Handlers | None = None
) -> Iterator[None]:
    """Other handlers for some signals, for a while; on another than the main thread none.

    `after` is what comes after them, if not those of before.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, handler) for n, handler in handlers.items() if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if after is None else after)
