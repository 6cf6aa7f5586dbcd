"""Runs struck by SIGKILL or SIGTERM, resumed, struck again, and compared with one left alone.

Survived: the resumed run starts from the newest complete step that was there when the blow fell
(or the one it saved because of SIGTERM), nothing of the killed run lives on, and when the run is
through, every logged number and every bit of the last state equal those of the run left alone.
"""

import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults import runs
from tests.faults.harness import Bench, Outcome

LIMIT = 5.0  # seconds from SIGTERM to the end; on a crowded machine, of the process's own time


def kills(bench: Bench, method: str) -> Outcome:
    """SIGKILL, every second one aimed at a save."""
    tried = bench.number(5, 20)
    found = _Struck(bench, method, signal.SIGKILL).go(tried)
    note = "; ".join([f"{found.during_save} during a save", *sorted({*found.problems})])
    return Outcome(tried, found.survived, tried - found.survived, note)


def terms(bench: Bench) -> Outcome:
    """SIGTERM at random moments from the first import to the report."""
    tried = bench.number(5, 50)
    found = _Struck(bench, "m3h", signal.SIGTERM).go(tried)
    note = f"slowest exit {found.slowest:.1f} s, {found.in_loop} while steps ran"
    notes = "; ".join([note, *sorted({*found.problems})])
    return Outcome(tried, found.survived, tried - found.survived, notes)


class _Struck:
    """One work directory after the other, each struck until its run is through."""

    def __init__(self, bench: Bench, method: str, number: int):
        self._bench, self._method, self._number = bench, method, number
        self._rng = random.Random(f"{bench.seed} {method} {number}")
        self.survived = self.during_save = self.in_loop = 0
        self.slowest = 0.0
        self.problems: list[str] = []

    def go(self, count: int) -> "_Struck":
        """Strikes `count` times."""
        right = runs.reference(self._bench, self._method)
        length = self._length(right)
        done = 0
        for number in range(10 * count):
            workdir = self._bench.work / f"{self._method}{number}"
            blows = 0  # of this work directory, that went well so far
            expected = -1
            while done < count:
                run = runs.start(self._bench, self._method, workdir)
                struck = self._strike(run, workdir, length, aimed=done % 2 == 0)
                if not self._resumed(run, expected):
                    self._problem(f"{self._method}: a verified step was lost", run)
                if not struck:
                    break
                done += 1
                before = len(self.problems)
                expected = self._after(run, workdir)
                blows += len(self.problems) == before
            else:
                run = runs.start(self._bench, self._method, workdir)
                code = run.wait()
                if not self._resumed(run, expected) or code != 0:
                    self._problem(f"{self._method}: not resumed ({code})", run)
            if blows and not self._through(workdir, right):
                self._problem(f"{self._method}: numbers differ", run)
                blows = 0
            self.survived += blows
            if done >= count:
                break
        return self

    def _length(self, right: Path) -> float:
        """Seconds that a run takes with everything compiled."""
        start = time.monotonic()
        if self._number == signal.SIGTERM:
            run = runs.start(self._bench, self._method, self._bench.work / "timing")
            run.wait()
        return time.monotonic() - start

    def _strike(self, run: runs.Run, workdir: Path, length: float, *, aimed: bool) -> bool:
        """Whether the blow fell before the run was through."""
        if self._number == signal.SIGTERM:
            end = time.monotonic() + self._rng.uniform(0, length)
            while time.monotonic() < end and run.alive():
                time.sleep(0.005)
        else:
            moments = _saves(workdir) if aimed else _lines(workdir)
            wanted = self._rng.randint(2, 5)
            while run.alive() and wanted:
                wanted -= next(moments)
                time.sleep(0.0005 if aimed else 0.005)
            if not aimed:
                time.sleep(self._rng.uniform(0, 0.1))
        if not run.alive():
            run.wait()
            return False
        self._there = max(runs.steps(workdir), default=-1)
        run.send(self._number)
        self._when = time.monotonic()
        return True

    def _after(self, run: runs.Run, workdir: Path) -> int:
        """Checks the end of a struck run; the step that the next one must resume from."""
        used = before = _cpu(run.pid)
        while run.alive() and time.monotonic() < self._when + runs.PATIENCE:
            used = _cpu(run.pid) or used
            time.sleep(0.01)
        wall = time.monotonic() - self._when
        seconds = min(wall, used - before)
        code = run.wait()
        if not runs.gone(run.pid):
            self._problem(f"{self._method}: orphans", run)
        if self._number == signal.SIGKILL:
            tmp = [*workdir.glob("checkpoints/*/*.orbax-checkpoint-tmp*")]
            self.during_save += bool(tmp)
            return self._there
        self.slowest = max(self.slowest, wall)
        if seconds > LIMIT:
            self._problem(f"{self._method}: took {seconds:.0f} s to stop", run)
        if code not in (0, 75):
            self._problem(f"{self._method}: SIGTERM ended in {code}", run)
        stopped = re.search(r"stopped at step (\d+), saved", run.text())
        if stopped:
            self.in_loop += 1
            return int(stopped[1])
        return self._there

    def _resumed(self, run: runs.Run, expected: int) -> bool:
        """Whether a run that got that far took up at `expected` or later."""
        found = re.search(r"resuming from step (\d+)", run.text())
        if found is None:  # ended before, or there was nothing
            return expected < 0 or "step " not in run.text()
        return int(found[1]) >= expected

    def _through(self, workdir: Path, right: Path) -> bool:
        return (workdir / "report.html").exists() and runs.same(workdir, right)

    def _problem(self, what: str, run: runs.Run) -> None:
        self.problems.append(what)
        print(f"  {what}; the end of {run.log.name}:", *run.text().splitlines()[-5:], sep="\n    ")


def _cpu(pid: int) -> float:
    """Processor seconds that a process has used, 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _saves(workdir: Path) -> Iterator[int]:
    """How many saves have begun since the last look."""
    seen: set[str] = set()
    while True:
        now = {p.name for p in workdir.glob("checkpoints/*/*.orbax-checkpoint-tmp*")}
        yield len(now - seen)
        seen |= now


def _lines(workdir: Path) -> Iterator[int]:
    """How many lines of metrics there are more than at the last look."""
    path, seen = workdir / "metrics.jsonl", 0
    while True:
        now = path.read_bytes().count(b"\n") if path.exists() else 0
        yield max(0, now - seen) if seen else 0
        seen = now
