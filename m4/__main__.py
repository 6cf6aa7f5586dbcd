"""`m4-moe` and `python -m m4`: the command, and beside it the tools.

m4-moe --config=... | --workdir=... | --help   `m4.main`
m4-moe data | lab | audit | export | interop | bench ...   `python -m m4.data ...` and so on
m4-moe compare RUN RUN ...                     finished runs side by side, of `m4.lab`
m4-moe launch slurm | jobset | tpu | xpk ...   a script for a cluster, from `launch/`
m4-moe launch local ...                        several processes on this host
"""

from m4 import cli

if __name__ == "__main__":  # above what takes long to import
    cli.alone("__main__")

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from m4.config import completion, flags, program
from m4.errors import ConfigError, told


def main(args: Sequence[str]) -> int:
    """Runs one command or tool and returns its exit code."""
    if [*args[:1]] == [completion.ASK]:
        print(*completion.candidates(" ".join(args[1:])), sep="\n")
        return 0
    if not args or args[0] not in flags.TOOLS:
        return importlib.import_module("m4.main").main(args)
    tool, *rest = args
    if tool == "launch":
        try:
            _launch(rest)
        except ConfigError as error:
            return told(error)
    os.umask(0o077)  # what is derived from patients is for its owner only
    if tool == "compare":
        tool, rest = "lab", args
    return importlib.import_module(f"m4.{tool}.__main__").main(rest)


def _launch(args: list[str]) -> None:
    """Becomes a script of `launch/`, so that signals reach it. ConfigError if there is none."""
    folder: Path = program.folder().with_name("launch")
    own = args[:1] == ["local"]
    script = folder / ("local.py" if own else "render.py")
    if not script.is_file():
        raise ConfigError(f"{script}: is missing; install m4 again")
    os.execv(sys.executable, [sys.executable, str(script), *args[own:]])


def script() -> None:
    """The console script."""
    cli.alone("__main__")
