"""Runs m4 in several processes of this host and keeps it running.

    python launch/local.py --procs=2 --devices=4 -- --config=FILE --workdir=DIR

All processes form one gang: when one ends, the others are ended. A gang that was preempted (75),
hung (7) or killed by a signal is started again after a pause; one that was refused (2, 3), has no
usable checkpoint (4), diverged (5) or could not save (6) is not. After `--restarts` starts without
progress it gives up: a newer checkpoint in DIR or of a fold, member or point below it, or another
finished file there. SIGTERM and Ctrl-C are passed on once; the gang saves and leaves, and is killed
after `--grace`. Every incident is one JSON line in DIR/events.jsonl and on stderr, in which `step`
is the sum of the newest of all runs below DIR. Nothing outlives this process: the kernel kills the
gang when it dies.

Exit code: that of the gang; when told to stop 75 if it has left as one that has saved.
"""

import argparse
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import spec as specs

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SIGNALS += (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)  # of schedulers and time limits
AGAIN = (7, 75)  # and every death by a signal
LONGEST = 60.0  # seconds before a restart; pauses are doubled while there is no progress
POLL = 0.05  # seconds
PR_SET_PDEATHSIG = 1
DEPTHS = ("", "*/", "*/*/")  # a run; folds, members or points; folds of points
FINISHED = ("results", "rows", "points", "tuning")  # folders of finished files


