"""Advice beside predictions: whose rows it is of, what they lack, and what tests cost today."""

import itertools

import ml_collections
import numpy as np
import pyarrow as pa
import pytest

from m4.eval import table
from m4.eval.predictions import Predictions
from m4.modes import eval as eval_mode
from m4.run import beside, meds_predictions
from m4.specs import DataSpec, ModalitySpec, TaskSpec

NAMES, ROWS = ("vitals", "image", "blood"), 40


def spec(names=NAMES):
    modalities = tuple(ModalitySpec(name, "table", (1,)) for name in names)
    return DataSpec(modalities, (TaskSpec("died", "binary"),))


def config(**fields):
    own = {"alpha": 0.1, "costs": {}, "missing": {}, "subsets": "all"} | fields
    return ml_collections.ConfigDict({"seed": 0, "data": {"calibration": 0.0}, "eval": own})


def people(present_NM):
    """Rows under every subset, with answers of no meaning."""
    rng, subsets = np.random.default_rng(0), [*itertools.product((True, False), repeat=3)][:-1]
    return Predictions(
        subsets=np.array(subsets),
        uid=np.arange(ROWS),
        patient=np.arange(ROWS),
        present=present_NM,
        prediction={"died": rng.random((len(subsets), ROWS, 1)).astype(np.float32)},
        label={"died": (np.arange(ROWS) % 2)[:, None].astype(float)},
        label_mask={"died": np.ones((ROWS, 1), bool)},
        counted=(np.array(subsets)[:, None] & present_NM).any(-1),
        routing={},
    )


VITALS = people(np.tile([True, False, False], (ROWS, 1)))  # everybody lacks image and blood


@pytest.fixture
def work(tmp_path):
    """A folder whose tables say: image tells 2, blood 1."""
    for name, own in (
        ("subsets", table.make(VITALS, spec(), VITALS.patient)),
        ("next", advice([[np.nan, 2.0, 1.0]] * ROWS)),
    ):
        put(tmp_path, name, beside.marked(own, tmp_path, {}))
    return tmp_path


def advice(gain_NM):
    columns = table.advice_columns("died", NAMES, np.array(gain_NM), np.full(ROWS, 1))
    return pa.table({"row": np.arange(ROWS), "patient": np.arange(ROWS), **columns})


def put(folder, name, own):
    meds_predictions.write_private(beside.place(folder, "test", name), own, folder)


def told(folder, found=VITALS, **fields):
    """(columns of the split's own rows, the lines that are said)."""
    known = beside.of(folder, config(**fields), spec())
    columns = known.columns(found, "test")
    return {name: column.to_pylist() for name, column in columns.items()}, known.said(columns)


def test_stored_gains_are_weighed_by_the_costs_of_today(work):
    assert {*told(work)[0]["next/died"]} == {"image"}
    assert {*told(work, costs={"image": 3.0})[0]["next/died"]} == {"blood"}
    put(work, "next", beside.marked(advice([[np.nan, -2.0, -1.0]] * ROWS), work, {}))
    columns, _ = told(work, costs={"image": 3.0})
    assert {*columns["next/died"]} == {None} and {*columns["gain/died/image"]} == {0.0}


def test_nobody_is_told_to_get_what_he_has(work):
    columns, _ = told(work, people(np.tile([True, True, False], (ROWS, 1))))
    assert {*columns["next/died"]} == {"blood"} and {*columns["gain/died/image"]} == {None}
    columns, _ = told(work, people(np.ones((ROWS, 3), bool)))
    assert {*columns["next/died"]} == {None}


def test_rows_that_were_made_to_lack_more_teach_and_get_no_advice(work, capsys):
    lost = {"kind": "mcar", "rate": {"image": 1.0}}
    before = {path.name: path.read_bytes() for path in (work / "results").iterdir()}
    eval_mode.write_tables(config(missing=lost), work, VITALS, spec(), "test")
    (line,) = capsys.readouterr().out.splitlines()
    assert "eval.missing" in line
    assert {path.name: path.read_bytes() for path in (work / "results").iterdir()} == before
    columns, (_, line) = told(work, missing=lost)
    assert not columns and "eval.missing" in line
    for name in ("next", "subsets"):  # as a version wrote them that did not know
        own = (
            table.make(VITALS, spec(), VITALS.patient)
            if name == "subsets"
            else advice([[2.0] * 3] * ROWS)
        )
        put(work, name, beside.marked(own, work, lost))
        columns, lines = told(work)
        assert not columns and len(lines) == 2 and "made to lack more" in lines[1]


def test_a_table_of_other_parameters_is_neither_believed_nor_kept(work, monkeypatch, capsys):
    monkeypatch.setattr(beside, "parameters", lambda folder: ["3 another"])
    put(work, "subsets", beside.marked(table.make(VITALS, spec(), VITALS.patient), work, {}))
    columns, (_, line) = told(work)
    assert not columns and "test_next.parquet is of other parameters" in line
    eval_mode.write_tables(config(subsets="auto"), work, VITALS, spec(), "test")
    assert {path.name for path in (work / "results").iterdir()} == {"test_subsets.parquet"}
    put(work, "next", beside.marked(advice([[np.nan, 2.0, 1.0]] * ROWS), work, {}))
    eval_mode.write_tables(config(), work, VITALS, spec(), "test")  # too few to learn from
    assert not beside.place(work, "test", "next").exists()
    assert beside.place(work, "test", "worth").exists()
    assert "test_next.parquet: removed" in capsys.readouterr().out
    columns, (_, line) = told(work)
    assert not columns and "too few patients" in line


def test_above_ten_modalities_nobody_is_sent_to_pay_for_all_subsets(tmp_path):
    many = spec(tuple(f"m{m}" for m in range(11)))
    line = beside.of(tmp_path, config(), many).lines[-1]
    assert "none above 10 modalities" in line and "subsets=all" not in line
