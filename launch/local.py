"""Runs m4 in several processes of this host and keeps it running.

    python launch/local.py --procs=2 --devices=4 -- --config=FILE --workdir=DIR

All processes form one gang: when one ends, the others are ended. A gang that was preempted (75),
hung (7) or killed by a signal is started again after a pause; one that was refused (2, 3), has no
usable checkpoint (4), diverged (5) or could not save (6) is not. After `--restarts` starts without
a newer checkpoint it gives up. SIGTERM and Ctrl-C are passed on once; the gang saves and leaves.
Every incident is one JSON line in DIR/events.jsonl and on stderr. Nothing outlives this process:
the kernel kills the gang when it dies.

Exit code: that of the gang, 75 when told to stop.
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
LONGEST = 60.0  # seconds before a restart; the pause is doubled while there is no progress
PR_SET_PDEATHSIG = 1


class Supervisor:
    """Starts a gang, waits for it, starts it again."""

    def __init__(self, spec: specs.Spec, *, restarts: int, grace: float, pause: float):
        self._spec, self._restarts = spec, restarts
        self._grace, self._pause = grace, pause
        self._told: int | None = None
        self._gang: list[subprocess.Popen] = []
        self._ended: list[int | None] = []  # codes of those that ended before any was killed here
        where = specs.workdir(spec.args)
        self._workdir = Path(where) if where else None

    def run(self) -> int:
        """Returns the exit code."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._tell)
        idle, pause, before = 0, self._pause, self._step()
        while True:
            codes = self._once()
            code, step = verdict(codes, self._ended), self._step()
            if code == 0:
                return 0
            idle = 0 if step > before else idle + 1
            pause = self._pause if step > before else min(2 * pause, LONGEST)
            before = max(before, step)
            again = (code in AGAIN or code < 0) and self._told is None
            gives_up = again and idle >= self._restarts
            what = "gave up" if gives_up else "restarts" if again else "ended"
            self._event(event=what, codes=codes, step=step, without_progress=idle)
            if not again or gives_up:
                return 75 if self._told else abs(code) if code > 0 else 128 - code
            time.sleep(pause)

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
        if self._told:
            self._tell(self._told)
        try:
            return self._wait()
        finally:
            self._kill()

    def _wait(self) -> list[int]:
        self._ended, deadline = [], None
        while any(p.poll() is None for p in self._gang):
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
            time.sleep(0.05)
        codes = [p.wait() for p in self._gang]
        self._ended = self._ended or codes
        return codes

    def _kill(self) -> None:
        """Ends the whole group, with whatever its processes have started."""
        if self._gang:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._gang[0].pid, signal.SIGKILL)

    def _tell(self, number: int, frame=None) -> None:
        self._told = number
        for process in self._gang:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def _step(self) -> int:
        """The newest complete checkpoint, -1 without one. Damaged ones have another name."""
        folder = self._workdir / "checkpoints/last" if self._workdir else None
        if folder is None or not folder.is_dir():
            return -1
        return max((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), default=-1)

    def _event(self, **fields) -> None:
        line = json.dumps({"time": time.strftime("%Y-%m-%d %H:%M:%S")} | fields)
        with contextlib.suppress(OSError):  # nobody may be listening any more
            print(f"m4 supervisor: {line}", file=sys.stderr, flush=True)
        if self._workdir is not None and self._workdir.is_dir():
            with contextlib.suppress(OSError), open(self._workdir / "events.jsonl", "a") as file:
                file.write(line + "\n")


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
    parser.add_argument("--grace", type=float, default=20.0, help="seconds to leave after others")
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
