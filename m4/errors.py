"""Errors meant for the person at the keyboard, and the exit codes they end in."""

import os
import traceback

MAX_LINE = 1000  # characters
MAX_LINES = 20
_INSTALLED = ("site-packages", "/lib/python", "<frozen")


class UserError(Exception):
    """A problem the user can fix. Each argument is one complete line of explanation."""

    exit_code = 1
    kind = "error"

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


def _one_line(text: str) -> str:
    """Printable and not endless."""
    text = printable(text)
    return text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]} ..."
