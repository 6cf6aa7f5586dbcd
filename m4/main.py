"""`python -m m4.main --config=configs/fusemoe_mimic.py --workdir=W`; see `--help`."""

import os
import sys
import traceback
from collections.abc import Sequence

from m4 import config as configs
from m4.config import flags as command_line
from m4.errors import UserError, place


def main(args: Sequence[str]) -> int:
    """Runs one command and returns its exit code; a UserError becomes lines on stderr.

    Any other exception is a bug of m4. Its message may quote a patient's data, so only its type
    and where it came from are printed, unless `--debug` asks for the traceback.
    """
    os.umask(0o077)  # what is derived from patients is for its owner only
    debug = any(arg.lstrip("-") in ("debug", "debug=true", "debug=1") for arg in args)
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
    except KeyboardInterrupt:
        print("m4: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"m4: internal error: {place(error)}", file=sys.stderr)
        print("m4: --debug prints the traceback, which may quote data", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
