"""A work directory in a bucket belongs to one run at a time.

Its lock is an object that says whose it is and is written again every `BEAT` seconds, each time on
condition that it is as this run left it: the store gives every content a generation, and writes
only over the one that is named. So of several runs one gets the lock, and one that was held up
cannot write over another's. A run of which it can be seen here that it is dead loses its lock at
once. Any other is waited for: refused at the first sign of life, taken over if none comes for
`STALE` seconds. A run that has not reached its lock for nearly as long ends itself, as does one
that finds another's in its place.
"""

import contextlib
import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorstore

from m4 import owners
from m4.errors import ConfigError, Preempted
from m4.remote import outages, places
from m4.train import early
from m4.train.workdir import InUse, parse

BEAT = 20.0  # seconds between signs of life
STALE = 180.0  # seconds without one after which a lock is a dead run's
PATIENCE = 10.0  # seconds for an answer
SILENT = 120.0  # after which a run that does not reach its lock ends: with one beat, before STALE
POLL = 5.0  # seconds between looks at another's
MOMENT = 1.0  # second for saying that the run has ended
KEY, LONGEST = "lock", 4096  # bytes of it that are read
RETRIES = {"gcs_request_retries": {"max_retries": 2, "initial_delay": "200ms", "max_delay": "1s"}}
TRIES = 100


@contextlib.contextmanager
def held(url: str) -> Iterator[None]:
    """Holds the work directory `url`, of the form gs://bucket/folder.

    Raises ConfigError if the bucket cannot be used, Preempted if it could be later, InUse (of the
    same exit code, 75) if another run has it.
    """
    lock = _Lock(url)
    lock.acquire()
    done = threading.Event()
    beat = threading.Thread(target=lock.beat, args=(done,), daemon=True)
    beat.start()
    try:
        with early.farewell(lock.release):
            yield
    finally:
        done.set()
        beat.join()
        lock.release()


def let_go(url: str) -> None:
    """Gives up this process's lock."""
    _Lock(url).give_up()


class _Lock:
    """The object and what this run knows of it."""

    def __init__(self, url: str):
        bucket, _, path = url.removeprefix(places.SCHEME).partition("/")
        where: Any = {"driver": "gcs", "bucket": bucket, "path": f"{path}/"}
        self._url = url
        self._context = tensorstore.Context(RETRIES)
        self._store = tensorstore.KvStore.open(where, context=self._context).result()
        self._owner = owners.own() | {"token": secrets.token_hex(8)}
        self._generation: bytes | None = None  # of what this run has written last
        self._turn = threading.Lock()

    def acquire(self) -> None:
        """Returns when the lock is this run's."""
        seen, end = None, 0.0
        for _ in range(TRIES):
            found = self._read()
            other = parse(found.value[:LONGEST]) if found.state == "value" else None
            lives = other is not None and owners.lives(other)
            stale = found.stamp.generation == seen and time.monotonic() > end
            if lives is False or stale:
                if self._write(found.stamp.generation):
                    return
                continue  # another was faster
            if lives or (seen and found.stamp.generation != seen):
                raise self._in_use(other)
            if seen is None:
                seen, end = found.stamp.generation, time.monotonic() + STALE
                what, wait = f"{self._in_use(other)}".partition(";")[0], f"{STALE / 60:.0f} minutes"
                text = f"m4: {what}; waits for a sign of life of it, {wait} at most"
                print(text, file=sys.stderr, flush=True)
            time.sleep(POLL)
        raise ConfigError(f"--workdir={self._url}: in use by many at once; choose another")

    def beat(self, done: threading.Event) -> None:
        """Keeps the lock young; ends the process when it is another's, or cannot be reached."""
        last = time.monotonic()
        while not done.wait(BEAT):
            asked, kept = time.monotonic(), None
            with contextlib.suppress(Exception), self._turn:  # the next beat may reach it
                kept = done.is_set() or self._write(self._generation)
            last = asked if kept else last
            silent = time.monotonic() - last > SILENT
            if done.is_set() or (kept is not False and not silent):
                continue
            why = "its lock cannot be reached" if silent else "another run has taken it over"
            text = f"m4: stopped: --workdir={self._url}: {why}"
            early.end(Preempted.exit_code, early.say(text), seconds=MOMENT)

    def release(self) -> None:
        """Takes the lock away, if it is this run's."""
        if self._owner["pid"] == owners.own()["pid"]:  # a forked child's end is not the run's
            with contextlib.suppress(Exception), self._turn:
                if self._generation is not None:
                    self._store.write(KEY, None, if_equal=self._generation).result(PATIENCE)
                    self._generation = None

    def give_up(self) -> None:
        """Takes the lock away, if it is this process's."""
        with contextlib.suppress(Exception):
            found = self._store.read(KEY).result(PATIENCE)
            if (
                found.state == "value"
                and owners.own().items() <= parse(found.value[:LONGEST]).items()
            ):
                self._store.write(KEY, None, if_equal=found.stamp.generation).result(PATIENCE)

    def _read(self) -> Any:
        return self._told(lambda: self._store.read(KEY).result(PATIENCE))

    def _told(self, ask: Callable[[], Any]) -> Any:
        """What the store answers. Raises ConfigError if it refuses, Preempted if it is out."""
        try:
            return ask()
        except Exception as error:
            kind = Preempted if outages.passes(error) else ConfigError
            text = f"--workdir={self._url}: cannot be used ({outages.words(error)})"
            raise kind(text) from error

    def _write(self, generation: bytes | None) -> bool:
        """Whether the lock is this run's now, that was of a generation before."""
        if generation is None:
            return False
        content = json.dumps(self._owner | {"beat": time.time()}).encode()
        written = self._store.write(KEY, content, if_equal=generation)
        made = self._told(lambda: written.result(PATIENCE).generation)
        if not made:
            return self._mine()
        self._generation = made
        return True

    def _mine(self) -> bool:
        """Whether what is there is of this run: a write whose answer was lost is repeated."""
        found = self._read()
        if (
            found.state != "value"
            or parse(found.value[:LONGEST]).get("token") != self._owner["token"]
        ):
            return False
        self._generation = found.stamp.generation
        return True

    def _in_use(self, other: dict[str, Any] | None) -> InUse:
        who = "a run that its lock does not name"
        if other and "pid" in other:
            who = f"process {other['pid']} on {other.get('host', '?')}"
        return InUse(f"--workdir={self._url}: in use by {who}; choose another --workdir")
