"""Reader of one set of the PhysioNet/CinC Challenge 2012: archive or folder -> compact arrays.

A set is a `set-x.tar.gz` (or extracted folder `set-x`) of one text file per stay, with rows
`HH:MM,parameter,value`. All files are parsed in one pass of pyarrow's csv reader.

Letters: R rows of all stays, S time steps of one group over all stays, f its variables.
"""

import dataclasses
import gzip
import io
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from m4 import regular
from m4.data import identifiers
from m4.data.identifiers import Forms
from m4.errors import DataError

STATICS = ("Age", "Gender", "Height", "Weight", "ICUType")
FIXED = tuple(name for name in STATICS if name != "Weight")  # said once of a stay
PERCENT = ("FiO2",)  # fractions, that some chart as 21 to 100
HOURS = 48.0
MAX_RECORD, MAX_RECORDS, MAX_SET = 2**20, 50_000, 2**30  # bytes, files, bytes: ten times the real
MAX_HEADERS = 2 * MAX_RECORDS  # of an archive: folders and what is said of files have some, too
# Members that hold names and other facts of the next one.
HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
HEADERS += (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_RECORD = re.compile("[0-9]+")  # a file's name without its ending
_MARKER = "<stay>"  # pseudo-parameter of a row put before each stay's rows
_UNKNOWN, _STAY, _RECORD_ID = -1, -2, -3  # codes of what is no variable


@dataclasses.dataclass
class RawSet:
    """A set after cleaning.

    `groups[name]` = (values [S, f] with NaN, times [S], offsets of the stays [N + 1]).
    """

    stays: list[int]
    groups: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    static_values: dict[str, np.ndarray]  # [N] with NaN
    flow: list[tuple[str, int]]
    misnamed: set[int]  # stays whose record names another one

    def series(self, name: str, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Values [t, f] and hours [t] of stay number `i`, in order of time."""
        values_Sf, times_S, starts = self.groups[name]
        here = slice(starts[i], starts[i + 1])
        return values_Sf[here], times_S[here]

    def last_hours(self) -> list[float]:
        """Of each stay the hour of its last measurement, 0 without one."""
        found = np.zeros(len(self.stays))
        for _, times_S, starts in self.groups.values():
            stay_S = np.repeat(np.arange(len(self.stays)), np.diff(starts))
            np.maximum.at(found, stay_S, times_S)
        return found.tolist()

    def statics(self, i: int) -> dict[str, float]:
        """Known static descriptors of stay number `i`."""
        found = {name: float(values[i]) for name, values in self.static_values.items()}
        return {name: value for name, value in found.items() if not np.isnan(value)}


def set_files(folder: Path, letter: str) -> list[Path]:
    """The archive of a set, or the files of the extracted folder, or nothing.

    Without a letter they are the records that lie in the folder itself.
    """
    if not letter:
        return sorted(path for path in folder.glob("*.txt") if _RECORD.fullmatch(path.stem))
    archive = folder / f"set-{letter}.tar.gz"
    return [archive] if archive.exists() else sorted((folder / f"set-{letter}").glob("*.txt"))


def new_sets(folder: Path) -> list[str]:
    """The letters of all sets in a folder; [''] if it holds nothing but records."""
    names = [path.name.removesuffix(".tar.gz") for path in folder.glob("set-*.tar.gz")]
    names += [path.name for path in folder.glob("set-*") if path.is_dir()]
    letters = sorted({name.removeprefix("set-") for name in names})
    return [letter for letter in letters or [""] if set_files(folder, letter)]


def left_aside(folder: Path, letters: Sequence[str]) -> list[str]:
    """What of new stays is not read, in words: texts beside sets, or of other names."""
    read = {path for path in set_files(folder, "") if letters == [""]}
    read |= {*folder.glob("Outcomes*.txt")}
    count = len({*folder.glob("*.txt")} - read)
    which = "whose name is no RecordID" if letters == [""] else "beside the sets"
    found = [f"{folder}: {count} files *.txt {which}, not read"] if count else []
    for letter in filter(None, letters):
        archive, extracted = folder / f"set-{letter}.tar.gz", folder / f"set-{letter}"
        if archive.exists() and extracted.is_dir():
            found.append(f"{extracted}: not read, as {archive.name} lies beside it")
    return found


def new_outcomes(folder: Path, letter: str) -> Path | None:
    """The outcomes of a set that `new_sets` found, None without; DataError if it may be another."""
    if letter:
        path = folder / f"Outcomes-{letter}.txt"
        return path if path.exists() else None
    found = sorted(folder.glob("Outcomes*.txt"))
    if len(found) > 1:
        raise DataError(f"{folder}: has {len(found)} files Outcomes*.txt; leave the right one")
    return found[0] if found else None


def set_name(folder: Path, letter: str) -> str:
    """What messages call a set."""
    return f"{folder}/set-{letter}" if letter else str(folder)


def read_set(
    folder: Path,
    letter: str,
    *,
    groups: Mapping[str, Sequence[str]],
    ranges: Mapping[str, tuple[float, float]],
    forms: Forms | None = None,
) -> RawSet:
    """Parse, clean and group a set.

    Args:
      folder: holds `set-<letter>.tar.gz` or `set-<letter>/`.
      letter: 'a' or 'b'; '' for records that lie in the folder itself.
      groups: modality -> variables.
      ranges: variable -> inclusive plausible range; rows of other variables are ignored.
      forms: takes in how the ids of the records are written.

    Raises:
      DataError: a damaged archive, a file that is no record, the same record twice.
    """
    flow: Counter[str] = Counter()
    stays, text, place = [], io.BytesIO(), set_name(folder, letter)
    for number, (name, content) in enumerate(_contents(folder, letter), start=1):
        stem = Path(name).stem
        try:
            whole = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError:  # pyarrow would print it and go on
            raise DataError(f"{place}, file {number}: not UTF-8") from None
        header, *lines = whole.split("\n")
        if not _RECORD.fullmatch(stem) or header.strip() != "Time,Parameter,Value":
            raise DataError(f"{place}, file {number}: not a record of the challenge")
        if any(line.split(",")[1:2] == [_MARKER] for line in lines):  # else rows would be another's
            raise DataError(f"{place}, file {number}: a parameter is called {_MARKER}")
        identifiers.text(stem, f"{place}, file {number}: its name", forms)
        stays.append(int(stem))
        text.write(f"00:00,{_MARKER},0\n".encode())
        text.write("\n".join(lines).encode() + b"\n")
    if len({*stays}) < len(stays):
        raise DataError(f"{place}: {len(stays) - len({*stays})} records come twice")
    flow["stays"] = len(stays)
    codes = {name: code for code, name in enumerate(ranges)}
    rows = _parse(text, codes, place, flow)
    other_R = (rows.variable == _RECORD_ID) & (rows.value != np.array(stays)[rows.stay])
    misnamed = {stays[i] for i in rows.stay[other_R]}
    flow["stays whose record names another stay, no labels"] += len(misnamed)
    rows = _clean(rows.keep(rows.variable != _RECORD_ID), codes, ranges, flow)
    grouped = {
        name: _group(rows, [codes[v] for v in variables], len(stays), flow)
        for name, variables in groups.items()
    }
    statics = {
        name: _first(rows.keep(rows.variable == codes[name]), len(stays), name, flow)
        for name in STATICS
    }
    return RawSet(stays, grouped, statics, [*flow.items()], misnamed)


class _Archive(tarfile.TarFile):
    """An archive that counts its headers."""

    headers = 0


class _Small(tarfile.TarInfo):
    """A member whose header is not larger than its record may be: tarfile reads it whole.

    None has holes: where they are is said at any length.
    """

    def _proc_member(self, tarfile_):
        tarfile_.headers += 1
        if tarfile_.headers > MAX_HEADERS:
            raise DataError(
                f"{tarfile_.name}: more than {MAX_HEADERS} headers of files and folders"
            )
        if self.type == tarfile.GNUTYPE_SPARSE or self.type in HEADERS and self.size > MAX_RECORD:
            raise tarfile.ReadError("a header of too many bytes")
        return super()._proc_member(tarfile_)  # pyright: ignore[reportAttributeAccessIssue]

    def _proc_gnusparse_10(self, *_):
        raise tarfile.ReadError("a header of too many bytes")


class _Unpacked(gzip.GzipFile):
    """What a compressed file holds, of which no more than `MAX_SET` bytes are read."""

    def __init__(self, file: BinaryIO, path: Path):
        super().__init__(fileobj=file, mode="rb")
        self._path, self._size = path, 0

    def read(self, size: int | None = -1) -> bytes:
        """Raises DataError beyond the limit; EOFError, OSError or zlib.error for damage."""
        found = super().read(size)
        self._size += len(found)
        _require_few(self._path, 0, self._size)
        return found


def _require_few(place: Path | str, number: int, size: int) -> None:
    """Raises DataError for more records or bytes than a set may have."""
    if number > MAX_RECORDS or size > MAX_SET:
        raise DataError(f"{place}: more than {MAX_RECORDS} files or {MAX_SET} bytes")


def _contents(folder: Path, letter: str) -> Iterator[tuple[str, bytes]]:
    files = set_files(folder, letter)
    if files and files[0].suffix == ".txt":
        yield from _texts(files, set_name(folder, letter))
        return
    number = 0
    try:
        with (
            regular.opened(files[0]) as file,
            # As a stream, for tarfile would go back otherwise, which means to unpack again.
            _Archive.open(files[0], "r|", _Unpacked(file, files[0]), tarinfo=_Small) as archive,
        ):
            for member in archive:
                if member.isdir():
                    continue
                tarfile.data_filter(member, str(folder))  # refuses what leads outside
                if not member.isfile() or member.issparse() or member.size > MAX_RECORD:
                    raise DataError(f"{files[0]}: holds a link or a file of {member.size} bytes")
                number += 1
                _require_few(files[0], number, 0)
                content = archive.extractfile(member)
                if member.name.endswith(".txt") and content:
                    yield member.name, content.read()
    except tarfile.FilterError as error:
        raise DataError(f"{files[0]}: unsafe content ({type(error).__name__})") from None
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{files[0]}: the archive is damaged after record {number}; download it again"
        ) from error


def _texts(files: Sequence[Path], place: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file of a folder, within the limits of an archive."""
    size = 0
    for number, path in enumerate(files, start=1):
        try:
            content = regular.read(path, MAX_RECORD)
        except OSError as error:
            reason = error.strerror
            raise DataError(f"{place}, file {number}: cannot be read ({reason})") from None
        size += len(content)
        _require_few(place, number, size)
        yield path.name, content


@dataclasses.dataclass
class _Rows:
    stay: np.ndarray  # [R] number of the stay
    variable: np.ndarray  # [R] code, or one of the negative codes below
    time: np.ndarray  # [R] hours, NaN where unreadable
    value: np.ndarray  # [R]

    def keep(self, mask_R: np.ndarray) -> "_Rows":
        return _Rows(*(getattr(self, field.name)[mask_R] for field in dataclasses.fields(self)))


def _parse(text: io.BytesIO, codes: Mapping[str, int], where: str, flow: Counter) -> _Rows:
    """All rows of a set. The text holds a marker row before each stay."""
    from pyarrow import ArrowInvalid, csv, dictionary, int32, string  # slow to import

    malformed: list[int] = []

    def skip(row):
        malformed.append(row.number or 0)
        return "skip"

    text.seek(0)
    encoded = dictionary(int32(), string())
    try:
        table = csv.read_csv(
            text,
            csv.ReadOptions(column_names=["time", "name", "value"]),
            csv.ParseOptions(invalid_row_handler=skip, quote_char=False),
            csv.ConvertOptions(
                column_types={"time": encoded, "name": encoded, "value": "float64"},
                null_values=["", "NaN", "nan", "NA"],
            ),
        ).combine_chunks()
    except ArrowInvalid:
        raise DataError(f"{where}, record {_first_bad(text)}: a value is not a number") from None
    time_R = _decode(table["time"], _hours, np.float32, np.nan)
    special = {_MARKER: _STAY, "RecordID": _RECORD_ID}
    variable_R = _decode(table["name"], {**codes, **special}.get, np.int16, _UNKNOWN)
    stay_R = np.cumsum(variable_R == _STAY, dtype=np.int32) - 1
    flow["rows of another shape, dropped"] += len(malformed)
    rows = _Rows(stay_R, variable_R, time_R, table["value"].to_numpy())
    return rows.keep(variable_R != _STAY)


def _decode(column, function: Callable, dtype, default) -> np.ndarray:
    """Apply `function` once per distinct string; `default` where it gives None or is null."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    distinct = [function(text) for text in array.dictionary.to_pylist()] + [None]
    lookup = np.array([default if d is None else d for d in distinct], dtype)
    return lookup[array.indices.fill_null(len(distinct) - 1).to_numpy(zero_copy_only=False)]


def _hours(text: str) -> float | None:
    match = re.fullmatch(r"(\d{1,3}):([0-5]\d)", text)
    return int(match[1]) + int(match[2]) / 60 if match else None


def _first_bad(text: io.BytesIO) -> int:
    """Number of the first record with a value that is not a number."""
    record = 0
    for line in text.getvalue().decode(errors="replace").splitlines():
        fields = line.split(",")
        record += fields[1:2] == [_MARKER]
        try:
            float(fields[2] or "nan") if len(fields) == 3 else None
        except ValueError:
            return record
    return record


def _clean(
    rows: _Rows,
    codes: Mapping[str, int],
    ranges: Mapping[str, tuple[float, float]],
    flow: Counter,
) -> _Rows:
    """Drop and count what is unreadable, unknown or implausible."""
    flow["rows"] = len(rows.variable)
    readable_R = (rows.time >= 0) & (rows.time <= HOURS) & np.isfinite(rows.value)
    unreadable = int((~readable_R).sum())
    flow["rows without a readable time within 48 h, or a value, dropped"] += unreadable
    flow["rows of unknown parameters, dropped"] += int((rows.variable == _UNKNOWN).sum())
    rows = rows.keep(readable_R & (rows.variable != _UNKNOWN))
    statics = [codes[name] for name in STATICS]
    unknown_R = (rows.value == -1) & np.isin(rows.variable, statics)
    flow["static descriptors and weights recorded as unknown (-1)"] += int(unknown_R.sum())
    rows = rows.keep(~unknown_R)
    for name in PERCENT:
        percent_R = (rows.variable == codes[name]) & (rows.value >= 21) & (rows.value <= 100)
        rows.value = np.where(percent_R, rows.value / 100, rows.value)
        flow[f"{name} in percent, read as a fraction"] += int(percent_R.sum())
    bounds = np.array([ranges[name] for name in codes])[rows.variable]
    outside_R = (rows.value < bounds[:, 0]) | (rows.value > bounds[:, 1])
    dropped = np.bincount(rows.variable[outside_R], minlength=len(codes))
    for name, code in codes.items():
        if dropped[code]:
            low, high = ranges[name]
            flow[f"{name} outside {low:g} to {high:g}, dropped"] += int(dropped[code])
    return rows.keep(~outside_R)


def _group(
    rows: _Rows, variables: Sequence[int], num_stays: int, flow: Counter
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of some variables -> one matrix of time steps, ordered by stay and time."""
    rows = rows.keep(np.isin(rows.variable, variables))
    rows = rows.keep(np.lexsort((rows.time, rows.stay)))  # stable: file order within a time
    new_R = np.ones(len(rows.stay), bool)
    new_R[1:] = (np.diff(rows.stay) != 0) | (np.diff(rows.time) != 0)
    step_R = np.cumsum(new_R) - 1
    values_Sf = np.full((int(new_R.sum()), len(variables)), np.nan, np.float32)
    for column, variable in enumerate(variables):
        here_R = rows.variable == variable
        values_Sf[step_R[here_R], column] = rows.value[here_R]  # of equal indices the last stays
    replaced = len(rows.stay) - int((~np.isnan(values_Sf)).sum())
    flow["earlier values at the same time, replaced"] += replaced
    starts = np.searchsorted(rows.stay[new_R], np.arange(num_stays + 1))
    return values_Sf, rows.time[new_R], starts


def _first(rows: _Rows, num_stays: int, name: str, flow: Counter) -> np.ndarray:
    """[N] first value per stay, NaN where there is none, or two of what never changes."""
    found = np.full(num_stays, np.nan)
    order = np.lexsort((rows.time, rows.stay))[::-1]
    found[rows.stay[order]] = rows.value[order]  # reversed: the earliest is written last
    if name in FIXED:
        torn = np.unique(rows.stay[rows.value != found[rows.stay]])
        found[torn] = np.nan
        flow[f"stays with two values of {name}, unknown"] += len(torn)
    return found
