"""Being told to stop: SIGTERM or Ctrl-C ends a run within seconds and loses nothing.

While steps run, a signal only raises a flag that the loop asks for after every step; it then saves
and leaves. Before and after that there is nothing to save, and the process ends at once with exit
code 75. That must work in the middle of a compilation, where Python runs no signal handler, so a
thread waits for signals.

With several processes JAX takes SIGTERM until training is over, and the loop asks it which step
all processes stop at; what came before the first step is heard there.

Schedulers and terminals say it by other signals too: Slurm by what `--signal` names, SIGUSR1
often, a shell that ends by SIGHUP, a limit of processor time by SIGXCPU. They count as SIGTERM,
unless somebody else takes them: `nohup` ignores SIGHUP, a shell Ctrl-C of what it runs in the
background.

Who tells once often tells twice: a terminal and a launcher, SIGUSR1 and then SIGTERM. Told again
while its state is saved, a run only goes on saving. SIGTERM or Ctrl-C `PATIENCE` later end it all
the same; SIGXCPU, which comes every second, does not.

Of a library (`m4.fit`) Ctrl-C is Python's where there is nothing to save: notebooks live on.
"""

import ctypes
import functools
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from m4.errors import Preempted
from m4.train.early import OTHERS, SIGNALS, Leave, Own, end, free, heed_forks, say

PATIENCE = 30.0  # seconds; LSF sends SIGINT, SIGTERM and SIGKILL ten seconds apart
MOMENT = 1.0  # seconds by which process 0 is the last to leave
ACTION = 1024  # bytes, more than any system's struct sigaction

# What JAX counts by: all processes ask equally often. The step's number would not do: JAX agrees on
# one more than the highest so far, which is 1 before a run goes on at step 500, and never comes.
_turns = itertools.count(1)


class Signals:
    """Context in which signals are taken; `stepping` and `idle` say whether there is work to save.

    `leave` is called before the process ends at once.
    """

    def __init__(self, leave: Callable[[], None] = lambda: None):
        self._asked, self._stepping, self._gang = False, False, False
        self._leave = leave
        self._before: dict[int, Any] = {}
        self._mouth: socket.socket | None = None
        self._jaxs: ctypes.Array[ctypes.c_char] | None = None  # what SIGTERM did, if JAX's

    def __enter__(self) -> "Signals":
        self._gang = self._stepping = jax.process_count() > 1  # a gang stops at a step
        if threading.current_thread() is not threading.main_thread():
            return self
        heed_forks()
        ears, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._fd = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        own = SIGNALS if not self._gang else (signal.SIGINT,)
        heard = (n for n in own if signal.getsignal(n) is not signal.SIG_IGN)
        for number in (*heard, *filter(free, OTHERS)):
            self._before[number] = signal.signal(number, Own(self._handler))
        threading.Thread(target=self._listen, args=(ears,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._mouth is None:
            return
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._jaxs is not None:
            ctypes.CDLL(None).sigaction(signal.SIGTERM, self._jaxs, None)
        signal.set_wakeup_fd(self._fd)
        self._mouth.close()  # ends the thread

    def stepping(self) -> None:
        """From here on the loop asks."""
        self._stepping = True

    def idle(self) -> None:
        """Everything is saved. Raises Preempted if a signal came that the loop did not see.

        All processes must call it.
        """
        self._stepping = False
        if self.stop(0):
            raise Preempted("stopped, saved; run the same command to go on")
        if self._gang and self._mouth is not None:  # nobody asks JAX any more
            self._jaxs = ctypes.create_string_buffer(ACTION)  # Python cannot name what JAX set
            ctypes.CDLL(None).sigaction(signal.SIGTERM, None, self._jaxs)
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, Own(self._handler))

    def asked(self) -> bool:
        """Whether this process was told to stop; of several, whether all of them know."""
        return self._asked

    def stop(self, step: int) -> bool:
        """Whether to stop after `step`. All processes must ask after every step."""
        if self._gang and multihost_utils.reached_preemption_sync_point(next(_turns)):
            self._asked = True
        return self._asked

    def _handler(self, number: int, frame: FrameType | None) -> None:
        if self._gang:
            return  # the thread tells JAX
        again, self._asked = self._asked, self._asked or self._stepping
        if self._before[number] is signal.default_int_handler and (again or not self._stepping):
            signal.default_int_handler(number, frame)

    def _listen(self, ears: socket.socket) -> None:
        told: float | None = None
        with ears:
            while received := ears.recv(64):
                heard = {number for number in received if self._is_mine(number)}
                if not heard:
                    continue
                if not self._stepping and not self._asked:
                    self._end("there was nothing to save")
                elif told is None:
                    told = time.monotonic()
                    self._tell()
                elif not heard & {*SIGNALS}:
                    continue
                elif time.monotonic() - told > PATIENCE:
                    self._end("it was told again, and had not saved yet")

    def _is_mine(self, number: int) -> bool:
        """Whether a signal's end is this thread's: Ctrl-C of a library is Python's."""
        before = self._before.get(number, signal.default_int_handler)
        own = before is not signal.default_int_handler
        return own or self._gang and number in self._before

    def _tell(self) -> None:
        """Makes the loop stop."""
        if self._gang:
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX hears
        else:
            self._asked = True

    def _end(self, why: str) -> None:
        befores = (before for before in self._before.values() if isinstance(before, Leave))
        calls = [before.part for before in itertools.islice(befores, 1)]  # of what was held before
        if self._gang and jax.process_index() == 0:
            # JAX's store goes with it, and whoever misses it aborts.
            calls.append(functools.partial(time.sleep, MOMENT))
        text = f"m4: stopped: {why}; run the same command to go on"
        end(Preempted.exit_code, self._leave, *calls, say(text))
