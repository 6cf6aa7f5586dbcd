"""What clusters start is what launch/local.py starts: same command line, same environment."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
ARGS = ("--config=configs/a b.py:it's", "--workdir=/runs/x", "--config.optim.lr=0.1")
STUB = """#!{python}
import json, os, pathlib, sys
name = pathlib.Path(sys.argv[0]).name
known = {{k: v for k, v in os.environ.items() if k.startswith(("M4_", "XLA_", "JAX_"))}}
with open({log!r}, "a") as file:
    file.write(json.dumps({{"name": name, "args": sys.argv[1:], "env": known}}) + chr(10))
if name == "scontrol" and sys.argv[1] == "show":
    print("node7", "node8", sep=chr(10))
elif name == "srun":
    os.environ["SLURM_PROCID"] = "1"
    os.execvp(sys.argv[2], sys.argv[2:])
elif name == "gcloud" and "ssh" in sys.argv:
    command = sys.argv[-1].removeprefix("--command=")
    sys.exit(os.waitstatus_to_exitcode(os.system(command)))
elif name == "gcloud" and "describe" in sys.argv:
    print("ACTIVE")
elif name == "python":
    sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.fixture
def cluster(tmp_path):
    """Runs a rendered script where srun, scontrol, gcloud and python only take notes."""
    log = tmp_path / "log"
    for name in ("srun", "scontrol", "gcloud", "python"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(STUB.format(python=sys.executable, log=str(log)))
        path.chmod(0o700)

    def run(text, **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("M4_", "XLA_", "JAX_"))}
        done = subprocess.run(
            [shutil.which("bash"), "-c", text],
            env=clean | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done, [json.loads(line) for line in log.read_text().splitlines()]

    return run


def render(kind, *own):
    command = [sys.executable, str(LAUNCH / "render.py"), kind, *own, "--", *ARGS]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def local(monkeypatch, procs):
    """(command, environment of process 1) of the supervisor."""
    monkeypatch.syspath_prepend(str(LAUNCH))
    import spec

    one = spec.Spec(ARGS, procs, python="python")
    return one.command(), one.environment("COORDINATOR", "1")


def test_slurm_starts_what_local_starts(cluster, monkeypatch):
    command, environment = local(monkeypatch, 2)
    text = render("slurm", "--procs=2", "--name=run", "--option=--partition=gpu")
    assert "#SBATCH --nodes=2\n" in text and "#SBATCH --partition=gpu\n" in text
    done, calls = cluster(text, SLURM_JOB_NODELIST="node[7-8]", SLURM_JOB_ID="5")
    assert done.returncode == 0, done.stderr
    (python,) = [c for c in calls if c["name"] == "python"]
    assert ["python", *python["args"]] == command
    assert python["env"] == environment | {"M4_COORDINATOR": "node7:12355"}


@pytest.mark.parametrize(("code", "again"), [(75, True), (5, False)])
def test_slurm_requeues_what_local_restarts(cluster, code, again):
    done, calls = cluster(render("slurm", "--procs=2"), SLURM_JOB_ID="5", CODE=str(code))
    assert done.returncode == code
    assert (calls[-1]["args"] == ["requeue", "5"]) == again


def test_jobset_starts_what_local_starts(monkeypatch):
    command, environment = local(monkeypatch, 2)
    text = render(
        "jobset", "--procs=2", "--name=run", "--resource=google.com/tpu=4", "--select=a=b"
    )
    lines = [line.strip() for line in text.splitlines()]
    assert f"command: {json.dumps(command)}".replace("'", "\\u0027") in lines
    found = dict(
        line.removeprefix("- {name: ").removesuffix('"}').split(', value: "')
        for line in lines
        if line.startswith("- {name: M4_")
    )
    assert found == {k: v for k, v in environment.items() if k != "M4_PROCESS_ID"} | {
        "M4_COORDINATOR": "run-workers-0-0.run:12355"
    }
    assert "- name: M4_PROCESS_ID" in lines and "parallelism: 2" in lines
    assert 'limits: {"google.com/tpu": "4"}' in lines and 'a: "b"' in lines
    assert "nodeSelector:" not in render("jobset")


def test_tpu_starts_what_local_starts_and_cleans_up(cluster, monkeypatch):
    command, environment = local(monkeypatch, 1)
    done, calls = cluster(render("tpu", "--name=run", "--spot"), CODE="75")
    assert done.returncode == 75
    (python,) = [c for c in calls if c["name"] == "python"]
    assert ["python", *python["args"]] == command
    assert python["env"] == {
        "M4_COORDINATOR": "auto",
        "M4_HEARTBEAT": environment["M4_HEARTBEAT"],
    }
    assert "--spot" in calls[0]["args"] and "delete" in calls[-1]["args"]
