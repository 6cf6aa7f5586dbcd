"""`--mode=scale`: how the speed of a run grows with the devices, measured and planned.

    python -m m4.main --config=C --mode=scale --devices=1,2,4,8 --kind=weak,strong --axis=data

Weak scaling keeps the rows of a device, strong scaling the rows of a batch. Every point is a
process of its own, on so many of this machine's devices (virtual ones of a CPU); a point that it
is too small for is planned for `--topology=KIND` and marked. The same command goes on where it
was stopped. Written to the work directory: scale.json, scale.md, scale.svg, points/.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from m4 import atomic, seal
from m4 import config as configs
from m4.config import Flags
from m4.errors import ConfigError, Preempted, UserError
from m4.plan import curves, topology
from m4.plan import facts as plans
from m4.run.workspace import owned, prepare
from m4.train import children

KINDS = ("weak", "strong")
AXES = ("data", "fsdp", "expert", "tensor")
VIRTUAL_CPU = 64  # most devices of one host that are measured


class ScaleError(UserError):
    """Some points could be neither measured nor planned; the others are in the table."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class Study:
    """What is asked for."""

    devices: tuple[int, ...]
    kinds: tuple[str, ...]
    axis: str
    steps: int
    topology: str  # kind of chip that points beyond this machine are planned for


def run(config: ml_collections.ConfigDict, folder: Path, flags: Flags) -> None:
    """Measures what is missing and writes the tables. See `m4.main`."""
    study, failed, rows = parse(flags.options), [], []
    speaks = os.environ.get("M4_PROCESS_ID", "0") in ("", "0")
    with owned(folder):
        data = prepare(config)
        (folder / "points").mkdir(exist_ok=True)
        for kind, count in ((k, n) for k in study.kinds for n in study.devices):
            name = f"{kind}-{study.axis}-{count}"
            try:
                found = point(config, study, kind, count, data, folder / f"points/{name}.json")
            except Preempted:
                raise
            except UserError as error:
                failed += [f"{name}: {line}" for line in error.args]
                continue
            rows.append(curves.Row(kind, count, study.axis, found))
            if speaks:
                print(f"{name}: {curves.said(found)}", flush=True)
                write(folder, rows)
    if failed:
        raise ScaleError(*failed)


def parse(options: dict[str, str]) -> Study:
    """The options of the mode. Raises ConfigError."""
    devices, kinds = options.get("devices", "1,2,4,8"), options.get("kind", "weak,strong")
    axis, steps = options.get("axis", "data"), options.get("steps", "20")
    beyond = options.get("topology", "cpu")
    lines = []
    numbers = devices.split(",")
    if not all(n.isdecimal() and int(n) > 0 for n in numbers) or len({*numbers}) < len(numbers):
        lines.append(f"--devices={devices}: must be different numbers, as 1,2,4,8")
    if not {*kinds.split(",")} <= {*KINDS}:
        lines.append(f"--kind={kinds}: must be weak, strong or weak,strong")
    if axis not in AXES:
        lines.append(f"--axis={axis}: must be one of {', '.join(AXES)}")
    if not steps.isdecimal() or int(steps) < 2:
        lines.append(f"--steps={steps}: must be a number from 2 on")
    if beyond not in topology.CHIPS:
        lines.append(f"--topology={beyond}: must be one of {', '.join(topology.CHIPS)}")
    if lines:
        raise ConfigError(*lines)
    counts = tuple(sorted(map(int, numbers)))
    return Study(counts, tuple(kinds.split(",")), axis, int(steps), beyond)


def point(
    config: ml_collections.ConfigDict, study: Study, kind: str, count: int, data: Path, file: Path
) -> dict[str, Any]:
    """One point: kept from before, measured, or planned. Raises ConfigError if it can't be."""
    config = configured(config, study, kind, count)
    key = _key(config, data, study)
    if file.is_file():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if (kept := seal.load(file)).get("key") == key and seal.intact(kept):
                return kept
    found = measured(config, data, study, count)
    if found is None:
        chips = topology.of_count(study.topology, count)
        facts = plans.ask(config, chips)
        if isinstance(facts, str):
            raise ConfigError(facts)
        found = {"facts": dataclasses.asdict(facts), "kind": study.topology, "measured": False}
    found |= {"key": key, "rows": config.train.batch_size, "across": config.mesh.across}
    atomic.write(file, json.dumps(seal.sealed(found), indent=1) + "\n")
    return found


def configured(
    config: ml_collections.ConfigDict, study: Study, kind: str, count: int
) -> ml_collections.ConfigDict:
    """The configuration of a point: the axis takes the devices, rows grow with them if weak."""
    changes = {f"mesh.{axis}": "1" for axis in AXES} | {f"mesh.{study.axis}": str(count)}
    if kind == "weak" and study.axis != "tensor":
        changes["train.batch_size"] = str(config.train.batch_size * count)
    if config.eval.batch_size % count and study.axis != "tensor":
        changes["eval.batch_size"] = str(config.eval.batch_size * count)
    return configs.check(config.to_dict(), changes, f"{kind} scaling over {count} devices")


def write(folder: Path, rows: Sequence[Any]) -> None:
    """The tables as data, as text, and the plot."""
    document = [curves.figures(rows, row) for row in rows]
    seal.write(folder, "scale.json", json.dumps(document, indent=1) + "\n")
    atomic.write(folder / "scale.md", "\n".join(curves.table(document)) + "\n")
    atomic.write(folder / "scale.svg", curves.plot(document))


def _key(config: ml_collections.ConfigDict, data: Path, study: Study) -> str:
    what = json.dumps([config.to_dict(), data.name, study.steps, study.topology], sort_keys=True)
    return hashlib.blake2b(what.encode(), digest_size=8).hexdigest()


def measured(
    config: ml_collections.ConfigDict, data: Path, study: Study, count: int
) -> dict[str, Any] | None:
    """What a process of its own measured; None if the machine has fewer devices."""
    request = {"config": config.to_dict(), "data": str(data), "steps": study.steps}
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if "M4_COORDINATOR" not in os.environ:
        if count > VIRTUAL_CPU:
            return None
        # Only a CPU heeds it, and only where there is nothing better.
        env["XLA_FLAGS"] = topology.parse(f"cpu:{count}").environment()["XLA_FLAGS"]
    command = [sys.executable, "-m", "m4.plan.measure"]
    done = children.run(
        command, env=env, given=json.dumps(request), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if "M4_COORDINATOR" in os.environ and os.environ.get("M4_PROCESS_ID", "0") not in ("", "0"):
        return {"measured": True} if done.returncode == 0 else None
    answers = [json.loads(line) for line in _lines(done.stdout) if line.startswith("{")]
    if not answers:
        last = [*_lines(done.stderr), f"ended with {done.returncode}"]
        raise ConfigError(f"{count} devices: {last[-2] if len(last) > 1 else last[-1]}")
    refused = answers[-1].get("refused")
    if refused and any("devices, found" in line or "would be idle" in line for line in refused):
        return None
    if refused:
        raise ConfigError(*refused)
    return answers[-1] | {"measured": True}


def _lines(text: str) -> Iterator[str]:
    return filter(None, map(str.strip, text.splitlines()))
