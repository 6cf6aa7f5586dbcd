"""What every command does around its work: signals, standard streams, errors, the exit code."""

import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from m4 import streams
from m4.errors import guarded
from m4.train import early

# Net new objects after which garbage is looked for. Tracing makes many that live, and Python's own
# 700 is a tenth of the processor's time of a short run.
YOUNG = 50_000


def alone(module: str) -> NoReturn:
    """Runs `main` of `m4.<module>`, which this process is for, and ends with its exit code.

    A file calls it above its other imports, which may take seconds: a signal is heard from here on.
    """
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
    with streams.patient(), early.leaving(alone=True):
        code = importlib.import_module(f"m4.{module}").main(sys.argv[1:])
    sys.exit(code)


def guard(work: Callable[[Sequence[str]], int], args: Sequence[str], *, again: str = "") -> int:
    """The exit code of a tool's `work` on its arguments, whatever ends it.

    `--debug`, which prints tracebacks, is taken out of them; `again` is what an interruption
    leaves to do.
    """
    os.umask(0o077)  # what is derived from patients is for its owner only
    given = [arg for arg in args if arg != "--debug"]
    with streams.patient(), early.leaving():
        return guarded(lambda: work(given), debug=len(given) < len(args), again=again)