class Supervisor:
    """Starts a gang, waits for it, starts it again."""

    def __init__(self, spec: specs.Spec, *, restarts: int, grace: float, pause: float):
        self._spec, self._restarts = spec, restarts
        self._grace, self._pause = grace, pause
        self._told: int | None = None
        self._gang: list[subprocess.Popen] = []
        self._ended: list[int | None] = []  # codes of those that ended before any was killed here
        where = specs.workdir(spec.args)
        self._url = where if where.startswith(specs.BUCKET) else ""
        self._workdir = _mirror(where) if self._url else Path(where) if where else None

    def run(self) -> int:
        """Returns the exit code."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._tell)
        idle, pause, best = 0, self._pause, reached(self._workdir)
        while self._told is None:
            codes = self._once()
            if self._url:  # what it has brought to the bucket
                self._workdir = _mirror(self._url) or self._workdir
            code, now = verdict(codes, self._ended), reached(self._workdir)
            if code == 0:
                return 0
            idle = 0 if any(n > best.get(what, -1) for what, n in now.items()) else idle + 1
            pause = min(2 * pause, LONGEST) if idle > 1 else self._pause
            best |= {what: max(n, best.get(what, -1)) for what, n in now.items()}
            again = (code in AGAIN or code < 0) and self._told is None
            gives_up = again and idle >= self._restarts
            what = "gave up" if gives_up else "restarts" if again else "ended"
            self._event(event=what, codes=codes, step=total(now), without_progress=idle)
            if not again or gives_up:
                return self._exit_code(code, codes)
            end = time.monotonic() + pause
            while self._told is None and time.monotonic() < end:  # one long sleep would not hear
                time.sleep(POLL)
        # Told while there was no gang.
        self._event(event="ended", codes=[], step=total(best), without_progress=idle)
        return 75

    def _exit_code(self, code: int, codes: list[int]) -> int:
        """What this process ends with; 75 only for those who left as told, or had begun nothing."""
        if self._told and code in (75, -signal.SIGTERM):
            code = next((c for c in codes if c < 0 and c != -signal.SIGTERM), 75)
        return code if code > 0 else 128 - code

    def _once(self) -> list[int]:
        """One gang from start to end; the exit codes of its processes."""
        address = f"localhost:{_free_port()}"
        self._gang = []
        for process in range(self._spec.procs):
            environment = self._spec.environment(address, str(process))
            group = self._gang[0].pid if self._gang else 0
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the first has gone
                self._gang.append(
                    subprocess.Popen(
                        self._spec.command(),
                        env=os.environ | environment,
                        stdin=subprocess.DEVNULL,
                        process_group=group,
                        preexec_fn=_die_with_parent,  # noqa: PLW1509 (no threads here)
                    )
                )
        try:
            return self._wait()
        finally:
            self._kill()

    def _wait(self) -> list[int]:
        self._ended, deadline, passed = [], None, False
        while any(p.poll() is None for p in self._gang):
            if self._told and not passed:  # once: a second one would interrupt the saving
                passed = True
                for process in self._gang:
                    process.terminate()
            ended = any(p.poll() is not None for p in self._gang)
            if deadline is None and (ended or self._told):
                deadline = time.monotonic() + self._grace
            failed = any(p.poll() not in (None, 0, 75) for p in self._gang)
            if failed and deadline is not None:  # the others wait for it in vain
                deadline = min(deadline, time.monotonic() + 2.0)
            clean = all(p.poll() in (None, 0) for p in self._gang)
            if deadline is not None and time.monotonic() > deadline:
                if clean and not self._told:  # the first still evaluates and reports
                    deadline = None if self._gang[0].poll() is None else deadline
                if deadline is not None:
                    self._ended = self._ended or [p.poll() for p in self._gang]
                    self._kill()
            time.sleep(POLL)
        codes = [p.wait() for p in self._gang]
        self._ended = self._ended or [*codes]
        return codes

    def _kill(self) -> None:
        """Ends the whole group, with whatever its processes have started."""
        if self._gang:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._gang[0].pid, signal.SIGKILL)

    def _tell(self, number: int, frame=None) -> None:
        self._told = self._told or number

    def _event(self, **fields) -> None:
        line = json.dumps({"time": time.strftime("%Y-%m-%d %H:%M:%S")} | fields)
        with contextlib.suppress(OSError):  # nobody may be listening any more
            print(f"m4 supervisor: {line}", file=sys.stderr, flush=True)
        if self._workdir is not None and self._workdir.is_dir():
            with contextlib.suppress(OSError), open(self._workdir / "events.jsonl", "a") as file:
                file.write(line + "\n")


def reached(folder: Path | None) -> dict[str, int]:
    """What a command has brought: the newest step of every run in `folder`; 0 for finished files.

    Checkpoints that are not complete, or are damaged, have other names.
    """
    found: dict[str, int] = {}
    if folder is None:
        return found
    for depth in DEPTHS:
        with contextlib.suppress(OSError):
            for path in folder.glob(f"{depth}checkpoints/last/*"):
                if path.name.isdecimal():
                    run = str(path.parent)
                    found[run] = max(int(path.name), found.get(run, -1))
            for kind in FINISHED:
                found |= {str(path): 0 for path in folder.glob(f"{depth}{kind}/*.json")}
    return found


def total(steps: dict[str, int]) -> int:
    """Of all runs together; -1 where there is nothing."""
    return sum(steps.values()) if steps else -1


def verdict(codes: list[int], ended: list[int | None]) -> int:
    """The code that tells most: a refusal, then preempted or hung, then death by a signal.

    The first process evaluates and reports at the very end: with it, the run is through. Where one
    has left as preempted or hung, or died by a signal that was not sent here, the internal errors
    of the others (1) say only that they lost it; `ended` are the codes before the rest was killed.
    """
    if codes[0] == 0:
        return 0
    orphaned = any(code is not None and (code < 0 or code in AGAIN) for code in ended)
    final = [c for c in codes if c > 0 and c not in AGAIN and not (orphaned and c == 1)]
    temporary = [c for c in codes if c in AGAIN]
    return (final or temporary or [c for c in codes if c < 0] or [0])[0]


def _mirror(url: str) -> Path | None:
    """The folder that stands here for one in a bucket, with what is there now."""
    say = (
        "import sys; from m4.remote import mirror, places; found = places.folder(sys.argv[1]);"
        " mirror.begin(found); print(found)"
    )
    zero = os.environ | {"M4_PROCESS_ID": "0"}
    command = [sys.executable, "-c", say, url]
    done = subprocess.run(command, env=zero, capture_output=True, text=True, check=False)
    return None if done.returncode else Path(done.stdout.rstrip("\n"))  # the gang will say why


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    own, args = specs.split(argv)
    parser = argparse.ArgumentParser(
        "python launch/local.py", usage="%(prog)s [options] -- ARGUMENTS OF m4.main"
    )
    parser.add_argument("--procs", type=int, default=1)
    parser.add_argument("--devices", type=int, default=0, help="virtual CPU devices per process")
    parser.add_argument("--restarts", type=int, default=5, help="in a row without progress")
    parser.add_argument("--heartbeat", type=int, default=30)
    parser.add_argument("--grace", type=float, default=100.0, help="seconds to save and leave")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds before a restart")
    parser.add_argument("--module", default="m4.main", help="what is run instead of m4.main")
    options = parser.parse_args(own)
    if not args or options.procs < 1:
        parser.error("give --procs of at least 1 and, after --, the arguments of m4.main")
    spec = specs.Spec(
        args,
        options.procs,
        options.devices,
        heartbeat=options.heartbeat,
        module=options.module,
    )
    return Supervisor(
        spec, restarts=options.restarts, grace=options.grace, pause=options.pause
    ).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
