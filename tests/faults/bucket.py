"""A work directory in a bucket: SIGKILL at random moments, and a store that stumbles meanwhile."""

import importlib.util
import os
import random
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from m4.remote import mirror, places, states
from m4.train import retention
from tests import bucket_server
from tests.faults import config, runs
from tests.faults.harness import Bench, Outcome

BLOWS = 4  # at one run
ARGS = [f"--config={config.__file__}:m3h", "--config.train.save_every=6"]
STUMBLES = "begins={}&times=2&code=503"  # of the next changes


def kills(bench: Bench) -> Outcome:
    """Survived: resumed from the newest complete state, and the same numbers in the end."""
    if importlib.util.find_spec("gcsfs") is None:
        return Outcome(0, 0, 0, "needs gcsfs")
    tried, rng = bench.number(2, 20), random.Random(bench.seed)
    right = runs.reference(bench, "m3h", *ARGS[1:])
    problems: list[str] = []
    survived = resumed = 0
    with _store(bench) as (address, environment):
        for first in range(0, tried, BLOWS):
            url = f"gs://{bucket_server.BUCKET}/run{first}"
            struck = min(BLOWS, tried - first)
            before = len(problems)
            for blow in range(struck + 1):
                log = bench.work / f"run{first}-{blow}.log"
                there = max(_steps(url), default=-1)
                run = runs.Run([*ARGS, f"--workdir={url}"], log, environment)
                if blow < struck:
                    _strike(run, url, rng, address)
                code = run.wait()
                if code not in (0, -signal.SIGKILL):
                    problems.append(f"ended in {code}: {run.text()[-500:]}")
                if there >= 0 and "compiled in" in run.text():
                    resumed += 1
                    if f"resuming from step {there}\n" not in run.text():
                        problems.append(f"not resumed from {there}")
            folder = places.folder(url)
            mirror.pull(folder)
            if not runs.same(folder, right):
                problems.append("numbers differ")
            survived += struck if len(problems) == before else 0
    print(*problems, sep="\n  ")
    note = f"SIGKILL, {resumed} times resumed, the store failing twice after each start"
    return Outcome(tried, survived, tried - survived, note)


@contextmanager
def _store(bench: Bench) -> Iterator[tuple[str, dict[str, str]]]:
    """(address of a stand-in, environment of runs); this process uses it, too."""
    with bucket_server.served(bench.work) as address:
        own = bucket_server.environment(address)
        own |= {places.HOME: str(bench.work / "mirrors")}
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            yield address, runs.environment(bench, 1) | own
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _strike(run: runs.Run, url: str, rng: random.Random, address: str) -> None:
    """Kills a run some time after its first save, whose store stumbles."""
    query = STUMBLES.format(url.removeprefix(f"gs://{bucket_server.BUCKET}/"))
    while run.alive() and "compiled in" not in run.text():
        time.sleep(0.05)
    urllib.request.urlopen(f"{address}/break?{query}", data=b"").read()  # noqa: S310
    end = time.monotonic() + rng.uniform(0, 12)
    while run.alive() and (time.monotonic() < end or not _begun(run)):
        time.sleep(0.01)
    run.send(signal.SIGKILL)


def _begun(run: runs.Run) -> bool:
    return "step 6/" in run.text() or "resuming" in run.text()


def _steps(url: str) -> list[int]:
    return retention.complete(states.of(places.folder(url)) / "last")
