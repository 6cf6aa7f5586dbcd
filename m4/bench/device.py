"""The layer, its parts and whole steps, timed on the GPU or TPU at hand, beside their bounds.

    python -m m4.bench device --budget=480 --out=runs/device
    python -m m4.bench device --device=cpu --budget=30      # the same code at toy sizes

Stages run in processes of their own, the most telling first, so that a cut leaves the best part:

1. facts     what the machine is
2. right     every engine against 'dense' in float32: values and gradients, four kinds of routing
3. bounds    a large product, a copy, the six products of the layer done densely
4. layer     forward and backward by engine and number of experts, uniform and skewed routing,
             each beside the dense products on the same rows, timed before and after it
5. rivals    torch's grouped matmul and its loop, where torch has this device
6. parts     gate, choice, plan, gather and sum alone
7. steps     whole train steps of the five methods, float32, bfloat16 and with rematerialisation
8. loader    how much of a step waits for data, and a run that goes on after a stop

Every measurement is a line of `device.jsonl` in --out. A stage that does not fit what is left of
the budget is written down as skipped. Exit code 0, 3 if a goal was missed, 1 if something failed.
Goals are those of a Hopper card (docs/scale.md); elsewhere there are none but those of stage 2.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m4 import local
from m4.errors import ConfigError, UserError
from m4.train import children

# Experts -> hidden units: what fits one card of 80 GB with bfloat16 weights and gradients.
REAL = {
    "tokens": 131_072,
    "width": 2048,
    "top_k": 2,
    "hidden": {64: 8192, 8: 8192, 256: 8192, 512: 4096, 1024: 2048},
    "side": 8192,
    "seconds": 0.5,
    "groups": 5,
}
TOY = {
    "tokens": 512,
    "width": 64,
    "top_k": 2,
    "hidden": {8: 128},
    "side": 128,
    "seconds": 0.01,
    "groups": 3,
}
ENGINES = ("grouped", "dropless", "capacity", "ragged")
METHODS = ("fusemoe", "m3h", "flexmoe", "flexcare", "m4oe")
VARIANTS = {
    "float32": (),
    "bfloat16": ("--config.train.precision=bfloat16",),
    "remat": ("--config.train.remat=dots",),
}
# Name -> (stage's record, its field, at least or at most, limit); on a GPU of compute capability 9.
GOALS = {
    "layer, 2,048 rows an expert and more, of dense": ("layer E=64", "of_dense", ">=", 0.6),
    "layer, E = 512, of dense": ("layer E=512", "of_dense", ">=", 0.4),
    "Zipf 1 over uniform, E = 64": ("layer E=64", "zipf_over_uniform", "<=", 1.25),
    "peak at E = 256, GB": ("layer E=256", "peak_gb", "<=", 50.0),
    "over torch's grouped matmul, E = 64": ("rivals E=64", "over_grouped", ">=", 0.9),
    "over torch's loop, E = 512": ("rivals E=512", "over_loop", ">=", 20.0),
}


class DeviceError(UserError):
    """Something could not be measured or is wrong."""

    exit_code = 1


class MissedError(UserError):
    """All was measured; a goal was missed."""

    exit_code = 3


def main(argv: list[str]) -> None:
    """Measure what the budget allows. Raises DeviceError or MissedError, see above."""
    parser = argparse.ArgumentParser("python -m m4.bench device", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--budget", type=float, default=480, help="seconds in all")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu"), help="cpu: toy sizes")
    parser.add_argument("--out", default="runs/device", help="folder for device.jsonl")
    args = parser.parse_args(argv)
    if not (math.isfinite(args.budget) and args.budget > 0):
        raise ConfigError(f"--budget={args.budget}: must be a positive number of seconds")
    folder = local.folder(args.out, "--out")
    folder.mkdir(parents=True, exist_ok=True)
    records = list(_measured(args, folder / "device.jsonl"))
    goals = judged(records)
    for line in table(records, goals):
        print(line)
    bad = [r for r in records if r["status"] == "failed"]
    if bad:
        raise DeviceError(*(f"{r['id']}: {r['why']}" for r in bad))
    if missed := [name for name, _, met in goals if not met]:
        raise MissedError(*(f"goal missed: {name}" for name in missed))


def stages(sizes: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], float]]:
    """(id, what a child is asked, seconds that it is expected to take on a card)."""
    yield "facts", {"stage": "facts"}, 15
    yield "right", {"stage": "right"}, 60
    yield "bounds", {"stage": "bounds"}, 30
    for num_experts in sizes["hidden"]:
        for engine in ENGINES[:3] if num_experts <= 256 else ENGINES[:1]:
            asked = {"stage": "layer", "experts": num_experts, "engine": engine}
            yield f"layer E={num_experts} {engine}", asked, 25
    for num_experts in sizes["hidden"]:
        yield f"rivals E={num_experts}", {"stage": "rivals", "experts": num_experts}, 25
    for num_experts in sizes["hidden"]:
        yield f"parts E={num_experts}", {"stage": "parts", "experts": num_experts}, 15
    for method in METHODS:
        for name in VARIANTS:
            if (method, name) != ("m3h", "remat"):  # has no layers to speak of
                asked = {"stage": "steps", "method": method, "variant": name}
                yield f"steps {method} {name}", asked, 40
    yield "loader", {"stage": "loader"}, 60


def _measured(args: argparse.Namespace, file: Path) -> Iterator[dict[str, Any]]:
    begun, cpu = time.monotonic(), args.device == "cpu"
    sizes, layers = TOY if cpu else REAL, {}
    with file.open("a") as log:
        for name, asked, expected in stages(sizes):
            left = args.budget - (time.monotonic() - begun)
            if left < (5 if cpu else 1.3 * expected):
                record = {
                    "id": name,
                    "status": "skipped",
                    "why": f"{left:.0f} s of the budget left",
                }
            else:
                record = {"id": name} | _child({**asked, **_plain(sizes)}, left, cpu=cpu)
            if asked["stage"] == "layer" and record["status"] == "ok":
                known = layers.get(asked["experts"], math.inf)
                layers[asked["experts"]] = min(record["ms"], known)
            if asked["stage"] == "rivals":
                record |= over(record, layers.get(asked["experts"]))
            log.write(json.dumps(record) + "\n")
            log.flush()
            print(_line(record), flush=True)
            yield record


def over(rivals: dict[str, Any], own: float | None) -> dict[str, float]:
    """How many times as fast as torch's the best engine is; `own` is its milliseconds."""
    names = {"over_grouped": "grouped_mm_ms", "over_loop": "loop_ms"}
    return {k: rivals[ms] / own for k, ms in names.items() if own and ms in rivals}


