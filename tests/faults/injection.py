"""Systematic injection: the n-th system call on a folder fails, or kills there, for n = 1, 2, ...

As SQLite does it. `shim.c` is preloaded into a process that has imported everything; it forks a
child for every point, in which the n-th open, read, write, fsync, rename, link, unlink, mkdir or
flock below the folder fails with the error that a full or broken disk gives, or the process is
killed there, or the n-th large piece of memory is not had. Then the same command runs undisturbed.
Survived: the first ended as documented, in lines of m4's and nothing else, and the second gives the
same bits (or says in a line that they are there). Where memory is short a library in C++ may abort
the process, or fault where it did not look at what it was given; what counts is the second.
"""

import ctypes
import faulthandler
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

from m4.errors import UserError, shortage
from tests.faults import injected, runs
from tests.faults.harness import Bench, Outcome

SHIM = Path(__file__).with_name("shim.c")
CODES = {0, 2, 3, 4, 6, 75, -9}  # documented ends, and the kill
FAULT = -11  # a null pointer followed: only libraries in C++ that do not check what they are given
KINDS = FAILS, KILLS, STARVES = range(3)  # as in shim.c
WORDS = "fails", "kills", "has no memory"
LARGE = 1 << 18  # bytes of a piece of memory that counts
UNCHECKED = "jaxlib", "array_record", "<no Python frame>"  # where those are in a stack
CHEAP = ("save", "log", "lock", "report", "build", "table", "embed", "import")


def points(bench: Bench) -> Outcome:
    """Every `stride`-th point of each mode; both errors and kills."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return Outcome(0, 0, 0, "needs a C compiler")
    library = bench.work / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", str(library), str(SHIM), "-ldl"]
    subprocess.run(command, check=True)
    right = runs.reference(bench, "m3h")
    modes = [*CHEAP] if bench.short else [*injected.COMMANDS]
    request = {"work": str(bench.work), "right": str(right), "modes": modes, "seed": bench.seed}
    # In the short form a sample: fewer of what takes longer.
    request |= {"library": str(library), "most": bench.number(12, 1000)}
    request |= {"fewer": bench.number(4, 500)}
    environment = os.environ | runs.environment(bench, 1) | {"LD_PRELOAD": str(library)}
    environment["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # whose pieces are counted, too
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # forks compile it all again
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.faults.injection", json.dumps(request)]
    tried, lost, notes = 0, 0, []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:  # a mode at a time: hours lie between the first and the last
            found = json.loads(line)
            tried += found["tried"]
            lost += len(found["lost"])
            notes.append(f"{found['mode']} {found['tried']} of {found['all']}")
            print(f"  {notes[-1]}", *found["lost"][:20], sep="\n    ", flush=True)
    if process.returncode:
        raise RuntimeError(f"the injection ended with {process.returncode}")
    return Outcome(tried, tried - lost, lost, ", ".join(notes))


def _child(command: Callable[[Path], int], folder: Path, point: tuple[int, int], shim) -> dict:
    """(exit code, calls, pieces, what was said) of a command in a fork, with its fault."""
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
                faulthandler.enable(2, all_threads=False)
                shim.m4_arm(os.fsencode(folder), *point, LARGE)
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
                os.write(write, f"{shim.m4_count()} {shim.m4_pieces()}".encode())
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(write)
        calls = os.read(read, 64)
        os.close(read)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        text = said.read().decode(errors="replace")
    calls, pieces = map(int, calls.split() or (0, 0))
    return {"code": code, "calls": calls, "pieces": pieces, "text": text}


def _short(struck: dict) -> bool:
    """Whether a command ended as one may that had too little memory."""
    frames = struck["text"].partition("(most recent call first):")[2].strip().splitlines()
    if struck["code"] == FAULT:
        return bool(frames) and any(library in frames[0] for library in UNCHECKED)
    return struck["code"] == -6 or (struck["code"] == 1 and "out of memory" in struck["text"])


def _sweep(name: str, request: dict, shim, rng: random.Random) -> dict:
    command, work, right = injected.COMMANDS[name], Path(request["work"]), Path(request["right"])
    folder, kept = work / f"injected-{name}", work / f"kept-{name}"
    _child(lambda kept: injected.prepare(name, kept) or 0, kept, (0, FAILS), shim)

    def fresh() -> None:
        injected.fresh(name, folder, right, kept)

    fresh()
    whole = _child(command, folder, (0, FAILS), shim)
    lost = [] if whole["code"] == 0 else [f"undisturbed: exit {whole['code']}: {whole['text']}"]
    bits = injected.bits(name, folder)
    counts = {FAILS: whole["calls"], KILLS: whole["calls"], STARVES: whole["pieces"]}
    wanted = [(n, kind) for kind in KINDS for n in range(1, counts[kind] + 1)]
    most = request["fewer" if name in ("import", "train") else "most"]
    if len(wanted) > most:
        wanted = sorted(rng.sample(wanted, most))
    for point in wanted:
        fresh()
        struck = _child(command, folder, point, shim)
        after = _child(command, folder, (0, FAILS), shim)
        what = f"call {point[0]} {WORDS[point[1]]}"
        done = after["code"] == 0 or any(words in after["text"] for words in injected.REPEATED)
        said = point[1] == STARVES and _short(struck)
        if (struck["code"] not in CODES and not said) or (
            "Traceback" in struck["text"] and struck["code"] != -6
        ):
            lost.append(f"{what}: exit {struck['code']}: {struck['text'].strip()[-1500:]}")
        elif not done:
            lost.append(f"{what}: afterwards {after['code']}: {after['text'].strip()[-1500:]}")
        elif injected.bits(name, folder) != bits:
            lost.append(f"{what} (exit {struck['code']}): other bits afterwards")
    return {"mode": name, "tried": len(wanted), "all": sum(counts.values()), "lost": lost}


def serve(request: dict) -> None:
    """Everything, in the process that has the shim."""
    import sklearn.feature_extraction.text  # noqa: F401 (all imported once, for all forks)

    import m4.interop.__main__  # noqa: F401
    import tests.interop.shared  # noqa: F401
    from m4.modes import predict, report, train  # noqa: F401

    shim = ctypes.CDLL(request["library"])
    shim.m4_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_long]
    shim.m4_count.restype = shim.m4_pieces.restype = ctypes.c_long
    rng = random.Random(request["seed"])
    for name in request["modes"]:
        print(json.dumps(_sweep(name, request, shim, rng)), flush=True)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
