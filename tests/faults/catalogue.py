"""Bad inputs, one case each: the command must end as documented and say what is wrong.

A case makes its files in an empty folder and returns the arguments of `m4.main`. Survived: the
exit code is the case's, within `LIMIT` seconds of work, in at most `MAX_LINES` lines on standard
error that name the field, file or record; no traceback, no Python warning, and not a character of
the text and numbers that stand for a patient's.
"""

import contextlib
import dataclasses
import importlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from m4 import main
from tests.faults.harness import Bench, Outcome

LIMIT, HANG = 10.0, 60.0  # seconds of processor time and, on a busy machine, of the clock
MAX_LINES = 5
TEXT = "Zq7vJane"  # begins every text that must never be seen again
NUMBER = "48151623"  # as does this every number


@dataclasses.dataclass(frozen=True)
class Case:
    """`make(folder)` returns arguments; `says` are parts of the message, `a|b` either one."""

    name: str
    make: Callable[[Path], Sequence[str]]
    code: int
    says: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What one command did."""

    code: int | None  # None: an exception came out of it
    out: str
    err: str
    seconds: float  # of processor time
    waited: float = 0.0


def attempt(args: Sequence[str]) -> Attempt:
    """Runs `m4.main` in this process."""
    out, err = io.StringIO(), io.StringIO()
    mask, start, began = os.umask(0o077), time.process_time(), time.monotonic()
    code: int | None = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.main([*args])
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is the finding)
        err.write(f"Traceback: {type(error).__name__}")
        if isinstance(error, KeyboardInterrupt):
            raise
    finally:
        os.umask(mask)
    seconds, waited = time.process_time() - start, time.monotonic() - began
    return Attempt(code, out.getvalue(), err.getvalue(), seconds, waited)


def faults(case: Case, done: Attempt) -> list[str]:
    """What is wrong with how a case ended; empty if nothing is."""
    lines = done.err.splitlines()
    found = []
    if done.code != case.code:
        found.append(f"exit {done.code}, expected {case.code}")
    if done.seconds > LIMIT or done.waited > HANG:
        found.append(f"took {done.seconds:.1f} s of work, {done.waited:.1f} s in all")
    if not 1 <= len(lines) <= MAX_LINES:
        found.append(f"{len(lines)} lines")
    found += [f"a line not of ours: {line[:80]}" for line in lines if not line.startswith("m4: ")]
    unsaid = [part for part in case.says if not any(p in done.err for p in part.split("|"))]
    found += [f"does not say {part!r}" for part in unsaid]
    for secret in (TEXT, NUMBER):
        if secret in done.err + done.out:
            found.append("shows content")
    if "Traceback" in done.err + done.out:
        found.append("a traceback")
    return found


def judge(case: Case) -> list[str]:
    """Tries a case in a folder of its own; what is wrong, with the first lines it printed."""
    with tempfile.TemporaryDirectory(prefix="m4-bad-") as folder:
        done = attempt(case.make(Path(folder)))
    wrong = faults(case, done)
    return wrong and [*wrong, *(line[:300] for line in done.err.splitlines()[:MAX_LINES])]


def count(cases: Iterable[Case]) -> tuple[int, dict[str, list[str]]]:
    """(cases tried, name -> what was wrong) of those that did not end as they should."""
    tried, lost = 0, {}
    for case in cases:
        tried += 1
        wrong = judge(case)
        if wrong:
            lost[case.name] = wrong
    return tried, lost


def bad_inputs(bench: Bench) -> Outcome:
    """The whole catalogue; of the short form every eighth case."""
    from tests.faults import bad_config, bad_data, bad_files, bad_layouts, bad_meds, bad_work

    parts = [bad_config.cases(), bad_data.cases(), bad_files.cases(), bad_work.cases(bench.work)]
    parts += [bad_layouts.cases(), bad_meds.cases()]
    cases = [case for part in parts for case in part]
    for mode in ("check", "train"):  # imports are not part of a case's time
        importlib.import_module(f"m4.modes.{mode}")
    tried, lost = count(cases[:: bench.number(8, 1)])
    for name, wrong in lost.items():
        print(f"  {name}: {'; '.join(wrong)}", flush=True)
    return Outcome(tried, tried - len(lost), len(lost), "exit 2, 3, 4 or 6 as documented")
