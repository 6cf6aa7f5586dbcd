"""What `launch/render.py slurm` writes, on a real Slurm of four nodes (Debian's packages)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import slurm_cluster

ROOT = Path(__file__).parents[2]
CONFIG = f"--config={ROOT}/configs/m3h_mimic.py:tiny"
NEAR, AWAY = "--option=--nodelist=127.0.0.[1-2]", "--option=--nodelist=nowhere[1-2]"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(slurm_cluster.missing()), reason=f"lacks {', '.join(slurm_cluster.missing())}"
    ),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with slurm_cluster.started(tmp_path_factory.mktemp("slurm")) as found:
        yield found


def rendered(*words: str) -> str:
    command = [sys.executable, f"{ROOT}/launch/render.py", "slurm", f"--python={sys.executable}"]
    return subprocess.check_output([*command, *words], text=True)


def test_it_trains_is_stopped_starts_again_and_ends(slurm, tmp_path):
    long = {"train.steps": 600, "train.log_every": 20, "train.eval_every": 300, "mesh.data": 2}
    given = [f"--config.{name}={value}" for name, value in long.items()]
    run = f"--workdir={tmp_path}/run"
    job = slurm.submit(rendered("--procs=2", AWAY, "--", CONFIG, *given, run))
    job.until("step ")
    job.signal("TERM")
    (facts,) = job.ended()
    assert facts["JobState"] == "COMPLETED" and facts["Restarts"] == "1", job.log()
    saved = re.findall(r"stopped at step (\d+), saved", job.log())
    resumed = re.findall(r"resuming from step (\d+)", job.log())
    assert saved and set(saved) == set(resumed) and 0 < int(saved[0]) < 600
    assert [*(tmp_path / "run/results").glob("*.json")]


def test_a_head_that_nobody_can_reach_ends_it_in_one_line(slurm, tmp_path):
    run = f"--workdir={tmp_path}/run"
    text = rendered("--procs=2", NEAR, "--", CONFIG, "--config.mesh.data=2", run)
    assert text.count("head=${address:-$head}") == 1
    job = slurm.submit(text.replace("head=${address:-$head}", "head=nowhere1"))
    (facts,) = job.ended()
    assert facts["ExitCode"] == "2:0" and facts["Restarts"] == "0", job.log()
    said = {line for line in job.log().splitlines() if not line.startswith(("srun", "slurmstepd"))}
    assert said and all("knows no address of nowhere1" in line for line in said), job.log()


def test_a_typo_is_not_tried_again(slurm, tmp_path):
    wrong = ["--config.train.stepz=3", f"--workdir={tmp_path}/run"]
    job = slurm.submit(rendered("--procs=2", NEAR, "--", CONFIG, *wrong))
    (facts,) = job.ended()
    assert facts["ExitCode"] == "2:0" and facts["Restarts"] == "0", job.log()
    assert "stepz" in job.log()


def test_it_gives_up_when_starts_bring_nothing(slurm, tmp_path):
    run = ["--config.mesh.data=2", f"--workdir={tmp_path}/run"]
    job = slurm.submit(rendered("--procs=2", "--restarts=2", NEAR, "--", CONFIG, *run))
    for start in (1, 2):
        job.until("devices ", times=start)
        job.signal("KILL", step=True)
    (facts,) = job.ended()
    assert facts["Restarts"] == "1", job.log()
    assert "2 starts without progress, giving up" in job.log()


FAKE = """
import os, signal, sys, time
code = sys.argv[1 + int(os.environ["M4_PROCESS_ID"])].removeprefix("--code=")
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
print("begins", flush=True)
end = time.monotonic() + (60 if code == "waits" else 0.5)
while time.monotonic() < end and not told:
    time.sleep(0.02)
if code == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(75 if code == "waits" else int(code))
"""


@pytest.mark.parametrize(
    ("codes", "found"),
    [
        (("waits", 6), 6),
        ((2, "waits"), 2),
        ((1, "waits"), 1),
        (("waits", "kill"), 137),
        ((0, 0), 0),
    ],
)
def test_the_code_that_tells_most_is_the_jobs(slurm, tmp_path, codes, found):
    (tmp_path / "fake.py").write_text(FAKE)
    own = ["--procs=2", "--restarts=1", "--module=fake", NEAR]
    text = rendered(*own, "--", *(f"--code={code}" for code in codes))
    job = slurm.submit(text.replace("export M4_", f"export PYTHONPATH={tmp_path}\nexport M4_", 1))
    (facts,) = job.ended()
    assert facts["ExitCode"] == f"{found}:0" and facts["Restarts"] == "0", job.log()
    assert ("giving up" in job.log()) == (found == 137)
    assert not [*slurm.folder.glob("*.codes")] + [*slurm.folder.glob("*.tries")]


def test_an_array_makes_one_study(slurm, tmp_path):
    study = f"--config={ROOT}/configs/lab_gates.py:tiny", f"--out={tmp_path}/lab"
    own = "--module=m4.lab", "--array=2", "--", *study, "--shard={task}/{tasks}"
    job = slurm.submit(rendered(*own))
    assert {task["JobState"] for task in job.ended()} == {"COMPLETED"}, job.log()
    assert len([*(tmp_path / "lab/rows").glob("*.json")]) == 6
