"""Codes -> features and tokens, decided once per distinct code.

A pattern is matched against the whole code, upper and lower case apart: `*` stands for any text,
`?` for one character, nothing else is special; `re:` in front makes it a regular expression.
"""

import bisect
import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m4.data.bands import band
from m4.data.cohort import hash64
from m4.data.sets.declared.definition import Definition, Group, Modality
from m4.data.sets.declared.patterns import pattern

NO_TOKEN, TEXT = -1, -2  # in place of a token: a number is wanted, the event's text is wanted
WITHOUT_NUMBER = ("count", "any", "is", "years_since")
WHOLE = re.compile(r"^(-?\d+)\.0+$")
WORD = re.compile(r"[^\W\d_]+|\d+(?:\.\d+)?")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One use of a code: `value` NaN means the event's own number."""

    slot: int
    value: float
    token: int


class Lexicon:
    """Tokens of one modality -> ids: hashed at once, or counted over training subjects later.

    Id 0 stands for every token outside the vocabulary.
    """

    def __init__(self, modality: Modality):
        self.modality = modality
        self._size = modality.spec.vocab or 1
        self._hashed = modality.vocabulary == "hashed"
        self._raw: dict[str, int] = {}
        self._texts: list[str] = []  # by raw number
        self._id_of_raw: np.ndarray | None = None
        self.tokens: list[str] = []  # those with an id of their own, from id 1 on

    def raw(self, token: str) -> int:
        """A number for the token, its id if it is hashed."""
        if token not in self._raw:
            hashed = 1 + hash64(token) % max(1, self._size - 1)
            self._raw[token] = hashed if self._hashed else len(self._raw)
        return self._raw[token]

    def fit(self, subjects: Mapping[int, int]) -> None:
        """Chooses the vocabulary by the subjects of raw numbers: most first, then by name."""
        known = [(-subjects.get(raw, 0), token) for token, raw in self._raw.items()]
        ranked = sorted(item for item in known if -item[0] >= self.modality.min_subjects)
        self.adopt([token for _, token in ranked[: self._size - 1]])

    def adopt(self, tokens: Sequence[str]) -> None:
        """Takes over a vocabulary, in the order of its ids; every other token is outside it."""
        self.tokens = [*tokens]
        self._id_of_raw = np.zeros(len(self._raw), np.int32)
        for number, token in enumerate(self.tokens, start=1):
            if token in self._raw:
                self._id_of_raw[self._raw[token]] = number

    def ids(self, raw: np.ndarray) -> np.ndarray:
        """Ids of raw numbers; a token unseen when the vocabulary was fitted is 0."""
        return raw if self._id_of_raw is None else self._id_of_raw[raw]

    def all(self) -> list[str]:
        """Every token seen so far."""
        return [*self._raw]

    def token(self, raw: int) -> str:
        """The token of a raw number."""
        if len(self._texts) < len(self._raw):
            self._texts = [*self._raw]
        return self._texts[raw]

    def words(self, text: str) -> list[int]:
        """Raw numbers of the tokens of a text; of an image the text is one, the file's name."""
        if self.modality.spec.kind == "image":
            return [self.raw(text.strip())] if text.strip() else []
        if self.modality.tokens == "phrases":
            phrase = " ".join(text.lower().split())
            return [self.raw(phrase)] if phrase else []
        return [self.raw(word) for word in WORD.findall(text.lower())]


