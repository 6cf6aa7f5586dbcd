"""Writes what a cluster wants to be given, from the same `Spec` that `local.py` starts.

    python launch/render.py slurm --procs=4 --name=run -- --config=FILE --workdir=DIR | sbatch
    python launch/render.py jobset --procs=4 --image=IMAGE -- --config=FILE --workdir=DIR
    python launch/render.py tpu --zone=ZONE --accelerator=v5litepod-16 -- --config=... --workdir=...

Every process gets the command and the environment of `Spec`; only the values that the cluster
knows better (addresses, numbers) are its variables. A TPU slice tells all of them to JAX itself.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import jinja2
import spec as specs

PORT = 12355
FILES = {"slurm": "slurm.sbatch", "jobset": "jobset.yaml", "tpu": "tpu.sh"}


def render(kind: str, spec: specs.Spec, **options: Any) -> str:
    """Text for `kind`, one of `FILES`."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    templates = jinja2.Environment(
        loader=loader,
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment = spec.environment(*addresses(kind, options["name"]))
    remote = " ".join(f"{k}={shlex.quote(v)}" for k, v in environment.items() if k in TPU_KEYS)
    return templates.get_template(FILES[kind]).render(
        spec=spec,
        environment=environment,
        # Inside a pair of single quotes, a quote has to be closed, escaped and opened again.
        command_in_quotes=spec.shell().replace("'", "'\\''"),
        remote=shlex.quote(f"{remote} {spec.shell()}"),
        **options,
    )


TPU_KEYS = ("M4_COORDINATOR", "M4_HEARTBEAT")


def addresses(kind: str, name: str) -> tuple[str, str]:
    """(coordinator, process number) in the words of the cluster."""
    return {
        "slurm": (f'"$head:{PORT}"', "$SLURM_PROCID"),
        "jobset": (
            f"{name}-workers-0-0.{name}:{PORT}",
            "metadata.annotations['batch.kubernetes.io/job-completion-index']",
        ),
        "tpu": ("auto", ""),
    }[kind]


def main(argv: list[str]) -> int:
    """Prints the rendered text."""
    own, args = specs.split(argv)
    parser = argparse.ArgumentParser("python launch/render.py")
    parser.add_argument("kind", choices=FILES)
    parser.add_argument("--procs", type=int, default=1)
    parser.add_argument("--name", default="m4")
    parser.add_argument("--python", default="python", help="on the cluster")
    parser.add_argument("--time", default="24:00:00", help="slurm")
    parser.add_argument("--option", action="append", default=[], help="slurm: a line of #SBATCH")
    parser.add_argument("--image", default="m4:latest", help="jobset")
    parser.add_argument("--restarts", type=int, default=100, help="jobset")
    parser.add_argument("--select", action="append", default=[], help="jobset: node label=value")
    parser.add_argument("--resource", action="append", default=[], help="jobset: name=count")
    parser.add_argument("--zone", default="us-central2-b", help="tpu")
    parser.add_argument("--accelerator", default="v4-32", help="tpu")
    parser.add_argument("--runtime", default="tpu-ubuntu2204-base", help="tpu")
    parser.add_argument("--spot", action="store_true", help="tpu")
    found = vars(parser.parse_args(own))
    if not args:
        parser.error("give the arguments of m4.main after --")
    spec = specs.Spec(args, found.pop("procs"), python=found.pop("python"))
    found["options"] = found.pop("option")
    found["selector"] = dict(s.split("=", 1) for s in found.pop("select"))
    found["resources"] = dict(s.split("=", 1) for s in found.pop("resource"))
    print(render(found.pop("kind"), spec, **found), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
