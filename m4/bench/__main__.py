"""`python -m m4.bench <name> [options]`: one module of this package per benchmark."""

from m4 import cli

if __name__ == "__main__":  # above what takes long to import
    cli.alone("bench.__main__")

import importlib
import sys
from collections.abc import Sequence

NAMES = ("aot", "device")  # what users run; the rest are its parts


def main(argv: Sequence[str]) -> int:
    """Run the benchmark named first in `argv`; returns the exit code."""
    return cli.guard(run, argv)


def run(argv: Sequence[str]) -> int:
    """Runs one benchmark. Raises a UserError, or SystemExit, if it fails."""
    asked = [*argv[:1]] in (["--help"], ["-h"])
    if not argv or argv[0] not in NAMES:
        usage = f"usage: python -m m4.bench {{{','.join(NAMES)}}} [--help]"
        print(usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    importlib.import_module(f"m4.bench.{argv[0]}").main([*argv[1:]])
    return 0
