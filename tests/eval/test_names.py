"""Names as weapons: whatever a task is called, the report is a page and the table is text."""

import io
import json
import warnings

from rich.console import Console

from m4.eval.report import page as report
from m4.eval.report import plots, words
from m4.eval.results import write
from tests.eval.test_report import Page, fill

WEAPONS = [
    'death"><script>alert(1)</script><b x="',
    "[/red]x[bold",
    r"$\frac{$",
    "\x1b]0;title\x07\x1b[2J",
    "a\nb\x00c\u202e",
    "=1+1",
    "</svg></style>",
    "{{ 7 * 7 }}",
]


PLACES = ("ihm", "phe", "unit", "los", "vitals", "labs", "notes", "ecg")


def test_no_name_breaks_out_of_the_page_or_the_table(tmp_path, fabricate):
    fill(tmp_path, fabricate, rows=120, references=False)
    text = (tmp_path / "results/test.json").read_text()
    text = text.replace(
        '"unit": "', '"\\u0075nit": "'
    )  # a key of the document, not the task's name
    for place, name in zip(PLACES, WEAPONS, strict=True):
        text = text.replace(place, json.dumps(name)[1:-1])
    hostile = json.loads(text)
    write(hostile, tmp_path)
    (tmp_path / "data.json").write_text(json.dumps({"name": WEAPONS[0], "flow": [[WEAPONS[3], 9]]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no letter that a font lacks
        html = report.render(tmp_path)
    assert "script" not in Page(html).tags and html.count("<svg ") > 5
    assert not set("\x00\x07\x1b\u202e") & set(html) and "{{ 7 * 7 }}" in html
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=400, color_system=None)
    words.print_table(hostile, console)
    assert not set("\x00\x07\x1b\u202e") & set(screen.getvalue())
    assert all(words.printable(name).split()[0] in screen.getvalue() for name in WEAPONS[:4])


def test_the_description_of_a_plot_is_quoted():
    svg = plots.draw(lambda figure: None, 1, 1, 'x" onload="alert(1)')
    assert 'aria-label="x&quot; onload=&quot;alert(1)"' in svg
