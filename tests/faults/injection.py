"""Systematic injection: the n-th system call on a folder fails, or kills there, for n = 1, 2, ...

As SQLite does it. `shim.c` is preloaded into a process that has imported everything; it forks a
child for every point, in which the n-th open, read, write, fsync, rename, link, unlink, mkdir or
flock below the folder fails with the error that a full or broken disk gives. Then the same command
runs undisturbed. Survived: the first ended as documented, in lines of m4's and nothing else, and
the second gives the same bits.
"""

import ctypes
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.faults import runs
from tests.faults.harness import Bench, Outcome

SHIM = Path(__file__).with_name("shim.c")
CODES = {0, 2, 3, 4, 6, 75, -9}  # documented ends, and the kill
MODES = ("save", "log", "lock", "report", "train", "eval", "predict")
CHEAP = MODES[:4]
STEPS = 3


def points(bench: Bench) -> Outcome:
    """Every `stride`-th point of each mode; both errors and kills."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return Outcome(0, 0, 0, "needs a C compiler")
    library = bench.work / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", str(library), str(SHIM), "-ldl"]
    subprocess.run(command, check=True)
    right = runs.reference(bench, "m3h")
    modes = CHEAP if bench.short else MODES
    request = {"work": str(bench.work), "right": str(right), "modes": modes, "seed": bench.seed}
    request |= {"library": str(library), "most": bench.number(12, 600)}
    environment = os.environ | runs.environment(bench, 1) | {"LD_PRELOAD": str(library)}
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.injection", json.dumps(request)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    tried, lost, notes = 0, 0, []
    for line in done.stdout.splitlines():
        found = json.loads(line)
        tried += found["tried"]
        lost += len(found["lost"])
        notes.append(f"{found['mode']} {found['tried']} of {found['calls']} calls")
        for problem in found["lost"][:20]:
            print(f"  {found['mode']}: {problem}", flush=True)
    return Outcome(tried, tried - lost, lost, ", ".join(notes))


class _Mode:
    """One mode: its fresh folder, its command, and the bits that it leaves."""

    def __init__(self, name: str, right: Path):
        self.name, self._right = name, right

    def fresh(self, folder: Path) -> None:
        """What is there before the command."""
        shutil.rmtree(folder, ignore_errors=True)
        if self.name in ("report", "eval", "predict"):
            shutil.copytree(self._right, folder)
            (folder / "key").write_bytes(bytes(32))  # of hashes, drawn at random otherwise
        elif self.name == "train":  # resumed in the middle
            shutil.copytree(self._right, folder)
            for path in folder.glob("checkpoints/*/*"):
                if int(path.name) > 16:
                    shutil.rmtree(path)
            shutil.rmtree(folder / "results")
        else:
            folder.mkdir(mode=0o700)

    def command(self) -> Callable[[Path], int]:
        """A function of the folder that returns an exit code."""
        return {"save": _save, "log": _log, "lock": _lock}.get(self.name, self._main)

    def _main(self, folder: Path) -> int:
        from m4 import main

        where = f"--workdir={folder}"
        if self.name == "train":
            from tests.faults import config

            return main.main([f"--config={config.__file__}:m3h", where])
        return main.main([where, f"--mode={self.name}"])

    def bits(self, folder: Path) -> str:
        """A digest of what the command is for."""
        found = hashlib.sha256()
        if self.name == "train":
            found.update("".join(runs.numbers(folder)).encode())
            found.update(json.dumps(runs.final_digests(folder)).encode())
        wanted = {"report": ["report.html"], "predict": ["predictions/test.parquet"]}
        wanted |= {"eval": ["results/test.json"], "train": ["results/test.json"]}
        wanted |= {"save": ["found"], "log": ["metrics.jsonl"], "lock": ["held"]}
        for name in wanted[self.name]:
            path = folder / name
            found.update(path.read_bytes() if path.is_file() else b"-")
        return found.hexdigest()


def _save(folder: Path) -> int:
    """A loop that saves, and goes on from the newest sound step."""
    import jax.numpy as jnp

    from m4.train import digest
    from m4.train.checkpoint import Checkpoints

    like = {"w": jnp.zeros((64, 8)), "n": jnp.zeros((), jnp.int32)}
    checkpoints = Checkpoints(folder / "last", keep=2)
    try:
        state = checkpoints.restore(like)[0] if checkpoints.used() else like
        for step in range(int(state["n"]) + 1, STEPS + 1):
            state = {"w": state["w"] + step / 7, "n": state["n"] + 1}
            checkpoints.save(step, state, {"step": step})
        checkpoints.wait()
    finally:
        checkpoints.close()
    (folder / "found").write_text(json.dumps(digest.of_tree(state)))
    return 0


def _log(folder: Path) -> int:
    from m4.train.telemetry import JsonLines

    writer = JsonLines(folder / "metrics.jsonl")
    for step in range(1, 6):
        writer.write_scalars(step, {"train/loss": 1 / step})
    writer.close()
    return 0


def _lock(folder: Path) -> int:
    from m4.train import workdir

    with workdir.locked(folder):
        (folder / "held").write_text("held")
    return 0


def _child(command: Callable[[Path], int], folder: Path, point: tuple[int, bool], shim) -> dict:
    """(exit code, calls, what was said) of a command in a fork, with its fault."""
    from m4.errors import UserError, shortage

    with tempfile.TemporaryFile() as said:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
                shim.m4_arm(os.fsencode(folder), point[0], int(point[1]))
                try:
                    code = command(folder)
                except UserError as error:
                    print(*error.lines(), sep="\n", file=sys.stderr)
                    code = error.exit_code
                except Exception as error:  # noqa: BLE001 (as m4.main has it)
                    refused = shortage(error)
                    if refused is None:
                        traceback.print_exc()
                    else:
                        print(*refused.lines(), sep="\n", file=sys.stderr)
                    code = refused.exit_code if refused else 1
                os.write(write, str(shim.m4_count()).encode())
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(write)
        calls = os.read(read, 64)
        os.close(read)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        text = said.read().decode(errors="replace")
    return {"code": code, "calls": int(calls or 0), "text": text}


def _sweep(mode: _Mode, work: Path, shim, most: int, rng: random.Random) -> dict:
    folder = work / f"injected-{mode.name}"
    mode.fresh(folder)
    whole = _child(mode.command(), folder, (0, False), shim)
    right, calls = mode.bits(folder), whole["calls"]
    wanted = [(n, killing) for n in range(1, calls + 1) for killing in (False, True)]
    if len(wanted) > most:
        wanted = sorted(rng.sample(wanted, most))
    lost = [] if whole["code"] == 0 else [f"undisturbed: exit {whole['code']}"]
    for point in wanted:
        mode.fresh(folder)
        struck = _child(mode.command(), folder, point, shim)
        after = _child(mode.command(), folder, (0, False), shim)
        what = f"call {point[0]} {'kills' if point[1] else 'fails'}"
        if struck["code"] not in CODES or "Traceback" in struck["text"]:
            lost.append(f"{what}: exit {struck['code']}: {struck['text'].strip()[-300:]}")
        elif after["code"] != 0:
            lost.append(f"{what}: afterwards {after['code']}: {after['text'].strip()[-300:]}")
        elif mode.bits(folder) != right:
            lost.append(f"{what} (exit {struck['code']}): other bits afterwards")
    return {"mode": mode.name, "tried": len(wanted), "calls": calls, "lost": lost}


def serve(request: dict) -> None:
    """Everything, in the process that has the shim."""
    from m4 import main  # noqa: F401 (imported once, for all forks)
    from m4.modes import predict, report, train  # noqa: F401

    shim = ctypes.CDLL(request["library"])
    shim.m4_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
    shim.m4_count.restype = ctypes.c_long
    rng = random.Random(request["seed"])
    for name in request["modes"]:
        mode = _Mode(name, Path(request["right"]))
        print(
            json.dumps(_sweep(mode, Path(request["work"]), shim, request["most"], rng)), flush=True
        )


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
