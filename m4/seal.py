"""Digests by which damage to what a number is read from is noticed: accidents, not malice.

A JSON document can hold a digest of itself (`sealed`, `intact`). Other files of a folder are listed
in its `seals.json` with the digests of what was written last (`keep`, `problem`), and a log that
grows has a file of checksums beside it, a line for each of its lines (`line`, `sound_lines`).
"""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m4 import atomic

KEY = "sha256"
FILE = "seals.json"
LOG = ".sums"  # the ending of a log's checksums
AHEAD = 1000  # lines that may be missing in a row


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document as it will be read, with the digest of its other keys under `KEY`."""
    body = json.loads(json.dumps({k: v for k, v in document.items() if k != KEY}))
    return body | {KEY: _digest(body)}


def intact(document: Any) -> bool:
    """Whether it is a sealed document and nothing in it has changed since."""
    if not isinstance(document, dict) or KEY not in document:
        return False
    return document[KEY] == _digest({k: v for k, v in document.items() if k != KEY})


def keep(folder: Path, name: str, content: bytes) -> None:
    """Lists what is about to be written to `folder/name`, beside what was there before.

    So a process that is killed in between leaves either, and both are known.
    """
    known = _read(folder)
    path, new = folder / name, hashlib.sha256(content).hexdigest()
    there = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    known[name] = [*(d for d in known.get(name, []) if d == there != new), new]
    atomic.write(folder / FILE, json.dumps(sealed({"files": known}), indent=1) + "\n")


def problem(folder: Path, name: str) -> str | None:
    """What is wrong with `folder/name`, or None. Raises OSError if it cannot be read."""
    known = _read(folder).get(name)
    if not (folder / name).is_file():
        return None if known is None else "is gone"
    if known is None:
        return "has no seal"
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return None if digest in known else "differs from its seal"


def listed(folder: Path) -> list[str]:
    """Names of the files that a folder vouches for."""
    return sorted(_read(folder))


def line(content: bytes) -> str:
    """The line of checksums that belongs to a line of a log (both without a line break)."""
    return f"{zlib.crc32(content):08x}"


def sound_lines(path: Path) -> tuple[list[bytes], str | None]:
    """(lines of a log that are as they were written, what is wrong with the rest).

    A last line without its checksum is nothing wrong: the process was killed before it was written.
    """
    try:  # before the lines: a run that goes on writes these last
        sums = path.with_suffix(LOG).read_text(encoding="ascii", errors="replace").split()
    except FileNotFoundError:
        sums = None
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return [], None if sums is None else "is gone"
    if sums is None:
        return lines, "has no seal" if lines else None
    sums = sums[:-1] if sums and len(sums[-1]) < len(line(b"")) else sums  # cut
    found, missing = _in_order(lines, sums)
    damaged = len(lines) - len(found)
    if damaged == 1 and not missing and found == lines[:-1]:
        return lines, None  # its checksum was not written any more
    if not damaged and not missing:
        return found, None
    return found, f"{max(damaged, missing)} of {len(sums)} lines are damaged or missing"


def _in_order(lines: Sequence[bytes], sums: Sequence[str]) -> tuple[list[bytes], int]:
    """(lines that have a checksum, in its turn; checksums that have no line)."""
    found, place = [], 0
    for one in lines:
        own = line(one)
        for ahead in range(place, min(place + AHEAD, len(sums))):
            if sums[ahead] == own:
                found.append(one)
                place = ahead + 1
                break
    return found, len(sums) - len(found)


def _read(folder: Path) -> dict[str, list[str]]:
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found["files"] if intact(found) and isinstance(found.get("files"), dict) else {}


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
