"""`python -m tests.faults [--short] [--only=NAME,NAME] [--jobs=N] [--write=PAGE]`.

Tries the faults below, prints `tried / survived / lost` for each and in all, and with `--write`
replaces their rows in the table of a page. Exit code 1 if anything was lost.
"""

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

from tests.faults import harness
from tests.faults.config import METHODS
from tests.faults.harness import Outcome, Scenario

SCENARIOS = (
    *(
        Scenario(f"SIGKILL of {method}", "strikes:kills", method == "m3h", (method,))
        for method in METHODS
    ),
    Scenario("SIGTERM", "strikes:terms"),
    Scenario("8 devices split over processes", "gangs:factorisations"),
    Scenario("resume on another split of 8 devices", "gangs:resumes"),
    Scenario("resume on another number of devices", "gangs:devices"),
    Scenario("dead, stopped or stalled peer", "gangs:peers"),
    Scenario("two processes that differ", "unequal:peers"),
    Scenario("the n-th system call fails or kills", "injection:points"),
    Scenario("many processes, one work directory", "locking:contended"),
    Scenario("SIGTERM to two processes", "gangs:gang_terms"),
    Scenario("a file system without locks and atomic renames", "network:everything", False),
    Scenario("a work directory in a bucket", "bucket:kills"),
    Scenario("bit flips in checkpoints", "flips:bits"),
    Scenario("flipped bits in a built data set", "data_flips:bits"),
    Scenario("disk full", "disk:full"),
    Scenario("read-only disk", "disk:read_only"),
    Scenario("soak: memory, handles, stall of saving", "soak:memory", in_short=False),
    Scenario("stall of saving in the demo", "soak:shipped", in_short=False),
    Scenario("truncated or deleted checkpoint files", "flips:cuts"),
    Scenario("bad inputs of the catalogue", "catalogue:bad_inputs"),
    Scenario("fuzzed configurations, tables and manifests", "fuzz:fuzz"),
    Scenario("NaN or infinity inside a step", "nans:nans"),
    Scenario("canaries: texts, names, values, dates of patients", "canaries:canaries"),
)


def _outcomes(
    chosen: list[Scenario], folder: Path, options: argparse.Namespace
) -> Iterator[dict[str, Outcome]]:
    """The outcome of each scenario as soon as there is one, `options.jobs` at a time."""
    sizes = (options.shared, options.short, options.seed, options.scale)
    if options.jobs == 1:
        yield from (harness.run_in(folder, scenario, *sizes) for scenario in chosen)
        return
    context = multiprocessing.get_context("spawn")  # a process with threads must not fork
    with futures.ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        begun = [pool.submit(harness.run_in, folder, scenario, *sizes) for scenario in chosen]
        for one in futures.as_completed(begun):
            yield one.result()


def main(args: list[str]) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="the form of minutes")
    parser.add_argument("--only", default="", help="comma-separated beginnings of names")
    parser.add_argument("--jobs", type=int, default=1, help="scenarios at the same time")
    parser.add_argument("--write", type=Path, help="page whose table is updated")
    parser.add_argument("--shared", type=Path, help="keeps compiled programs for the next time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the long form's counts")
    options = parser.parse_args(args)
    starts = tuple(options.only.split(",")) if options.only else ("",)
    chosen = [s for s in SCENARIOS if s.name.startswith(starts)]
    chosen = [s for s in chosen if s.in_short or options.only or not options.short]
    if not chosen:
        parser.error(f"--only: known are {', '.join(s.name for s in SCENARIOS)}")
    with tempfile.TemporaryDirectory(prefix="m4-reliability-") as folder:
        options.shared = (options.shared or Path(folder) / "shared").absolute()
        options.shared.mkdir(parents=True, exist_ok=True)
        found = {}
        for outcome in _outcomes(chosen, Path(folder), options):
            found |= outcome
            tried = {name: o for name, o in outcome.items() if o.tried}
            if options.write and tried:
                form = "short" if options.short else "long"
                options.write.write_text(harness.update(options.write.read_text(), tried, form))
    whole = harness.total(found)
    print(f"faults tried / survived / lost: {whole.tried} / {whole.survived} / {whole.lost}")
    return 1 if whole.lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
