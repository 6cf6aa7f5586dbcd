"""Whole runs of `m4.bench.device`: reads what is asked as JSON, prints one line of JSON.

Steps are those of `--mode=scale` on one device, of invented patients; the loader's are a training
of the synthetic cohort that is stopped, and goes on.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from m4 import seal
from m4.bench.device import VARIANTS
from m4.errors import UserError
from m4.train import children

CONFIGS = Path("configs")


def steps(asked: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a train step of a method, tokens a second, MFU where the chip is known."""
    variant = "tiny" if asked["side"] < 1000 else "synthetic"
    method = asked["method"]
    config = f"{CONFIGS / f'{method}_mimic.py'}:{variant if method == 'fusemoe' else 'tiny'}"
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--mode=scale", "--devices=1", "--kind=strong", "--steps=20")
        done = _m4(config, folder, *flags, *VARIANTS[asked["variant"]])
        point = Path(folder) / "w/points/strong-data-1.json"
        if done.returncode or not point.is_file():
            return {"status": "failed", "why": _last(done)}
        found = seal.load(point)
    numbers = {k: v for k, v in found.items() if isinstance(v, int | float) and k != "key"}
    return {"status": "ok"} | numbers


def loader(asked: dict[str, Any]) -> dict[str, Any]:
    """A run that is told to stop, and goes on: exit codes, seconds, and what waited for data."""
    config, number = f"{CONFIGS / 'fusemoe_mimic.py'}:tiny", 60 if asked["side"] < 1000 else 400
    with tempfile.TemporaryDirectory() as folder:
        more = (f"--config.train.steps={number}", "--config.train.log_every=5")
        with children.start(_command(config, folder, *more), env=_env(folder)) as first:
            log, begun = Path(folder) / "w/metrics.jsonl", time.monotonic()
            while first.poll() is None and not log.is_file() and time.monotonic() - begun < 120:
                time.sleep(0.2)
            first.send_signal(signal.SIGTERM)
            stopped = first.wait()
        begun = time.monotonic()
        done = _m4(config, folder, *more)
        waits = [
            json.loads(line).get("time/input_wait") for line in log.read_text().splitlines() if line
        ]
        waits = [wait for wait in waits if wait is not None]
    if stopped not in (0, 75) or done.returncode:
        return {"status": "failed", "why": f"ended with {stopped}, then {_last(done)}"}
    share = {"waited_for_data": sum(waits) / len(waits)} if waits else {}
    return {"status": "ok", "stopped_with": stopped, "seconds": time.monotonic() - begun} | share


def _env(folder: str) -> dict[str, str]:
    return os.environ | {"M4_DATA_DIR": f"{folder}/data"}


def _command(config: str, folder: str, *flags: str) -> list[str]:
    start = [sys.executable, "-m", "m4.main", f"--config={config}", f"--workdir={folder}/w"]
    return [*start, *flags]


def _m4(config: str, folder: str, *flags: str) -> subprocess.CompletedProcess:
    command = _command(config, folder, *flags)
    pipe = subprocess.PIPE
    return children.run(command, env=_env(folder), stdout=pipe, stderr=pipe)


def _last(done: subprocess.CompletedProcess) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return (lines or [f"ended with {done.returncode}"])[-1][:300]


if __name__ == "__main__":
    ASKED = json.loads(sys.stdin.read())
    # What runs print is no answer: it goes where errors go.
    try:
        print(json.dumps({"steps": steps, "loader": loader}[ASKED["stage"]](ASKED)))
    except UserError as error:  # told to stop
        print(*error.lines(), sep="\n", file=sys.stderr)
        sys.exit(error.exit_code)
