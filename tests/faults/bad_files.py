"""Raw files that are damaged, not what they should be, or hostile; every reader of text.

What a reader may accept (an event table without rows, say) is built and then refused for its
number of rows, exit 2: the case ends as early as the others.
"""

import dataclasses
import gzip
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults import raw_files
from tests.faults.catalogue import NUMBER, TEXT, Case

CONFIG = """
def get_config():
    return dict(
        data=dict(name={name!r}, dir={built!r}, raw_dir={raw!r}, options={options!r}),
        method=dict(name='tests.faults.any_kind:AnyKind'),
        optim=dict(lr=0.01),
        train=dict(steps=2, batch_size=65536, select={select!r}),
        eval=dict(batch_size=65536),
    )
"""
BUILT = (
    2,
    "rows|no labelled row|every label is",
)  # accepted, and ended by its number of rows, or of labels
SECRET = f"{TEXT} Doe has {NUMBER}"


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set, the file that is damaged, and a column whose values must be numbers."""

    name: str
    write: Callable[[Path], None]
    file: str
    column: int
    select: str
    options: dict


PHYSIONET = ("physionet2012", raw_files.physionet)
SOURCES = (
    Source(*PHYSIONET, "physionet2012/Outcomes-a.txt", 2, "death/auroc", {}),
    Source("support2", raw_files.support, "support2/support2.csv", 4, "los/rmse", {}),
    Source(
        "mfeat",
        raw_files.digits,
        "uci-mfeat/mfeat-mor.csv",
        2,
        "digit/accuracy",
        {"views": ("mor",)},
    ),
    *(
        Source(
            "mimiciv",
            raw_files.mimic,
            f"mimiciv/2.2/{table}.csv.gz",
            column,
            "ihm48/auroc",
            {"modalities": ("vitals", "labs", "static"), "tasks": ("ihm48", "los")},
        )
        for table, column in (
            ("icu/icustays", 0),
            ("hosp/admissions", 1),
            ("hosp/patients", 0),
            ("icu/chartevents", 7),
            ("hosp/labevents", 4),
        )
    ),
)


def _text(path: Path) -> list[list[str]]:
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    return [line.split(",") for line in data.decode().splitlines()]


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


def _join(rows: list[list[str]]) -> bytes:
    return ("\n".join(",".join(row) for row in rows) + "\n").encode()


def _deleted(path: Path, column: int) -> None:
    path.unlink()


def _folder(path: Path, column: int) -> None:
    path.unlink()
    path.mkdir()


def _dangling(path: Path, column: int) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def _empty(path: Path, column: int) -> None:
    path.write_bytes(b"")


def _cut(path: Path, column: int) -> None:
    """Half of the file; of text that is half a row at least."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _noise(path: Path, column: int) -> None:
    path.write_bytes(bytes(range(256)) * 40)


def _blank(path: Path, column: int) -> None:
    _write(path, b"\n\n\n")


def _no_rows(path: Path, column: int) -> None:
    _write(path, _join(_text(path)[:1]))


def _no_header(path: Path, column: int) -> None:
    _write(path, _join(_text(path)[1:]))


def _no_column(path: Path, column: int) -> None:
    _write(path, _join([row[:column] + row[column + 1 :] for row in _text(path)]))


def _changed(change: Callable[[list[str], int], list[str]]) -> Callable[[Path, int], None]:
    def damage(path: Path, column: int) -> None:
        rows = _text(path)
        rows[5] = change(rows[5], column)
        _write(path, _join(rows))

    return damage


def _value(text: str) -> Callable[[Path, int], None]:
    return _changed(lambda row, c: [*row[:c], text, *row[c + 1 :]])


def _bytes(value: bytes) -> Callable[[Path, int], None]:
    def damage(path: Path, column: int) -> None:
        rows = _text(path)
        rows[5][column] = "@@"
        _write(path, _join(rows).replace(b"@@", value))

    return damage


def _twice(path: Path, column: int) -> None:
    rows = _text(path)
    _write(path, _join([*rows, *rows[1:]]))


DAMAGES: dict[str, Callable[[Path, int], None]] = {
    "deleted": _deleted,
    "a folder": _folder,
    "dangling link": _dangling,
    "empty": _empty,
    "cut": _cut,
    "noise": _noise,
    "blank lines": _blank,
    "header only": _no_rows,
    "no header": _no_header,
    "column gone": _no_column,
    "text for a number": _value(SECRET),
    "quote not closed": _value(f'"{SECRET}'),
    "huge field": _value(TEXT * 40_000),
    "short row": _changed(lambda row, c: row[:1]),
    "long row": _changed(lambda row, c: [*row, SECRET, SECRET]),
    "not UTF-8": _bytes(b"\xff\xfe\xfa"),
    "NUL": _bytes(b"\x00\x00"),
    "infinite": _value("inf"),
    "huge number": _value("9" * 400),
    "every row twice": _twice,
}


