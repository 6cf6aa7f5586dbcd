"""Digests by which damage to what a number is read from is noticed: accidents, not malice.

A JSON document can hold a digest of itself (`sealed`, `intact`). Other files of a folder are listed
in its `seals.json` with the digests of what was written last (`write`, `replaced`, `problem`). A
line of a log that grows ends in its number and a checksum (`line`, `sound_lines`).
"""

import contextlib
import errno
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m4 import atomic, regular
from m4.errors import DataError

MOST = 1 << 28  # bytes of a document that is read
MOST_OF_LOG = 1 << 30
KEY = "sha256"
FILE = "seals.json"
NUMBER, SUM = "line", "crc32"  # the last keys of a log's line
LOG = ".sums"  # an older version's: a file with a checksum a line, beside the log
_END = re.compile(rb', "line": (\d+), "crc32": "([0-9a-f]{8})"\}\Z')


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document as it will be read, with the digest of its other keys under `KEY`."""
    body = json.loads(json.dumps({k: v for k, v in document.items() if k != KEY}))
    return body | {KEY: _digest(body)}


def intact(document: Any) -> bool:
    """Whether it is a sealed document and nothing in it has changed since."""
    if not isinstance(document, dict) or KEY not in document:
        return False
    return document[KEY] == _digest({k: v for k, v in document.items() if k != KEY})


def write(folder: Path, name: str, text: str) -> Path:
    """Replaces `folder/name`, which the folder vouches for from then on; returns its path."""
    keep(folder, name, text.encode())
    atomic.write(folder / name, text)
    return folder / name


@contextlib.contextmanager
def replaced(path: Path, folder: Path) -> Iterator[Path]:
    """`atomic.replaced` of a file below `folder`, which vouches for it before it is there."""
    with atomic.replaced(path) as partial:
        yield partial
        keep(folder, path.relative_to(folder).as_posix(), partial.read_bytes())


def keep(folder: Path, name: str, content: bytes) -> None:
    """Lists what is about to be written to `folder/name`, beside what was there before.

    So a process that is killed in between leaves either, and both are known.
    """
    known = _read(folder) or {}
    path, new = folder / name, hashlib.sha256(content).hexdigest()
    there = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    known[name] = [*(d for d in known.get(name, []) if d == there != new), new]
    atomic.write(folder / FILE, json.dumps(sealed({"files": known}), indent=1) + "\n")


def remove(folder: Path, name: str) -> None:
    """Deletes `folder/name`, if it is there; nobody vouches for it or misses it from then on."""
    known = _read(folder) or {}
    if known.pop(name, None) is not None:
        atomic.write(folder / FILE, json.dumps(sealed({"files": known}), indent=1) + "\n")
    (folder / name).unlink(missing_ok=True)


def problem(folder: Path, name: str) -> str | None:
    """What is wrong with `folder/name`, or None. Raises OSError if it cannot be read."""
    known = (_read(folder) or {}).get(name)
    if not (folder / name).is_file():
        return None if known is None else "is gone"
    if known is None:
        return "has no seal"
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return None if digest in known else "differs from its seal"


def load(path: Path) -> Any:
    """What a JSON file says. Raises OSError, or ValueError for what is none, too deep or too long.

    What is no file (a pipe, a device) is neither waited for nor read.
    """
    return parsed(_text(path))


def _text(path: Path) -> str:
    return regular.read(path, MOST).decode("utf-8")


def parsed(text: str) -> Any:
    """What a JSON text says. Raises ValueError for what is none, or too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def text_of(folder: Path, name: str, again: str) -> str:
    """A document of a folder, to be passed on. Raises DataError if it is not as it was written.

    `again` says what writes it again. A version that sealed nothing is believed.
    """
    wrong = problem(folder, name)
    if wrong == "has no seal" and (folder / FILE).exists() and _read(folder) is None:
        raise DataError(f"{folder / FILE}: is damaged: nobody vouches for {name}; {again}")
    if wrong and wrong != "has no seal":
        raise DataError(f"{folder / name}: {wrong}; {again}")
    try:
        text = _text(folder / name)
        parsed(text)
        return text
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is no JSON"
        raise DataError(f"{folder / name}: cannot be read ({reason}); {again}") from None


def listed(folder: Path) -> list[str] | None:
    """Names of the files that a folder vouches for; None if its list is gone or damaged."""
    known = _read(folder)
    return None if known is None else sorted(known)


def line(row: Mapping[str, Any], number: int) -> str:
    """The `number`-th line of a log, counted from 1: the row, its place and their checksum."""
    body = json.dumps({k: v for k, v in row.items() if k not in (NUMBER, SUM)} | {NUMBER: number})
    return f'{body[:-1]}, "{SUM}": "{zlib.crc32(body.encode()):08x}"}}'


def sound_lines(path: Path, least: int = 0) -> tuple[list[bytes], str | None]:
    """(lines of a log that are as they were written, what is wrong with the rest).

    `least` lines are known to have been there. What follows the last line break is nothing wrong:
    the process was killed before it was whole.
    """
    try:  # before the lines: a run of the older version that goes on writes these last
        known = regular.read(path.with_suffix(LOG), MOST_OF_LOG)
        sums = known.decode("ascii", errors="replace").split()
    except FileNotFoundError:
        sums = []
    try:
        lines = regular.read(path, MOST_OF_LOG).split(b"\n")[:-1]
    except FileNotFoundError:
        return [], "is gone" if sums or least else None
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EFBIG):
            raise
        return [], f"cannot be read ({error.strerror})"
    if not least and not any(map(_END.search, lines)):
        return _by_sums(lines, sums) if sums else (lines, None)
    found, last = _numbered(lines)
    damaged, missing = len(lines) - len(found), max(last, least) - len(found)
    if not damaged and not missing:
        return found, None
    return found, _lost(max(damaged, missing), max(last, least))


def last_line(path: Path) -> int:
    """The number of a log's last line, 0 without one."""
    try:
        with regular.opened(path, MOST_OF_LOG) as file:
            file.seek(max(0, file.seek(0, 2) - (1 << 20)))
            found = _END.search(file.read().rstrip(b"\n"))
    except FileNotFoundError:
        return 0
    return int(found[1]) if found else 0


def _numbered(lines: Sequence[bytes]) -> tuple[list[bytes], int]:
    """(lines whose checksum is right, in their order, each once; the largest number)."""
    found, last = [], 0
    for one in lines:
        end = _END.search(one)
        if end and int(end[1]) > last and int(end[2], 16) == zlib.crc32(_body(one)):
            found.append(one)
            last = int(end[1])
    return found, last


def _body(one: bytes) -> bytes:
    """What the checksum of a line is of."""
    return one[: one.rindex(b', "crc32"')] + b"}"


def _by_sums(lines: Sequence[bytes], sums: Sequence[str]) -> tuple[list[bytes], str | None]:
    """`sound_lines` of an older version's log. At its end checksums may not be written yet."""
    left, found = Counter(one for one in sums if len(one) == 8), []
    total = left.total()
    for one in lines:
        own = f"{zlib.crc32(one):08x}"
        if left[own]:
            left[own] -= 1
            found.append(one)
    if not left.total() and found == lines[: len(found)]:
        return [*lines], None
    return found, _lost(max(len(lines) - len(found), left.total()), total)


def _lost(number: int, total: int) -> str:
    return f"{number} of {total} lines are damaged or missing"


def _read(folder: Path) -> dict[str, list[str]] | None:
    try:
        found = load(folder / FILE)
    except (OSError, ValueError):
        return None
    return found["files"] if intact(found) and isinstance(found.get("files"), dict) else None


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
