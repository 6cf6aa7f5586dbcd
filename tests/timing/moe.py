"""The MoE layer, forward + backward, against a dense bound and torch rivals in the same run.

    python -m tests.timing moe --experts=8,64,256,1024 --json=moe.json
    python -m tests.timing moe --part=router --gate=linear,laplace --experts=64,256,1024
    python -m tests.timing moe --mesh=2x4          # collectives of the compiled program
    python -m tests.timing moe --rows_per_expert=32 --experts=64,256,1024    # growth in E

Ratios are medians over rounds; a round runs every variant once, so that a busy machine slows all
of them alike. Bounds and rivals:

- dense: two dense matmuls on the same T*k rows (the faster of one device, and rows split over
  one host device per core);
- torch_loop, torch_sorted: a loop over experts with one gather and one index-add, and grouped
  matmuls (`--torch_python` names an interpreter with torch; without torch they are null).

`--part=router` times gate, top-k and weights, forward, against one matmul [T, D] x [D, E] and one
pass over its result (the maximum of every row). On a CPU the rows are split over one host device
per core; the bound is the faster of that and one device.

On a CPU the experts are split over one host device per core where a matmul of one expert is too
small for several cores (`--split` overrides). Wall times need an otherwise idle machine;
`--cores=1` compares CPU times, which stay within some 5 % on a busy one. `--malloc=default` runs
every worker with the allocator as it is.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from m4.errors import ConfigError
from tests.timing import environment as of_children
from tests.timing.worker_process import Worker

RIVALS = ("torch_loop", "torch_sorted")
# Fresh gradients of hundreds of megabytes cost mostly page faults. Huge pages, and freed memory
# that stays with the process; the same for both frameworks.
MALLOC = {
    "tuned": {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": str(2**36),
        "MALLOC_MMAP_THRESHOLD_": str(2**36),
    },
    "default": {},
}
FEW_ROWS = 512  # per expert: below, XLA:CPU runs most batched matmuls on one core


def main(argv: list[str]) -> None:
    """Parse options, measure, print a table, write JSON and a plot if asked."""
    args = _parser().parse_args(argv)
    _check(args)
    if args.mesh:
        _in_child("tests.timing.moe_mesh", json.dumps(vars(args)), math.prod(args.mesh))
        return
    if args.part == "router":
        _write(router_rows(args), args.json)
        return
    rows = []
    workers = _start(args)
    try:
        for num_experts in args.experts:
            rows += measure(workers, case_of(args, num_experts), args.repeats)
            _print_rows(rows[-len(args.engine) :], header=len(rows) == len(args.engine))
    finally:
        for worker in workers.values():
            worker.close()
    if args.rows_per_expert and len(args.experts) > 1:
        print(f"log-log slope of the time per row in E: {growth(rows):+.3f}")
    _write(rows, args.json)
    if args.plot:
        plot(rows, args.plot)


def _write(rows, file):
    if file:
        Path(file).write_text(json.dumps(rows, indent=1) + "\n")


def _parser():
    parser = argparse.ArgumentParser("python -m tests.timing moe", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter

    def numbers(text):
        return [int(n) for n in text.split(",")]

    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--top_k", type=int, default=2)
    parser.add_argument("--experts", type=numbers, default=[8, 64, 256])
    parser.add_argument("--engine", type=lambda s: s.split(","), default=["auto"])
    parser.add_argument("--part", default="layer", choices=["layer", "router"])
    parser.add_argument("--gate", default="", help="also time the layer with this gate, and it")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--split", type=int, help="host devices that share the experts")
    parser.add_argument("--malloc", default="tuned", choices=MALLOC)
    parser.add_argument("--zipf", type=float, default=0.0, help="skew of the load; 0: uniform")
    parser.add_argument("--rows_per_expert", type=int, help="T = this * E / k, instead of --tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--json", help="file for the rows")
    parser.add_argument("--plot", help="file for a picture of the ratios over E")
    parser.add_argument("--mesh", type=lambda s: [int(n) for n in s.split("x")], help="DATAxEXPERT")
    return parser


def _check(args):
    for num_experts in args.experts:
        if not 1 <= args.top_k <= num_experts:
            raise ConfigError(f"--top_k={args.top_k} must be in [1, {num_experts}] experts")
    if args.mesh and len(args.mesh) != 2:
        raise ConfigError(f"--mesh={args.mesh} must be DATAxEXPERT, such as 2x4")


def case_of(args: argparse.Namespace, num_experts: int) -> dict[str, Any]:
    """What the workers need to know of one point of the grid."""
    names = ("tokens", "dim", "hidden", "top_k", "dtype", "cores", "zipf", "seed", "gate")
    case = {name: getattr(args, name) for name in names}
    if args.rows_per_expert:
        case["tokens"] = args.rows_per_expert * num_experts // args.top_k
    split = args.split or choose_split(case["tokens"] * args.top_k / num_experts, args.cores)
    return case | {
        "experts": num_experts,
        "engines": args.engine,
        "split": split if num_experts % split == 0 else 1,
        "malloc": MALLOC[args.malloc],
    }


def choose_split(rows_per_expert: float, cores: int) -> int:
    """Host devices that share the experts."""
    return cores if rows_per_expert < FEW_ROWS else 1


def environment(cores: int, malloc: str = "tuned") -> dict[str, str]:
    """Of a worker: `cores` host devices, and how it allocates (`MALLOC`)."""
    env = of_children() | MALLOC[malloc]
    flag = f"--xla_force_host_platform_device_count={cores}"
    env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {flag}".strip()
    return env


def _start(args):
    env = environment(args.cores, args.malloc)
    print(f"{args.cores} cores, malloc {MALLOC[args.malloc]}", file=sys.stderr)
    workers = {"jax": Worker([sys.executable, "-m", "tests.timing.moe_jax"], env, args.cores)}
    has_torch = [args.torch_python, "-c", "import torch"]
    if subprocess.run(has_torch, capture_output=True, check=False).returncode == 0:
        script = Path(__file__).with_name("moe_torch.py")
        workers["torch"] = Worker([args.torch_python, str(script)], env, args.cores)
    else:
        print(f"no torch in {args.torch_python}: its ratios are null", file=sys.stderr)
    return workers


def measure(workers: dict[str, Worker], case: dict[str, Any], repeats: int) -> list[dict]:
    """One row per engine: ratios, spread, memory, rate."""
    about = {name: worker.ask(case=case) for name, worker in workers.items()}
    owner = {variant: name for name in about for variant in about[name]["variants"]}
    _check_losses(about, case)
    rounds = [
        {variant: workers[name].ask(run=variant) for variant, name in owner.items()}
        for _ in range(repeats)
    ]
    clock = "cpu" if case["cores"] == 1 else "wall"
    times = {variant: [r[variant][clock] for r in rounds] for variant in owner}
    dense = min((v for v in owner if v.startswith("dense_")), key=lambda v: min(times[v]))
    return [_row(engine, times, dense, about, case, clock) for engine in case["engines"]]


def router_rows(args: argparse.Namespace) -> list[dict]:
    """One row per E and gate: gate, top-k and weights over the bound, from the same rounds."""
    env = environment(args.cores, args.malloc)
    worker = Worker([sys.executable, "-m", "tests.timing.moe_router"], env, args.cores)
    gates = (args.gate or "linear").split(",")
    clock = "cpu" if args.cores == 1 else "wall"
    case = {name: getattr(args, name) for name in ("tokens", "dim", "top_k", "seed", "cores")}
    rows = []
    print("experts gate            bound ms  / bound  [min-max]")
    try:
        for num_experts in args.experts:
            about = worker.ask(case=case | {"experts": num_experts, "gates": gates})
            names = about.pop("variants")
            rounds = [{n: worker.ask(run=n)[clock] for n in names} for _ in range(args.repeats)]
            bounds: list[Any] = [min(r[n] for n in names if n[:5] == "bound") for r in rounds]
            base = statistics.median(bounds)
            for gate in gates:
                ratios: list[Any] = [r[gate] / b for r, b in zip(rounds, bounds, strict=True)]
                row = {"experts": num_experts, "gate": gate, "bound_seconds": base}
                row |= {"ratio": statistics.median(ratios), "spread": [min(ratios), max(ratios)]}
                rows.append(row | {"clock": clock, "case": case} | about)
                print(
                    f"{num_experts:7d} {gate:15s} {1e3 * base:8.2f} {row['ratio']:8.2f}"
                    f"  [{min(ratios):.2f}-{max(ratios):.2f}]",
                    flush=True,
                )
    finally:
        worker.close()
    return rows


def _check_losses(about, case):
    facts = about["jax"]["facts"]
    losses = {name: fact["loss"] for name, fact in facts.items() if not fact["dropped"]}
    losses |= about.get("torch", {}).get("losses", {})
    tolerance = 1e-5 if case["dtype"] == "float32" else 2e-2
    if losses and max(losses.values()) > min(losses.values()) * (1 + tolerance):
        raise RuntimeError(f"the variants do not compute the same: losses {losses}")


def _row(engine, times, dense, about, case, clock):
    def ratio(to):
        if to not in times:
            return None
        return statistics.median(a / b for a, b in zip(times[engine], times[to], strict=True))

    over_dense = [a / b for a, b in zip(times[engine], times[dense], strict=True)]
    model_flops = 12 * case["tokens"] * case["top_k"] * case["dim"] * case["hidden"]
    row = {"experts": case["experts"], "engine": engine, "ratio_dense": ratio(dense)}
    row |= {f"ratio_{rival}": ratio(rival) for rival in RIVALS}
    row |= about["jax"]["facts"][engine]
    row |= {
        "ratio_dense_spread": [min(over_dense), max(over_dense)],
        "ratio_dense_minimum": min(times[engine]) / min(times[dense]),
        "seconds": statistics.median(times[engine]),
        "dense_seconds": statistics.median(times[dense]),
        "flops_per_second": model_flops / statistics.median(times[engine]),
        "dense_flops_per_second": model_flops / statistics.median(times[dense]),
        "repeats": len(times[engine]),
        "clock": clock,
        "load_average": os.getloadavg()[0],
        "versions": {name: a.get("jax") or a.get("version") for name, a in about.items()},
        "backend": about["jax"]["backend"],
        "device": about["jax"]["device"],
        "split": about["jax"]["split"],
        "case": case,
    }
    if case["gate"]:
        gated, router = times["gated"], times["router"]
        row["ratio_gated_dense"] = statistics.median(
            a / b for a, b in zip(gated, times["dense_1"], strict=True)
        )
        row["ratio_router"] = statistics.median(
            a / b for a, b in zip(router, times["router_bound"], strict=True)
        )
    return row


def growth(rows: list[dict]) -> float:
    """Least-squares slope of log(time per row) over log(E), of the first engine."""
    first = [row for row in rows if row["engine"] == rows[0]["engine"]]
    x = [math.log(row["experts"]) for row in first]
    y = [math.log(row["seconds"] / row["case"]["tokens"]) for row in first]
    return statistics.linear_regression(x, y).slope


def _print_rows(rows, header):
    if header:
        print(
            "experts split engine               dense  [min-max]      loop  sorted  GFLOP/s  peak"
        )
    for row in rows:
        low, high = row["ratio_dense_spread"]
        rivals = [f"{row[f'ratio_{r}']:7.2f}" if row[f"ratio_{r}"] else "      -" for r in RIVALS]
        print(
            f"{row['experts']:7d} {row['split']:5d} {row['engine']:20s} {row['ratio_dense']:7.2f}"
            f"  [{low:.2f}-{high:.2f}] {' '.join(rivals)} {row['flops_per_second'] / 1e9:8.1f}"
            f" {row['peak_bytes'] / 2**20:5.0f}M",
            flush=True,
        )


def _in_child(module, argument, devices):
    env = environment(devices) | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-m", module, argument], env=env, check=True)


def plot(rows: list[dict], file: str) -> None:
    """Time over that of the dense bound and of the rivals, over E."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for engine in dict.fromkeys(row["engine"] for row in rows):
        own = [row for row in rows if row["engine"] == engine]
        x = [row["experts"] for row in own]
        axes.plot(x, [row["ratio_dense"] for row in own], marker="o", label=engine)
    own = [row for row in rows if row["engine"] == rows[0]["engine"]]
    for rival in RIVALS:
        points = [
            (row["experts"], row["ratio_dense"] / row[f"ratio_{rival}"])
            for row in own
            if row[f"ratio_{rival}"]
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker="x", linestyle="--", label=rival)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="experts", ylabel="time / two dense matmuls of the same rows")
    axes.legend()
    figure.savefig(file, bbox_inches="tight")
