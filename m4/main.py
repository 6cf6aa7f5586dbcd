"""The command, `m4-moe --config=fusemoe_mimic --workdir=W` or `python -m m4.main`; see `--help`."""

from m4 import cli

if __name__ == "__main__":  # above what takes long to import
    cli.alone("main")

import atexit
import contextlib
import os
import sys
from collections.abc import Sequence

from m4 import config as configs
from m4 import local, streams, virtual
from m4.config import answers, trust
from m4.errors import Preempted, guarded
from m4.remote import mirror, places
from m4.train import early, rendezvous


def main(args: Sequence[str]) -> int:
    """Runs one command and returns its exit code, see `run`.

    One of several processes that has failed leaves at once, without the usual farewell to the
    others: they may be waiting for it for ever, and its going is what ends them. One that was told
    to stop says farewell, and does not wait until every compiled program is taken down: on a busy
    host that is half of the seconds it has.
    """
    with streams.patient(), early.leaving():
        code = run(args)
    if os.environ.get("M4_COORDINATOR") and code:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # nobody reads them any more
                stream.flush()
        if code == Preempted.exit_code:
            atexit._run_exitfuncs()
        os._exit(code)
    return code


def run(args: Sequence[str]) -> int:
    """Runs one command; a UserError, or a disk that takes no more, becomes lines on stderr.

    Any other exception is a bug of m4. Its message may quote a patient's data, so only its type
    and where it came from are printed, unless `--debug` asks for the traceback.
    """
    os.umask(0o077)  # what is derived from patients is for its owner only
    debug = any(arg.lstrip("-") in ("debug", "debug=true", "debug=1") for arg in args)
    return guarded(lambda: _run(args), debug=debug)


def _run(args: Sequence[str]) -> int:
    with rendezvous.told(os.environ):
        flags = configs.parse(args)
    with places.told(flags.workdir):
        return _obey(flags)


def _obey(flags: configs.Flags) -> int:
    """Does what the flags ask for."""
    with rendezvous.told(os.environ):
        answer = answers.of(flags)
        if answer is not None:
            print(answer)
            return 0
        local.require_variables()
        mirror.begin(flags.workdir)
        virtual.make_room(os.environ)
        bare = flags.mode == "check" and not (flags.config or flags.config_json)
        bare = bare or flags.mode in ("report", "sweep") or "members" in flags.options
        if not bare:
            trust.require_of(flags)
        config = None if bare else configs.load(flags)
        from m4 import modes  # everything that JAX isn't needed for has been checked by now

        modes.require(config, flags)
    modes.run(config, flags)
    return 0
