"""What clusters start is what launch/local.py starts: same command line, same environment."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
ARGS = ("--config=configs/a b.py:it's", "--workdir=/runs/x", "--config.optim.lr=0.1")
STUB = """#!{python} -IS
import json, os, pathlib, sys, time
name = pathlib.Path(sys.argv[0]).name
known = {{k: v for k, v in os.environ.items() if k.startswith(("M4_", "XLA_", "JAX_"))}}
with open({log!r}, "a") as file:
    file.write(json.dumps({{"name": name, "args": sys.argv[1:], "env": known}}) + chr(10))
if name == "scontrol" and sys.argv[1] == "show":
    hosts = ("node7", "node8")
    print(*hosts if sys.argv[2] == "hostnames" else ["   NodeAddr=10.0.0.7 A=b"], sep=chr(10))
elif name == "srun":
    os.environ["SLURM_PROCID"] = "1"
    os.execvp(sys.argv[2], sys.argv[2:])
elif name == "gcloud":
    (verb,) = {{"create", "delete", "describe", "ssh"}} & {{*sys.argv}}
    if os.environ.get("STOP") == verb:
        os.kill(int(os.environ["SCRIPT"]), 15)
        time.sleep(0.2 if verb != "ssh" else 20)
    if verb == os.environ.get("FAILS"):
        sys.exit(1)
    if verb == "describe":
        print("ACTIVE")
    if verb != "ssh":
        sys.exit(0)
    command = sys.argv[-1].removeprefix("--command=")
    sys.exit(os.waitstatus_to_exitcode(os.system(command)))
elif name == "python":
    if "STEP" in os.environ:
        pathlib.Path(os.environ["STEP"]).mkdir(parents=True, exist_ok=True)
    sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.fixture
