"""Work directories, built data sets, checkpoints and results that cannot be used."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from m4 import seal
from m4.data import build
from tests.faults.catalogue import Case

CONFIG: dict[str, Any] = {
    "seed": 0,
    "data": {"name": "tests.faults.faulty", "options": {}},
    "method": {"name": "tests.faults.any_kind:AnyKind"},
    "optim": {"lr": 0.01},
    "train": {"steps": 2, "batch_size": 4, "select": "death/auroc"},
    "eval": {"batch_size": 4},
}
HELD: list[int] = []  # descriptors whose locks must outlast the making of a case

Make = Callable[[Path], list[str]]


def cases(shared: Path) -> Iterator[Case]:
    """All of them; `shared` is a folder for what several need."""
    yield from _workdirs()
    yield from _places()
    yield from _built(shared)
    yield from _checkpoints(shared)
    yield from _results()


def _args(folder: Path, *more: str, **sections: dict) -> list[str]:
    config = json.loads(json.dumps(CONFIG))
    for section, fields in sections.items():
        config[section] |= fields
    config["data"].setdefault("dir", str(folder / "built"))
    (folder / "x.json").write_text(json.dumps(config))
    work = [] if any(a.startswith("--workdir") for a in more) else [f"--workdir={folder / 'w'}"]
    return [f"--config_json={folder / 'x.json'}", *work, *more]


def _with(name: str, content: str | bytes | None, *more: str) -> Make:
    """The work directory of a run with one file in it; None makes it a folder."""

    def make(folder: Path) -> list[str]:
        path = folder / "w" / name
        path.parent.mkdir(parents=True)
        (folder / "w/run.json").write_text("{}")  # there was a run
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return _args(folder, *more)

    return make


def _workdirs() -> Iterator[Case]:
    def is_file(folder: Path) -> list[str]:
        (folder / "w").write_text("")
        return _args(folder)

    def below_file(folder: Path) -> list[str]:
        (folder / "f").write_text("")
        return _args(folder, f"--workdir={folder / 'f/w'}")

    def dangling(folder: Path) -> list[str]:
        (folder / "w").symlink_to(folder / "nowhere/else")
        return _args(folder)

    def in_use(folder: Path) -> list[str]:
        (folder / "w").mkdir()
        handle = os.open(folder / "w/lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(handle, fcntl.LOCK_EX)
        HELD.append(handle)
        return _args(folder)

    yield Case("workdir is a file", is_file, 2, ("--workdir",))
    yield Case("workdir below a file", below_file, 2, ("--workdir",))
    yield Case("workdir is a dangling link", dangling, 2, ("--workdir",))
    yield Case("workdir in use", in_use, 2, ("in use", "choose another"))
    yield Case("workdir has a NUL", lambda f: _args(f, "--workdir=a\x00b"), 2, ("--workdir",))
    yield Case(
        "workdir name too long", lambda f: _args(f, f"--workdir={'x' * 300}"), 2, ("--work",)
    )
    for mode in ("eval", "predict", "report"):
        yield Case(
            f"{mode}: no workdir", lambda f, m=mode: _args(f, f"--mode={m}"), 2, ("--mode=train",)
        )
    for name, text in {
        "empty": "",
        "cut": json.dumps(CONFIG)[:-9],
        "binary": b"\x80\x81\xff",
        "a list": "[1]",
        "a number": "3",
    }.items():
        yield Case(f"config.json is {name}", _with("config.json", text), 2, ("config.json",))
    yield Case("config.json is a folder", _with("config.json", None), 2, ("config.json",))
    yield Case("lock is a folder", _with("lock", None), 2, ("--workdir",))
    other = json.dumps(CONFIG | {"optim": {"lr": 0.5}})
    yield Case("another configuration", _with("config.json", other), 2, ("optim.lr: 0.5 -> 0.01",))
    other = json.dumps(CONFIG | {"method": {"name": "flexmoe"}})
    yield Case("another method", _with("config.json", other), 2, ("method.name: 'flexmoe' ->",))


def _places() -> Iterator[Case]:
    """Folders that the configuration names."""

    def data_dir(value: str) -> Make:
        return lambda folder: _args(folder, data={"dir": value})

    def below_file(folder: Path) -> list[str]:
        (folder / "f").write_text("")
        return _args(folder, data={"dir": str(folder / "f/data")})

    def raw_dir(name: str, value: str) -> Make:
        def make(folder: Path) -> list[str]:
            data = {"name": name, "raw_dir": value, "options": {}}
            select = {"mfeat": "digit/accuracy", "mimiciv": "ihm48/auroc"}.get(name, "los/rmse")
            return _args(folder, data=data, train={"select": select})

        return make

    yield Case("data.dir below a file", below_file, 2, ("f/data", "is a file"))
    yield Case("data.dir in /proc", data_dir("/proc/nope"), 6, ("/proc/nope",))
    yield Case("data.dir has a NUL", data_dir("a\x00b"), 2, ("data.dir",))
    for name in ("physionet2012", "support2", "mfeat", "mimiciv"):
        for what, value in {"missing": "/no/such", "a file": "/etc/hostname"}.items():
            yield Case(f"{name}: raw_dir {what}", raw_dir(name, value), 3, (name, value))


def _built(shared: Path) -> Iterator[Case]:
    """Records that were built before and have been damaged since."""
    whole = build.prepare("tests.faults.faulty", "", shared / "built")

    def damaged(change: Callable[[Path], None]) -> Make:
        def make(folder: Path) -> list[str]:
            shutil.copytree(shared / "built", folder / "built")
            change(folder / "built" / whole.relative_to(shared / "built"))
            return _args(folder, "--mode=check")

        return make

    def record(kind: str) -> Callable[[Path], None]:
        def change(folder: Path) -> None:
            path = max(folder.rglob("*.array_record*"), key=lambda p: ("train" in p.name, p.name))
            _hurt(path, kind)

        return change

    def manifest(edit: Callable[[dict], Any]) -> Callable[[Path], None]:
        def change(folder: Path) -> None:
            found = json.loads((folder / "manifest.json").read_text())
            edit(found)
            (folder / "manifest.json").write_text(json.dumps(seal.sealed(found)))

        return change

    for kind in ("empty", "cut", "noise", "gone", "a flipped bit"):
        yield Case(f"records: {kind}", damaged(record(kind)), 3, ("record",))
    edits: dict[str, Callable[[dict], Any]] = {
        "other counts": lambda m: m["splits"]["train"].update(rows=7),
        "no split": lambda m: m["splits"].pop("train"),
        "no normalisers": lambda m: m.pop("normalisers"),
        "normalisers of nothing": lambda m: m["normalisers"].update(vitals=[]),
        "no schema": lambda m: m.pop("schema"),
        "a schema of text": lambda m: m.update(schema="x"),
        "a schema without tasks": lambda m: m["schema"].update(tasks=[]),
        "another kind": lambda m: m["schema"]["tasks"][0].update(kind="nonsense"),
        "another width": lambda m: m["schema"]["modalities"][0].update(shape=[6, 4]),
    }
    for name, edit in edits.items():
        yield Case(f"manifest: {name}", damaged(manifest(edit)), 3, ("built|manifest|record",))


def _hurt(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "gone":
        path.unlink()
    elif kind == "a flipped bit":
        place = len(data) // 2
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
    else:
        new = {"empty": b"", "cut": data[: len(data) // 2], "noise": bytes(range(256)) * 30}
        path.write_bytes(new[kind])


def _checkpoints(shared: Path) -> Iterator[Case]:
    """`--mode=check` of a work directory with a damaged step."""
    import jax.numpy as jnp

    from m4.train.checkpoint import Checkpoints

    home = shared / "checkpoints"
    saved = Checkpoints(home / "last", keep=2)
    for step in (1, 2):
        saved.save(step, {"weights": jnp.arange(4096.0) * step}, {"step": step})
    saved.close()

    def damaged(change: Callable[[Path], Any]) -> Make:
        def make(folder: Path) -> list[str]:
            shutil.copytree(home, folder / "w/checkpoints")
            (folder / "w/config.json").write_text(json.dumps(CONFIG))
            change(folder / "w/checkpoints/last/2")
            return ["--mode=check", f"--workdir={folder / 'w'}"]

        return make

    def largest(kind: str) -> Callable[[Path], None]:
        def change(folder: Path) -> None:
            files = [p for p in (folder / "state").rglob("d/*") if p.is_file()]
            _hurt(max(files, key=lambda p: p.stat().st_size), kind)

        return change

    for kind in ("empty", "cut", "noise", "gone", "a flipped bit"):
        yield Case(f"checkpoint: {kind}", damaged(largest(kind)), 4, ("last/2",))
    parts = {"state": "state", "note": "meta"}
    for name, part in parts.items():
        gone = damaged(lambda step, p=part: shutil.rmtree(step / p))
        yield Case(f"checkpoint: no {name}", gone, 4, ("last/2",))


def _results() -> Iterator[Case]:
    """`--mode=report` of results that are none."""
    report = "--mode=report"
    documents: dict[str, str | bytes] = {
        "empty": "",
        "cut": '{"schema": 1, "spl',
        "binary": b"\xff\xfe\x00",
        "a list": "[]",
        "of another schema": '{"schema": 99}',
        "of no schema": "{}",
        "hollow": '{"schema": 1}',
        "hollow inside": '{"schema": 1, "split": "test", "subsets": [{}], "scores": [{}]}',
        "of texts": '{"schema": 1, "subsets": "x", "scores": "y", "min_patients": "z"}',
        "of nulls": '{"schema": 1, "subsets": null, "scores": null, "min_patients": null}',
    }
    for name, text in documents.items():
        says = ("results",)
        yield Case(f"results are {name}", _with("results/test.json", text, report), 3, says)
    yield Case("no results", _with("config.json", "{}", report), 3, ("--mode=eval",))
    yield Case("results is a file", _with("results", "x", report), 3, ("results",))
