"""Writes what a cluster wants to be given, from the same `Spec` that `local.py` starts.

    python launch/render.py slurm --topology=h200:32 -- --config=FILE --workdir=/shared/run | sbatch
    python launch/render.py jobset --topology=v5p:4x4x4 --image=IMAGE --volume=CLAIM:/runs -- \
        --config=FILE --workdir=/runs/a
    python launch/render.py tpu --topology=v5e:4x4 --zone=ZONE -- --config=FILE --workdir=/mnt/a
    python launch/render.py xpk --topology=v6e:16x16 --image=IMAGE -- --config=FILE --workdir=...

`--topology` (`hosts.py`) says how many hosts there are and what each has; without it, `--procs`.
Every process gets the command and the environment of `Spec`; only the values that the cluster
knows better (addresses, numbers) are its variables. TPU slices tell them to JAX themselves.

`--array=N` makes N runs of one process each, in which `{task}` and `{tasks}` in the arguments are
the run's number and N: `--module=m4.lab --array=64 -- --out=/runs/lab --shard={task}/{tasks}`.

What was preempted, hung or killed by a signal (but Ctrl-C) starts again, until `--restarts` starts
in a row brought no progress (Slurm, 5; `local.py` says what that is) or so many in all are used up
(JobSet, TPU, 20). What was refused does not. A TPU script deletes only what it has made: `--name`
must be one that no other run has.
"""

import argparse
import re
import shlex
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import hosts as clusters
import jinja2
import spec as specs

PORT = 12355
FILES = {
    "slurm": "slurm.sbatch",
    "jobset": "jobset.yaml",
    "tpu": "tpu.sh",
    "xpk": "xpk.sh",
}
TPU_KEYS = ("M4_COORDINATOR", "M4_HEARTBEAT")
NUMBERS = r"(\{tasks?\})"  # of a task of an array, in the arguments
TASK = {"slurm": "$SLURM_ARRAY_TASK_ID", "jobset": "$(JOB_COMPLETION_INDEX)"}


def render(kind: str, spec: specs.Spec, **options: Any) -> str:
    """Text for `kind`, one of `FILES`."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    templates = jinja2.Environment(
        loader=loader,
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters["quoted"] = shlex.quote
    environment = {} if options["array"] else spec.environment(*addresses(kind, options))
    remote = " ".join(f"{k}={shlex.quote(v)}" for k, v in environment.items() if k in TPU_KEYS)
    return templates.get_template(FILES[kind]).render(
        spec=spec,
        environment=environment,
        command=[filled(word, kind, options["array"]) for word in spec.command()],
        line=for_bash(spec, kind, options["array"]),
        workdir=word_for_bash(specs.workdir(spec.args), kind, options["array"]),
        remote=shlex.quote(f"{remote} {spec.shell()}"),
        in_quotes=shlex.quote(spec.shell()),
        **options,
    )


def addresses(kind: str, options: dict[str, Any]) -> tuple[str, str]:
    """(coordinator, process number) in the words of the cluster."""
    name, hosts = options["name"], options["hosts"]
    if kind in ("tpu", "xpk") or hosts.resource == "google.com/tpu":
        return "auto", ""
    return {
        "slurm": ('"$head:$((12000 + SLURM_JOB_ID % 20000))"', "$SLURM_PROCID"),
        "jobset": (
            f"{name}-workers-0-0.{name}:{PORT}",
            "metadata.annotations['batch.kubernetes.io/job-completion-index']",
        ),
    }[kind]


def filled(word: str, kind: str, array: int) -> str:
    """An argument with the number of the task as the cluster says it."""
    if kind == "jobset":
        word = word.replace("$(", "$$(")  # else Kubernetes would look for a variable
    if not array:
        return word
    return word.replace("{tasks}", str(array)).replace("{task}", TASK[kind])


def for_bash(spec: specs.Spec, kind: str, array: int) -> str:
    """The command for a script of bash, in which the cluster's variables are left to bash."""
    return " ".join(word_for_bash(word, kind, array) for word in spec.command())


def word_for_bash(word: str, kind: str, array: int) -> str:
    """One word of it."""
    parts = re.split(NUMBERS, word) if array else [word]
    texts = [
        f'"{filled(p, kind, array)}"' if p == "{task}" else filled(shlex.quote(p), kind, array)
        for p in parts
        if p
    ]
    return "".join(texts) or "''"


