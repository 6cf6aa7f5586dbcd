"""Being told to stop: SIGTERM or Ctrl-C ends a run within seconds and loses nothing.

While steps run, a signal only raises a flag that the loop asks for after every step; it then saves
and leaves. Before and after that there is nothing to save, and the process ends at once with exit
code 75. That must work in the middle of a compilation, where Python runs no signal handler, so a
thread waits for signals.

With several processes JAX takes SIGTERM, and the loop asks it which step all processes stop at.

Schedulers and terminals say it by other signals too: Slurm by what `--signal` names, SIGUSR1
often, a shell that ends by SIGHUP, a limit of processor time by SIGXCPU. They count as SIGTERM,
unless somebody else takes them (`nohup` ignores SIGHUP); repeated, which SIGXCPU is every second,
they say nothing new.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from m4.errors import Preempted
from m4.train.early import OTHERS, SIGNALS, Leave, Own, end, free, heed_forks, say


class Signals:
    """Context in which signals are taken; `stepping` and `idle` say whether there is work to save.

    A second SIGTERM or SIGINT acts as it did before the context. `leave` is called before the
    process ends at once.
    """

    def __init__(self, leave: Callable[[], None] = lambda: None):
        self._asked, self._stepping = False, False
        self._leave = leave
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self
        heed_forks()
        if jax.process_count() > 1:  # JAX hears SIGTERM alone
            tell = Own(lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
            for number in filter(free, OTHERS):
                signal.signal(number, tell)
        else:
            self._ears, self._mouth = socket.socketpair()
            self._mouth.setblocking(False)
            self._fd = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
            for number in (*SIGNALS, *filter(free, OTHERS)):
                self._before[number] = signal.signal(number, Own(self._handler))
            threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._before:
            return
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._fd)
        self._mouth.close()  # ends the thread

    def stepping(self) -> None:
        """From here on the loop asks."""
        self._stepping = True

    def idle(self) -> None:
        """Everything is saved. Raises Preempted if a signal came that the loop did not see."""
        self._stepping = False
        if self._asked:
            raise Preempted("stopped, saved; run the same command to go on")

    def asked(self) -> bool:
        """Whether this process was told to stop."""
        return self._asked

    def stop(self, step: int) -> bool:
        """Whether to stop after `step`. All processes must ask after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _handler(self, number: int, frame: FrameType | None) -> None:
        self._asked = self._asked or self._stepping
        if number in SIGNALS:
            signal.signal(number, self._before[number])

    def _listen(self) -> None:
        while received := self._ears.recv(64):
            if not {*received} & {*self._before} or self._asked:
                continue
            if not self._stepping:
                before = self._before[signal.SIGTERM]
                held = [before.part] if isinstance(before, Leave) else []
                text = "m4: stopped: there was nothing to save; run the same command to go on"
                end(Preempted.exit_code, self._leave, *held, say(text))
            self._asked = True
        self._ears.close()
