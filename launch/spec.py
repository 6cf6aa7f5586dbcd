"""What every launcher starts: one command line and one environment per process.

    from spec import Spec

Standard library only: a launcher runs where m4 is not installed.
"""

import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Spec:
    """A run: its processes and the arguments of `m4.main`."""

    args: tuple[str, ...]  # --config=..., --workdir=...
    procs: int = 1
    devices: int = 0  # virtual CPU devices per process; 0: what the host has
    python: str = sys.executable or "python"
    heartbeat: int = 30  # seconds of silence after which a process counts as dead
    module: str = "m4.main"

    def command(self) -> list[str]:
        """The same for every process."""
        return [self.python, "-m", self.module, *self.args]

    def shell(self) -> str:
        """`command` as one line for a shell."""
        return shlex.join(self.command())

    def environment(self, coordinator: str, process: str) -> dict[str, str]:
        """What a process must know; values may be the variables of a template.

        One process is a gang of one: so it adds up in the same order, and to the same bits, as
        several processes with as many devices in all.
        """
        found = {
            "M4_COORDINATOR": coordinator,
            "M4_NUM_PROCESSES": str(self.procs),
            "M4_PROCESS_ID": process,
            "M4_HEARTBEAT": str(self.heartbeat),
        }
        if self.devices:
            found["JAX_PLATFORMS"] = "cpu"
            found["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] = "gloo"
            flag = "--xla_force_host_platform_device_count"
            others = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(flag)]
            found["XLA_FLAGS"] = " ".join([*others, f"{flag}={self.devices}"])
        return found


WORKDIR = re.compile(r"--(?:workdir|out|output_dir|outdir|logdir)(?:=(.*))?", re.DOTALL)


def workdir(args: Sequence[str]) -> str:
    """Where a run writes, as `--workdir=DIR` or `--workdir DIR`; '' if it is not said."""
    found = ""
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        if match := WORKDIR.fullmatch(arg):
            found = following if match[1] is None else match[1]
    return found


BUCKET = "gs://"  # begins a work directory that is in a bucket
REMOTE = re.compile(r"(--?[^=]*=)?\s*[A-Za-z][A-Za-z0-9+.-]*:[/\\]")  # gs://, s3:/, C:\\


def split(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """(the launcher's own arguments, those of m4.main after `--`).

    Exits with code 2 if one of these names a place that is no local path, nor a work directory in
    a bucket: m4.main would refuse it in every process.
    """
    argv = list(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    place = workdir(argv[cut + 1 :])
    for arg in argv[cut + 1 :]:
        bucket = place.startswith(BUCKET) and arg.endswith(place)
        if REMOTE.match(arg) and not bucket:
            print(f"m4: config error: {arg}: must be a local path; mount it", file=sys.stderr)
            raise SystemExit(2)
    return argv[:cut], tuple(argv[cut + 1 :])
