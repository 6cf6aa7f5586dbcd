"""A real Slurm of a few nodes on this host, of the distribution's packages, for one test module.

Nodes 127.0.0.1 and 127.0.0.2 are reached by their names; `nowhere1` and `nowhere2` answer to Slurm,
but their names mean nothing to anybody else, as on clusters without such a name service.
"""

import contextlib
import dataclasses
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("127.0.0.1", "127.0.0.2", "nowhere1", "nowhere2")
CONFIG = """
ClusterName=m4
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=2
ReturnToService=2
SlurmdParameters=config_overrides
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
"""
GOING = {"PENDING", "RUNNING", "COMPLETING"}
NODE = "NodeName={name} NodeAddr=127.0.0.1 Port={port} CPUs=4\n"


def missing() -> list[str]:
    """Programs that are not installed (Debian: munge, slurmd, slurmctld, slurm-client)."""
    return [name for name in (*DAEMONS, "sbatch") if which(name) is None]


def which(name: str) -> str | None:
    """Daemons lie where only root's PATH looks."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclasses.dataclass(frozen=True)
class Slurm:
    """A cluster that runs, as its user sees it."""

    folder: Path
    environment: dict[str, str]

    def call(self, *command: str, text: str | None = None) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.folder,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, script: str) -> "Job":
        """Gives a script to sbatch."""
        return Job(self, re.findall(r"\d+", self.call("sbatch", text=script))[-1])


@dataclasses.dataclass(frozen=True)
class Job:
    """A job that was submitted."""

    slurm: Slurm
    number: str

    def facts(self) -> list[dict[str, str]]:
        """JobState, Restarts, ExitCode and so on, of every task of an array."""
        told = self.slurm.call("scontrol", "show", "job", "--oneliner", self.number)
        return [
            dict(part.split("=", 1) for part in line.split() if "=" in part)
            for line in told.splitlines()
        ]

    def log(self) -> str:
        """What it has printed so far, of all its tasks."""
        found = sorted(self.slurm.folder.glob(f"slurm-{self.number}*.out"))
        return "".join(path.read_text() for path in found)

    def signal(self, name: str, *, step: bool = False) -> None:
        """To its processes but the script, as before the time is up; or to those of step 0."""
        self.slurm.call("scancel", f"--signal={name}", f"{self.number}.0" if step else self.number)

    def until(self, text: str, times: int = 1, seconds: float = 180) -> None:
        """Waits until the log says it. Raises AssertionError with the log if it does not."""
        end = time.monotonic() + seconds
        while self.log().count(text) < times:
            going = time.monotonic() < end and GOING & {task["JobState"] for task in self.facts()}
            assert going, f"{text!r} not {times} times in\n{self.log()}"
            time.sleep(0.05)

    def ended(self, seconds: float = 240) -> list[dict[str, str]]:
        """Waits for the end; the facts of it."""
        end = time.monotonic() + seconds
        while GOING & (states := {task["JobState"] for task in self.facts()}):
            assert time.monotonic() < end, f"{states}\n{self.log()}"
            time.sleep(0.3)
        return self.facts()


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Slurm]:
    """A cluster in a folder of this user alone, until the block ends."""
    host, user = socket.gethostname(), subprocess.check_output(["id", "-un"], text=True).strip()
    ports = _free_ports(1 + len(NODES))
    folder.chmod(0o711)  # munged's socket is for everybody
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    nodes = [NODE.format(name=n, port=p) for n, p in zip(NODES, ports[1:], strict=True)]
    text = CONFIG.format(host=host, user=user, folder=folder, ports=ports)
    (folder / "slurm.conf").write_text(text + "".join(nodes))
    own = [f"--{name}={folder}/munged.{name}" for name in ("pid-file", "log-file", "seed-file")]
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", *own]
    munged += [f"--socket={folder}/munge.socket"]
    commands = [munged, ["slurmctld", "-D"], *(["slurmd", "-D", "-N", name] for name in NODES)]
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    environment.pop("XLA_FLAGS", None)  # a node has one device, whatever the tests have
    with contextlib.ExitStack() as stack:
        for command in commands:
            stack.enter_context(_daemon(command, environment, folder))
            if command is munged:
                _wait(folder, lambda: (folder / "munge.socket").exists())
        slurm = Slurm(folder, environment)
        _wait(folder, lambda: _idle(environment) == len(NODES))
        try:
            yield slurm
        finally:  # no process of a job may outlive the daemons
            slurm.call("scancel", "--user", user)
            slurm.call("scancel", "--signal=KILL", "--user", user)
            _wait(folder, lambda: not slurm.call("squeue", "--noheader"), seconds=60)


@contextlib.contextmanager
def _daemon(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    program = which(command[0])
    assert program is not None
    with open(folder / "daemons.log", "ab") as log:
        own = subprocess.Popen(
            [program, *command[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        own.terminate()
        try:
            own.wait(10)
        except subprocess.TimeoutExpired:
            own.kill()
            own.wait()


def _idle(environment: dict[str, str]) -> int:
    told = subprocess.run(
        ["sinfo", "-hN", "-t", "idle"], capture_output=True, text=True, env=environment
    )
    return len(told.stdout.splitlines())


def _wait(folder: Path, there, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, (folder / "daemons.log").read_text()
        time.sleep(0.1)


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]
