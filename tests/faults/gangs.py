"""Several processes: every split of the devices gives the same bits, and dead peers are replaced.

Gangs are started by `launch/local.py`, as a user would.
"""

import contextlib
import ctypes
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import m4
from tests.faults import config as configs
from tests.faults import runs
from tests.faults.harness import Bench, Outcome, alone

ROOT = Path(m4.__file__).parents[1]
SPLITS = ((1, 8), (2, 4), (4, 2), (8, 1))  # processes x devices of each
LIMIT = 60.0  # seconds from the fault until there is a newer checkpoint
CROWDED = 180.0  # the same in the short form, where other scenarios run beside
HEARTBEAT = 300  # seconds: where no peer is to be lost, a crowded machine must not cost one
CLOSE = 1e-6  # relative, losses on another number of devices


class Gang:
    """One supervised run; `log` takes what it prints."""

    def __init__(
        self, bench: Bench, procs: int, devices: int, workdir: Path, *args: str, heartbeat=HEARTBEAT
    ):
        self.workdir, self.log = workdir, workdir.parent / f"{workdir.name}.log"
        command = [sys.executable, str(ROOT / "launch/local.py"), f"--procs={procs}"]
        command += [f"--devices={devices}", "--restarts=10", f"--heartbeat={heartbeat}"]
        command += ["--module=tests.faults.stalling", "--"]
        command += [f"--config={configs.__file__}:m3h", f"--workdir={workdir}", *args]
        environment = os.environ | runs.environment(bench, devices)
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with open(self.log, "a") as file:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (no threads here)
            )

    def members(self) -> list[int]:
        """The processes of the gang that runs now, in the order of their numbers."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return sorted(map(int, path.read_text().split())) if path.exists() else []

    def wait(self, seconds: float = runs.PATIENCE) -> int | None:
        """Exit code, or None for one that had to be killed."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    def newest(self) -> int:
        """The newest checkpoint, -1 without one."""
        return max(runs.steps(self.workdir), default=-1)


def factorisations(bench: Bench) -> Outcome:
    """8 devices as 1x8, 2x4, 4x2 and 8x1: every loss, metric and final state bit for bit."""
    splits = SPLITS[:2] if bench.short else SPLITS
    found = {split: _reference(bench, *split) for split in splits}
    bad = [s for s in splits if found[s] is None or not runs.same(found[s], found[splits[0]])]
    note = f"{_words(splits)}, {_steps(bench)} steps"
    return Outcome(len(splits), len(splits) - len(bad), len(bad), _say(note, bad))


def resumes(bench: Bench) -> Outcome:
    """Saved by one split of 8 devices after a half or three quarters, resumed by another."""
    splits = SPLITS[:2] if bench.short else SPLITS
    pairs = [(a, b) for a in splits for b in splits if a != b]
    rng = random.Random(bench.seed)
    rng.shuffle(pairs)
    pairs = (pairs * 5)[: bench.number(1, 60)]
    bad = []
    for number, (before, after) in enumerate(pairs):
        source = _reference(bench, *before)
        step = rng.choice((2, 3)) * _steps(bench) // 4
        workdir = _cut(source, bench.work / f"pair{number}", step)
        code = Gang(bench, *after, workdir, *_args(bench)).wait()
        if code != 0 or not runs.same(workdir, source):
            bad.append((before, after, step))
        shutil.rmtree(workdir)
    note = f"{len({*pairs})} different pairs, taken up at step {_steps(bench) // 2} or later"
    return Outcome(len(pairs), len(pairs) - len(bad), len(bad), _say(note, bad))


