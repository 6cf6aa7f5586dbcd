"""Programs that a command starts and waits for: a stop is passed on to them, and none is left over.

A child has a session of its own, so that Ctrl-C on a terminal, which goes to all of a session,
reaches it once, as SIGTERM. It may then save: `GRACE` seconds. Where the command itself is killed,
Linux kills the child.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from m4.errors import Preempted
from m4.train.early import OTHERS, SIGNALS, free

GRACE = 90.0  # seconds to save and leave: launch/local.py gives 100, a job that it renders 120
POLL = 0.1  # seconds
# Before the child is what it is to be. Not between fork and exec (`preexec_fn`): this process may
# have threads, and what they held when it was copied nobody lets go of.
BOUND = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):  # it has gone already
    sys.exit(137)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Unsaved(Preempted):
    """Told to stop, but the child did not end as one that has saved; with its exit code."""

    def __init__(self, code: int):
        super().__init__(
            f"what was started here ended with exit code {code} when it was told to stop; the same"
            " command goes on from what it had saved"
        )
        self.exit_code = code


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """A child that ends with the thread that calls this. `options` are those of Popen."""
    bound = [sys.executable, "-I", "-S", "-c", BOUND, str(os.getpid())]
    whole = [*bound, *command] if sys.platform == "linux" else [*command]
    return subprocess.Popen(whole, text=True, start_new_session=True, **options)


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    given: str = "",
    stdout: int | None = None,
    stderr: int | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Waits for a child that reads `given`, whatever its exit code; `timeout` in seconds.

    A signal that asks this process to stop is passed on once as SIGTERM. Raises Preempted when the
    child has then ended, `Unsaved` if it ended in another way than by saving or for want of
    anything to save, subprocess.TimeoutExpired if it was killed after `timeout`.
    """
    with (
        _words(given) as words,
        _heard() as told,
        start(command, env=env, stdin=words, stdout=stdout, stderr=stderr) as process,
    ):
        try:
            done = _wait(process, told, timeout)
        except BaseException:
            _kill(process)
            raise
    if told:
        code = done.returncode if done.returncode >= 0 else 128 - done.returncode
        if code not in (0, Preempted.exit_code, 128 + signal.SIGTERM):
            raise Unsaved(code)
        raise Preempted("the same command goes on")
    return done


def _wait(
    process: subprocess.Popen[str], told: list[int], timeout: float | None
) -> subprocess.CompletedProcess[str]:
    passed, end = False, math.inf if timeout is None else time.monotonic() + timeout
    while True:
        try:
            out, errors = process.communicate(timeout=POLL)
            return subprocess.CompletedProcess(process.args, process.returncode, out, errors)
        except subprocess.TimeoutExpired:
            pass
        if told and not passed:
            passed, end = True, time.monotonic() + GRACE
            process.terminate()
        elif time.monotonic() > end:
            _kill(process)
            if not passed:
                raise subprocess.TimeoutExpired(process.args, timeout or 0.0)


def _words(given: str) -> IO[str]:
    """A child's standard input. No pipe: one that is full would have to be waited for."""
    file = tempfile.TemporaryFile("w+") if given else open(os.devnull, "r+")  # noqa: SIM115
    file.write(given)
    file.seek(0)
    return file


def _kill(process: subprocess.Popen[str]) -> None:
    """Ends a child, with whatever it has started in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _heard() -> Iterator[list[int]]:
    """Inside, signals that ask to stop are only noted, in the list that this yields.

    On another than the main thread none are: they do there what they did before.
    """
    told: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        asking = [n for n in SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
        for number in (*asking, *filter(free, OTHERS)):
            before[number] = signal.signal(number, lambda number, frame: told.append(number))
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
