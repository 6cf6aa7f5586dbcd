"""Two processes of one run that are not alike: both must end with exit 2 before the first step."""

import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import m4
from tests.faults import canaries, runs
from tests.faults import config as configs
from tests.faults.harness import Bench, Outcome

ROOT = Path(m4.__file__).parents[1]
HERE = f"--config={configs.__file__}:m3h"


class Way(NamedTuple):
    """How the second process differs, and what must be named."""

    name: str
    says: str
    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}
    config: str = HERE  # of both
    first: Mapping[str, str] = {}  # environment of process 0


def peers(bench: Bench) -> Outcome:
    """Survived: exit 2 and one line that names the difference, on both, and nothing was trained."""
    ways = [*_ways(bench.work)]
    random.Random(bench.seed).shuffle(ways)
    ways = ways[: bench.number(2, len(ways))]
    bad = []
    for way in ways:
        workdir = bench.work / way.name.replace(" ", "-")
        found = _run(bench, way, workdir)
        wrong = [f"exit {code}" for code, _ in found if code != 2]
        for _, text in found:
            said = [line for line in text.splitlines() if line.startswith("m4: ")]
            wrong += [] if len(said) == 1 and way.says in said[0] else [f"said {said}"]
        wrong += ["trained"] if (workdir / "metrics.jsonl").exists() else []
        if wrong:
            bad.append(way.name)
            print(f"  {way.name}: {'; '.join(wrong)}", flush=True)
    note = ", ".join(sorted(way.name for way in ways))
    note += f"; lost: {', '.join(bad)}" if bad else ""
    return Outcome(len(ways), len(ways) - len(bad), len(bad), note)


def _ways(folder: Path) -> Iterator[Way]:
    yield Way("option", "config.optim.lr is 0.5 on process 1", ("--config.optim.lr=0.5",))
    yield Way("seed", "config.seed is 7 on process 1", ("--config.seed=7",))
    more = ("--config.data.options.num_patients=150",)
    yield Way("data", "config.data.options.num_patients", more)
    precision = ("--config.train.precision=bfloat16",)
    yield Way("precision", "config.train.precision", precision)
    yield Way("number of processes", "M4_NUM_PROCESSES", (), {"M4_NUM_PROCESSES": "3"})
    yield Way("device count", "XLA_FLAGS", (), {"XLA_FLAGS": runs.FLAGS.format(2)})
    yield Way("time limits", "M4_HEARTBEAT", (), {"M4_HEARTBEAT": "9"})
    exact = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    yield Way("environment", "JAX_DEFAULT_MATMUL_PRECISION", (), exact)
    copied = folder / "copied.py"
    shutil.copyfile(configs.__file__, copied)
    yield Way("config path", "--config is", (f"--config={copied}:m3h",))
    yield Way("code", "code of m4", (), {"PYTHONPATH": _path(_other_code(folder / "code"))})
    site = folder / "version"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import jax\njax.__version__ = '0.0.1'\n")
    yield Way("version", "version of jax is 0.0.1", (), {"PYTHONPATH": _path(site)})
    yield _labels(folder)


def _path(*folders: Path) -> str:
    return os.pathsep.join([*map(str, folders), str(ROOT), os.environ.get("PYTHONPATH", "")])


def _other_code(folder: Path) -> Path:
    shutil.copytree(ROOT / "m4", folder / "m4", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").symlink_to(ROOT / "tests")
    with open(folder / "m4/maths.py", "a") as file:
        file.write("# another tree\n")
    return folder


def _labels(folder: Path) -> Way:
    """The same definition over files of which one label differs, each built in its own place."""
    places = [folder / name for name in ("here", "there")]
    for place in places:
        canaries.plant(place, random.Random(0))
    labels = places[1] / "labels.csv"
    text = labels.read_text()
    labels.write_text(text[: text.rindex("1")] + "0" + text[text.rindex("1") + 1 :])
    file = folder / "labels.py"
    file.write_text(canaries.CONFIG.format(file=str(places[0] / "s.toml")))
    where = [{"M4_RAW_DIR": str(p), "M4_DATA_DIR": f"{p}-built"} for p in places]
    return Way("labels", "data is ", (), where[1], f"--config={file}", where[0])


def _run(bench: Bench, way: Way, workdir: Path) -> list[tuple[int, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    gang = {"M4_COORDINATOR": f"localhost:{port}", "M4_NUM_PROCESSES": "2", "M4_HEARTBEAT": "100"}
    gang |= {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "PYTHONPATH": _path()}
    gang |= runs.environment(bench, 1)
    here = [sys.executable, "-m", "m4.main", f"--workdir={workdir}", "--config.mesh.data=2"]
    own = [(way.config,), way.args if way.name == "config path" else (way.config, *way.args)]
    processes = [
        subprocess.Popen(
            [*here, *own[i]],
            env=os.environ | gang | {"M4_PROCESS_ID": str(i)} | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=workdir.parent,
        )
        for i, environment in enumerate((way.first, way.environment))
    ]
    texts = [process.communicate(timeout=runs.PATIENCE)[0] for process in processes]
    return [(p.returncode, text) for p, text in zip(processes, texts, strict=True)]
