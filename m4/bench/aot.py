"""The expert-parallel layer compiled for TPU pods, without a TPU.

    python -m m4.bench aot              # all cases; needs the extra: pip install "m4-moe[tpu]"
    python -m m4.bench aot --cases=8x64,64x64 --exchange=ragged_all_to_all

A case is CHIPSxEXPERTS. Every case is compiled in a process of its own and checked:

- FLOPs of one chip at most 1.27 times 12*k*T_l*d*h, the arithmetic of the layer, at slack 1.25;
- exactly 4 all-to-alls of rows, padded or ragged;
- no gather and no reduction of expert weights over the `expert` axis;
- every gradient is split like its parameter;
- peak memory within 5 % of the cost model (`aot_case.model_bytes`).

Exit code 0 if all hold, 1 if one fails; without libtpu it says so and returns 0. Versions matter:
with jax 0.10.2 use libtpu 0.0.48. Under 0.0.45 `ragged_dot` is expanded on v6e, and jax cannot
print what 0.0.52 compiles.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys

from m4 import local
from m4.train import children

# CHIPSxEXPERTS -> topology, (data, expert) mesh, tokens per chip.
CASES = {
    "8x64": ("v5p:2x2x2", (2, 4), 2048),
    "64x64": ("v5p:4x4x4", (8, 8), 2048),
    "256x256": ("v6e:16x16", (16, 16), 2048),
    "512x1024": ("v5p:8x8x8", (8, 64), 4096),
    "4096x4096": ("v5p:16x16x16", (64, 64), 2048),
    "4096x16384": ("v5p:16x16x16", (64, 64), 4096),
}
LAYER = {"dim": 1024, "hidden": 4096, "top_k": 2, "dtype": "bfloat16"}
SLACK = 1.25
EXCHANGES = ("all_to_all", "ragged_all_to_all")


def main(argv: list[str]) -> None:
    """Compile the cases, print a table, write JSON if asked; SystemExit(1) if a check fails."""
    parser = argparse.ArgumentParser("python -m m4.bench aot", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cases", default=",".join(CASES), help="CHIPSxEXPERTS, comma-separated")
    parser.add_argument("--exchange", default="all_to_all", choices=EXCHANGES)
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args(argv)
    target = local.folder(args.json, "--json") if args.json else None
    if importlib.util.find_spec("libtpu") is None:
        print("skipped: no libtpu; install the extra `tpu` (pip install 'm4-moe[tpu]')")
        return
    rows = [compile_case(name, args.exchange) for name in args.cases.split(",")]
    if target:
        target.write_text(json.dumps(rows, indent=1) + "\n")
    if not all(all(row["checks"].values()) for row in rows):
        raise SystemExit(1)


def compile_case(name: str, exchange: str = "all_to_all") -> dict:
    """Compile one case in a child process, print and return what was found."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    command = [sys.executable, "-m", "m4.bench.aot_case", name, exchange]
    answer = children.run(command, env=env, stdout=subprocess.PIPE)
    answer.check_returncode()
    row = json.loads(answer.stdout.splitlines()[-1])
    failed = [check for check, passed in row["checks"].items() if not passed]
    print(
        f"{name:11s} {row['topology']:13s} FLOPs {row['flops_ratio']:.3f} x model,"
        f" peak {row['peak_bytes'] / 1e9:.2f} GB (model {row['model_bytes'] / 1e9:.2f}),"
        f" {row['exchanges']} exchanges: {'FAILED ' + ', '.join(failed) if failed else 'ok'}",
        flush=True,
    )
    return row
