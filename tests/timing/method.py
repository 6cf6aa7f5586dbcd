"""A whole training step of a method (forward, backward, clipping, AdamW), at its published sizes.

    python -m tests.timing method --name=flexmoe --torch_python=PYTHON --json=flexmoe.json

m4 runs `m4.train.step` at `fidelity='released'`; the rival is a PyTorch module of the same
computation in the structure of the authors' (`tests.rivals`, checked against m4 in
tests/interop), with loops over experts, modalities and tasks. CPU times are of the whole process on
`--cores` cores (default 1) and stay within some 5 % on a busy machine; wall times need an idle one.
Both run in the same session, a step each in turn; where they do not fit into memory together
(fusemoe, m4oe), one process after the other.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.timing import moe
from tests.timing.method_cases import CASES, LARGE, NOTES, case_of
from tests.timing.moe import MALLOC
from tests.timing.worker_process import Worker


def main(argv: list[str]) -> None:
    """Parse options, measure, print, write JSON if asked."""
    parser = argparse.ArgumentParser("python -m tests.timing method", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--name", required=True, choices=CASES)
    parser.add_argument("--rows", type=int, help="batch size instead of the published one")
    parser.add_argument("--depth", type=int, help="layers (m4oe: of the ViTs) instead of theirs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--malloc", default="tuned", choices=MALLOC)
    parser.add_argument("--torch_python", help="an interpreter with torch")
    parser.add_argument("--json", help="file for the result")
    args = parser.parse_args(argv)
    case = case_of(args.name, args.rows, args.depth) | {"cores": args.cores}
    commands = {"m4": [sys.executable, "-m", "tests.timing.method_jax"]}
    if args.torch_python:
        script = Path(__file__).with_name("method_torch.py")
        commands["torch"] = [args.torch_python, str(script)]
        has_torch = [args.torch_python, "-c", "import torch"]
        subprocess.run(has_torch, check=True)
    apart = args.name in LARGE
    result = measure(commands, case, args.repeats, malloc=args.malloc, apart=apart)
    print(table(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


def measure(
    commands: dict[str, list[str]], case: dict[str, Any], repeats: int, *, malloc: str, apart: bool
) -> dict[str, Any]:
    """Times of every step in seconds, medians, and m4's over the rival's.

    `apart` keeps one process alive at a time.
    """
    about, times = {}, {}
    env = moe.environment(case["cores"], malloc)
    groups = [[name] for name in commands] if apart else [list(commands)]
    for group in groups:
        workers = {name: Worker(commands[name], env, case["cores"]) for name in group}
        try:
            about |= {name: worker.ask(case=case) for name, worker in workers.items()}
            rounds = [
                {name: worker.ask(run=name) for name, worker in workers.items()}
                for _ in range(repeats)
            ]
        finally:
            for worker in workers.values():
                worker.close()
        times |= {name: [r[name] for r in rounds] for name in group}
    result = {"case": case, "note": NOTES[case["name"]], "malloc": malloc, "together": not apart}
    for name in commands:
        result[name] = about[name] | {
            f"{clock}_ms": [1e3 * t[clock] for t in times[name]] for clock in ("cpu", "wall")
        }
    if "torch" in commands:
        cpu = {name: [t["cpu"] for t in times[name]] for name in commands}
        result["ratio"] = statistics.median(cpu["torch"]) / statistics.median(cpu["m4"])
    return result


def table(result: dict[str, Any]) -> str:
    case = result["case"]
    lines = [
        f"{case['name']}: {case['rows']} rows, {json.dumps(result['m4']['inputs'])}",
        f"{json.dumps(case['sizes'])}",
        result["note"],
        f"{'':<18}{'parameters':>15}{'CPU-ms':>10} [min-max]{'wall-ms':>16}",
    ]
    for name in ("m4", "torch"):
        if name in result:
            own = result[name]
            cpu = own["cpu_ms"]
            lines.append(
                f"{name + ' (' + own['version'] + ')':<18}{own['params']:>13,}"
                f"{statistics.median(cpu):>10.1f} [{min(cpu):.1f}-{max(cpu):.1f}]"
                f"{statistics.median(own['wall_ms']):>10.1f}"
            )
    if "ratio" in result:
        lines.append(f"CPU time of torch over m4: {result['ratio']:.2f}")
    return "\n".join(lines)
