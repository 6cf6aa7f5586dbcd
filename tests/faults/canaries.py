"""Patients' secrets in a data set, its whole life, and a search of every byte written meanwhile.

Each of 250 invented patients has four canaries, unique and never a part of anything else: an
identifier, a word in a note, a measured value and a date. The data are built, trained on,
evaluated, predicted (as new data too), described, reported and refused; then every file, also of
the temporary folder, and everything printed is searched, as it is and inside Parquet, zip, gzip and
Zstandard. By contract (`m4.run.meds_predictions`, `.own_predictions`, `m4.data.index`) identifiers
and dates stand in `predictions/meds/`, in `predictions/*-by-subject.csv`, which only its owner
reads, and in `index/` of the built data set; that they are found there, and everything in the raw
files, shows that the search sees.
"""

import io
import os
import random
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from m4.data.sets.declared.points import patient as hashed
from tests.faults import runs
from tests.faults.harness import Bench, Outcome

PATIENTS = 250
KINDS = ("name", "word", "value", "date")
DEFINITION = """
name = "canaries"
[[events]]
files = "events.csv"
subject = "patient"
time = "charted"
code = "item"
value = "value"
text = "comment"
[labels]
files = "labels.csv"
subject = "patient"
time = "asked"
[window]
hours = 48
[tasks.death]
kind = "binary"
column = "died"
[modalities.labs]
kind = "series"
features = { lactate = "lactate", reading = "reading" }
[modalities.notes]
kind = "text"
codes = "note"
vocabulary = "hashed"
[modalities.words]
kind = "text"
codes = "note"
min_subjects = 1
"""
CONFIG = """
import ml_collections
def get_config():
    return ml_collections.ConfigDict(dict(
        data=dict(name='tables', options=dict(file={file!r})),
        method=dict(name='m3h', width=8, task_width=8),
        optim=dict(lr=0.01),
        train=dict(steps=4, batch_size=16, log_every=1, eval_every=2, save_every=2,
                   select='death/auroc'),
        eval=dict(batch_size=64, bootstrap=5),
    ))
"""
DAMAGE = (  # file, what is replaced in it: each must be refused without a word of the row
    ("events.csv", ",reading,", ",reading,about "),
    ("events.csv", " 05:00:00,", " 5 o'clock,"),
    ("events.csv", '"Mrs', 'Mrs "'),
    ("events.csv", "Mrs", "Mrs\0"),
    ("labels.csv", ":00,", ":00,perhaps "),
    ("labels.csv", " 20:", " T20h"),
)
# What canaries can look like, so that one pass over the bytes finds all candidates.
SHAPES = re.compile(
    rb"(?i)zq7v[nw][0-9]{9}|(?<![0-9.])[0-9]{7,19}(?![0-9])"
    rb"|(?<![0-9])1\.[0-9]{5,7}e\+?07|2[1-4][0-9]{2}-[01][0-9]-[0-3][0-9]"
)
ZSTD, GZIP = b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08"


def canaries(bench: Bench) -> Outcome:
    """One try is one canary; lost are those found where they must not be."""
    raw, built, workdir = (bench.work / name for name in ("raw", "data", "run"))
    whose = plant(raw, random.Random(bench.seed))
    problems = _live(bench, raw, built, workdir)
    planted = {*whose.values()}
    if find(_files([raw]), whose).keys() != planted:
        problems.append("the search misses what is in the raw files")
    own = [*workdir.glob("predictions/*-by-subject.csv")]
    if not own or any(path.stat().st_mode & 0o077 for path in own):
        problems.append("predictions by subject are absent, or others may read them")
    allowed = [*own, *_files([workdir / "predictions/meds"]), *built.rglob("index/*")]
    kinds = {kind for kind, _ in find(allowed, whose)}
    if kinds != {"name", "date"}:
        problems.append(f"in files that name patients: {sorted(kinds)}")
    searched = [p for p in _files([bench.work]) if raw not in p.parents and p not in allowed]
    searched = [p for p in searched if not {"meds", "predictions"} <= {*p.parts}]
    found = find(searched, whose)
    for (kind, _), paths in sorted(found.items())[:10]:
        print(f"  a {kind} in {', '.join(sorted(map(str, paths)))[:300]}")
    for problem in problems:
        print(f"  {problem}")
    lost = len(planted) if problems else len(found)
    note = f"{len(searched)} files searched, stdout and stderr among them"
    return Outcome(len(planted), len(planted) - lost, lost, "; ".join([note, *problems[:3]]))


