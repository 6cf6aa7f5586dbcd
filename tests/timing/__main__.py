"""`python -m tests.timing <name> [options]`: one module of this package per benchmark."""

import importlib
import sys
from pathlib import Path

from m4.errors import UserError


def main(argv: list[str]) -> int:
    """Run the benchmark named first in `argv`; returns the exit code."""
    names = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem.isalpha())
    if not argv or argv[0] not in names:
        print(f"usage: python -m tests.timing {{{','.join(names)}}} [--help]", file=sys.stderr)
        return 2
    try:
        importlib.import_module(f"tests.timing.{argv[0]}").main(argv[1:])
    except UserError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
