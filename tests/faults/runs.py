"""Runs of `m4.main` as child processes that can be struck, and what they leave behind.

Children are forked from a server that has imported everything and started nothing, so that a
cycle of start, strike and resume costs the run itself and not the imports.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from m4 import main as command
from m4 import seal
from m4.modes import train as _train  # noqa: F401 (imported by the server, once)
from tests.faults import config as configs
from tests.faults.harness import Bench, alone

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])
FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={}"
PATIENCE = 1800.0  # seconds after which a run is taken to hang, even on a crowded machine


class Run:
    """One run, started at once; `log` takes what it prints."""

    def __init__(self, args: list[str], log: Path, environment: dict[str, str]):
        self.log = log
        self._process = _CONTEXT.Process(target=_child, args=(args, str(log), environment))
        self._process.start()
        self.pid = self._process.pid

    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def send(self, number: int) -> None:
        """Sends a signal."""
        if self.alive():
            os.kill(self.pid, number)

    def wait(self, seconds: float = PATIENCE) -> int | None:
        """Exit code (-9 for SIGKILL), or None if it did not end in time and was killed."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self.send(signal.SIGKILL)
            self._process.join()
        return code

    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def start(bench: Bench, method: str, workdir: Path, *extra: str, devices: int = 1) -> Run:
    """Starts training a method's smallest configuration."""
    args = [f"--config={configs.__file__}:{method}", f"--workdir={workdir}", *extra]
    number = len([*workdir.parent.glob(f"{workdir.name}-*.log")])
    log = workdir.parent / f"{workdir.name}-{number}.log"
    return Run(args, log, environment(bench, devices))


def environment(bench: Bench, devices: int) -> dict[str, str]:
    """Where data and programs are kept, and how many devices there are."""
    return {
        "M4_DATA_DIR": str(bench.shared / "data"),
        "JAX_COMPILATION_CACHE_DIR": str(bench.shared / "programs"),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FLAGS.format(devices),
    }


def reference(bench: Bench, method: str, *extra: str) -> Path:
    """Work directory of an uninterrupted run, made once. Raises RuntimeError if it fails."""
    name = "-".join([f"reference-{sources()}", method, *extra])
    workdir = bench.shared / name.replace("/", "_")
    with alone(workdir):
        if not (workdir / "report.html").exists():
            code = start(bench, method, workdir, *extra).wait()
            if code != 0:
                raise RuntimeError(f"the undisturbed run of {method} ended with {code}")
    return workdir


@functools.cache
def sources() -> str:
    """A hash of this code: what another version computed proves nothing."""
    found = hashlib.blake2b(digest_size=4)
    for path in sorted(Path(command.__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def numbers(workdir: Path) -> list[str]:
    """Every line of metrics.jsonl without clock times: losses and metrics to the last bit."""

    def counts(name: str) -> bool:
        return not name.startswith("time/") and name != seal.SUM

    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({k: v for k, v in row.items() if counts(k)}) for row in rows]


def final_digests(workdir: Path) -> dict:
    """Digests of every array of the newest state, of parameters, moments and average alike."""
    step = max(steps(workdir))
    meta = workdir / "checkpoints/last" / str(step) / "meta/metadata"
    return json.loads(meta.read_text())["leaves"]


def steps(workdir: Path) -> list[int]:
    """Complete train states."""
    folder = workdir / "checkpoints/last"
    if not folder.is_dir():
        return []
    return [int(p.name) for p in folder.iterdir() if p.name.isdecimal()]


def same(workdir: Path, other: Path) -> bool:
    """Whether two runs agree in every logged number and in every bit of their last state."""
    return numbers(workdir) == numbers(other) and final_digests(workdir) == final_digests(other)


def left_over(session: int) -> list[int]:
    """Living processes of a session, in which everything that a run starts lives."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def gone(session: int, seconds: float = 5.0) -> bool:
    """Whether nothing of a session is left, given a moment."""
    end = time.monotonic() + seconds
    while left_over(session):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _child(args: list[str], log: str, environment: dict[str, str]) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.update(environment)
    tempfile.tempdir = None  # the server's
    if cache := environment.get("JAX_COMPILATION_CACHE_DIR"):
        import jax  # imported by the server, which read another environment

        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_platforms", environment["JAX_PLATFORMS"])
    sys.exit(command.main(args))
