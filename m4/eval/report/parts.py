"""What a section of the page is made of: headings, words, verdicts, plots, tables, folds.

A section is a file of this folder with `section(run: Run) -> Section | None`, named once in
`m4.eval.report.page.SECTIONS`; None leaves it out. It builds parts from the documents and writes no
HTML: the template does, so names and data are quoted, every table has its CSV and LaTeX beside it,
and print, dark and narrow screens are cared for in one place.

    def section(run):
        found = (run.results or {}).get("attribution")
        if not found:
            return None
        table = Table("attribution", ["modality", "bits"], [Row([m, estimate(e)]) for m, e in ...])
        return Section("worth", "What each modality is worth", (How("..."), Plot(svg), table))
"""

import csv
import dataclasses
import io
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from m4.cells import uncomputed
from m4.eval.report import words

Mood = Literal["good", "level", "bad", "unknown"]
MARK: dict[Mood, str] = {"good": "✓", "level": "=", "bad": "✗", "unknown": "?"}
TEX = {"−": "$-$", "²": "$^2$", "→": "$\\to$", "≥": "$\\ge$", "≤": "$\\le$", "×": "$\\times$"}
TEX |= {"–": "--", "≈": "$\\approx$", "↑": "$\\uparrow$", "↓": "$\\downarrow$", "⚠": ""}