def cluster(tmp_path):
    """Runs a rendered script where srun, scontrol, gcloud and python only take notes."""
    log = tmp_path / "log"
    for name in ("srun", "scontrol", "getent", "gcloud", "python"):
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
    done = rendered(kind, *own)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(kind, *own, args=ARGS):
    command = [sys.executable, str(LAUNCH / "render.py"), kind, *own, "--", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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
    assert python["env"] == environment | {"M4_COORDINATOR": "10.0.0.7:12005"}


CODES = {75: True, 7: True, 134: True, 135: True, 139: True, 152: True, 5: False, 130: False}


@pytest.mark.parametrize(("code", "again"), CODES.items())
def test_slurm_requeues_what_local_restarts(cluster, tmp_path, monkeypatch, code, again):
    monkeypatch.chdir(tmp_path)
    done, calls = cluster(render("slurm", "--procs=2"), SLURM_JOB_ID="5", CODE=str(code))
    assert done.returncode == code
    assert (calls[-1]["args"] == ["requeue", "5"]) == again


def test_slurm_gives_up_without_a_newer_checkpoint(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ("--config=c.py", f"--workdir={tmp_path}/it's run")
    text = rendered("slurm", "--restarts=3", args=args).stdout

    def requeues(restart=1, **step):
        own = {"SLURM_JOB_ID": "5", "SLURM_RESTART_COUNT": str(restart)}
        done, calls = cluster(text, CODE="134", **own, **step)
        return calls[-1]["args"] == ["requeue", "5"] or done.stderr

    (tmp_path / "m4-5.tries").write_text("2")  # of another job of this number
    step = tmp_path / "it's run/checkpoints/last"
    assert [requeues(0), requeues()] == [True, True]
    assert requeues(STEP=str(step / "8")) is True  # progress: the count begins again
    assert [requeues(), requeues()] == [True, True]
    assert "giving up (exit code 134)" in requeues()
    assert requeues() is True  # submitted anew


def test_slurm_starts_nothing_again_that_it_cannot_count(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m4-5.tries").mkdir()  # as in a folder that takes no more files
    done, calls = cluster(render("slurm"), SLURM_JOB_ID="5", CODE="75")
    assert done.returncode == 75 and calls[-1]["name"] == "python"
    assert "starts cannot be counted in" in done.stderr


def test_a_study_that_has_another_row_made_progress(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = (f"--out={tmp_path}/lab", "--shard={task}/{tasks}")
    text = rendered("slurm", "--restarts=2", "--array=4", "--module=m4.lab", args=args).stdout

    def gives_up(**step):
        own = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "1"}
        return "giving up" in cluster(text, CODE="143", **own, **step)[0].stderr

    assert not gives_up()
    assert not gives_up(STEP=str(tmp_path / "lab/rows/a-s0.json"))
    assert [gives_up(), gives_up(), gives_up()] == [False, True, False]


def test_progress_of_an_array_is_that_of_its_task(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ("--config=c.py", f"--workdir={tmp_path}/it's {{task}}")
    text = rendered("slurm", "--restarts=1", "--array=4", args=args).stdout
    own = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3", "CODE": "75"}
    step = tmp_path / "it's 3/checkpoints/last/8"
    assert cluster(text, STEP=str(step), **own)[1][-1]["args"] == ["requeue", "5_3"]
    assert "giving up" in cluster(text, STEP=str(step), **own)[0].stderr


def test_folds_points_and_finished_files_are_progress(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = tmp_path / "a run"
    args = ("--mode=crossval", f"--workdir={work}")
    text = rendered("slurm", "--restarts=2", args=args).stdout

    def gives_up(**step):
        own = {"SLURM_JOB_ID": "5", "SLURM_RESTART_COUNT": "1", "CODE": "75"}
        return "giving up" in cluster(text, **own, **step)[0].stderr

    assert not gives_up()
    brought = ["a_s0/fold_0/checkpoints/last/9"]
    brought += [f"fold_1/checkpoints/last/{step}" for step in (3, 10)]
    for place in [*brought, "fold_0/results/test.json"]:
        assert not gives_up(STEP=str(work / place)), place
    assert not gives_up(STEP=str(work / "fold_1/checkpoints/last/4"))  # once without progress
    assert gives_up()


def test_jobset_starts_what_local_starts(monkeypatch):
    command, environment = local(monkeypatch, 2)
    text = render("jobset", "--procs=2", "--name=run", "--volume=claim:/runs", "--select=a=b")
    job = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == command and job["parallelism"] == job["completions"] == 2
    found = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
    place = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert found == environment | {
        "M4_COORDINATOR": "run-workers-0-0.run:12355",
        "M4_PROCESS_ID": {"fieldRef": {"fieldPath": place}},
    }
    assert pod["nodeSelector"] == {"a": "b"} and "resources" not in container
    assert {"name": "volume-0", "mountPath": "/runs"} in container["volumeMounts"]
    claim = {"name": "volume-0", "persistentVolumeClaim": {"claimName": "claim"}}
    assert claim in pod["volumes"]


# What JobSet v1alpha2, Job v1 and Pod v1 allow of what is used: another key would be refused.
KEYS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "metadata": {"name", "annotations", "labels", "namespace"},
    "spec": {"failurePolicy", "network", "replicatedJobs", "successPolicy", "suspend"},
    "spec.failurePolicy": {"maxRestarts", "rules", "restartStrategy"},
    "spec.failurePolicy.rules": {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"},
    "spec.network": {"enableDNSHostnames", "subdomain", "publishNotReadyAddresses"},
    "spec.replicatedJobs": {"name", "groupName", "replicas", "template", "dependsOn"},
    "spec.replicatedJobs.template": {"metadata", "spec"},
    "spec.replicatedJobs.template.spec": {
        *("completionMode", "completions", "parallelism", "backoffLimit", "backoffLimitPerIndex"),
        *("podFailurePolicy", "template", "activeDeadlineSeconds", "ttlSecondsAfterFinished"),
    },
    "spec.replicatedJobs.template.spec.template.spec": {
        *("restartPolicy", "terminationGracePeriodSeconds", "nodeSelector", "containers"),
        *("volumes", "hostNetwork", "dnsPolicy", "tolerations", "securityContext"),
    },
}


def unknown(found, path=""):
    """Keys of a document that `KEYS` does not allow."""
    for each in found if isinstance(found, list) else [found]:
        if isinstance(each, dict):
            yield from (
                f"{path}.{key}".strip(".") for key in each.keys() - KEYS.get(path, each.keys())
            )
            for key, value in each.items():
                yield from unknown(value, f"{path}.{key}".strip("."))


def test_jobset_is_what_kubernetes_takes():
    text = render("jobset", "--topology=v5p:4x4x4+4x4x4", "--volume=claim:/runs")
    found = yaml.safe_load(text)
    assert list(unknown(found)) == []
    assert list(unknown({"spec": {"replicas": 1}})) == ["spec.replicas"]
    (rule,) = found["spec"]["failurePolicy"]["rules"]  # a typo is not tried a hundred times
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    jobs = found["spec"]["replicatedJobs"][0]
    assert jobs["replicas"] == 2 and jobs["template"]["spec"]["completions"] == 16
    pod = jobs["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": "4"}
    assert {"name": "M4_COORDINATOR", "value": "auto"} in container["env"]


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (["jobset"], "--workdir must lie below a --volume=CLAIM:/path"),
        (["jobset", "--volume=claim:/run"], "--workdir must lie below"),
        (["jobset", "--volume=/runs"], "--volume: CLAIM:/path"),
        (["slurm", "--topology=h300:8"], "no such chip"),
        (["slurm", "--topology=h200:12"], "whole nodes of 8"),
        (["slurm", "--topology=v5p:2x2x2"], "TPUs have no Slurm"),
        (["jobset", "--topology=v5p:4x4", "--ephemeral"], "has 3 dimensions"),
        (["tpu", "--topology=v6e:16x16+16x16"], "one slice"),
        (["slurm", "--array=4"], "{task} must stand in the arguments"),
        (["tpu", "--array=4"], "--array: for slurm and jobset"),
        (["slurm", "--array=-3"], "--array=-3: a number of runs, from 1"),
    ],
)
def test_what_cannot_work_is_told(own, told):
    done = rendered(*own)
    assert done.returncode == 2 and told in done.stderr and done.stdout == ""


def test_a_work_directory_in_a_bucket_needs_no_volume_and_slurm_refuses_it():
    args = ("--config=c.py", "--workdir=gs://my-bucket/runs/a")
    assert "gs://my-bucket/runs/a" in rendered("jobset", args=args).stdout
    assert "gs://my-bucket/runs/a" in rendered("tpu", "--topology=v5e:4x4", args=args).stdout
    apart = ("--config=c.py", "--workdir", "gs://my-bucket/runs/a")
    assert "gs://my-bucket/runs/a" in rendered("jobset", args=apart).stdout
    done = rendered("slurm", args=args)
    assert done.returncode == 2 and "a folder that all nodes share" in done.stderr


def test_help_needs_no_arguments_of_a_run():
    for file in ("render.py", "local.py"):
        command = [sys.executable, str(LAUNCH / file), "--help"]
        assert (
            "ARGUMENTS OF m4.main" in subprocess.run(command, capture_output=True, text=True).stdout
        )


def test_the_number_of_a_task_is_for_arrays():
    done = rendered("slurm", args=("--out=x", "--shard={task}/{tasks}"))
    assert done.returncode == 2 and "{task} in the arguments: is for --array=N" in done.stderr


@pytest.mark.parametrize(
    ("topology", "count", "chips", "accelerator"),
    [
        ("h200:8", 1, 8, ""),
        ("h100:64", 8, 8, ""),
        ("a100:2", 1, 2, ""),
        ("v5e:2x4", 1, 8, "v5litepod-8"),
        ("v5e:4x4", 4, 4, "v5litepod-16"),
        ("v5p:2x2x1", 1, 4, "v5p-8"),
        ("v5p:8x8x16", 256, 4, "v5p-2048"),
        ("v6e:16x16", 64, 4, "v6e-256"),
    ],
)
def test_hosts_of_a_topology(monkeypatch, topology, count, chips, accelerator):
    monkeypatch.syspath_prepend(str(LAUNCH))
    import hosts

    found = hosts.of(topology)
    assert (found.count, found.chips, found.accelerator) == (count, chips, accelerator)
    assert found.gpus == (0 if accelerator else chips)


def test_slurm_asks_for_all_gpus_of_a_node():
    text = render("slurm", "--topology=h200:32")
    assert "#SBATCH --nodes=4\n" in text and "#SBATCH --gpus-per-node=8\n" in text


def test_an_array_is_runs_of_one_process_each(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ("--out=/runs/lab it's", "--shard={task}/{tasks}", "--x=$(HOME)")
    text = rendered("slurm", "--array=64", "--module=m4.lab", args=args).stdout
    assert "#SBATCH --array=0-63\n" in text
    done, calls = cluster(text, SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="3", CODE="75")
    (python,) = [c for c in calls if c["name"] == "python"]
    assert python["args"] == ["-m", "m4.lab", "--out=/runs/lab it's", "--shard=3/64", "--x=$(HOME)"]
    assert python["env"] == {} and calls[-1]["args"] == ["requeue", "5_3"]
    text = rendered("jobset", "--array=64", "--module=m4.lab", "--ephemeral", args=args).stdout
    job = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert job["completions"] == 64 and job["completionMode"] == "Indexed"
    assert container["command"][-2:] == ["--shard=$(JOB_COMPLETION_INDEX)/64", "--x=$$(HOME)"]


def test_tpu_starts_what_local_starts_cleans_up_and_queues_again(cluster, monkeypatch):
    command, environment = local(monkeypatch, 1)
    text = render("tpu", "--name=run", "--spot", "--restarts=1", "--topology=v5e:4x4")
    done, calls = cluster(text, CODE="75")
    assert done.returncode == 75 and "giving up" in done.stderr
    first, again = [c for c in calls if c["name"] == "python"]
    assert first == again and ["python", *first["args"]] == command
    assert first["env"] == {"M4_COORDINATOR": "auto", "M4_HEARTBEAT": environment["M4_HEARTBEAT"]}
    assert {"--spot", "--accelerator-type=v5litepod-16"} <= set(calls[0]["args"])
    assert "delete" in calls[-1]["args"]
    done, calls = cluster(text, CODE="2")  # refused: not again
    assert done.returncode == 2 and sum(c["name"] == "python" for c in calls) == 3


def verbs(calls):
    known = ("create", "describe", "ssh", "delete")
    return [verb for call in calls for verb in known if verb in call["args"]]


def test_tpu_deletes_nothing_that_it_has_not_made(cluster):
    done, calls = cluster(render("tpu", "--topology=v5e:4x4"), FAILS="create")
    assert done.returncode == 2 and "give render.py another --name" in done.stderr
    assert verbs(calls) == ["create"]


def test_tpu_does_not_ask_for_ever(cluster):
    text = "sleep() { :; }\n" + render("tpu", "--topology=v5e:4x4")
    done, calls = cluster(text, FAILS="describe")
    assert done.returncode == 1 and "m4: m4: 20 times in a row gcloud" in done.stderr
    assert verbs(calls) == ["create", *["describe"] * 20, "delete"]


@pytest.mark.parametrize("verb", ["create", "describe", "ssh", "delete"])
def test_tpu_cleans_up_when_it_is_stopped(cluster, verb):
    text = "export SCRIPT=$$\n" + render("tpu", "--topology=v5e:4x4")
    done, calls = cluster(text, STOP=verb, CODE="75")
    before = verbs(calls)[: verbs(calls).index(verb) + 1]
    assert done.returncode == 143
    assert verbs(calls) == [*before, *["delete"] * (verb != "delete")]


@pytest.mark.parametrize(
    "args",
    [
        ("--workdir=/runs/a",),
        ("--workdir", "/runs/a"),
        ("--workdir=/runs/b", "--output_dir", "/runs/a"),
        ("--out=/runs/a", "--config=x"),
    ],
)
def test_where_a_run_writes_is_seen_however_it_is_said(args):
    code = f"import spec; print(spec.workdir({args!r}), spec.workdir(('--config=x',)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=LAUNCH, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["/runs/a"]