def plant(
    folder: Path, rng: random.Random, *, patients: int = PATIENTS
) -> dict[bytes, tuple[str, int]]:
    """Writes the raw files. Returns every spelling of every canary -> (kind, patient)."""
    folder.mkdir()
    events, labels, whose = ["patient,charted,item,value,comment"], ["patient,asked,died"], {}
    tags = rng.sample(range(10**8, 10**9), 2 * patients)
    values = rng.sample(range(10**7, 2**24), patients)  # exact in float32
    for i, value in enumerate(values):
        name, word = f"Zq7vN{tags[2 * i]}", f"Zq7vW{tags[2 * i + 1]}"
        date = f"{2100 + i}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        for hour in range(3):
            events.append(f"{name},{date} 0{hour}:30:00,lactate,{i % 2 + rng.random():.3f},")
        events.append(f"{name},{date} 05:00:00,reading,{value},")
        events.append(f'{name},{date} 06:00:00,note,,"Mrs {word}, chest pain"')
        labels.append(f"{name},{date} 20:00:00,{i % 2}")
        spellings = {"name": [name, str(hashed(name))], "word": [word], "date": [date]}
        spellings["value"] = [str(value), f"{value:e}", f"{value:.7e}".replace("+", "")]
        for kind, texts in spellings.items():
            whose |= {text.lower().encode(): (kind, i) for text in texts}
    for file, lines in {"events.csv": events, "labels.csv": labels}.items():
        (folder / file).write_text("\n".join([*lines, ""]))
    (folder / "s.toml").write_text(DEFINITION)
    return whose


def _live(bench: Bench, raw: Path, built: Path, workdir: Path) -> list[str]:
    """Everything that is done with a data set, some of it wrong; what ended unexpectedly."""
    config = bench.work / "config.py"
    config.write_text(CONFIG.format(file=str(raw / "s.toml")))
    environment = runs.environment(bench, 1)
    environment |= {"M4_RAW_DIR": str(raw), "M4_DATA_DIR": str(built)}
    scratch = bench.work / "tmp"  # whatever is left there is searched too
    scratch.mkdir()
    environment["TMPDIR"] = str(scratch)
    here, folder = f"--config={config}", f"--workdir={workdir}"
    wrong = []

    def run(expected: int, name: str, *args: str) -> None:
        code = runs.Run([*args], bench.work / f"{name}.out", environment).wait()
        wrong.extend([f"{name} ended in {code}"] if code != expected else [])

    run(0, "train", here, folder)
    for mode in ("eval", "predict", "report", "check"):
        run(0, mode, folder, f"--mode={mode}")
    run(0, "new", folder, f"--on={raw}")
    run(0, "check-data", here, "--mode=check", f"--workdir={bench.work / 'checked'}")
    with open(bench.work / "describe.out", "wb") as out:
        command = [sys.executable, "-m", "m4.data", "describe", str(built)]
        own = os.environ | {"TMPDIR": str(scratch)}
        code = subprocess.run(command, env=own, stdout=out, stderr=out, check=False).returncode
        wrong += [f"describe ended in {code}"] if code else []
    for number, (file, old, new) in enumerate(DAMAGE):
        good = (raw / file).read_text()
        (raw / file).write_text(good.replace(old, new))
        run(3, f"damage{number}", here, f"--workdir={bench.work / f'refused{number}'}")
        (raw / file).write_text(good)
    return wrong


def find(paths: Iterable[Path], whose: dict[bytes, tuple]) -> dict[tuple, set[Path]]:
    """Canary -> files that hold it: in their name, as bytes, or compressed."""
    found: dict[tuple, set[Path]] = {}
    for path in paths:
        for data in (os.fsencode(path), *contents(path.read_bytes())):
            for match in SHAPES.finditer(data):
                canary = whose.get(match[0].lower())
                if canary is not None:
                    found.setdefault(canary, set()).add(path)
    return found


def contents(data: bytes) -> Iterator[bytes]:
    """A file's bytes, and what is inside if it is, or has in it, something compressed."""
    yield data
    if data[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(data))
        for column in table.columns:
            yield "\n".join(map(str, column.to_pylist())).encode()
        yield repr(table.schema.metadata).encode()
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode() + b"\n" + archive.read(name)
    for magic, inflate in ((ZSTD, _zstd), (GZIP, _gzip)):
        for match in re.finditer(re.escape(magic), data):
            yield inflate(data[match.start() :])


def _zstd(data: bytes) -> bytes:
    """As much as can be read of a frame."""
    pieces = []
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            while piece := stream.read(2**20):
                pieces.append(piece)
    except OSError:  # what follows the frame is none
        pass
    return b"".join(pieces)


def _gzip(data: bytes) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(data)
    except zlib.error:  # those bytes by chance
        return b""


def _files(places: Iterable[Path]) -> list[Path]:
    return sorted(p for place in places for p in place.rglob("*") if p.is_file())
