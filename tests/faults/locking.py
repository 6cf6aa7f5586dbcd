"""Processes that want one work directory at the same time, on one host, two, and without locks."""

import contextlib
import multiprocessing
import os
import socket
import time
from pathlib import Path

from m4 import flock, owners
from m4.errors import ConfigError
from m4.train import workdir
from tests.faults.harness import Bench, Outcome

CASES = ("one host", "two hosts", "no locks")
RIVALS = 4


def contended(bench: Bench) -> Outcome:
    """Survived: a hold during which nobody else held it. 10,000 in each case."""
    tried, lost, notes = 0, 0, []
    for case in CASES:
        holds = bench.number(100, 10_000)
        start = time.monotonic()
        held, overlaps = contend(bench.work / case.replace(" ", "-"), case, holds=holds)
        tried += held
        lost += overlaps
        notes.append(f"{held:,} holds on {case} in {time.monotonic() - start:.0f} s")
    return Outcome(tried, tried - lost, lost, ", ".join(notes))


def contend(folder: Path, case: str, *, holds: int) -> tuple[int, int]:
    """(holds, how many of them another overlapped) of `RIVALS` processes together."""
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    left, overlaps = context.Value("i", holds), context.Value("i", 0)
    inside = folder.with_name(f"{folder.name}-inside")
    args = [(folder, inside, case, number, left, overlaps) for number in range(RIVALS)]
    rivals = [context.Process(target=_rival, args=a) for a in args]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join()
    return holds - left.value, overlaps.value


def _rival(folder: Path, inside: Path, case: str, number: int, left, overlaps) -> None:
    if case == "two hosts":  # whose file locks do not know of each other
        host = f"host{number % 2}"
        socket.gethostname = lambda: host
        owners.BOOT = folder.with_name(f"{folder.name}-{host}")
        owners.BOOT.write_text(host)
        take = flock.take
        flock.take = lambda file, **how: _on_host(take, folder, host, file)
        close = os.close
        os.close = lambda file: _closed(close, file)
    elif case == "no locks":
        flock.take = lambda file, **how: None
    workdir.BEAT, workdir.POLL = 60.0, 0.0002
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        while left.value > 0:
            try:
                with workdir.locked(folder):
                    with left.get_lock():
                        if left.value <= 0:
                            return
                        left.value -= 1
                    _hold(inside, overlaps)
            except ConfigError:
                time.sleep(0.0002)


def _hold(inside: Path, overlaps) -> None:
    try:
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        with overlaps.get_lock():
            overlaps.value += 1
        return
    time.sleep(0.0002)
    inside.unlink()


_kept: dict[int, int] = {}  # lock file -> the file that stands for its lock on this host


def _on_host(take, folder: Path, host: str, file: int) -> bool | None:
    """`flock.take` as it is where each host has file locks of its own."""
    name = folder.with_name(f"{folder.name}-{host}-{os.fstat(file).st_ino}")
    own = os.open(name, os.O_RDWR | os.O_CREAT)
    found = take(own)
    _kept[file] = own
    return found


def _closed(close, file: int) -> None:
    """`os.close`, which lets go of the lock: a new file may get the closed one's inode at once."""
    if (own := _kept.pop(file, None)) is not None:
        close(own)
    close(file)
