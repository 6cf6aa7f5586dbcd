"""The parts of a section: files beside tables, what is quoted, what a spreadsheet would compute."""

import csv
import io
import urllib.parse

import pytest

from m4.eval.report import page as report
from m4.eval.report import plots
from m4.eval.report.parts import (
    Cell,
    Fold,
    Heading,
    How,
    Key,
    Missing,
    Note,
    Plot,
    Row,
    Section,
    Table,
    Text,
    Verdict,
    estimate,
    latex,
    number,
)

HOSTILE = "<b>&\"'=cmd|' /C calc'!A0 \\input{x} 50%_$"


def table(name="t"):
    e = {"value": -0.1234567, "low": -0.2, "high": 0.05}
    rows = [
        Row([HOSTILE, estimate(e, sign=True), 1234], kind="model"),
        Row(
            ["=2+3", estimate({"value": 0.5, "low": None, "high": None}), number(0.1)], begins=True
        ),
        Row(["none", estimate(None), None]),
    ]
    return Table(name, ["who", "AUROC", "n"], rows)


def test_csv_has_the_numbers_and_computes_nothing():
    rows = list(csv.reader(io.StringIO(table().csv)))
    assert rows[0] == ["who", "AUROC", "AUROC, low", "AUROC, high", "n"]
    assert rows[1] == [HOSTILE, "-0.1234567", "-0.2", "0.05", "1234"]
    assert rows[2] == ["'=2+3", "0.5", "", "", "0.1"] and rows[3] == ["none", "", "", "", ""]


def test_latex_is_quoted():
    text = table().latex
    assert text.startswith("\\begin{tabular}{lrr}\n\\toprule\nwho & AUROC & n \\\\\n\\midrule\n")
    assert "$-$0.123 ($-$0.200 to +0.050)" in text
    assert r"\textbackslash{}input\{x\} 50\%\_\$" in text and text.count(r"\midrule") == 2
    assert latex("a^b~c") == r"a\textasciicircum{}b\textasciitilde{}c"


def test_every_part_is_shown_and_names_are_quoted(tmp_path, monkeypatch):
    def section(run):
        assert run.results is None and run.smallest == 10
        parts = (
            How(HOSTILE),
            Text(HOSTILE),
            Note(HOSTILE),
            Heading(HOSTILE),
            Missing(HOSTILE),
            Verdict(HOSTILE, "unknown"),
            Key([("#000000", HOSTILE)]),
            Plot(plots.presence([{"keep": ["a"], "count": 3}], ["a"], alt=HOSTILE)),
            Fold(HOSTILE, (table("inner"), Fold("deeper", (Note("deepest"),)))),
            table(),
        )
        return Section("new", "A new section", parts)

    monkeypatch.setattr(report, "SECTIONS", (section, lambda run: None))
    text = report.render(tmp_path)
    assert '<a href="#new">A new section</a>' in text and '<section id="new">' in text
    assert "<b>&" not in text and text.count("&lt;b&gt;&amp;") >= 10 and "deepest" in text
    for name in ("t", "inner"):
        assert f'download="{name}.csv"' in text and f'download="{name}.tex"' in text
    assert urllib.parse.quote(table().csv) in text


def test_an_unfinished_row_is_no_table():
    with pytest.raises(ValueError, match="2 cells"):
        Table("t", ["a"], [Row(["x", Cell("y")])])
