"""Cost of building MIMIC-IV records: time and peak memory against the size of the tables.

The open demo is copied with every table `times` as long: copy k has its own patients, admissions
and stays (their numbers shifted by k times a power of ten), so that the cohort grows as the full
data's does. Each size is built in a fresh process, which reports rows per second of event tables
and its peak resident memory.

    python -m tests.timing build --times 1 10 40

Linear means that rows per second do not fall; flat that the peak does not grow with the tables.
"""

import argparse
import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from m4.data import build
from m4.data.sets.mimiciv import release
from m4.errors import DataError
from tests.timing import environment

SHIFT = 10**8  # more than any identifier of MIMIC-IV
IDS = ("subject_id", "hadm_id", "stay_id")
TABLES = (
    "icustays",
    "admissions",
    "patients",
    "chartevents",
    "labevents",
    "inputevents",
    "diagnoses_icd",
)
EVENTS = ("chartevents", "labevents", "inputevents")
LIMIT = 2 * 1024  # MiB


def main(argv: list[str]) -> None:
    """Parse options, enlarge, build, print a table or JSON."""
    parser = argparse.ArgumentParser("python -m tests.timing build", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10, 40])
    parser.add_argument("--raw_dir", default=os.environ.get("M4_RAW_DIR", ""))
    parser.add_argument("--scratch", help="folder for the copies (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a raw folder: build it here
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(_build(Path(args.one))))
        return
    root = release.find_root(args.raw_dir, demo=True) if args.raw_dir else None
    if root is None:
        raise DataError("timing build: M4_RAW_DIR has no mimic-iv-demo-*/ folder")
    results = []
    for times in args.times:
        with tempfile.TemporaryDirectory(prefix="m4-timing-", dir=args.scratch) as folder:
            rows = enlarge(root, Path(folder) / "mimic-iv-demo-0.0", times)
            line = [sys.executable, "-m", "tests.timing", "build", f"--one={folder}"]
            done = subprocess.run(line, capture_output=True, text=True, env=environment())
            if done.returncode:
                raise DataError(f"timing build: {done.stderr.strip().splitlines()[-1]}")
            found = json.loads(done.stdout.splitlines()[-1])
            results.append({"times": times, "event_rows": rows, **found})
            if args.json:
                print(json.dumps(results[-1]), flush=True)
    if not args.json:
        print(table(results))


def enlarge(root: Path, target: Path, times: int) -> int:
    """Copy the tables `times` over with shifted identifiers; returns the rows of event tables."""
    rows = 0
    for name in TABLES:
        source = release.table(root, name)
        path = target / source.parent.name / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(source, "rt", newline="") as handle:
            header, *body = csv.reader(handle)
        shifted = [header.index(column) for column in IDS if column in header]
        with open(path, "w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(header)
            for k in range(times):
                for row in body:
                    row = [*row]
                    for i in shifted:
                        row[i] = str(int(row[i]) + k * SHIFT) if row[i] else ""
                    writer.writerow(row)
        rows += times * len(body) if name in EVENTS else 0
    return rows


def _build(raw_dir: Path) -> dict[str, float]:
    """Build in this process; seconds, CPU seconds, records and peak memory in MiB."""
    wall, cpu = time.perf_counter(), time.process_time()
    folder = build.prepare("mimiciv", raw_dir, raw_dir / "data", options={"demo": True})
    found = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mib": _peak(),
    }
    manifest = json.loads((folder / "manifest.json").read_text())
    found["records"] = sum(split["rows"] for split in manifest["splits"].values())
    shutil.rmtree(folder)
    return found


def _peak() -> float:
    """Peak resident memory of this process; not ru_maxrss, which is inherited."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def table(results: list[dict]) -> str:
    """Sizes, rates and verdicts."""
    lines = [f"{'times':>6}{'event rows':>13}{'records':>9}{'rows/CPU s':>12}{'peak MiB':>10}"]
    for r in results:
        rate = r["event_rows"] / r["cpu_seconds"]
        lines.append(
            f"{r['times']:>6}{r['event_rows']:>13,}{r['records']:>9,}{rate:>12,.0f}"
            f"{r['peak_mib']:>10,.0f}"
        )
    worst = max(r["peak_mib"] for r in results)
    verdict = "met" if worst < LIMIT else "MISSED"
    lines.append(f"peak {worst:,.0f} MiB (bar {LIMIT:,} MiB: {verdict})")
    return "\n".join(lines)
