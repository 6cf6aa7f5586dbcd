"""One run in several processes: joining the gang, agreeing before it starts, who speaks for it.

The launcher (`launch/`) sets M4_COORDINATOR=host:port, M4_NUM_PROCESSES and M4_PROCESS_ID; where
the platform tells them by itself (a TPU pod), M4_COORDINATOR=auto is enough. Without
M4_COORDINATOR a run is one process. M4_HEARTBEAT is the time in seconds after which a silent
process counts as dead and the others abort, M4_JOIN_TIMEOUT how long they wait for each other at
the start.

JAX assumes that all processes are alike and does not ask. Here they tell each other what they are:
by a plain connection before JAX joins them (`m4.train.rendezvous`), through its store afterwards
(`agree`). A difference ends all of them.
"""

import contextlib
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax._src import distributed  # its store of texts has no public name
from jax.experimental import multihost_utils

from m4.errors import ConfigError, Preempted
from m4.train import rendezvous

HEARTBEAT = 30
START = 120  # seconds to wait for the others
PATIENCE = 7 * 24 * 3600  # seconds: who is dead is known by its heartbeat
SHOWN = 100  # characters of a value in a line
Facts = Mapping[str, str]

_turns = itertools.count()  # every process calls `agree` equally often


def join(facts: Facts, environ: Mapping[str, str] = os.environ, *, saves: bool = True) -> None:
    """Joins the gang that the environment names, if any.

    Of several processes SIGTERM is JAX's from here on, which tells the loop of a command that
    `saves`. Any other command ends at once, as one process does (`m4.train.early`).
    Raises ConfigError, on all of them, if processes differ in `facts`, and for half a name of the
    gang; Preempted if they do not find each other. Afterwards only process 0 prints to stdout.
    """
    coordinator = environ.get("M4_COORDINATOR", "")
    if not coordinator:
        return
    seconds = _number(environ, "M4_JOIN_TIMEOUT", START)
    options: dict[str, Any] = {
        "heartbeat_timeout_seconds": _number(environ, "M4_HEARTBEAT", HEARTBEAT),
        "initialization_timeout": seconds,
    }
    if coordinator != "auto":
        count, own = _number(environ, "M4_NUM_PROCESSES"), _number(environ, "M4_PROCESS_ID", low=0)
        if own >= count:
            with rendezvous.told(environ):
                raise ConfigError(
                    f"M4_PROCESS_ID={own}: of M4_NUM_PROCESSES={count}, counted from 0"
                )
        host, port = rendezvous.parse(coordinator)
        own_facts = {"M4_NUM_PROCESSES": str(count), **facts}
        address = rendezvous.meet(host, port, count, own, own_facts, differing, seconds)
        options |= {"coordinator_address": coordinator, "num_processes": count, "process_id": own}
        if own == 0 and "JAX_COORDINATOR_BIND_ADDRESS" not in environ:
            options["coordinator_bind_address"] = address
        if not _shares_a_node(environ):  # under Slurm, JAX would give it the first device alone
            options["cluster_detection_method"] = "deactivate"
    try:
        with _handed_over(saves):
            jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise Preempted(f"M4_COORDINATOR={coordinator}: {' '.join(str(error).split())}") from error
    if coordinator == "auto":
        agree(facts)
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)


@contextlib.contextmanager
def _handed_over(for_good: bool) -> Iterator[None]:
    """Lets go of SIGTERM, which JAX takes inside where Python cannot see it.

    Whatever would put another handler in the place of the one that Python knows of
    (`early.farewell`) would take it from JAX, and the process would leave without saving. A
    process without others takes it back, as does one that could not join.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    joined = False
    try:
        yield
        joined = distributed.global_state.num_processes not in (None, 0, 1)
    finally:
        if not (for_good and joined):
            signal.signal(signal.SIGTERM, before)


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


def agree(facts: Facts) -> None:
    """Returns if the facts of all processes are equal, else raises ConfigError on all of them.

    All of them must call it. Values are short texts: digests of what is long. Raises Preempted
    if one has left meanwhile.
    """
    if distributed.global_state.client is None or distributed.global_state.num_processes in (1, 0):
        return
    client, key = distributed.global_state.client, f"m4/agree/{next(_turns)}"
    own, count = distributed.global_state.process_id, distributed.global_state.num_processes or 1
    try:
        client.key_value_set(f"{key}/{own}", json.dumps(dict(facts)))
        if own == 0:
            told = [
                json.loads(client.blocking_key_value_get(f"{key}/{i}", 1000 * PATIENCE))
                for i in range(count)
            ]
            client.key_value_set(f"{key}/verdict", json.dumps(differing(told)))
        problems = json.loads(client.blocking_key_value_get(f"{key}/verdict", 1000 * PATIENCE))
        if problems and own:
            client.key_value_set(f"{key}/heard/{own}", "")
        elif problems:  # the store goes with process 0, which must be the last
            for i in range(1, count):
                client.blocking_key_value_get(f"{key}/heard/{i}", 10_000)
            time.sleep(0.5)
    except RuntimeError as error:
        raise Preempted("another process has left; run the same command again") from error
    if problems:
        raise ConfigError(*problems)


def differing(told: Sequence[Facts], numbers: Sequence[int] | None = None) -> list[str]:
    """One line that names what differs and on which process; none if all tell the same.

    `numbers` are those of the processes: 0, 1, ... if None.
    """
    numbers = range(len(told)) if numbers is None else numbers
    names = sorted({name for facts in told for name in facts})
    wrong = [name for name in names if len({facts.get(name) for facts in told}) > 1]
    if not wrong:
        return []
    shown = [f"{name} is {_by_process(name, told, numbers)}" for name in wrong[:3]]
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return [
        f"processes differ: {'; '.join(shown)}{more}; start all of them alike"
        " (docs/reliability.md says what may differ)"
    ]


def _by_process(name: str, told: Sequence[Facts], numbers: Sequence[int]) -> str:
    """'0.5 on process 1, 0.01 on process 0', what fewer say first."""
    groups: dict[str, list[int]] = {}
    for i, facts in zip(numbers, told, strict=True):
        groups.setdefault(facts.get(name, "(absent)"), []).append(i)
    alike = len(os.path.commonprefix([*groups]))
    start = alike - SHOWN // 2 if alike >= SHOWN else 0  # or the difference would not be seen
    parts = []
    for value, who in sorted(groups.items(), key=lambda item: (len(item[1]), -item[1][0])):
        some = ", ".join(map(str, who[:4])) + (" and others" if len(who) > 4 else "")
        shown = "..." * (start > 0) + value[start : start + SHOWN]
        parts.append(f"{shown} on process{'es' * (len(who) > 1)} {some}")
    return ", ".join(parts)


def _shares_a_node(environ: Mapping[str, str]) -> bool:
    """Whether the scheduler started more than one process on this node, each for some devices."""
    slurm = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_NTASKS_PER_NODE", "1"))
    counts = (slurm.partition("(")[0].partition(",")[0], environ.get("OMPI_COMM_WORLD_LOCAL_SIZE"))
    return any(count not in (None, "", "1") for count in counts)


def _number(
    environ: Mapping[str, str], name: str, default: int | None = None, *, low: int = 1
) -> int:
    text = environ.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdecimal() and low <= int(text) < 2**31):
        raise ConfigError(
            f"{name}={text!r}: must be a whole number of at least {low} where M4_COORDINATOR is set"
        )
    return int(text)
