"""One run in several processes: joining the gang, and who speaks for it.

The launcher (`launch/`) sets M4_COORDINATOR=host:port, M4_NUM_PROCESSES and M4_PROCESS_ID; where
the platform tells them by itself (a TPU pod), M4_COORDINATOR=auto is enough. Without
M4_COORDINATOR a run is one process. M4_HEARTBEAT is the time in seconds after which a silent
process counts as dead and the others abort.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from m4.errors import ConfigError

HEARTBEAT = 30
START = 120  # seconds to wait for the others


def join(environ: Mapping[str, str] = os.environ) -> None:
    """Joins the gang that the environment names, if any. Raises ConfigError for half a name.

    Afterwards only process 0 prints to stdout.
    """
    coordinator = environ.get("M4_COORDINATOR", "")
    if not coordinator:
        return
    options: dict[str, Any] = {
        "heartbeat_timeout_seconds": _number(environ, "M4_HEARTBEAT", HEARTBEAT),
        "initialization_timeout": START,
    }
    if coordinator != "auto":
        options["coordinator_address"] = coordinator
        options["num_processes"] = _number(environ, "M4_NUM_PROCESSES")
        options["process_id"] = _number(environ, "M4_PROCESS_ID")
    jax.distributed.initialize(**options)
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)


def first() -> bool:
    """Whether this process writes files and speaks for the run."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether there are others."""
    return jax.process_count() > 1


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if several():
        multihost_utils.sync_global_devices(name)


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r}: must be a whole number where M4_COORDINATOR is set")
    return int(text)
