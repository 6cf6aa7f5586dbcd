"""Frames that are handed over -> the files that a definition reads, and who is asked.

A frame goes by the name of its file in the definition: `measurements` or `measurements.csv.gz`.
One frame alone goes to the file whose columns it has. Files without a frame are written empty, so
that their modalities are absent, as for a patient of whom nothing was measured.
"""

import difflib
import functools
import gzip
import io
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from m4.api import frames
from m4.data import identifiers
from m4.data.sets.declared import arrow_files
from m4.data.sets.declared.definition import ENDINGS, Definition, Source, find
from m4.errors import ConfigError, DataError

POINTS = "points.parquet"
NO_TEXT = (  # kinds of columns, as of UUIDs and intervals
    pa.types.is_nested,
    pa.types.is_fixed_size_binary,
    lambda kind: isinstance(kind, pa.BaseExtensionType),
)
Spelling = Callable[[str], tuple[str, str]]
Key = tuple[int | str | None, int | None]  # subject and prediction time in microseconds


def write(
    root: Path, definition: Definition, given: Any, *, points: Any = None, labelled: bool = False
) -> str | None:
    """Writes one frame, or a mapping of frames by name, below `root`, a new private folder.

    Without a frame of labels, `points` says who is asked and when; without those, everybody in the
    frames is asked. With `labelled` there must be labels. Returns the time zone in which they are
    asked, None for times without one.

    Raises:
      DataError: a frame without the columns that are needed, or no way to tell who is asked.
      ConfigError: a name that no file of the definition has.
    """
    tables = _assigned(definition, given)
    for source in definition.sources:
        if source.files not in tables:
            tables[source.files] = _empty(source)
    asked = {task.files for task in definition.labelled} & tables.keys()
    if labelled and not asked:
        wanted = " or ".join(dict.fromkeys(_short(task.files) for task in definition.labelled))
        raise DataError(f"frames: none has the labels ({wanted})")
    spelling = functools.partial(_spelling, definition)
    for pattern, table in tables.items():
        _write(root, pattern, table, spelling)
    if points is None and asked:
        found = next(task for task in definition.labelled if task.files in asked)
        return _zone(tables[found.files], found.time)
    whom = _points(definition, tables, points)
    _write(root, POINTS, whom, spelling)
    return _zone(whom, definition.labelled[0].time)


def order(root: Path, definition: Definition) -> list[Key]:
    """Who is asked and when, in the order of the rows of the points, or else of the labels."""
    task = next(t for t in definition.labelled if find(root, POINTS) or find(root, t.files))
    pattern = POINTS if find(root, POINTS) else task.files
    keys: list[Key] = []
    for path in find(root, pattern):
        for table in arrow_files.tables(path, header=task.header):
            subjects: list[Any] = [*range(table.first, table.first + len(table))]
            if task.subject:
                ids, place_N = table.identifiers(task.subject, lambda one: None)
                subjects = [None if place < 0 else ids[place] for place in place_N]
            times: list[Any] = [None] * len(table)
            if task.time:
                times = table.times(task.time, up=False)[0].tolist()
            keys += zip(subjects, times, strict=True)
    return keys


def _zone(table: pa.Table, column: str | None) -> str | None:
    """The time zone of a column of times; of text with offsets, which may differ, UTC."""
    if not column or column not in table.column_names:
        return None
    kind = table[column].type
    if pa.types.is_timestamp(kind):
        return kind.tz
    if not arrow_files.is_text(kind):
        return None
    zoned = r":\d{2}(\.\d+)?\s*(Z|[+-]\d{2}:?\d{2})\s*$"
    text = table[column].cast(pa.large_string())
    return "UTC" if pc.any(pc.match_substring_regex(text, zoned)).as_py() else None


