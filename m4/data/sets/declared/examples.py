"""Points and their events -> examples.

An event enters the record of a point when its time is not after the prediction time and not more
than the modality's `lookback` before it; an event without a time always does (in a series, never).
Times of a series are hours since time zero: the prediction time minus `window.hours`, or the last
event matching `window.zero` up to the prediction time. With `every`, a row is one cell of that many
hours, stamped with its end.

Letters: n events of one point, f features, t rows.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from m4.data.cohort import Example
from m4.data.sets.declared import arrow_files, asked, image_files
from m4.data.sets.declared.definition import Definition, Modality, find
from m4.data.sets.declared.events import Events
from m4.data.sets.declared.joins import ALWAYS, HOUR, Joins
from m4.data.sets.declared.match import Lexicon, Matcher
from m4.data.sets.declared.points import Flow, Points, patient, read
from m4.data.shares import share
from m4.errors import DataError
from m4.specs import text_problem

YEAR = 365.25 * 24 * HOUR


class Examples:
    """Makes the examples of every split; vocabularies are fitted on training points first.

    With `given` vocabularies nothing is fitted, and tokens outside them are counted.
    """

    def __init__(
        self,
        definition: Definition,
        points: Points,
        events: Events,
        matcher: Matcher,
        flow: Flow,
        *,
        root: Path,
        given: Mapping[str, Sequence[str]] | None = None,
    ):
        self._definition, self._points, self._events = definition, points, events
        self._root = root
        self._matcher, self.flow = matcher, flow
        self.joining: list[str] = []  # what matches what, and what should make one look twice
        self.warnings: list[str] = []
        self._counted: set[str] = set()  # splits whose events are in the flow
        self._adopted = given is not None
        lexicons = {
            slot: x for slot, x in matcher.lexicons.items() if x.modality.vocabulary == "train"
        }
        if given is not None:
            for lexicon in lexicons.values():
                lexicon.adopt(given[lexicon.modality.spec.name])
        elif lexicons:
            self._fit(lexicons)
        # tokens from id 1 on, of every modality whose ids were counted
        self.vocabularies = {x.modality.spec.name: x.tokens for x in lexicons.values()}

    def split(self, name: str) -> Iterator[Example]:
        """The examples of a split, by subject and time."""
        for part in self._windows(name, count=name not in self._counted):
            yield self._example(*part)
        self._counted.add(name)

    def _windows(self, split: str, *, count: bool = False):
        """(point, time zero, its events up to the prediction time), point by point."""
        points = self._points
        for rows, events in self._events.blocks(split):
            used = np.zeros(len(events), bool)
            edges = np.searchsorted(events["subject"], points.subject_P[rows])
            stops = np.searchsorted(events["subject"], points.subject_P[rows], side="right")
            for row, start, stop in zip(rows, edges, stops, strict=True):
                now = int(points.time_P[row])
                own = events[start:stop]
                own = own[: np.searchsorted(own["time"], now, side="right")]
                used[start : start + len(own)] = True
                if count:
                    self.flow["points of subjects without any event"] += int(start == stop)
                    self.flow["points without an event up to the prediction time"] += not len(own)
                yield row, self._zero(own, now), own
            if count:
                self.flow["uses after the last prediction time"] += int((~used).sum())

    def _zero(self, events: np.ndarray, now: int) -> int:
        marks = events["time"][events["slot"] == self._matcher.zero]
        if len(marks):
            return int(marks[-1])
        data = events[events["slot"] < self._matcher.zero]  # the records know nothing of groups
        timed = data["time"][data["time"] != arrow_files.NEVER]
        if now == ALWAYS:  # no prediction time: hours since the first event
            return int(timed[0]) if len(timed) else 0
        return int(now) - round(self._definition.hours * HOUR)

    def _fit(self, lexicons: Mapping[int, Lexicon]) -> None:
        """Counts the training subjects that each token occurs in, within their windows."""
        counts = {slot: Counter[int]() for slot in lexicons}
        subjects = itertools.groupby(
            self._windows("train"), lambda part: self._points.subject_P[part[0]]
        )
        for _, windows in subjects:  # a subject's points come together
            tokens = {slot: set[int]() for slot in lexicons}
            for row, _, events in windows:
                for slot, lexicon in lexicons.items():
                    own = events[events["slot"] == slot]
                    own = _inside(own, lexicon.modality, int(self._points.time_P[row]))
                    tokens[slot].update(own["token"].tolist())
            for slot, found in tokens.items():
                counts[slot].update(found)
        for slot, lexicon in lexicons.items():
            lexicon.fit(counts[slot])

    def _example(self, row: int, zero: int, events: np.ndarray) -> Example:
        points, inputs = self._points, {}
        now = int(points.time_P[row])
        for modality, slots in zip(self._definition.modalities, self._matcher.slots, strict=True):
            own = events[(events["slot"] >= slots.start) & (events["slot"] < slots.stop)]
            own = _inside(own, modality, now)
            if not len(own):
                continue
            if modality.spec.kind == "series":
                payload = _series(own, modality, slots.start, zero)
            elif modality.spec.kind == "table":
                payload = _table(own, modality, slots.start, now)
            elif modality.spec.kind == "image":
                lexicon = self._matcher.lexicons[slots.start]
                payload = image_files.views(own["token"], lexicon, self._root, self.flow)
                if payload is None:
                    continue
            else:
                payload = self._tokens(own, slots.start)
            inputs[modality.spec.name] = payload
        subject = points.ids[points.subject_P[row]]
        labels = {task: value_PC[row] for task, value_PC in points.targets.items()}
        targets = {task: None if np.isnan(v).all() else v for task, v in labels.items()}
        key = (subject, None if now == ALWAYS else now)
        known = {"patient": patient(subject), "key": key, "groups": self._groups(events)}
        return {**known, "inputs": inputs, "targets": targets}

    def _groups(self, events: np.ndarray) -> dict[str, str | None]:
        """Group column -> category, by the last event that tells; None where none does."""
        found: dict[str, str | None] = {}
        for slot, group in self._matcher.groups.items():
            own = events[events["slot"] == slot][-1:]
            words = [self._matcher.category(token) for token in own["token"].tolist()]
            wrong = bool(words) and text_problem(words[0]) is not None
            self.flow[f"groups.{group.name}: categories that are no names, unknown"] += wrong
            found[group.name] = words[0] if words and not wrong else None
        return found

    def _tokens(self, events: np.ndarray, slot: int) -> dict:
        lexicon = self._matcher.lexicons[slot]
        ids_n = lexicon.ids(events["token"])
        if self._adopted:
            name = lexicon.modality.spec.name
            self.flow[f"{name}: tokens"] += len(ids_n)
            self.flow[f"{name}: tokens outside the vocabulary"] += int((ids_n == 0).sum())
        if not lexicon.modality.repeat:  # distinct ones, in the order of their last appearance
            _, from_end = np.unique(ids_n[::-1], return_index=True)
            ids_n = ids_n[::-1][np.sort(from_end)][::-1]
        return {"values": ids_n.astype(np.int32)}


def prepare(
    definition: Definition, root: Path, *, seed: int, scratch: Path | None = None
) -> Examples:
    """Reads labels and events, and makes sure that they belong together."""
    flow, joins = Flow(), Joins(root)
    points = read(definition, root, seed=seed, joins=joins, flow=flow)
    return _joined(definition, root, points, joins, flow, scratch=scratch)


def prepare_new(
    definition: Definition,
    root: Path,
    *,
    vocabularies: Mapping[str, Sequence[str]],
    scratch: Path | None = None,
) -> Examples:
    """Like `prepare` for new data, all in the split 'new'; files of some events may be absent."""
    flow, joins = Flow(), Joins(root)
    points = asked.read(definition, root, joins=joins, flow=flow)
    sources = {source: find(root, source.files) for source in definition.sources}
    if not any(sources.values()):
        wanted = ", ".join(source.files for source in sources)
        raise DataError(f"{root}: no event files ({wanted})")
    for absent in {source.files for source, paths in sources.items() if not paths}:
        flow[f"event files that are absent: {absent}"] += 1
    there = tuple(source for source, paths in sources.items() if paths)
    definition = dataclasses.replace(definition, sources=there)
    return _joined(definition, root, points, joins, flow, given=vocabularies, scratch=scratch)


def _joined(
    definition: Definition,
    root: Path,
    points: Points,
    joins: Joins,
    flow: Flow,
    *,
    given: Mapping[str, Sequence[str]] | None = None,
    scratch: Path | None = None,
) -> Examples:
    matcher = Matcher(definition)
    events = Events(definition, root, points, matcher, joins=joins, flow=flow, scratch=scratch)
    joins.check(new=given is not None)
    events.reach.check(new=given is not None)
    points = events.points
    image_files.check([*matcher.lexicons.values()], root)
    made = Examples(definition, points, events, matcher, flow, root=root, given=given)
    made.joining = [*joins.lines(), *events.reach.lines()]
    for task, value_PC in points.targets.items():
        known = int((~np.isnan(value_PC)).any(axis=1).sum())
        made.joining.append(f"{task}: a label at {share(known, len(value_PC))} of the points")
    made.warnings = events.warnings()
    return made


def _inside(events: np.ndarray, modality: Modality, now: int) -> np.ndarray:
    if math.isinf(modality.lookback) or now == ALWAYS:
        return events
    first = now - round(modality.lookback * HOUR)
    return events[(events["time"] >= first) | (events["time"] == arrow_files.NEVER)]


def _series(events: np.ndarray, modality: Modality, first_slot: int, zero: int) -> dict:
    hours_n = (events["time"] - zero) / HOUR
    if modality.every:
        cell_n = np.maximum(np.ceil(hours_n / modality.every), 1 if hours_n[0] >= 0 else -np.inf)
        hours_n = cell_n * modality.every
    times_t, row_n = np.unique(hours_n, return_inverse=True)
    values_tf = np.full((len(times_t), len(modality.features)), np.nan, np.float32)
    column_n = events["slot"] - first_slot
    for f, feature in enumerate(modality.features):
        own = column_n == f
        if own.any():
            values_tf[:, f] = _reduce(events["value"][own], row_n[own], len(times_t), feature.take)
    return {"values": values_tf, "times": times_t.astype(np.float32)}


def _reduce(value_n: np.ndarray, row_n: np.ndarray, num_rows: int, take: str) -> np.ndarray:
    """One number per row from its values in order of time, NaN where there is none."""
    out = np.full(num_rows, np.nan)
    if take == "last":
        out[row_n] = value_n  # of several assignments to one place the last one stays
    elif take == "first":
        out[row_n[::-1]] = value_n[::-1]
    elif take in ("min", "max"):
        {"min": np.fmin, "max": np.fmax}[take].at(out, row_n, value_n)
    else:
        count = np.bincount(row_n, minlength=num_rows)
        total = np.bincount(row_n, weights=value_n, minlength=num_rows)
        divisor = np.maximum(count, 1) if take == "mean" else 1
        out = np.where(count > 0, total / divisor, np.nan)
    return out


def _table(events: np.ndarray, modality: Modality, first_slot: int, now: int) -> dict:
    values_f = np.full(len(modality.features), np.nan, np.float32)
    column_n = events["slot"] - first_slot
    values_f[column_n] = events["value"]  # in order of time: the last one stays
    for f, feature in enumerate(modality.features):
        if feature.take in ("last", "is"):
            continue
        own = events[column_n == f]
        if feature.take == "count":
            values_f[f] = len(own)
        elif feature.take == "any":
            values_f[f] = len(own) > 0
        elif feature.take == "years_since":
            timed = own["time"][own["time"] != arrow_files.NEVER]
            known = len(timed) and now != ALWAYS
            values_f[f] = (now - int(timed[-1])) / YEAR if known else np.nan
        elif len(own):
            values_f[f] = _reduce(own["value"], np.zeros(len(own), int), 1, feature.take)[0]
    return {"values": values_f}
