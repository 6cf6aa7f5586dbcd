"""Texts that a spreadsheet would compute, and hours by a log of whatever is in it."""

import csv
import io
import json

import pytest

from m4 import cells
from m4.eval.report import parts
from m4.run import hours, own_predictions

TEXTS = ["=1+1", "+1", "-1", "@A1", "\t=1", "\n=1", " =1", "\u3000=1", "＝1"]


@pytest.mark.parametrize("text", TEXTS)
def test_no_text_is_a_formula(text):
    assert cells.uncomputed(text) == own_predictions._safe(text) == f"'{text}"
    table = parts.Table("x", ["a"], [parts.Row([parts.Cell(text)])])
    assert [*csv.reader(io.StringIO(table.csv, newline=""))] == [["a"], [f"'{text}"]]


@pytest.mark.parametrize(("text", "said"), [("\r=1", "' =1"), ("p3\r=1", "p3 =1")])
def test_no_text_begins_a_row_of_its_own(text, said):
    table = parts.Table("x", ["a"], [parts.Row([parts.Cell(text)])])
    assert [*csv.reader(io.StringIO(table.csv, newline=""))] == [["a"], [said]]
    assert own_predictions._safe(text) == said


@pytest.mark.parametrize("text", ["", "p3", "a=b", "1-2", "7"])
def test_other_texts_are_left_as_they_are(text):
    assert cells.uncomputed(text) == text


ODD = [
    "garbage",
    "[1]",
    "{",
    "[" * 10_000,
    json.dumps({"step": 20, "time/examples_per_s": "x"}),
    json.dumps({"step": "x", "time/examples_per_s": 1.0}),
    json.dumps({"time/examples_per_s": 1.0}),
    json.dumps({"step": 5, "time/eval_s": None, "time/save_s": [1]}),
    json.dumps({"step": 10**400, "time/examples_per_s": 1.0}),
    '{"step": 20, "time/examples_per_s": Infinity, "time/eval_s": NaN}',
]


@pytest.mark.parametrize("odd", ODD)
def test_hours_leave_out_what_is_no_row_of_a_log(tmp_path, odd):
    (tmp_path / "config.json").write_text(json.dumps({"train": {"batch_size": 4}}))
    sound = [{"step": 10, "time/examples_per_s": 2.0}, {"step": 30, "time/examples_per_s": 4.0}]
    (tmp_path / "metrics.jsonl").write_text(
        "\n".join([json.dumps(sound[0]), odd, json.dumps(sound[1] | {"time/save_s": 1.5}), ""])
    )
    assert hours.seconds(tmp_path) == 10 * 4 / 2 + 20 * 4 / 4 + 1.5


def test_hours_of_a_log_without_steps_are_unknown(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"train": {"batch_size": 4}}))
    (tmp_path / "metrics.jsonl").write_text("garbage\n")
    assert hours.seconds(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"train": {"batch_size": "x"}}))
    assert hours.of([tmp_path]) is None