def _plain(sizes: dict[str, Any]) -> dict[str, Any]:
    return sizes | {"hidden": {str(k): v for k, v in sizes["hidden"].items()}}


def _child(asked: dict[str, Any], timeout: float, *, cpu: bool) -> dict[str, Any]:
    """What a process of its own found: two frameworks, or two cases, never share a card."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    env.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    if cpu:
        env["JAX_PLATFORMS"] = "cpu"
    module = {"rivals": "device_torch", "steps": "device_runs", "loader": "device_runs"}
    command = [sys.executable, "-m", f"m4.bench.{module.get(asked['stage'], 'device_stages')}"]
    try:
        done = children.run(
            command, env=env, given=json.dumps(asked), timeout=timeout,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"status": "skipped", "why": f"did not end in the {timeout:.0f} s that were left"}
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if answers:
        return json.loads(answers[-1])
    last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
    memory = any(word in done.stderr for word in ("RESOURCE_EXHAUSTED", "out of memory"))
    why = "needs more memory than there is" if memory else (last or ["no answer"])[0][:300]
    return {"status": "skipped" if memory else "failed", "why": why}


def judged(records: list[dict[str, Any]]) -> list[tuple[str, float, bool]]:
    """(goal, value, met) of every goal of which there is a value; the best engine counts."""
    facts: dict[str, Any] = next((r for r in records if r["id"] == "facts"), {})
    found = []
    for name, (prefix, field, how, limit) in GOALS.items():
        if int(facts.get("capability") or 0) < 90:
            continue
        values = [r[field] for r in records if r["id"].startswith(f"{prefix}") and r.get(field)]
        if values:
            value = max(values) if how == ">=" else min(values)
            found.append((name, value, value >= limit if how == ">=" else value <= limit))
    return found


def table(records: list[dict[str, Any]], goals: list[tuple[str, float, bool]]) -> list[str]:
    """What is printed at the end, as Markdown."""
    lines = [
        "",
        "| | ms | TFLOP/s | of dense | Zipf 1 / uniform | peak GB |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        if record["status"] != "ok" or "ms" not in record:
            continue
        columns = (
            record.get(k) for k in ("ms", "tflops", "of_dense", "zipf_over_uniform", "peak_gb")
        )
        cells = ("" if value is None else f"{value:.3g}" for value in columns)
        lines.append(f"| {record['id']} | {' | '.join(cells)} |")
    for name, value, met in goals:
        lines.append(f"{'met   ' if met else 'MISSED'} {name}: {value:.3g}")
    return lines


def _line(record: dict[str, Any]) -> str:
    if record["status"] != "ok":
        return f"{record['id']}: {record['status']}, {record['why']}"
    shown = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "status"}
    return f"{record['id']}: " + ", ".join(f"{k} {v:.4g}" for k, v in shown.items())
