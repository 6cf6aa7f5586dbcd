"""Errors meant for the person at the keyboard, and the exit codes they end in."""

import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

MAX_LINE = 1000  # characters
MAX_LINES = 20
_INSTALLED = ("site-packages", "/lib/python", "<frozen")


class UserError(Exception):
    """A problem the user can fix. Each argument is one complete line of explanation."""

    exit_code = 1
    kind = "error"

    def __str__(self) -> str:
        """All lines, for whoever catches it in Python."""
        return "\n".join(map(str, self.args))

    def lines(self) -> list[str]:
        """What to print, one line per problem, whatever a foreign message or name brought in."""
        lines = [f"m4: {self.kind}: {_one_line(str(arg))}" for arg in self.args[:MAX_LINES]]
        more = len(self.args) - len(lines)
        return lines + [f"m4: {self.kind}: and {more} more like these"] * bool(more)


class ConfigError(UserError):
    """A wrong flag, key, type, choice, range or combination."""

    exit_code = 2
    kind = "config error"


class DataError(UserError):
    """Files that are missing, unreadable or not what they should be."""

    exit_code = 3
    kind = "data error"


class CheckpointError(UserError):
    """No checkpoint that can be used."""

    exit_code = 4
    kind = "checkpoint error"


class DivergedError(UserError):
    """Training produced non-finite numbers."""

    exit_code = 5
    kind = "diverged"


class SaveError(UserError):
    """The disk did not take what had to be saved."""

    exit_code = 6
    kind = "save error"


class Preempted(UserError):
    """Stopped from outside; everything is saved. Running the same command goes on."""

    exit_code = 75
    kind = "stopped"


# What the operating system says of a disk that is full, read-only or broken.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
HANDLES = (errno.EMFILE, errno.ENFILE)
FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))  # in the words of C++ libraries
MEMORY = ("RESOURCE_EXHAUSTED", "bad_alloc", "MemoryError", "Out of memory")
MEMORY += (os.strerror(errno.ENOMEM),)


def shortage(error: BaseException) -> UserError | None:
    """The error for a person if the disk, memory or open files ran out, else None.

    Libraries in C++ raise what they like, with the system's words in it.
    """
    seen = _chain(error)
    for one in seen:
        if isinstance(one, OSError) and one.errno in (*DISK, *HANDLES):
            more = "; raise `ulimit -n`" if one.errno in HANDLES else ""
            name = one.filename or "a file"
            return SaveError(f"{name}: {os.strerror(one.errno)}{more}; what was saved stays")
    if words := next((words for words in FULL if words in f"{error}"), None):
        return SaveError(f"{words} ({place(error)}); what was saved stays")
    if out_of_memory(error) or any(out_of_memory(one) for one in seen):
        return UserError(
            f"out of memory ({place(error)}); what was saved stays, nothing is damaged"
        )
    return None


def full(error: BaseException) -> bool:
    """Whether an error, or what it came from, says that a disk or a quota of it is full."""
    return any(
        getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        or any(words in str(one) for words in FULL)
        for one in _chain(error)
    )


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what it came from."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        seen.append(one)
        one = one.__cause__ or one.__context__
    return seen


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of this host or of a device, ran out."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return any(words in f"{type(error).__name__}: {error}" for words in MEMORY)


def place(error: BaseException) -> str:
    """Type and origin, "ValueError in raw.py:12 parse"; never the message, which may quote data.

    The innermost frames of code that is not installed are named, or else the innermost one.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(part in f.filename for part in _INSTALLED)] or frames
    chain = [f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in own[-3:]]
    return f"{type(error).__name__} in {' > '.join(chain)}"


def printable(text: str) -> str:
    """The text without line breaks and what steers a terminal, each a space."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def all_printable(value: Any) -> Any:
    """A JSON document whose names and texts steer neither plots nor a terminal."""
    if isinstance(value, dict):
        return {printable(key): all_printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [all_printable(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def _one_line(text: str) -> str:
    """Printable and not endless."""
    text = printable(text)
    return text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]} ..."


def told(error: Exception) -> int:
    """Says on stderr what ended a command, without quoting data; its exit code."""
    known = error if isinstance(error, UserError) else shortage(error)
    if known:
        print(*known.lines(), sep="\n", file=sys.stderr)
        return known.exit_code
    print(f"m4: internal error: {place(error)}", file=sys.stderr)
    print("m4: --debug prints the traceback, which may quote data", file=sys.stderr)
    return 1


def guarded(command: Callable[[], int], *, debug: bool, again: str = "") -> int:
    """The exit code of a command, whatever ends it; `again` is what an interruption leaves to do.

    With `debug` a traceback is printed, which may quote data.
    """
    try:
        return command()
    except KeyboardInterrupt:
        print(f"m4: interrupted{again}", file=sys.stderr)
        return Preempted.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        return told(error)