def _assigned(definition: Definition, given: Any) -> dict[str, pa.Table]:
    """Pattern of files -> the frame that is to be found there."""
    patterns = dict.fromkeys(
        [source.files for source in definition.sources]
        + [task.files for task in definition.labelled]
    )
    if isinstance(given, Mapping):
        names = {name: pattern for pattern in patterns for name in _names(pattern)}
        tables = {}
        for name, frame in given.items():
            if name not in names:
                near = difflib.get_close_matches(str(name), [*names], n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                known = ", ".join(map(_short, patterns))
                raise ConfigError(f"frames: {name!r} is none of {known}{hint}")
            pattern = names[name]
            only = _read(definition, pattern)
            tables[pattern] = frames.to_arrow(frame, f"frame {name!r}", only=only)
        for source in definition.sources:
            _require(source, tables.get(source.files))
        return tables
    table = frames.to_arrow(given)
    sources = dict.fromkeys(source.files for source in definition.sources)
    fits = [s.files for s in definition.sources if _needed(s) <= {*table.column_names}]
    long = [s.files for s in definition.sources if s.code and s.files in fits]
    found = [*dict.fromkeys(long or fits)]
    if len(found) == 1:
        return {found[0]: table}
    if len(sources) == 1:
        _require(definition.sources[0], table)
    known = ", ".join(f"{_short(pattern)!r}: ..." for pattern in sources)
    why = "has the columns of several files" if found else "has the columns of no file"
    raise DataError(f"frame: {why}; give several by name, {{{known}}}")


def _names(pattern: str) -> set[str]:
    return {pattern, PurePosixPath(pattern).name, _short(pattern)}


def _short(pattern: str) -> str:
    """'data/measurements*.csv' -> 'measurements', 'labels/*.parquet' -> 'labels'."""
    for part in reversed(PurePosixPath(pattern).parts):
        if stem := re.split(r"[.*?\[]", part, maxsplit=1)[0]:
            return stem
    return pattern


def _needed(source: Source) -> set[str]:
    """Columns without which a frame is none of a source."""
    optional = () if source.value == "numeric_value" else (source.value, source.text)
    return {c for c in (source.subject, source.time, source.code, *optional) if c}


def _read(definition: Definition, pattern: str) -> set[str] | None:
    """The columns that are read of files; None where it may be any."""
    sources = [source for source in definition.sources if source.files == pattern]
    labels = any(task.files == pattern for task in definition.labelled)
    if labels or not all(source.code and source.header == "names" for source in sources):
        return None
    return {c for s in sources for c in (s.subject, s.time, s.code, s.value, s.text)}


def _require(source: Source, table: pa.Table | None) -> None:
    if table is not None and (lacking := sorted(_needed(source) - {*table.column_names})):
        near = difflib.get_close_matches(lacking[0], table.column_names, n=1)
        hint = f"; did you mean to rename {near[0]!r}?" if near else ""
        name = _short(source.files)
        raise DataError(f"frame {name!r}: has no column {', '.join(map(repr, lacking))}{hint}")


def _empty(source: Source) -> pa.Table:
    names = [source.subject, source.time, source.code, source.value, source.text]
    names = [name for name in dict.fromkeys(names) if name] or ["row"]
    return pa.table({name: pa.nulls(0, pa.string()) for name in names})


def _points(definition: Definition, tables: Mapping[str, pa.Table], points: Any) -> pa.Table:
    """Who is asked, and when."""
    task = definition.labelled[0]
    wanted = [name for name in (task.subject, task.time) if name]
    if points is not None:
        table = frames.to_arrow(points, "points")
        if lacking := [name for name in wanted if name not in table.column_names]:
            raise DataError(f"points: has no column {', '.join(map(repr, lacking))}")
        return table.select(wanted) if wanted else table
    wide = {source.files for source in definition.sources if not source.code}
    if not wanted:
        return next(iter(tables[pattern] for pattern in tables if pattern in wide))
    if not task.time:
        return pa.table({task.subject: _everybody(definition, tables)})
    for pattern, table in tables.items():
        if len(table) and pattern in wide and {*wanted} <= {*table.column_names}:
            return table.select(wanted)
    raise DataError(
        f"points: who is asked, and when? Give a frame with columns {task.subject!r} and"
        f" {task.time!r}"
    )


def _everybody(definition: Definition, tables: Mapping[str, pa.Table]) -> pa.Array:
    """The subjects of all frames, each once, in order of their first row."""
    found: dict[Any, None] = {}
    for source in definition.sources:
        table = tables[source.files]
        if len(table) and source.subject:
            name, column = _short(source.files), table[source.subject]
            try:
                values = pc.unique(column).drop_null().to_pylist()
                # "7" of one is 7 of another
                found |= dict.fromkeys(identifiers.canonical(value) for value in values)
            except (ValueError, pa.ArrowException):
                where = f"frame {name!r}: column {source.subject!r}"
                raise DataError(f"{where} holds values that are no identifiers") from None
    subjects = [subject for subject in found if subject is not None]
    if not subjects:
        raise DataError("frames: have no rows")
    if all(isinstance(subject, int) for subject in subjects):
        return pa.array(subjects, pa.int64())
    return pa.array([str(subject) for subject in subjects], pa.string())


def _spelling(definition: Definition, column: str) -> tuple[str, str]:
    """How the definition spells True and False of a wide column; frames keep no spelling."""
    features = [code for m in definition.modalities for f in m.features for code in f.codes]
    words = {*features, *(code for m in definition.modalities for code in m.codes)}
    for true, false in (("true", "false"), ("TRUE", "FALSE"), ("1", "0")):
        if any(word.endswith((f"{column}//{true}", f"{column}//{false}")) for word in words):
            return true, false
    return "True", "False"


def _write(root: Path, pattern: str, table: pa.Table, spelling: Spelling) -> None:
    """Puts a table where `find` finds it for a pattern, readable by its owner only."""
    for name in _candidates(pattern):
        path = root / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            write = _parquet if name.endswith(".parquet") else functools.partial(_csv, spelling)
            content = _content(_short(pattern), table, write)
            if name.endswith(".gz"):
                with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                    packed.write(content)
            else:
                file.write(content)
        if path in find(root, pattern):
            return
        path.unlink()
    raise ConfigError(f"files = {pattern!r}: cannot be given as a frame; give a folder of files")


def _candidates(pattern: str) -> list[str]:
    """Names of files that a pattern may stand for."""
    bare = re.sub(r"\[(.)[^\]]*\]", r"\1", pattern.replace("**/", "").replace("?", "0"))
    names = dict.fromkeys((bare.replace("*", ""), bare.replace("*", "0")))
    found = [name for name in names if name.endswith(ENDINGS)]
    return found or [f"{name.rstrip('/')}/0.parquet" for name in names]


def _content(name: str, table: pa.Table, write: Callable[[pa.Table], bytes]) -> bytes:
    """A table as `write` writes it. DataError for a column that it cannot."""
    try:
        return write(table)
    except pa.ArrowException:
        for column in table.column_names:
            try:
                write(table.select([column]))
            except pa.ArrowException:
                kind = table[column].type
                raise DataError(
                    f"frame {name!r}: column {column!r} holds {kind}, expected plain values"
                ) from None
        raise


def _parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def _csv(spelling: Spelling, table: pa.Table) -> bytes:
    """Text of a table; what is missing is an empty cell."""
    columns = {}
    for name in table.column_names:
        array = table[name]
        if pa.types.is_boolean(array.type):
            array = pc.if_else(array, *(pa.scalar(word) for word in spelling(name)))
        elif pa.types.is_timestamp(array.type):
            zone = array.type.tz is not None
            array = array.cast(pa.timestamp("us", "UTC" if zone else None), safe=False)
            text = array.cast(pa.timestamp("us")).cast(pa.string())
            array = pc.binary_join_element_wise(text, "Z", "") if zone else text
        elif any(is_kind(array.type) for is_kind in NO_TEXT):
            raise pa.ArrowTypeError(name)
        columns[name] = array.cast(pa.large_string())
    out = io.BytesIO()
    csv.write_csv(pa.table(columns), out)
    return out.getvalue()