@dataclasses.dataclass(frozen=True)
class Run:
    """The documents of a work directory, as they lie there; what is absent or damaged is None."""

    config: Mapping[str, Any] | None
    run: Mapping[str, Any] | None
    data: Mapping[str, Any] | None
    results: Mapping[str, Any] | None  # of the split that is shown
    log: Sequence[Mapping[str, Any]] = ()
    note: str = ""  # on the choice of the split
    stress: Mapping[str, Any] | None = None
    refit: Mapping[str, Any] | None = None  # what a cross-validation lets one expect
    seeds: Mapping[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)  # -> results
    apart: bool = False  # whether these seeds drew the patients, too

    @property
    def smallest(self) -> int:
        """Fewer patients than these are never shown."""
        if self.results:
            return self.results["min_patients"]
        return (self.config or {}).get("eval", {}).get("min_patients", 10)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One entry of a table: what is shown, a second line, and the numbers that a CSV gets."""

    text: str
    small: str = ""
    value: float | None = None  # None: the text
    ends: tuple[float | None, float | None] | None = None  # of an interval


def estimate(e: Mapping[str, Any] | None, *, sign: bool = False, percent: bool = False) -> Cell:
    """A cell of {value, low, high}: the interval is its second line, and two columns of the CSV."""
    if not e:
        return Cell("", ends=(None, None))
    ends = e.get("low"), e.get("high")
    if percent:
        low, high = map(words.percent, ends)
        shown = words.percent(e["value"])
        span = f"{low} to {high}" if e.get("low") is not None else ""
    else:
        shown = words.text(e["value"], sign=sign)
        span = words.interval({"low": ends[0], "high": ends[1]}, sign=sign)
    return Cell(shown, span, e["value"], ends)


def number(value: float | None, *, percent: bool = False, sign: bool = False) -> Cell:
    """A cell of one number, with three decimals or as '19.2 %'; None is a dash."""
    shown = words.percent(value) if percent else words.text(value, sign=sign)
    return Cell(shown, value=value)


def count(value: int | None, smallest: int) -> Cell:
    """A cell of a number of patients; None is one that is too small to show."""
    return Cell(words.cell(value, smallest), value=value)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: texts, whole numbers, None or cells. `kind` is a style of report.css."""

    cells: Sequence[Cell | str | int | None]
    kind: str = ""  # 'model', 'delta', 'head'
    begins: bool = False  # a group of rows, set apart by a line


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; `name` is that of its files, '<name>.csv' and '<name>.tex'."""

    form: ClassVar[str] = "table"
    name: str
    columns: Sequence[str]
    rows: Sequence[Row]
    plain: bool = False  # words rather than numbers: to the left, and wrapped

    def __post_init__(self):
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                has = f"{len(row.cells)} cells in a row of {len(self.columns)} columns"
                raise ValueError(f"table {self.name}: {has}")

    @property
    def lines(self) -> list[list[Cell]]:
        """The cells, all of one type."""
        return [[_cell(cell) for cell in row.cells] for row in self.rows]

    @property
    def groups(self) -> list[list[tuple[Row, list[Cell]]]]:
        """Rows and their cells, in groups."""
        groups: list[list[tuple[Row, list[Cell]]]] = [[]]
        for row, cells in zip(self.rows, self.lines, strict=True):
            if row.begins and groups[-1]:
                groups.append([])
            groups[-1].append((row, cells))
        return groups

    @property
    def csv(self) -> str:
        """Comma-separated, the ends of intervals in columns of their own."""
        out = io.StringIO()
        writer, lines = csv.writer(out, lineterminator="\n"), self.lines
        wide = [any(line[c].ends is not None for line in lines) for c in range(len(self.columns))]
        writer.writerow(
            part
            for name, both in zip(self.columns, wide, strict=True)
            for part in ((name, f"{name}, low", f"{name}, high") if both else (name,))
        )
        for line in lines:
            writer.writerow(
                part
                for cell, both in zip(line, wide, strict=True)
                for part in ((_plain(cell), *_ends(cell)) if both else (_plain(cell),))
            )
        return out.getvalue()

    @property
    def latex(self) -> str:
        """A tabular for booktabs."""
        form = "l" + ("l" if self.plain else "r") * (len(self.columns) - 1)
        head = " & ".join(map(latex, self.columns))
        text = [rf"\begin{{tabular}}{{{form}}}", r"\toprule", rf"{head} \\", r"\midrule"]
        for g, group in enumerate(self.groups):
            text += [r"\midrule"] if g else []
            text += [" & ".join(_tex(cell) for cell in cells) + r" \\" for _, cells in group]
        return "\n".join([*text, r"\bottomrule", r"\end{tabular}", ""])

    @property
    def links(self) -> list[tuple[str, str, str]]:
        """(label, file name, data URL) of the files beside the table."""
        files = ("CSV", "csv", "text/csv", self.csv), ("LaTeX", "tex", "text/plain", self.latex)
        return [
            (label, f"{self.name}.{end}", f"data:{kind};charset=utf-8,{urllib.parse.quote(text)}")
            for label, end, kind, text in files
        ]


@dataclasses.dataclass(frozen=True)
class Words:
    """Sentences; how they are set is the form that a kind of them has."""

    form: ClassVar[str]
    text: str


class How(Words):
    """How to read what follows, in one or two sentences; the page says 'How to read' before it."""

    form = "how"


class Text(Words):
    """A paragraph."""

    form = "text"


class Note(Words):
    """A remark in small print."""

    form = "note"


class Heading(Words):
    """A heading inside a section."""

    form = "heading"


class Missing(Words):
    """What there would be, and why it is not here."""

    form = "missing"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One sentence that judges; `mood` 'unknown' is for too few data."""

    form: ClassVar[str] = "verdict"
    text: str
    mood: Mood

    @property
    def mark(self) -> str:
        """A sign, so that colour carries nothing alone."""
        return MARK[self.mood]


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot: the SVG that `m4.eval.report.plots.draw` made."""

    form: ClassVar[str] = "plot"
    svg: str


@dataclasses.dataclass(frozen=True)
class Key:
    """What colours of the plot below mean: (colour, name)."""

    form: ClassVar[str] = "key"
    entries: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Fold:
    """Parts that are closed at first on a screen, and open on paper."""

    form: ClassVar[str] = "fold"
    summary: str
    parts: Sequence["Part"]


Part = Table | How | Text | Note | Heading | Missing | Verdict | Plot | Key | Fold


@dataclasses.dataclass(frozen=True)
class Section:
    """One section of the page; `name` is its anchor."""

    name: str
    title: str
    parts: Sequence[Part]


def latex(text: str) -> str:
    """A text as LaTeX prints it."""
    text = text.replace("\\", "\0").replace("{", r"\{").replace("}", r"\}")
    text = "".join(f"\\{c}" if c in "&%$#_" else c for c in text)
    text = text.replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}")
    for sign, code in TEX.items():
        text = text.replace(sign, code)
    return text.replace("\0", r"\textbackslash{}")


def _cell(cell: Cell | str | int | None) -> Cell:
    if isinstance(cell, Cell):
        return cell
    if isinstance(cell, int):
        return Cell(f"{cell:,}", value=cell)
    return Cell("" if cell is None else cell)


def _plain(cell: Cell) -> str:
    """A number as it is; a text that a spreadsheet would compute is marked as text."""
    if cell.value is not None:
        return f"{cell.value:.10g}"
    text = " ".join([cell.text, cell.small] if cell.ends is None and cell.small else [cell.text])
    return uncomputed(text)


def _ends(cell: Cell) -> list[str]:
    return ["" if end is None else f"{end:.10g}" for end in cell.ends or (None, None)]


def _tex(cell: Cell) -> str:
    span = f" ({latex(cell.small)})" if cell.small else ""
    return f"{latex(cell.text)}{span}"
