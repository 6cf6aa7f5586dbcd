"""Everything on a file system like a bad network's: see `network_fs`."""

import contextlib
import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults import gangs, injected, locking, strikes
from tests.faults.harness import Bench, Outcome

SECONDS = 30.0  # until a mount is there


def everything(bench: Bench) -> Outcome:
    """Kills, SIGTERM, two processes, rivals for one folder and a build, all of them on it."""
    why = _lacking()
    if why:
        return Outcome(0, 0, 0, why)
    with mounted(bench.work) as place:
        found = {}
        for name, part in PARTS.items():
            (place / name).mkdir()
            found[name] = part(dataclasses.replace(bench, work=place / name))
    counts = [sum(one[i] for one in found.values()) for i in range(3)]
    said = [f"{one.tried:,} {name}" for name, one in found.items()]
    said += [one.notes for one in found.values() if one.lost]
    return Outcome(*counts, ", ".join(said))


def _terms(bench: Bench) -> Outcome:
    return strikes.terms(dataclasses.replace(bench, scale=bench.scale / 5))


def _two_processes(bench: Bench) -> Outcome:
    """The short forms: another split of devices resumes; a peer is killed, stopped or stalled."""
    short = dataclasses.replace(bench, short=True)
    both = gangs.resumes(short), gangs.peers(short)
    return Outcome(
        *(sum(one[i] for one in both) for i in range(3)), " ".join(o.notes for o in both if o.lost)
    )


def _contended(bench: Bench) -> Outcome:
    """Rivals, of whom none can lock a file."""
    held, overlaps = locking.contend(bench.work / "w", "one host", holds=bench.number(10, 10_000))
    return Outcome(held, held - overlaps, overlaps)


def _built(bench: Bench) -> Outcome:
    """A data set, to the bit as on this machine's own disk; a second time it is there."""
    right = Path(bench.shared / "network-build")
    shutil.rmtree(right, ignore_errors=True)
    bits = []
    for folder in (right, bench.work / "w"):
        injected.prepare("build", folder)
        injected.make(folder)
        bits.append(injected.bits("build", folder))
    injected.make(folder)
    lost = int(len({*bits, injected.bits("build", folder)}) > 1)
    return Outcome(1, 1 - lost, lost, "other bits" * lost)


PARTS = {
    "kills": lambda bench: strikes.kills(bench, "m3h"),
    "SIGTERM": _terms,
    "faults of two processes": _two_processes,
    "holds": _contended,
    "builds": _built,
}


def _lacking() -> str:
    """What is missing for it, "" for nothing."""
    if not os.access("/dev/fuse", os.W_OK) or not shutil.which("fusermount3"):
        return "needs /dev/fuse and fusermount3 (fuse3)"
    return "" if importlib.util.find_spec("mfusepy") else "needs the package mfusepy"


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A folder on the file system; what it holds lies below `folder`."""
    behind, place = folder / "behind", folder / "network"
    behind.mkdir()
    place.mkdir()
    command = [sys.executable, "-m", "tests.faults.network_fs", str(behind), str(place)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + SECONDS
        while not place.is_mount():
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the file system was not mounted")
            time.sleep(0.05)
        yield place
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(place)], check=False)
        server.terminate()
        server.wait()
