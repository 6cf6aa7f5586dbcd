"""Which process made something in a shared folder, and whether it lives, as far as can be told.

A number of a process means something only in its namespace of one start of one machine: machines
may have one name, and containers on one machine count their processes each for itself.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BOOT = Path("/proc/sys/kernel/random/boot_id")


def own() -> dict[str, Any]:
    """This process, in JSON types; what the system does not tell is None."""
    pid = os.getpid()
    names = {"host": socket.gethostname(), "boot": _boot(), "space": _space()}
    return names | {"pid": pid, "born": _born(pid)}


def same_kernel(other: Mapping[str, Any]) -> bool:
    """Whether a process is known to be of this start of this machine: file locks tell of it."""
    return _boot() is not None and other.get("boot") == _boot()


def lives(other: Mapping[str, Any]) -> bool | None:
    """Whether a process lives; None for one of which nobody here can tell."""
    pid, born = other.get("pid"), other.get("born")
    here = same_kernel(other) and _space() is not None and other.get("space") == _space()
    if not here or not isinstance(pid, int) or not born:
        return None
    found = _born(pid)
    return None if found is None and _hidden(pid) else found == born


def _hidden(pid: int) -> bool:
    """Whether there is a process of which the system tells only its own user."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _boot() -> str | None:
    """Of this start of this machine; no two have the same."""
    try:
        return BOOT.read_text().strip()
    except OSError:
        return None


def _space() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _born(pid: int) -> str | None:
    """When a process began, in ticks of the machine's clock; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().decode("latin-1").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
