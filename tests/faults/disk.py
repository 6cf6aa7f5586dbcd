"""Disks that fill up or refuse writing: exit 6 in words, and nothing already saved is lost."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from m4.train.checkpoint import Checkpoints
from tests.faults import runs
from tests.faults.harness import Bench, Outcome

SIZE = 8 * 2**20  # bytes of the small disk
METHOD = "m3h"
NO_DISK = "a small disk can be mounted by root only"


def full(bench: Bench) -> Outcome:
    """A disk with a random number of bytes left, then with room again.

    Survived: exit 6 in one line (or 0 where the space was enough), every step on the disk sound,
    and with room again the run ends with the same bits as one that always had it.
    """
    tried = bench.number(2, 20)
    right = runs.reference(bench, METHOD)
    needed = sum(p.stat().st_size for p in right.rglob("*") if p.is_file())
    rng = random.Random(bench.seed)
    bad, ran_out = [], 0
    with _small_disk(bench.work / "disk") as disk:
        if disk is None:
            return Outcome(0, 0, 0, NO_DISK)
        for number in range(tried):
            workdir, filler = disk / f"run{number}", disk / "filler"
            room = rng.randrange(needed)
            with open(filler, "wb") as file:
                file.truncate(0)
                with contextlib.suppress(OSError):
                    os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - room)
            log = bench.work / f"run{number}"
            run = runs.Run(_args(workdir), log, runs.environment(bench, 1))
            code = run.wait()
            ran_out += code == 6
            text = run.text()
            said = code != 6 or "save error" in text
            if code not in (0, 6) or not said or "Traceback" in text or not _sound(workdir):
                bad.append(f"{room} bytes: exit {code}")
                print(*text.splitlines()[-6:], sep="\n    ")
            filler.unlink()
            code = runs.Run(_args(workdir), log, runs.environment(bench, 1)).wait()
            if code != 0 or not runs.same(workdir, right):
                bad.append(f"{room} bytes: not finished afterwards ({code})")
            shutil.rmtree(workdir)
    lost = min(tried, len(bad))
    note = "; ".join([f"{ran_out} ran out", *bad[:3]])
    return Outcome(tried, tried - lost, lost, note)


def read_only(bench: Bench) -> Outcome:
    """A killed run whose disk is read-only when it comes back, and writable afterwards."""
    right = runs.reference(bench, METHOD)
    bad = []
    with _small_disk(bench.work / "disk") as disk:
        if disk is None:
            return Outcome(0, 0, 0, NO_DISK)
        workdir, log = disk / "run", bench.work / "log"
        run = runs.Run(_args(workdir), log, runs.environment(bench, 1))
        while run.alive() and len(runs.steps(workdir)) < 2:
            time.sleep(0.001)
        run.send(signal.SIGKILL)
        run.wait()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        run = runs.Run(_args(workdir), log, runs.environment(bench, 1))
        code = run.wait()
        if code not in (2, 6) or "Traceback" in run.text():
            bad.append(f"exit {code}")
        if not _sound(workdir):
            bad.append("a saved step was damaged")
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        code = runs.Run(_args(workdir), log, runs.environment(bench, 1)).wait()
        if code != 0 or not runs.same(workdir, right):
            bad.append(f"not finished afterwards ({code})")
    return Outcome(1, int(not bad), int(bool(bad)), "; ".join(bad))


def _args(workdir: Path) -> list[str]:
    from tests.faults import config

    return [f"--config={config.__file__}:{METHOD}", f"--workdir={workdir}"]


def _sound(workdir: Path) -> bool:
    """Whether every complete step of a work directory reads back right."""
    for folder in workdir.glob("checkpoints/*/"):
        checkpoints = Checkpoints(folder, keep=1, sweep=False)
        problems = [p for p in checkpoints.scrub().values() if p]
        checkpoints.close()
        if problems:
            return False
    return True


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of `SIZE` bytes in memory; None where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
