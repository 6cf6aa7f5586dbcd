"""Event files -> blocks of a few hundred subjects on disk, so that memory stays bounded.

Files may come in any order: sorted by subject or not, a subject in one shard or in many. What no
label asks for and no modality uses is dropped on the way, counted by reason.

Letters: N events of a batch, n uses of them.
"""

import difflib
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m4.data import temporary
from m4.data.sets.declared import arrow_files
from m4.data.sets.declared.definition import Definition, Source, find
from m4.data.sets.declared.joins import ALWAYS, Joins, Reach
from m4.data.sets.declared.match import NO_TOKEN, TEXT, Matcher
from m4.data.sets.declared.points import SPLITS, Flow, Points
from m4.data.sets.declared.repeats import Repeats
from m4.data.shares import SMALLEST, share
from m4.errors import DataError

EVENT = np.dtype(
    [("subject", "<i4"), ("slot", "<i4"), ("time", "<i8"), ("token", "<i4"), ("value", "<f4")]
)
DEATH = "MEDS_DEATH"
SUBJECTS = 512  # of one split in one block
WAIT = 1 << 20  # uses of events that wait in memory before they are written
AFTER_DEATH = "points at or after the death of their subject, left out"
OPTIONAL = ("numeric_value", "text_value")  # in MEDS; a column of another name must be there