class Matcher:
    """What each code is used for. Slots number all features; codes and text have one slot each."""

    def __init__(self, definition: Definition):
        self._rules: list[tuple[int, float, int]] = []  # slot, value, token; later ones win
        self._patterns: list[tuple[str, int]] = []  # with the number of their rule
        self._literal: dict[str, list[int]] = {}
        self._starts: set[str] = set()  # what patterns begin with
        self.lexicons: dict[int, Lexicon] = {}  # by slot
        self.slots: list[range] = []  # per modality
        self.names: list[str] = []  # per slot
        limits, timed = [], []
        for modality in definition.modalities:
            start, name = len(self.names), modality.spec.name
            for slot, feature in enumerate(modality.features, start=start):
                nan = 1.0 if feature.take in WITHOUT_NUMBER else math.nan
                if feature.take == "is":
                    self._rule(feature.among, slot, 0.0, NO_TOKEN)
                self._rule(feature.codes, slot, nan, NO_TOKEN)
            if not modality.features:
                self.lexicons[start] = Lexicon(modality)
                self._rule(modality.codes, start, 1.0, TEXT)
            limits += [(f.low, f.high) for f in modality.features] or [(-math.inf, math.inf)]
            self.names += [f"{name}/{f.name}" for f in modality.features] or [name]
            self.slots.append(range(start, len(self.names)))
            timed += [modality.spec.kind == "series"] * len(self.slots[-1])
        self.zero = len(self.names)
        self.names.append("window.zero")
        self._rule(definition.zero, self.zero, 1.0, NO_TOKEN)
        self.groups: dict[int, Group] = {}  # by slot, after all others
        self._category: dict[str, int] = {}
        self._categories: list[str] = []  # by number
        for group in definition.groups:
            self.groups[len(self.names)] = group
            self._rule(group.codes, len(self.names), math.nan, NO_TOKEN)
            self.names.append(f"groups.{group.name}")
        limits += [(-math.inf, math.inf)] * (1 + len(self.groups))
        with np.errstate(over="ignore"):  # beyond float32 is no limit
            self.low, self.high = np.array(limits).astype(np.float32).T  # as the events' values
        self.timed = np.array([*timed, True, *(False for _ in self.groups)])
        self._known: dict[str, tuple[Entry, ...]] = {}
        self._sorted, self._lengths = sorted(self._starts), sorted({*map(len, self._starts)})

    def __call__(self, code: str) -> tuple[Entry, ...]:
        """Every use of a code; none for most."""
        if code not in self._known:
            self.learn([code])
        return self._known[code]

    def learn(self, codes: Sequence[str], *, column: str = "") -> None:
        """Decides on many codes at once; those of a `column` are its code, `//` and a cell."""
        new = [code for code in dict.fromkeys(codes) if code not in self._known]
        hits: list[set[int]] = [{*self._literal.get(code, ())} for code in new]
        array = pa.array(new, pa.large_string())
        for text, rule in self._patterns if new else ():
            found = pc.match_substring_regex(array, pattern(text))
            for place in np.flatnonzero(found.to_numpy(zero_copy_only=False)):
                hits[place].add(rule)
        for code, rules in zip(new, hits, strict=True):
            by_slot: dict[int, list[Entry]] = {}
            for i in sorted(rules):
                slot, value, token = self._rules[i]
                by_slot[slot] = self._entries(code, slot, value, token, column)
            self._known[code] = tuple(itertools.chain(*by_slot.values()))

    def unused(self) -> list[int]:
        """Slots of features that no code seen so far is for."""
        used = {entry.slot for entries in self._known.values() for entry in entries}
        return [slot for slot in range(self.zero) if slot not in used | self.lexicons.keys()]

    def may_follow(self, code: str) -> bool:
        """Whether some pattern could match a code that goes on after `code`."""
        if any(code[:length] in self._starts for length in self._lengths if length <= len(code)):
            return True
        place = bisect.bisect_left(self._sorted, code)
        return place < len(self._sorted) and self._sorted[place].startswith(code)

    def category(self, token: int) -> str:
        """The category that a token of a group's slot stands for."""
        return self._categories[token]

    def categories(self, slot: int, value_n: np.ndarray) -> np.ndarray:
        """Tokens i64[n] of a group's slot for finite numbers, f64[n]: bands, or their names."""
        different, place_n = np.unique(value_n, return_inverse=True)
        bands = self.groups[slot].bands
        names = [band(v, bands) if bands else _name(v) for v in different.tolist()]
        return np.array([self._numbered(name) for name in names], np.int64)[place_n]

    def _numbered(self, category: str) -> int:
        if category not in self._category:
            self._category[category] = len(self._categories)
            self._categories.append(category)
        return self._category[category]

    def _rule(self, patterns: Sequence[str], slot: int, value: float, token: int) -> None:
        if patterns:
            self._rules.append((slot, value, token))
        for text in patterns:
            start = "" if text.startswith("re:") else re.split(r"[*?]", text)[0]
            self._starts.add(start)
            if start == text:
                self._literal.setdefault(text, []).append(len(self._rules) - 1)
            else:
                self._patterns.append((text, len(self._rules) - 1))

    def _entries(self, code: str, slot: int, value: float, token: int, column: str) -> list[Entry]:
        if (group := self.groups.get(slot)) and "//" in code and not group.bands:
            return [Entry(slot, 1.0, self._numbered(_behind(code, group, column)))]
        lexicon = self.lexicons.get(slot)
        if lexicon is None or lexicon.modality.spec.kind in ("text", "image"):
            return [Entry(slot, value, token)]
        if lexicon.modality.tokens == "words":
            words = lexicon.words(code.partition("//")[2] or code)
            return [Entry(slot, value, raw) for raw in dict.fromkeys(words)]
        mark = lexicon.modality.levels
        parts = code.split(mark) if mark else [code]
        names = [(mark or "").join(parts[: i + 1]) for i in range(len(parts))]
        return [Entry(slot, value, lexicon.raw(name)) for name in names]


def _behind(code: str, group: Group, column: str) -> str:
    """The category of a code: what stands behind its column, or behind the pattern's last `//`."""
    starts = [re.split(r"[*?]", p)[0] for p in group.codes if not p.startswith("re:")]
    starts = [f"{column}//", *("".join(start.rpartition("//")[:2]) for start in starts)]
    length = max((len(start) for start in starts if code.startswith(start)), default=0)
    text = code[length:] if length else code.rpartition("//")[2]
    return WHOLE.sub(r"\1", text)  # a gap in a column makes 7.0 of 7


def _name(value: float) -> str:
    """A finite number as a category, so that different ones have different names."""
    if value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    short = f"{value:g}"  # 0.1 also of a float32
    return short if np.float32(short) == np.float32(value) else repr(value)
