"""`python -m m4.bench <name> [options]`: one module of this package per benchmark."""

import importlib
import sys

from m4.errors import UserError

NAMES = ("aot", "device")  # what users run; the rest are its parts


def main(argv: list[str]) -> int:
    """Run the benchmark named first in `argv`; returns the exit code."""
    asked = argv[:1] in (["--help"], ["-h"])
    if not argv or argv[0] not in NAMES:
        usage = f"usage: python -m m4.bench {{{','.join(NAMES)}}} [--help]"
        print(usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        importlib.import_module(f"m4.bench.{argv[0]}").main(argv[1:])
    except UserError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