class Events:
    """All events that the points may see, on disk; the folder goes with the object."""

    def __init__(
        self,
        definition: Definition,
        root: Path,
        points: Points,
        matcher: Matcher,
        *,
        joins: Joins,
        flow: Flow,
        scratch: Path | None = None,
    ):
        """Reads every source once. Raises DataError for files that can't be used.

        A point at or after the death of its subject is none: `self.points` are the others.
        """
        self._matcher, self._flow, self._joins = matcher, flow, joins
        self._repeats = Repeats()
        self._implausible = definition.implausible
        self.reach = Reach(definition, matcher.slots, points)
        self._features = [f for m in definition.modalities for f in m.features or (None,)]
        self._seen: Counter[str] = Counter()  # codes of no use, and names of columns
        self._outside = np.zeros((2, len(matcher.names)), np.int64)  # numbers of a slot, wrong ones
        self._block = _blocks(points)
        if scratch:
            scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._folder = Path(tempfile.mkdtemp(prefix="m4-meds-", dir=scratch))  # mode 0700
        else:
            self._folder = temporary.somewhere()
        weakref.finalize(self, temporary.remove, self._folder)  # also at exit
        self._written: Counter[int] = Counter()  # bytes, by block
        self._waiting: dict[int, list[np.ndarray]] = {}  # by block
        self._waited = 0
        self._death_S = np.full(len(points.ids), ALWAYS)  # of each subject, the first
        for source in definition.sources:
            if not (paths := find(root, source.files)):
                raise DataError(f"{root / source.files}: no event files")
            if source.number:
                joins.require_one(paths)
            for path in paths:
                self._read(path, source)
        self._flush()
        dead_P = (points.time_P >= self._death_S[points.subject_P]) & (points.time_P < ALWAYS)
        flow[AFTER_DEATH] = int(dead_P.sum())
        self.points = points.only(~dead_P)

    def blocks(self, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(indices of points, their subjects' events by subject and time) of a split."""
        rows = np.flatnonzero(self.points.split_P == SPLITS.index(split))
        block_P = self._block[self.points.subject_P[rows]]
        for block in np.unique(block_P):
            events = self._events(int(block))
            order = np.lexsort((events["time"], events["subject"]))
            yield rows[block_P == block], events[order]

    def _events(self, block: int) -> np.ndarray:
        """What was written of a block. Raises DataError if it is not there any more."""
        if not (size := self._written[block]):
            return np.empty(0, EVENT)
        path = self._folder / str(block)
        if not path.is_file() or path.stat().st_size != size:
            raise DataError(f"{path}: was removed or cut while it was needed; start again")
        return np.fromfile(path, EVENT)

    def warnings(self) -> list[str]:
        """Sources without a time, features without an event, and those often outside their limits.

        The limits are `low` and `high`, often is beyond `implausible`.
        """
        names, (number_K, outside_K) = self._matcher.names, self._outside
        odd_K = (number_K >= SMALLEST) & (outside_K > self._implausible * number_K)
        lines = [
            f"{names[k]}: {share(outside_K[k], number_K[k])} of its values lie outside low and high"
            " and are dropped: another unit?"
            for k in np.flatnonzero(odd_K)
        ]
        if (self.points.time_P < ALWAYS).any():
            lines = [*self._joins.untimed(), *lines]
        known = [code for code, count in self._seen.items() if count >= SMALLEST]
        unused = set(self._matcher.unused())
        for own in map(set, self._matcher.slots):  # of one modality: one line if it has nothing
            if len(own) > 1 and own <= unused:
                name = names[min(own)].split("/")[0]
                lines.append(f"{name}: no event has one of its {len(own)} codes")
                unused -= own
        for slot in sorted(unused):
            feature = self._features[slot]
            code = feature.codes[0] if feature else names[slot]
            close = difflib.get_close_matches(code, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            lines.append(f"{names[slot]}: no event has the code {code!r}{hint}")
        return lines

    def _read(self, path: Path, source: Source) -> None:
        wanted = (source.subject, source.time, source.code, source.value, source.text)
        only = [name for name in wanted if name] if source.code else None
        for table in arrow_files.tables(path, header=source.header, only=only):
            subject_N = self._subjects(table, path, source)
            time_N = np.full(len(table), arrow_files.NEVER)
            if source.time:
                time_N = self._joins.times(table, source.time, up=True)
            (self._long if source.code else self._wide)(table, source, subject_N, time_N)

    def _subjects(self, table: arrow_files.Columns, path: Path, source: Source) -> np.ndarray:
        if source.number:
            found = [*self._joins.numbers(table)]
            subject_N = np.array([self._joins.ids.get(i, -2) for i in found], np.int32)
        else:
            found, subject_N = self._joins.find(table, source.subject)
        self._flow["events without a subject"] += int((subject_N == -1).sum())
        subject_N = np.where((subject_N >= 0) & (self._block[subject_N] >= 0), subject_N, -1)
        self._flow["events"] += len(subject_N)
        self._flow["events of subjects without a point"] += int((subject_N < 0).sum())
        self._joins.count(path, source, found, subject_N)
        return subject_N

    def _long(self, table, source: Source, subject_N, time_N) -> None:
        codes = table.strings(source.code)
        self._flow["events without a code"] += codes.null_count
        coded_N = codes.is_valid().to_numpy(zero_copy_only=False)
        strangers, keep = (np.flatnonzero(coded_N & own) for own in (subject_N < 0, subject_N >= 0))
        unknown = codes.take(pa.array(strangers)).value_counts().to_pylist()
        self._matcher.learn([source.prefix + row["values"] for row in unknown])
        for row in unknown:
            if uses := self._matcher(source.prefix + row["values"]):
                self.reach.meet([use.slot for use in uses], row["counts"])
        dead_N = pc.equal(codes, DEATH).fill_null(False).to_numpy(zero_copy_only=False)
        dead = np.flatnonzero(dead_N & (subject_N >= 0) & (time_N > arrow_files.NEVER))
        np.minimum.at(self._death_S, subject_N[dead], time_N[dead])
        encoded = codes.take(pa.array(keep)).dictionary_encode()
        names = [source.prefix + name for name in encoded.dictionary.to_pylist()]
        index = encoded.indices.to_numpy(zero_copy_only=False)
        counts = np.bincount(index, minlength=len(names)).tolist()
        self._seen.update(
            {n: c for n, c in zip(names, counts, strict=True) if not self._matcher(n)}
        )
        value_N = table.numbers(source.value)[keep] if _named(table, source.value) else None
        spoken = any(use.token == TEXT for name in names for use in self._matcher(name))
        text_N = self._said(table, source, keep, spoken=spoken)
        self._add(subject_N[keep], time_N[keep], names, index, value_N, text_N)

    def _said(self, table, source: Source, keep, *, spoken: bool) -> pa.Array | None:
        """The texts of some events; one that comes again with all else the same says nothing."""
        if not _named(table, source.text):
            return None
        text_N = table.strings(source.text).take(pa.array(keep))
        if not spoken:
            return text_N
        filled = np.flatnonzero(text_N.is_valid().to_numpy(zero_copy_only=False))
        new_n = self._repeats.new(table, source, keep[filled])
        self._flow["texts that repeat another of their subject and time"] += int((~new_n).sum())
        again_N = np.zeros(len(keep), bool)
        again_N[filled[~new_n]] = True
        return pc.if_else(pa.array(again_N), pa.scalar(None, text_N.type), text_N)

    def _wide(self, table, source: Source, subject_N, time_N) -> None:
        keep = np.flatnonzero(subject_N >= 0)
        if not source.number:
            new_n = self._repeats.new(table, source, keep)
            self._flow["rows that repeat another, counted once"] += int((~new_n).sum())
            keep = keep[new_n]
        self._matcher.learn([source.prefix + name for name in table.names()])
        self._seen.update(dict.fromkeys((source.prefix + n for n in table.names()), len(table)))
        for name in table.names():
            if name in (source.subject, source.time):
                continue
            code, rows = source.prefix + name, pa.array(keep)
            uses, follow = self._matcher(code), self._matcher.may_follow(f"{code}//")
            if not uses and not follow:
                continue
            if uses:
                self.reach.meet([use.slot for use in uses], 0)
            cells = pc.utf8_trim_whitespace(table.strings(name)).take(rows)
            filled = pc.fill_null(pc.not_equal(cells, ""), False).to_numpy(zero_copy_only=False)
            part, zeros = keep[filled], np.zeros(int(filled.sum()), np.int64)
            cells = cells.filter(pa.array(filled))
            if uses:
                numeric = any(np.isnan(use.value) for use in uses)
                value_N = table.numbers(name)[part] if numeric else None
                self._add(subject_N[part], time_N[part], [code], zeros, value_N, cells)
            if follow:
                encoded = cells.dictionary_encode()
                names = [f"{code}//{value}" for value in encoded.dictionary.to_pylist()]
                self._matcher.learn(names, column=code)
                if any(map(self._matcher, names)):
                    index = encoded.indices.to_numpy(zero_copy_only=False)
                    self._add(subject_N[part], time_N[part], names, index, None, None)

    def _add(self, subject_N, time_N, names, index_N, value_N, text_N) -> None:
        """Stores every use of a batch of events with codes `names[index_N]`."""
        self._matcher.learn(names)
        uses = [self._matcher(name) for name in names]
        count_N = np.array([len(u) for u in uses], np.int64)[index_N]
        self._flow["events with a code of no modality"] += int((count_N == 0).sum())
        flat = [entry for u in uses for entry in u]
        if not count_N.sum():
            return
        start = np.cumsum([0, *map(len, uses)])[:-1]
        row_n = np.repeat(np.arange(len(count_N)), count_N)
        within_n = np.arange(len(row_n)) - np.repeat(np.cumsum(count_N) - count_N, count_N)
        entry_n = start[index_N][row_n] + within_n
        events = np.empty(len(row_n), EVENT)
        events["subject"], events["time"] = subject_N[row_n], time_N[row_n]
        events["slot"] = np.array([entry.slot for entry in flat])[entry_n]
        events["token"] = np.array([entry.token for entry in flat])[entry_n]
        value_n = np.array([entry.value for entry in flat])[entry_n]
        own = np.nan if value_N is None else value_N[row_n]
        number_n = np.where(np.isnan(value_n), own, value_n)
        with np.errstate(over="ignore"):  # infinite from here on, and counted as not finite
            events["value"] = number_n
        beyond = int((np.isfinite(number_n) & np.isinf(events["value"])).sum())
        if beyond:
            self._flow["numbers beyond 3.4e38, which float32 does not hold"] += beyond
        for slot in self._matcher.groups:  # named before float32 makes one of two numbers
            told_n = (events["slot"] == slot) & (events["token"] == NO_TOKEN)
            told_n &= np.isfinite(number_n)
            events["token"][told_n] = self._matcher.categories(slot, number_n[told_n])
        self.reach.add(events)
        self._append(self._numbers(events[events["token"] != TEXT]))
        is_text = events["token"] == TEXT
        if is_text.any():
            self._append(self._words(events[is_text], text_N, row_n[is_text]))

    def _numbers(self, events: np.ndarray) -> np.ndarray:
        slot, value = events["slot"], events["value"]
        names, matcher = self._matcher.names, self._matcher
        finite = np.isfinite(value)
        inside = (value >= matcher.low[slot]) & (value <= matcher.high[slot])
        for count_K, which in zip(self._outside, (finite, finite & ~inside), strict=True):
            np.add.at(count_K, slot[which], 1)  # as many steps as events, however many features
        untimed = matcher.timed[slot] & (events["time"] == arrow_files.NEVER)
        for reason, wrong in (
            ("uses without a finite number", ~finite),
            ("uses outside the allowed range", finite & ~inside),
            ("uses in a series without a time", finite & inside & untimed),
        ):
            for number, count in zip(*np.unique(slot[wrong], return_counts=True), strict=True):
                self._flow[f"{names[number]}: {reason}"] += int(count)
        return events[finite & inside & ~untimed]

    def _words(self, events: np.ndarray, text_N, row_n) -> np.ndarray:
        names = self._matcher.names
        if text_N is None:
            text_N = pa.nulls(int(row_n.max()) + 1, pa.large_string())
        encoded = text_N.take(pa.array(row_n)).dictionary_encode()
        texts = encoded.dictionary.to_pylist()
        index_n = pc.fill_null(encoded.indices, len(texts)).to_numpy(zero_copy_only=False)
        parts = []
        for slot in np.unique(events["slot"]):
            lexicon, own = self._matcher.lexicons[int(slot)], events["slot"] == slot
            words = [*map(lexicon.words, texts), []]
            count_n = np.array([len(w) for w in words])[index_n[own]]
            self._flow[f"{names[slot]}: events without text"] += int((count_n == 0).sum())
            found = np.repeat(events[own], count_n)
            tokens = [words[i] for i in index_n[own]]
            found["token"] = np.fromiter((t for w in tokens for t in w), np.int32, len(found))
            parts.append(found)
        return np.concatenate(parts)

    def _append(self, events: np.ndarray) -> None:
        block = self._block[events["subject"]]
        order = np.argsort(block, kind="stable")
        for part in np.split(events[order], np.flatnonzero(np.diff(block[order])) + 1):
            if len(part):
                place = int(self._block[part["subject"][0]])
                self._waiting.setdefault(place, []).append(part)
                self._waited += len(part)
        if self._waited >= WAIT:
            self._flush()

    def _flush(self) -> None:
        for place, parts in self._waiting.items():
            events = np.concatenate(parts)
            with open(self._folder / str(place), "ab") as handle:
                events.tofile(handle)
            self._written[place] += events.nbytes
        self._waiting, self._waited = {}, 0


def _blocks(points: Points) -> np.ndarray:
    """Block of every subject, -1 where it has no point; one more -1 at the end."""
    block = np.full(len(points.ids) + 1, -1)
    number = 0
    for split in range(len(SPLITS)):
        own = np.unique(points.subject_P[points.split_P == split])
        block[own] = number + np.arange(len(own)) // SUBJECTS
        number += -(-len(own) // SUBJECTS)
    return block


def _named(table: arrow_files.Columns, name: str) -> bool:
    """Whether there is a column to read: those that MEDS leaves out at will may be missing."""
    return bool(name) and (name not in OPTIONAL or table.has(name))