def cases() -> Iterator[Case]:
    """All of them."""
    for source in SOURCES:
        for damage, change in DAMAGES.items():
            name = f"{Path(source.file).name}: {damage}"
            accepted = damage in ACCEPTED.get(Path(source.file).name, ())
            code, says = BUILT if accepted else (3, f"{source.name}|split")
            yield Case(name, _damaged(source, change), code, (says,))
    for name, change in ARCHIVES.items():
        code, says = BUILT if name in ACCEPTED["archive"] else (3, "set-a")
        yield Case(f"archive: {name}", _damaged(SOURCES[0], change), code, (says,))


# What a reader may take as it is, and why.
ACCEPTED = {
    "mfeat-mor.csv": ("every row twice",),  # rows have no ids
    # An event is what it is: values out of range are dropped and counted, so are repeated times.
    "chartevents.csv.gz": ("header only", "infinite", "huge number", "every row twice"),
    "labevents.csv.gz": ("header only", "every row twice"),
    "archive": ("a quote not closed",),  # a quote means nothing there: a row, dropped and counted
}


def _damaged(source: Source, damage: Callable[[Path, int], None]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        raw = folder / "raw"
        source.write(raw)
        damage(raw / source.file, source.column)
        text = CONFIG.format(
            name=source.name,
            built=str(folder / "built"),
            raw=str(raw),
            options=source.options,
            select=source.select,
        )
        (folder / "x.py").write_text(text)
        return [f"--config={folder / 'x.py'}", "--mode=check", f"--workdir={folder / 'w'}"]

    return make


def _packed(*members: tuple[str, bytes]) -> Callable[[Path, int], None]:
    """Set A with these files besides its own."""

    def damage(path: Path, column: int) -> None:
        archive = path.parent / "set-a.tar.gz"
        with tarfile.open(archive, "w:gz", compresslevel=1) as file:
            for stay in raw_files.STAYS["a"]:
                raw_files.add(file, f"set-a/{stay}.txt", raw_files.record(stay).encode())
            for name, data in members:
                raw_files.add(file, name, data)

    return damage


def _special(kind: bytes, target: str) -> Callable[[Path, int], None]:
    def damage(path: Path, column: int) -> None:
        with tarfile.open(path.parent / "set-a.tar.gz", "w:gz") as file:
            member = tarfile.TarInfo("set-a/100.txt")
            member.type, member.linkname = kind, target
            file.addfile(member)

    return damage


def _archive(damage: Callable[[Path, int], None]) -> Callable[[Path, int], None]:
    return lambda path, column: damage(path.parent / "set-a.tar.gz", column)


def _row(*rows: str) -> Callable[[Path, int], None]:
    return _packed(("set-a/999.txt", raw_files.record(999, *rows).encode()))


ARCHIVES: dict[str, Callable[[Path, int], None]] = {
    "deleted": _archive(_deleted),
    "empty": _archive(_empty),
    "cut": _archive(_cut),
    "noise": _archive(_noise),
    "a folder": _archive(_folder),
    "no members": _special(tarfile.DIRTYPE, ""),
    "a link": _special(tarfile.SYMTYPE, "/etc/passwd"),
    "a hard link": _special(tarfile.LNKTYPE, "/etc/passwd"),
    "a device": _special(tarfile.CHRTYPE, ""),
    "a pipe": _special(tarfile.FIFOTYPE, ""),
    "a member outside": _packed(("../../999.txt", raw_files.record(999).encode())),
    "a bomb": _packed(("set-a/999.txt", raw_files.record(999).encode() + b"\0" * 50_000_000)),
    "no record": _packed((f"set-a/{TEXT}.txt", SECRET.encode())),
    "a record of another name": _packed((f"set-a/{TEXT}.txt", raw_files.record(9).encode())),
    "an empty record": _packed(("set-a/999.txt", b"")),
    "a binary record": _packed(("set-a/999.txt", bytes(range(256)))),
    "a record twice": _packed(("set-a/100.txt", raw_files.record(100).encode())),
    "text for a number": _row(f"02:00,HR,{SECRET}"),
    "not UTF-8": _packed(("set-a/999.txt", raw_files.record(999).encode() + b"02:00,HR,\xff\xfe")),
    "a quote not closed": _row(f'02:00,"{SECRET},80'),
}
