"""A work directory in a bucket: SIGKILL at random moments, and a store that stumbles meanwhile."""

import importlib.util
import random
import signal
import time

from m4.remote import mirror, places, states
from m4.train import retention
from tests import bucket_server
from tests.faults import config, runs
from tests.faults.harness import Bench, Outcome

BLOWS = 4  # at one run, and once more it is left alone
LONGEST = 6.0  # seconds from the first step to a blow
ARGS = [f"--config={config.__file__}:m3h", "--config.train.steps=96", "--config.train.save_every=6"]
STUMBLES = 2  # of the next changes that fail


def kills(bench: Bench) -> Outcome:
    """Survived: resumed from the newest complete state, and the same numbers in the end."""
    if importlib.util.find_spec("gcsfs") is None:
        return Outcome(0, 0, 0, "needs gcsfs")
    tried, rng = bench.number(2, 20), random.Random(bench.seed)
    right = runs.reference(bench, "m3h", *ARGS[1:])
    struck = survived = resumed = 0
    with bucket_server.used(bench.work) as (address, own):
        environment = runs.environment(bench, 1) | own
        for number in range(10 * tried):
            url = f"gs://{bucket_server.BUCKET}/run{number}"
            blows, wrong, through = 0, [], False
            for turn in range(3 * BLOWS):
                there = max(_steps(url), default=-1)
                log = bench.work / f"run{number}-{turn}.log"
                run = runs.Run([*ARGS, f"--workdir={url}"], log, environment)
                if blows < BLOWS and struck < tried:
                    _strike(run, url, rng, address)
                code = run.wait()
                if there >= 0 and "step " in run.text():
                    resumed += 1
                    if f"resuming from step {there}\n" not in run.text():
                        wrong.append(f"not resumed from {there}")
                if code == -signal.SIGKILL:
                    blows, struck = blows + 1, struck + 1
                    continue
                through = code == 0
                break
            folder = places.folder(url)
            mirror.pull(folder)
            if not through or not runs.same(folder, right):
                wrong.append(f"ended in {code}, with other numbers or none: {run.text()[-300:]}")
            print(*wrong, sep="\n", end="\n" * bool(wrong))
            survived += 0 if wrong else blows
            if struck >= tried:
                break
    note = f"SIGKILL, {resumed} times resumed, the store failing twice after each start"
    return Outcome(struck, survived, struck - survived, note)


def _strike(run: runs.Run, url: str, rng: random.Random, address: str) -> None:
    """Kills a run some time after its first step, whose store stumbles."""
    while run.alive() and "step " not in run.text():
        time.sleep(0.02)
    bucket_server.breaks(address, bucket_server.path_of(url), times=STUMBLES, code=503)
    end = time.monotonic() + rng.uniform(0, LONGEST)
    while run.alive() and time.monotonic() < end:
        time.sleep(0.01)
    run.send(signal.SIGKILL)


def _steps(url: str) -> list[int]:
    return retention.complete(states.of(places.folder(url)) / "last")
