"""Configurations, tables and manifests changed at random, read in this process.

Survived: the input is accepted, or refused by a `UserError` whose lines quote nothing of the
patients' texts, within `LIMIT` seconds. Anything else that comes out is lost.
"""

import contextlib
import copy
import io
import json
import random
import shutil
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from m4 import config as configs
from m4 import seal
from m4.config.program import time_limit
from m4.data import build
from m4.data import record as records
from m4.data.data_sets import find
from m4.data.sets import physionet2012
from m4.data.sets.physionet2012 import archive
from m4.data.store import Store
from m4.errors import UserError
from tests.faults import raw_files
from tests.faults.bad_config import PLAIN
from tests.faults.catalogue import NUMBER, TEXT
from tests.faults.harness import Bench, Outcome

LIMIT = 10.0  # seconds
Read = Callable[[random.Random], None]

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.5, 1e308, -1e308,
    float("nan"), float("inf"), "", " ", "\0", "\n", "é🙂\u202e", "a" * 5000, "../../x", "nan",
    [], {}, [[]], [None], {"a": {"b": {}}}, {"": 1}, {"a.b": 1}, [1, "x", {}],
)  # fmt: skip
PIECES = (
    b"", b"\0", b"\xff\xfe", b"\n", b"\r", b"\r\n\r\n", b",", b",,,,,", b'"', b"'", b"\t", b"-",
    b"nan", b"inf", b"-inf", b"1e999", b"9" * 400, b"0x10", b"1_0", "é🙂".encode(),
    f"{TEXT},{NUMBER}".encode(), TEXT.encode() * 20_000, b"99:99", b"=cmd()", b"\xef\xbb\xbf",
)  # fmt: skip


def fuzz(bench: Bench) -> Outcome:
    """Four readers in turn."""
    rng = random.Random(bench.seed)
    readers = {"config": _config, "support2": _support(bench.work / "s")}
    readers |= {"physionet2012": _physionet(bench.work / "p"), "manifest": _manifest(bench.work)}
    share = {"config": 4, "support2": 3, "physionet2012": 2, "manifest": 1}
    names = [name for name, times in share.items() for _ in range(times)]
    tried = bench.number(1500, 50_000)
    ends: Counter[str] = Counter()
    for number in range(tried):
        name = names[number % len(names)]
        end = attempt(readers[name], random.Random(rng.random()))
        ends[end] += 1
        if end not in ("accepted", "refused"):
            print(f"  {name}: {end}", flush=True)
    good = ends["accepted"] + ends["refused"]
    return Outcome(tried, good, tried - good, f"{ends['refused']} refused, the others harmless")


def attempt(read: Read, rng: random.Random) -> str:
    """How reading one changed input ends: accepted, refused, or what went wrong."""
    out = io.StringIO()
    try:
        with (
            time_limit(LIMIT, TimeoutError()),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
        ):
            warnings.simplefilter("error")
            read(rng)
    except UserError as error:
        text = "\n".join(error.lines()) + out.getvalue()
        return "content shown" if TEXT in text or NUMBER in text else "refused"
    except TimeoutError:
        return "a hang"
    except (Exception, SystemExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}"
    return "content shown" if TEXT in out.getvalue() else "accepted"


def change(rng: random.Random, tree: Any, values: Sequence[Any]) -> Any:
    """A JSON value with one to three changes somewhere in it."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(tree))
        if not places:
            break
        parent, key = rng.choice(places)
        action = rng.randrange(4)
        if action == 0:
            parent[key] = copy.deepcopy(rng.choice(values))
        elif action == 1:
            del parent[key]
        elif action == 2 and isinstance(parent, dict):
            parent[_misspelt(rng, key)] = parent.pop(key)
        else:
            parent[key] = rng.choice(([parent[key]], {"x": parent[key]}, str(parent[key])))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, dict | list):
        for key in [*tree] if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def _misspelt(rng: random.Random, word: str) -> str:
    place = rng.randrange(len(word) + 1)
    return word[:place] + rng.choice(("", "x", "_", ".", "é")) + word[place + rng.randrange(2) :]


def scramble(rng: random.Random, data: bytes) -> bytes:
    """Text with one to four changes somewhere in it."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        stop = min(len(data), start + rng.choice((0, 1, 1, 2, 5, 40)))
        middle = rng.choice(PIECES)
        if rng.random() < 0.3 and stop > start:
            middle = bytes([data[start] ^ 1 << rng.randrange(8)]) + data[start + 1 : stop]
        elif rng.random() < 0.2:
            middle = data[start:stop] * 2
        data = data[:start] + middle + data[stop:]
    return data


def _config(rng: random.Random) -> None:
    overrides = {}
    if rng.random() < 0.5:
        field = rng.choice(("train.steps", "optim.lr", "data.options.steps", "method.moe.top_k"))
        field = _misspelt(rng, field) if rng.random() < 0.5 else field
        overrides[field] = str(rng.choice(VALUES))
    configs.check(change(rng, PLAIN, VALUES), overrides, "x.json")


def _support(folder: Path) -> Read:
    raw_files.support(folder)
    path = folder / "support2/support2.csv"
    rows = path.read_bytes().splitlines(keepends=True)[:5]
    support2 = find("support2")
    spec = support2.spec()

    def read(rng: random.Random) -> None:
        path.write_bytes(scramble(rng, b"".join(rows)))
        for number, start in enumerate(support2.cohort(folder, seed=0).splits.values()):
            for example in start():
                records.encode(spec, example, where=f"split {number}", flow=Counter())

    return read


def _physionet(folder: Path) -> Read:
    home = folder / physionet2012.FOLDER / "set-a"
    home.mkdir(parents=True)
    good = raw_files.record(100, "02:00,Temp,37", "03:00,GCS,15").encode()
    groups = {name: variables for name, (_, variables) in physionet2012.GROUPS.items()}

    def read(rng: random.Random) -> None:
        (home / "100.txt").write_bytes(scramble(rng, good))
        archive.read_set(home.parent, "a", groups=groups, ranges=physionet2012.RANGES)

    return read


def _manifest(folder: Path) -> Read:
    whole = build.prepare("tests.faults.faulty", "", folder / "built")
    shutil.copytree(whole, folder / "copy")
    good = json.loads((whole / "manifest.json").read_text())

    def read(rng: random.Random) -> None:
        found = change(rng, good, (*VALUES, f"{TEXT} {NUMBER}"))
        if isinstance(found, dict) and rng.random() < 0.9:  # past the seal, to what reads it
            found = seal.sealed(found)
        text = json.dumps(found).encode()
        if rng.random() < 0.2:
            text = scramble(rng, text)
        (folder / "copy/manifest.json").write_bytes(text)
        Store(folder / "copy", rng.choice(("train", "val")))

    return read
