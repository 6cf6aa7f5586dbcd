"""Typed look-ups in a table of a TOML or JSON file, which collect problems instead of raising."""

import difflib
import math
import re
from collections.abc import Mapping
from typing import Any

from m4 import specs
from m4.data.sets.declared import patterns

# Of regular expressions: what no engine can do in time in proportion to the text.
LOOKS = re.compile(r"\(\?(<?[=!]|P=|\()|\\[1-9]")


class Keys:
    """One table of the file: typed look-ups that collect problems, and no key left unread."""

    def __init__(self, content: Any, file: str, path: str, problems: list[str]):
        self._file, self._path, self._problems = file, path, problems
        if not isinstance(content, Mapping):
            self.problem("", "must be a table of keys")
            content = {}
        self._content, self._read, self._known = content, set[str](), set[str]()

    def problem(self, key: str, text: str) -> None:
        """Notes a problem with a key."""
        name = ".".join(filter(None, (self._path, key)))
        name = name if name.isprintable() else repr(name)
        self._problems.append(f"{self._file}: {name}{': ' if name else ''}{text}")

    def get(self, key: str, default: Any, kind: type | tuple, what: str) -> Any:
        """A value of a type, or the default."""
        self._read.add(key)
        value = self._content.get(key, default)
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if key in self._content and wrong:
            self.problem(key, f"must be {what}")
            return default
        return value

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        return self.get(key, default, str, "a string")

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        return self.get(key, default, bool, "true or false")

    def count(self, key: str, default: int, low: int = 1) -> int:
        """An integer from `low`."""
        value = self.get(key, default, int, f"an integer from {low}")
        if value < low:
            self.problem(key, f"must be an integer from {low}")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number above 0."""
        value = self.get(key, default, (int, float), "a number above 0")
        if key in self._content and not 0 < value < math.inf:
            self.problem(key, "must be a number above 0")
        return float(value)

    def limit(self, key: str, default: float) -> float:
        """Any number."""
        return float(self.get(key, default, (int, float), "a number"))

    def hours(self, key: str, default: float) -> float:
        """Hours above 0, or 'all'."""
        if self.raw(key) == "all":
            return math.inf
        value = self.get(key, default, (int, float), "hours above 0, or 'all'")
        if not value > 0:
            self.problem(key, "must be hours above 0, or 'all'")
        return float(value)

    def choice(self, key: str, default: str, known: tuple[str, ...]) -> str:
        """One of some words."""
        value = self.text(key, default)
        if value not in known:
            close = difflib.get_close_matches(value, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            self.problem(key, f"{value!r} is not one of {', '.join(known)}{hint}")
            return default
        return value

    def words(self, key: str) -> tuple[str, ...]:
        """A string or a list of strings."""
        value = self.get(key, [], (str, list), "a string or a list of strings")
        value = [value] if isinstance(value, str) else value
        if not all(isinstance(word, str) and word for word in value):
            self.problem(key, "must be a string or a list of strings, none of them empty")
            return ()
        return tuple(value)

    def patterns(self, key: str, prefix: str = "") -> tuple[str, ...]:
        """Code patterns (see `m4.data.sets.declared.match`) with a prefix in front."""
        found = tuple(p if p.startswith("re:") else prefix + p for p in self.words(key))
        for text in found:
            if text.startswith("re:") and LOOKS.search(text):
                self.problem(key, f"{text!r}: looks around and references back are not supported")
            elif text.startswith("re:") and (wrong := patterns.problem(text)):
                self.problem(key, f"{text!r} {wrong}")
        return found

    def name(self, name: str) -> str:
        """The name of this table, a stand-in if it is none."""
        if wrong := specs.name_problem(name):
            self.problem("", wrong)
            return "wrong"
        return name

    def feature(self, name: str) -> str:
        """The name of a feature, label or class of this table, a stand-in if it is none."""
        if wrong := specs.text_problem(name):
            self.problem("", f"{name[: specs.LONGEST]!r} {wrong}")
            return "wrong"
        return name

    def section(self, key: str) -> "Keys":
        """A table inside this one."""
        self._read.add(key)
        return self.inside(key, self._content.get(key, {}))

    def inside(self, name: str, content: Any) -> "Keys":
        """A table that stands in for the value of a key."""
        path = ".".join(filter(None, (self._path, name)))
        return Keys(content, self._file, path, self._problems)

    def sections(self, key: str) -> list[tuple[str, "Keys"]]:
        """The tables inside a table."""
        inner = self.section(key)
        return [(name, inner.section(name)) for name in inner._content]

    def several(self, key: str) -> list["Keys"]:
        """A table or a list of tables."""
        self._read.add(key)
        value = self._content.get(key, [])
        return [self.inside(key, item) for item in (value if isinstance(value, list) else [value])]

    def has(self, key: str) -> bool:
        """Whether the file has this key."""
        self._known.add(key)
        return key in self._content

    def raw(self, key: str) -> Any:
        """A value of any type, None without one."""
        self._read.add(key)
        return self._content.get(key)

    def finish(self) -> None:
        """Every key that nobody asked for is a problem."""
        known = sorted(self._read | self._known)
        for key in self._content.keys() - self._read:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            self.problem(str(key), f"no such key; {hint}")
