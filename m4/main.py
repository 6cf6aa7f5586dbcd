"""`python -m m4.main --config=configs/fusemoe_mimic.py --workdir=W`; see `--help`."""

import os
import sys
import traceback
from collections.abc import Sequence

from m4 import config as configs
from m4.config import flags as command_line
from m4.errors import UserError


def main(args: Sequence[str]) -> int:
    """Runs one command and returns its exit code; a UserError becomes lines on stderr."""
    os.umask(0o077)  # what is derived from patients is for its owner only
    debug = any(arg.startswith("--debug") for arg in args)
    try:
        flags = configs.parse(args)
        if flags.help:
            print(command_line.USAGE)
            return 0
        config = None if flags.mode == "report" else configs.load(flags)
        from m4 import modes  # everything that JAX isn't needed for has been checked by now

        modes.run(config, flags)
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(*error.lines(), sep="\n", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
