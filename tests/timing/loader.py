"""Loader throughput: examples per second from memory and from disk.

From disk is through mapped files (`m4.data.mapped`) that the page cache holds; the first opening
of such a split, which writes them, is not in it.

Yardsticks, taken in turns with the loader so that a busy machine slows all of them alike:
- the bound: copying the bytes of the same batches from one array to another (`np.copyto`);
- the rival: torch's DataLoader with two workers on records of the same sizes (`--torch_python`
  names an interpreter with torch; for `--data=small` and `image`);
- the consumer: the examples per second that a training step takes (`--step_rate`), of which the
  loader alone must deliver three times as many.

    python -m tests.timing loader --data=small --torch_python=PYTHON
    python -m tests.timing loader --data=physionet2012 --step_rate=2000
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from m4.data import build, loader
from m4.data.store import Store
from tests.timing.worker_process import Worker

BAR = 3.0
ROUNDS = 5
WORKERS = 2  # of the rival
SIZES = {"small": {"rows": 4096}, "image": {"rows": 1024, "image": True}}  # of `loader_data`


def main(argv: list[str]) -> None:
    """Parse options, measure, print a table or JSON."""
    parser = argparse.ArgumentParser("python -m tests.timing loader", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", default="synthetic", help="small, image or a data set")
    parser.add_argument("--options", type=json.loads, default={}, help="its options, as JSON")
    parser.add_argument("--raw_dir", default=os.environ.get("M4_RAW_DIR", ""))
    parser.add_argument("--data_dir", default=os.environ.get("M4_DATA_DIR", "data"))
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40, help="batches per round")
    parser.add_argument("--step_rate", type=float, help="examples/s of the training step")
    parser.add_argument("--torch_python", help="interpreter with torch, for the rival")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    sized = SIZES.get(args.data)
    if args.torch_python and not sized:
        parser.error(f"--torch_python goes with --data={' or '.join(SIZES)}")
    options = (sized or {}) | args.options
    name = "tests.timing.loader_data" if sized else args.data
    folder = build.prepare(name, args.raw_dir, args.data_dir, options=options)
    case = {"batch_size": args.batch_size, "steps": args.steps, "workers": WORKERS}
    rival = _rival(args.torch_python, {"image": False} | options | case)
    try:
        result = measure(folder, batch_size=args.batch_size, steps=args.steps, rival=rival)
    finally:
        if rival:
            rival.close()
    result |= {"data": args.data, "batch_size": args.batch_size, "step_rate": args.step_rate}
    if args.step_rate:
        result["times_the_step"] = result["memory"] / args.step_rate
    print(json.dumps(result) if args.json else table(result))


def _rival(python: str | None, case: dict[str, Any]) -> Worker | None:
    if not python:
        return None
    worker = Worker([python, str(Path(__file__).with_name("loader_torch.py"))], dict(os.environ))
    worker.ask(case=case)
    worker.ask(run="torch")  # starts its processes
    return worker


def measure(
    folder: Path, *, batch_size: int, steps: int, rival: Worker | None = None
) -> dict[str, Any]:
    """Examples per second of the train split: medians over rounds, and ratios within a round."""
    stores = {
        "memory": Store(folder, "train", ram_limit=2**62),
        "disk": Store(folder, "train", ram_limit=0),
    }
    streams = {
        name: loader.TrainLoader(store, batch_size, seed=0).iter() for name, store in stores.items()
    }
    runs: dict[str, Callable[[], Any]] = {
        name: lambda stream=stream: next(stream) for name, stream in streams.items()
    }
    num_bytes = stores["memory"].row_bytes * batch_size
    source, target = np.ones((2, num_bytes), np.uint8)
    runs["copy"] = lambda: np.copyto(target, source)
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(ROUNDS):
        for name, run in runs.items():
            before = time.perf_counter()
            for _ in range(steps):
                run()
            rounds[name].append(steps * batch_size / (time.perf_counter() - before))
        if rival:
            seconds = rival.ask(run="torch")["wall"]
            rounds.setdefault("torch", []).append(steps * batch_size / seconds)
    result: dict[str, Any] = {name: statistics.median(rates) for name, rates in rounds.items()}
    for name in ("memory", "disk"):
        for other in {"copy", "torch"} & {*rounds}:
            pairs = zip(rounds[name], rounds[other], strict=True)
            result[f"{name}_to_{other}"] = statistics.median(rate / by for rate, by in pairs)
    return {**result, "row_bytes": stores["memory"].row_bytes, "rows": len(stores["memory"])}


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['data']}: {result['rows']} training rows of {result['row_bytes']} bytes, "
        f"batches of {result['batch_size']}",
        f"{'source':<10}{'examples/s':>14}{'of bare copy':>14}",
        *(
            f"{name:<10}{result[name]:>14,.0f}{result[f'{name}_to_copy']:>14.1%}"
            for name in ("memory", "disk")
        ),
        f"{'bare copy':<10}{result['copy']:>14,.0f}",
    ]
    if "torch" in result:
        lines.append(f"{'torch':<10}{result['torch']:>14,.0f}  (DataLoader, {WORKERS} workers)")
        times = {name: result[f"{name}_to_torch"] for name in ("memory", "disk")}
        found = ", ".join(f"{times[name]:.1f} x torch from {name}" for name in times)
        verdict = "met" if min(times.values()) >= BAR else "MISSED"
        lines.append(f"{found} (bar {BAR:g} x: {verdict})")
    if result["step_rate"]:
        times = result["times_the_step"]
        verdict = "met" if times >= BAR else "MISSED"
        lines.append(f"from memory: {times:.1f} x the step's examples/s (bar {BAR:g} x: {verdict})")
    return "\n".join(lines)