def devices(bench: Bench) -> Outcome:
    """Saved half-way on 8 devices, resumed on another number: same samples, losses within 1e-6."""
    source, bad, worst = _reference(bench, 1, 8), [], 0.0
    counts = (2,) if bench.short else (1, 2, 4)
    for count in counts:
        workdir = _cut(source, bench.work / f"on{count}", _steps(bench) // 2)
        code = Gang(bench, 1, count, workdir, *_args(bench, count)).wait()
        apart = _apart(workdir, source) if code == 0 else float("inf")
        worst = max(worst, apart)
        bad += [count] if apart > CLOSE else []
    note = f"8 to {', '.join(map(str, counts))} devices, losses at most {worst:.1e} apart"
    return Outcome(len(counts), len(counts) - len(bad), len(bad), _say(note, bad))


def peers(bench: Bench) -> Outcome:
    """One of two processes killed, stopped or stalled; the supervisor has to get on with it."""
    tried = bench.number(3, 20)
    limit = CROWDED if bench.short else LIMIT
    rng = random.Random(bench.seed)
    workdir, bad, slowest = bench.work / "peers", [], 0.0
    args = ["--config.train.steps=100000", "--config.train.eval_every=100000"]
    # A watchdog that short may end a gang that a crowded machine holds up: hence many restarts.
    args += ["--config.train.save_every=20", "--config.mesh.data=2", "--config.train.watchdog=5"]
    gang = Gang(bench, 2, 1, workdir, *args, heartbeat=10)
    for number in range(tried):
        if not _until(lambda: gang.newest() > 0, gang):
            return Outcome(tried, number - len(bad), tried - number + len(bad), "never started")
        before, start = gang.newest(), time.monotonic()
        if not _until(lambda before=before: gang.newest() > before, gang):
            return Outcome(tried, number - len(bad), tried - number + len(bad), "stands still")
        members, before = gang.members(), gang.newest()
        how = (signal.SIGKILL, signal.SIGSTOP, signal.SIGUSR1)[number % 3]
        start = time.monotonic()
        os.kill(rng.choice(members), how)
        fresh = _until(
            lambda old=members, step=before: (
                not {*old} & {*gang.members()} and gang.newest() > step + 20
            ),
            gang,
        )
        slowest = max(slowest, time.monotonic() - start)
        if not fresh or time.monotonic() - start > limit:
            bad.append(signal.Signals(how).name)
    gang.process.send_signal(signal.SIGTERM)
    code = gang.wait()
    left = not runs.gone(gang.process.pid)
    if code != 75 or left:
        bad.append(f"ended in {code}{', orphans' if left else ''}")
    note = f"killed, stopped, stalled; slowest {slowest:.0f} s to a newer checkpoint"
    lost = min(tried, len(bad))
    return Outcome(tried, tried - lost, lost, _say(note, bad))


def gang_terms(bench: Bench) -> Outcome:
    """SIGTERM to the supervisor of two processes while steps run and others want every core."""
    with _busy():
        return _gang_terms(bench, bench.number(1, 20))


def _gang_terms(bench: Bench, tried: int) -> Outcome:
    bad, slowest = [], 0.0
    rng = random.Random(bench.seed)
    args = ["--config.train.steps=100000", "--config.train.eval_every=100000"]
    args += ["--config.train.save_every=1000", "--config.mesh.data=2"]
    workdir = bench.work / "terms"
    for number in range(tried):
        seen = _lines(workdir)
        gang = Gang(bench, 2, 1, workdir, *args)
        wanted = seen + rng.randint(2, 50)
        if not _until(lambda wanted=wanted: _lines(workdir) > wanted, gang):
            bad.append("never stepped")
            gang.wait(1)
            continue
        start = time.monotonic()
        gang.process.send_signal(signal.SIGTERM)
        code = gang.wait()
        slowest = max(slowest, time.monotonic() - start)
        said = re.findall(r"stopped at step (\d+), saved", gang.log.read_text())
        sound = len(said) == 2 * (number + 1) and int(said[-1]) == gang.newest()
        if code != 75 or not sound or time.monotonic() - start > 5.0:
            bad.append(f"code {code}, said {said[-1:]}, saved {gang.newest()}")
    note = f"slowest exit {slowest:.1f} s, a busy process for each core beside it"
    return Outcome(tried, tried - len(bad), len(bad), _say(note, bad))


def _reference(bench: Bench, procs: int, count: int) -> Path | None:
    workdir = bench.shared / f"gang-{runs.sources()}-{procs}x{count}-{_steps(bench)}"
    with alone(workdir):
        if not (workdir / "report.html").exists():
            code = Gang(bench, procs, count, workdir, *_args(bench)).wait()
            if code != 0:
                return None
    return workdir


def _args(bench: Bench, devices: int = 8) -> list[str]:
    steps = _steps(bench)
    return [
        f"--config.train.steps={steps}",
        f"--config.train.save_every={steps // 4}",
        f"--config.train.eval_every={steps // 2}",
        f"--config.train.keep={4}",
        f"--config.mesh.data={devices}",
    ]


def _steps(bench: Bench) -> int:
    return bench.number(16, 100)


def _cut(source: Path, workdir: Path, step: int) -> Path:
    """A copy of a run as it was after `step`."""
    shutil.copytree(source, workdir)
    for folder in [*workdir.glob("checkpoints/*/*")]:
        if int(folder.name) > step:
            shutil.rmtree(folder)
    (workdir / "report.html").unlink()
    return workdir


def _apart(workdir: Path, other: Path) -> float:
    """Largest relative difference between training losses."""
    worst = 0.0
    for mine, right in zip(runs.numbers(workdir), runs.numbers(other), strict=True):
        a, b = (json.loads(line).get("train/loss") for line in (mine, right))
        worst = max(worst, abs(a - b) / abs(b)) if b else worst
    return worst


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """A process for each core that does nothing but take it."""
    command = [sys.executable, "-c", "while True: pass"]
    count = len(os.sched_getaffinity(0))
    loads = [subprocess.Popen(command, preexec_fn=_die_with_parent) for _ in range(count)]  # noqa: PLW1509
    try:
        yield
    finally:
        for load in loads:
            load.kill()
            load.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _lines(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _until(condition, gang: Gang, seconds: float = runs.PATIENCE) -> bool:
    """Whether it came true while the gang's supervisor was there."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end or gang.process.poll() is not None:
            return False
        time.sleep(0.05)
    return True


def _words(splits) -> str:
    return ", ".join(f"{p}x{d}" for p, d in splits)


def _say(note: str, bad: list) -> str:
    return f"{note}; lost: {', '.join(map(str, bad))}" if bad else note
