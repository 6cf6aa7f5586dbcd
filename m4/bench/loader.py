"""Loader throughput: examples per second from memory and from disk.

Two yardsticks, taken in turns with the loader so that a busy machine slows all of them alike:
- the bound: copying the bytes of the same batches from one array to another (`np.copyto`);
- the consumer: the examples per second that a training step takes (`--step_rate`), of which the
  loader alone must deliver three times as many.

    python -m m4.bench loader --data=physionet2012 --step_rate=2000
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

BAR = 3.0
ROUNDS = 5


def main(argv: list[str]) -> None:
    """Parse options, measure, print a table or JSON."""
    parser = argparse.ArgumentParser("python -m m4.bench loader", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", default="synthetic", help="data set (default: synthetic)")
    parser.add_argument("--options", type=json.loads, default={}, help="its options, as JSON")
    parser.add_argument("--raw_dir", default=os.environ.get("M4_RAW_DIR", ""))
    parser.add_argument("--data_dir", default=os.environ.get("M4_DATA_DIR", "data"))
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40, help="batches per round")
    parser.add_argument("--step_rate", type=float, help="examples/s of the training step")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    folder = build.prepare(args.data, args.raw_dir, args.data_dir, options=args.options)
    result = measure(folder, batch_size=args.batch_size, steps=args.steps)
    result |= {"data": args.data, "batch_size": args.batch_size, "step_rate": args.step_rate}
    if args.step_rate:
        result["times_the_step"] = result["memory"] / args.step_rate
    print(json.dumps(result) if args.json else _table(result))


def measure(folder: Path, *, batch_size: int, steps: int) -> dict[str, Any]:
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
    result: dict[str, Any] = {name: statistics.median(rates) for name, rates in rounds.items()}
    for name in ("memory", "disk"):
        pairs = zip(rounds[name], rounds["copy"], strict=True)
        result[f"{name}_to_copy"] = statistics.median(rate / copy for rate, copy in pairs)
    return {**result, "row_bytes": stores["memory"].row_bytes, "rows": len(stores["memory"])}


def _table(result: dict[str, Any]) -> str:
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
    if result["step_rate"]:
        times = result["times_the_step"]
        verdict = "met" if times >= BAR else "MISSED"
        lines.append(f"from memory: {times:.1f} x the step's examples/s (bar {BAR:g} x: {verdict})")
    return "\n".join(lines)
