"""A long run: memory, threads and open files must not grow, and saving must not hold it up."""

import contextlib
import json
import signal
import statistics
import time
from pathlib import Path

import m4
from tests.faults import runs
from tests.faults.harness import Bench, Outcome

SLOPE = 1.0  # MiB of resident memory per 1,000 steps
STALL = 0.02  # share of wall time
METHOD = "m3h"
# The array store has one worker more whenever its tasks wait, and keeps it: 5, 6 and 7 in half an
# hour. Those are bounded and not counted among the threads.
POOL, MOST_WORKERS = "ts_pool_worker", 16


def memory(bench: Bench) -> Outcome:
    """One run of many steps, looked at from outside, SIGTERM at the end. Three bars, three tries.

    Resident memory grows by less than `SLOPE`, threads and open files not at all, and saving at
    the default interval stalls the loop for less than `STALL` of its time.
    """
    minutes = 0.5 if bench.short else 30 * bench.scale
    workdir = bench.work / "soak"
    args = ["--config.train.steps=100000000", "--config.train.log_every=50"]
    args += ["--config.train.eval_every=100000000", "--config.train.save_every=500"]
    run = runs.start(bench, METHOD, workdir, *args)
    samples = []
    while run.alive() and not _steps(workdir):
        time.sleep(0.2)
    end = time.monotonic() + 60 * minutes
    while run.alive() and time.monotonic() < end:
        time.sleep(60 * minutes / 40)
        samples.append((_steps(workdir), *_looks(run.pid)))
    run.send(signal.SIGTERM)
    code = run.wait()
    if code != 75 or len(samples) < 40:
        return Outcome(3, 0, 3, f"ended in {code} after {len(samples)} looks")
    late = samples[10:]  # after warm-up
    slope = _slope([s[0] / 1000 for s in late], [s[1] for s in late])
    counts = {(s[2], s[3]) for s in late}
    growth = max(counts) if len(counts) > 1 else None
    stall = _stall(workdir)
    threads, files = (_ends([s[i] for s in late]) for i in (2, 3))
    workers = max(s[4] for s in samples)
    level = threads[1] <= threads[0] and files[1] <= files[0] and workers <= MOST_WORKERS
    passed = [slope < SLOPE, level, stall < STALL]
    note = (
        f"{minutes:g} min, {samples[-1][0]:,} steps, {slope:+.3f} MiB per 1,000 steps,"
        f" saving {100 * stall:.2f} % of the time"
        + (f", threads and files up to {growth}" if growth else "")
        + f", {workers} workers of the array store"
        + (f", medians {threads} and {files}" if not passed[1] else "")
    )
    return Outcome(3, sum(passed), 3 - sum(passed), note)


def shipped(bench: Bench) -> Outcome:
    """The demo, `fusemoe_mimic.py:synthetic`: its saves take less than `STALL` of its time."""
    workdir = bench.work / "demo"
    config = Path(m4.__file__).parents[1] / "configs/fusemoe_mimic.py"
    args = [f"--config={config}:synthetic", f"--workdir={workdir}"]
    environment = runs.environment(bench, 1) | {"XLA_FLAGS": ""}
    code = runs.Run(args, bench.work / "demo.log", environment).wait()
    if code != 0:
        return Outcome(1, 0, 1, f"ended in {code}")
    stall = _stall(workdir)
    saves = sum("time/save_s" in row for row in _rows(workdir))
    note = f"{100 * stall:.2f} % of the time in {saves} saves during {_steps(workdir)} steps"
    return Outcome(1, int(stall < STALL), int(stall >= STALL), note)


def _looks(pid: int) -> tuple[float, int, int, int]:
    """(resident MiB, threads, open files, workers of the array store's pool) of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    files = len([*Path(f"/proc/{pid}/fd").iterdir()])
    workers = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            workers += (thread / "comm").read_text().startswith(POOL)
    return int(fields["VmRSS"].split()[0]) / 1024, int(fields["Threads"]) - workers, files, workers


def _ends(values: list[int]) -> tuple[float, float]:
    """Medians of the first and the last quarter: saves open files for a moment."""
    quarter = len(values) // 4
    return statistics.median(values[:quarter]), statistics.median(values[-quarter:])


def _slope(x: list[float], y: list[float]) -> float:
    return statistics.linear_regression(x, y).slope if x[-1] > x[0] else 0.0


def _rows(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _steps(workdir: Path) -> int:
    rows = _rows(workdir)
    return rows[-1]["step"] if rows else 0


def _stall(workdir: Path) -> float:
    """Seconds spent in saving over those spent in steps and saving, from the run's own log."""
    train = json.loads((workdir / "config.json").read_text())["train"]
    rows = [row for row in _rows(workdir) if "time/examples_per_s" in row]
    saved = sum(row.get("time/save_s", 0.0) for row in rows)
    examples = train["log_every"] * train["batch_size"]
    stepping = sum(examples / row["time/examples_per_s"] for row in rows)
    return saved / (saved + stepping)
