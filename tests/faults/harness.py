"""What a scenario is, and how scenarios are run, counted and written into the page.

A scenario is a function `(bench) -> Outcome` in a module of this package. It breaks something on
purpose `tried` times; each time the system either `survived` as its bar says or the scenario
counts it as `lost`. A scenario never raises for a fault that was not survived.
"""

import contextlib
import dataclasses
import fcntl
import importlib
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

HEAD = "| fault | tried | survived | lost | form | notes |"
BEGIN, END = "<!-- begin results -->", "<!-- end results -->"


class Outcome(NamedTuple):
    """What happened. `survived + lost == tried`; `notes` is one short line without '|'.

    Nothing tried, and why in `notes`: this machine does not allow it. That is no row of the page.
    """

    tried: int
    survived: int
    lost: int
    notes: str = ""


class Scenario(NamedTuple):
    """A named fault; `target` is 'module:function' of this package."""

    name: str
    target: str
    in_short: bool = True
    args: tuple[str, ...] = ()  # of the function, after `bench`


@dataclasses.dataclass(frozen=True)
class Bench:
    """What a scenario may use: a fresh folder, the size of the job, a seed."""

    work: Path  # empty, removed afterwards
    shared: Path  # kept from scenario to scenario: built data sets, compiled programs
    short: bool
    seed: int = 0
    scale: float = 1.0  # of the long form

    def number(self, short: int, full: int) -> int:
        """How many faults to try."""
        return short if self.short else max(1, round(full * self.scale))


def run(
    scenarios: Iterable[Scenario],
    make_bench: Callable[[], AbstractContextManager[Bench]],
) -> dict[str, Outcome]:
    """Runs scenarios one by one and prints a line for each; a crash counts as one loss."""
    found = {}
    for scenario in scenarios:
        print(f"{scenario.name} ...", flush=True)
        start = time.monotonic()
        module, _, function = scenario.target.partition(":")
        with make_bench() as bench:
            try:
                target = importlib.import_module(f"tests.faults.{module}")
                outcome = getattr(target, function)(bench, *scenario.args)
            except Exception as error:  # noqa: BLE001 (one broken scenario must not hide others)
                traceback.print_exc()
                outcome = Outcome(1, 0, 1, f"the scenario failed: {type(error).__name__}")
        uncounted = outcome.tried == 0 and not outcome.notes
        if uncounted or outcome.survived + outcome.lost != outcome.tried:
            outcome = Outcome(1, 0, 1, f"the scenario miscounts: {tuple(outcome)}")
        found[scenario.name] = outcome
        print(f"{scenario.name}: {words(outcome)} [{time.monotonic() - start:.0f} s]", flush=True)
    return found


def run_in(folder: Path, scenario: Scenario, *bench) -> dict[str, Outcome]:
    """`run` of one scenario in a new folder below `folder`; `bench` is the rest of `Bench`."""

    @contextlib.contextmanager
    def make_bench():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            yield Bench(Path(work), *bench)

    return run([scenario], make_bench)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Waits until no other process is inside for the same path."""
    with open(path.with_name(f"{path.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def words(outcome: Outcome) -> str:
    """One line for people."""
    if not outcome.tried:
        return f"not tried: {outcome.notes}"
    counts = f"{outcome.tried} tried, {outcome.survived} survived, {outcome.lost} lost"
    return f"{counts}; {outcome.notes}" if outcome.notes else counts


def total(found: dict[str, Outcome]) -> Outcome:
    """The sum over scenarios."""
    return Outcome(*(sum(o[i] for o in found.values()) for i in range(3)))


def update(page: str, found: dict[str, Outcome], form: str) -> str:
    """The page with the rows of `found` replaced; rows of other scenarios stay."""
    match = re.search(f"{BEGIN}\n(.*?){END}", page, flags=re.DOTALL)
    if match is None:
        raise ValueError(f"the page lacks {BEGIN} and {END}")
    rows = {}
    for line in match[1].splitlines():
        if line.startswith("| ") and line != HEAD:
            rows[line.split("|")[1].strip()] = line
    for name, o in found.items():
        rows[name] = f"| {name} | {o.tried:,} | {o.survived:,} | {o.lost:,} | {form} | {o.notes} |"
    table = "\n".join([HEAD, "|---|---|---|---|---|---|", *rows.values()])
    return f"{page[: match.start()]}{BEGIN}\n{table}\n{END}{page[match.end() :]}"