def volumes(texts: list[str]) -> list[dict[str, str]]:
    """'CLAIM:/path' of each persistent volume."""
    found = [re.fullmatch(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?):(/.+)", text) for text in texts]
    if not all(found):
        raise ValueError("--volume: CLAIM:/path of a persistent volume claim")
    return [{"claim": match[1], "path": match[3]} for match in found if match]


def problem(kind: str, spec: specs.Spec, found: dict[str, Any]) -> str:
    """Why these options cannot work, '' if they can."""
    hosts, where = found["hosts"], specs.workdir(spec.args)
    if found["array"] < 0:
        return f"--array={found['array']}: a number of runs, from 1"
    if not found["array"] and (left := re.search(NUMBERS, " ".join(spec.args))):
        return f"{left[0]} in the arguments: is for --array=N"
    if found["array"] and kind not in TASK:
        return f"--array: for {' and '.join(TASK)}"
    if found["array"] and not any("{task}" in a for a in spec.args):
        return "--array: {task} must stand in the arguments, else all tasks do the same"
    if found["array"] and hosts.count * hosts.slices > 1:
        return "--array: a task has one host"
    if kind in ("tpu", "xpk") and not (hosts.accelerator or kind == "tpu"):
        return "--topology: a TPU's, such as v5e:4x4"
    if kind == "slurm" and hosts.resource == "google.com/tpu":
        return "--topology: GPUs; TPUs have no Slurm"
    if hosts.slices > 1 and kind == "tpu":
        return "--topology: one slice; several are for jobset or xpk"
    if kind == "slurm" and where.startswith(specs.BUCKET):
        return "--workdir: a folder that all nodes share, in which starts without progress are seen"
    if kind == "jobset" and not (found["ephemeral"] or where.startswith(specs.BUCKET)):
        inside = PurePosixPath(where).parts if where.startswith("/") else ()
        if not any(inside[: len(p)] == p for p in mounts(found)):
            return (
                "--workdir must lie below a --volume=CLAIM:/path or in a bucket (gs://...), else a"
                " restart begins from step 0 (or say --ephemeral)"
            )
    return ""


def mounts(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Folders of the volumes, as parts."""
    return [PurePosixPath(volume["path"]).parts for volume in found["volumes"]]


def parser() -> argparse.ArgumentParser:
    """Of the launcher's own options."""
    found = argparse.ArgumentParser(
        "python launch/render.py", usage="%(prog)s KIND [options] -- ARGUMENTS OF m4.main"
    )
    add = found.add_argument
    add("kind", choices=FILES)
    add("--topology", default="", help="h200:32, v5p:4x4x4, v6e:16x16+16x16: sets hosts and chips")
    add("--procs", type=int, default=1, help="hosts, where there is no --topology")
    add("--name", default="m4", help="tpu, jobset, xpk: one that no other run has there")
    add("--python", default="python", help="on the cluster")
    add("--module", default="m4.main", help="what is run")
    add("--array", type=int, default=0, help="slurm, jobset: so many runs, {task} in arguments")
    add("--restarts", type=int, help="5 without progress (slurm), or 20 in all")
    add("--time", default="24:00:00", help="slurm")
    add("--option", action="append", default=[], help="slurm: a line of #SBATCH")
    add("--image", default="m4:latest", help="jobset, xpk")
    add("--volume", action="append", default=[], help="jobset: CLAIM:/path")
    add("--ephemeral", action="store_true", help="jobset: the run may be lost")
    add("--select", action="append", default=[], help="jobset: node label=value")
    add("--resource", action="append", default=[], help="jobset: name=count")
    add("--zone", default="us-central2-b", help="tpu, xpk")
    add("--cluster", default="CLUSTER", help="xpk")
    add("--accelerator", default="", help="tpu: the slice's name, if not by --topology")
    add("--runtime", default="", help="tpu")
    add("--spot", action="store_true", help="tpu")
    return found


def main(argv: list[str]) -> int:
    """Prints the rendered text."""
    own, args = specs.split(argv)
    options = parser()
    found = vars(options.parse_args(own))
    if not args:
        options.error("give the arguments of m4.main after --")
    kind, topology, procs = (found.pop(key) for key in ("kind", "topology", "procs"))
    try:
        hosts = clusters.of(topology) if topology else clusters.Hosts(procs)
        found |= {"hosts": hosts, "volumes": volumes(found.pop("volume"))}
        pairs = {
            key: dict(s.split("=", 1) for s in found.pop(key)) for key in ("select", "resource")
        }
    except ValueError as error:
        options.error(str(error))
    found["restarts"] = found["restarts"] or (5 if kind == "slurm" else 20)
    limits = {hosts.resource: str(hosts.chips)} if hosts.resource else {}
    found |= {"selector": dict(hosts.selector) | pairs["select"]}
    found |= {"resources": limits | pairs["resource"], "options": found.pop("option")}
    found["accelerator"] = found["accelerator"] or hosts.accelerator or "v4-32"
    found["runtime"] = found["runtime"] or hosts.runtime or "tpu-ubuntu2204-base"
    count = hosts.count * hosts.slices
    spec = specs.Spec(args, count, python=found.pop("python"), module=found.pop("module"))
    if wrong := problem(kind, spec, found):
        options.error(wrong)
    print(render(kind, spec, **found), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
