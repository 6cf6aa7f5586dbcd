"""Tables in: long and wide files by hand, bad rows, and the shipped examples."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from m4.data import data_sets
from m4.data.sets import tables
from m4.data.sets.declared import arrow_files
from m4.errors import ConfigError, DataError
from tests.data import test_support2

LONG = """
[[events]]
files = "events.csv*"
subject = "patient"
time = "charted"
code = "item"
value = "value"
text = "comment"
prefix = "E//"
[[rows]]
files = "static.csv"
subject = "patient"
[labels]
files = "labels.csv"
subject = "patient"
time = "asked"
[window]
hours = 24
[tasks.risk]
kind = "multilabel"
column = ["sepsis", "aki"]
[modalities.labs]
kind = "series"
features = { lactate = "E//lactate" }
[modalities.notes]
kind = "text"
codes = "E//note"
vocabulary = "hashed"
[modalities.static]
kind = "table"
features = { age = "age", unit = { codes = "unit", values = ["A", "B"] } }
"""
EVENTS = """patient,charted,item,value,comment
p2,2100-01-01 09:00:00,lactate, 1.5,
p1,2100-01-01T10:00:00,lactate,NA,
p1,2100-01-01T08:30:00,lactate,2,
p1,,note,,"two
lines"
p3,2100-01-01 11:00,lactate,9,
"""
STATIC = "patient,age,unit\np1,60,A\np2,,C\np3,50,B\n"
LABELS = "patient,asked,sepsis,aki\np1,2100-01-01 10:00,yes,0\np2,2100-01-01 10:00,,1\n"


def write(folder, **files):
    content = {"events.csv": EVENTS, "static.csv": STATIC, "labels.csv": LABELS, "s.toml": LONG}
    for name, text in (content | files).items():
        if text is not None:
            data = text.encode() if isinstance(text, str) else text
            (folder / name).write_bytes(data)
    return str(folder / "s.toml")


def read(folder, file, **options):
    found = tables.cohort(folder, seed=0, file=file, **options)
    return {name: list(start()) for name, start in found.splits.items()}, found


def by_subject(splits):
    return {e["key"][0]: e for found in splits.values() for e in found}


def test_a_number_that_float32_does_not_hold_is_called_so(tmp_path):
    events = EVENTS.replace("lactate,2,", "lactate,4.2e299,")
    flow = dict(read(tmp_path, write(tmp_path, **{"events.csv": events}))[1].flow)
    assert flow["numbers beyond 3.4e38, which float32 does not hold"] == 1
    assert flow["labs/lactate: uses without a finite number"] == 2


def test_long_and_wide_files_by_hand(tmp_path):
    splits, found = read(tmp_path, write(tmp_path))
    one, two = (by_subject(splits)[p] for p in ("p1", "p2"))
    np.testing.assert_array_equal(one["inputs"]["labs"]["values"], [[2]])
    np.testing.assert_array_equal(one["inputs"]["labs"]["times"], [22.5])  # 24 h before 10:00
    np.testing.assert_array_equal(one["inputs"]["static"]["values"], [60, 1, 0])
    np.testing.assert_array_equal(one["targets"]["risk"], [1, 0])
    assert len(one["inputs"]["notes"]["values"]) == 2  # without a time: always known
    np.testing.assert_array_equal(two["inputs"]["labs"]["values"], [[1.5]])
    assert "static" not in two["inputs"]  # no age, and C is no unit
    np.testing.assert_array_equal(two["targets"]["risk"], [np.nan, 1])
    flow = dict(found.flow)
    assert flow["events"] == 8 and flow["events of subjects without a point"] == 2
    assert flow["labs/lactate: uses without a finite number"] == 1
    assert one["patient"] != two["patient"] and one["patient"] >= 0


def test_parquet_gives_the_records_of_csv(tmp_path):
    expected, _ = read(tmp_path, write(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    file = write(other, **{"events.csv": None, "static.csv": None})
    for name in ("events", "static"):
        options = pyarrow.csv.ParseOptions(newlines_in_values=True)
        table = pyarrow.csv.read_csv(tmp_path / f"{name}.csv", parse_options=options)
        pq.write_table(table, other / f"{name}.parquet")
    text = Path(file).read_text().replace("events.csv*", "events.parquet")
    Path(file).write_text(text.replace("static.csv", "static.parquet"))
    found, _ = read(other, file)
    for subject, example in by_subject(expected).items():
        for name, payload in example["inputs"].items():
            np.testing.assert_array_equal(
                payload["values"], by_subject(found)[subject]["inputs"][name]["values"]
            )


BAD = {
    "truncated": (
        gzip.compress(EVENTS.encode() * 200)[:200],
        "events.csv.gz: cut short or corrupt",
    ),
    "not gzip": (EVENTS.encode(), "events.csv.gz: cut short or corrupt"),
    "NUL": (EVENTS.replace("p3", "p\0"), "events.csv, line 7: has a NUL byte"),
    "not UTF-8": (EVENTS.encode().replace(b"p3", b"\xff3"), "events.csv, line 7: is not UTF-8"),
    "too few columns": (EVENTS.replace(",9,", ""), "events.csv, line .*: not 5 columns"),
    "no number": (EVENTS.replace(" 1.5", "high"), "events.csv, row 1: 'value' is not a number"),
    "no time": (EVENTS.replace("2100-01-01 09", "1/1 09"), "row 1: 'charted' is not a time"),
    "no column": (EVENTS.replace("item", "itme"), "events.csv: has no column 'item'"),
    "two of a name": (EVENTS.replace("item", "value"), "two columns have the same name"),
    "empty": ("", "events.csv: is empty"),
    "an endless header": ("patient" * 30_000 + EVENTS, "events.csv, line 1: is no header"),
    "cut in quotes": (EVENTS[: EVENTS.index("lines")], "events.csv: ends within quotes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_the_row_but_not_the_value(tmp_path, case):
    content, message = BAD[case]
    name = "events.csv.gz" if "gz" in message else "events.csv"
    file = write(tmp_path, **{"events.csv": None, name: content})
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, file)
    assert len(error.value.args) == 1 and "high" not in str(error.value)


@pytest.mark.parametrize(
    "labels, message",
    [
        (LABELS + "p1,2100-01-01 10:00,no,0\n", "row 3: a second, different label"),
        (LABELS.replace("yes", "2"), "row 1: a label of task risk is neither 0 nor 1"),
        (LABELS.replace("sepsis", "septic"), "labels.csv: has no column 'sepsis'"),
        ("patient,asked,sepsis,aki\n", "labels.csv: has no rows"),
        ("patient,asked,sepsis,aki\np1,2100-01-01 10:00,,\n", "has no usable label of task risk"),
    ],
)
def test_bad_labels_are_named_with_the_row(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, write(tmp_path, **{"labels.csv": labels}))


def test_a_shipped_definition_is_a_data_set_by_its_name(tmp_path):
    test_support2.write(tmp_path, [test_support2.OTHER | {"sno": str(i)} for i in range(60)])
    ours = tables.cohort(tmp_path, seed=3, file="support2", fold=1)
    named = data_sets.find("support2").cohort(tmp_path, seed=3, fold=1)
    assert ours.spec == named.spec and ours.sources == named.sources
    for name, start in ours.splits.items():
        one, two = [*start()], [*named.splits[name]()]
        assert len(one) > 0 and [e["patient"] for e in one] == [e["patient"] for e in two]


def test_an_odd_quote_within_a_cell_and_optional_columns_are_taken(tmp_path):
    inches = EVENTS.replace("p1,,note", 'p1,,tube 5",7,\np1,,note')
    splits, found = read(tmp_path, write(tmp_path, **{"events.csv": inches}))
    assert dict(found.flow)["events"] == 9
    file = write(tmp_path, **{"events.csv": EVENTS.replace(",value,", ",number,")})
    with pytest.raises(DataError, match="events.csv: has no column 'value'"):
        read(tmp_path, file)


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        ('groups = ["unit"]', {"p1": {"unit": "A"}, "p2": {"unit": "C"}}),
        ('groups = ["age"]', {"p1": {"age": "60"}, "p2": {"age": None}}),
        (
            '[groups]\nage = { codes = "age", bands = [50, 65] }\nward = "unit//*"',
            {"p1": {"age": "50 to under 65", "ward": "A"}, "p2": {"age": None, "ward": "C"}},
        ),
    ],
)
def test_group_columns_stand_beside_records_that_do_not_change(tmp_path, groups, found):
    plain, cohort = read(tmp_path, write(tmp_path))
    splits, grouped = read(tmp_path, write(tmp_path, **{"s.toml": f"{groups}\n{LONG}"}))
    examples, before = by_subject(splits), by_subject(plain)
    assert {who: example["groups"] for who, example in examples.items()} == found
    assert grouped.spec.groups == tuple(found["p1"]) and cohort.spec.groups == ()
    for who, example in examples.items():
        np.testing.assert_equal(example["inputs"], before[who]["inputs"])
        np.testing.assert_equal(example["targets"], before[who]["targets"])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ('groups = ["<b>"]', "is no name"),
        ('groups = ["unit", "unit"]', "duplicate group names"),
        ('[groups]\nage = { codes = "age", bands = [65, 50] }', "groups.age.bands: must list"),
        ('[groups]\nage = { codes = "age", band = [50] }', "did you mean 'bands'"),
        ("[groups]\nage = { bands = [50] }", "groups.age.codes: is missing"),
        ("groups = 7", "groups: must be"),
    ],
)
def test_refuses_groups_that_are_none(tmp_path, groups, message):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, write(tmp_path, **{"s.toml": f"{groups}\n{LONG}"}))
    assert message in str(error.value.lines())


@pytest.mark.parametrize("apart", [False, True])
def test_what_was_exported_twice_counts_once(apart, tmp_path):
    """Wide rows and texts, in one file or in two of the same source."""
    definition = LONG.replace('"static.csv"', '"static.csv*"')
    definition = definition.replace("{ age", '{ rows = { codes = "unit", take = "count" }, age')
    places = [tmp_path / name for name in ("once", "twice")]
    for place in places:
        place.mkdir()
    again = {"events.csv": EVENTS + EVENTS.split("\n", 1)[1], "static.csv": STATIC + STATIC[17:]}
    if apart:
        again = {"events.csv.gz": gzip.compress(EVENTS.encode())}
        again["static.csv.gz"] = gzip.compress(STATIC.encode())
    expected, _ = read(places[0], write(places[0], **{"s.toml": definition}))
    found, cohort = read(places[1], write(places[1], **{"s.toml": definition}, **again))
    for subject, example in by_subject(expected).items():
        for name, payload in example["inputs"].items():
            other = by_subject(found)[subject]["inputs"][name]
            np.testing.assert_array_equal(payload["values"], other["values"])
    flow = dict(cohort.flow)
    assert flow["rows that repeat another, counted once"] == 2  # p3 has no label
    assert flow["texts that repeat another of their subject and time"] >= 1
    more = {"static.csv": STATIC + "p1,60,B\n", "s.toml": definition}  # another one counts
    splits, _ = read(places[0], write(places[0], **more))
    assert by_subject(splits)["p1"]["inputs"]["static"]["values"][0] == 2


@pytest.mark.parametrize(
    "rows",
    [
        ["p1,x\x1fy,z", "p1,x,y\x1fz"],
        ["p1,1:x,", "p1,1,:x"],
        ["p1,1:x-,", "p1,,1:x-"],
        ["p1,,x", "p1,x,"],
    ],
)
def test_rows_that_differ_are_no_repeats_whatever_their_cells(tmp_path, rows):
    text = LONG.replace('age = "age"', 'age = { codes = "v", take = "sum" }')
    static = "\n".join(["patient,a,b,v", *(f"{row},5" for row in [*rows, rows[0]])]) + "\n"
    splits, found = read(tmp_path, write(tmp_path, **{"static.csv": static, "s.toml": text}))
    assert dict(found.flow)["rows that repeat another, counted once"] == 1
    assert by_subject(splits)["p1"]["inputs"]["static"]["values"][0] == 10
    table = pyarrow.table({"a": ["", None, "0:", "-"], "b": [None, "", "-", "0:"]})
    (batch,) = table.to_batches()
    columns = arrow_files.Columns(batch, tmp_path / "x", 0)
    assert len({*columns.digests(["a", "b"], np.arange(4)).tolist()}) == 4


def test_a_parquet_file_with_two_columns_of_a_name_is_refused(tmp_path):
    file = write(tmp_path, **{"static.csv": None})
    Path(file).write_text(LONG.replace("static.csv", "static.parquet"))
    arrays = [pyarrow.array(["p1", "p2"]), pyarrow.array([1.0, 2.0]), pyarrow.array([3.0, 4.0])]
    twice = pyarrow.Table.from_arrays(arrays, names=["patient", "age", "age"])
    pq.write_table(twice, tmp_path / "static.parquet")
    with pytest.raises(DataError, match="static.parquet: two columns have the same name"):
        read(tmp_path, file)


@pytest.mark.parametrize(
    ("groups", "cells", "found"),
    [
        ('["site"]', ["Oslo//Main", "Bergen//Main"], ["Oslo//Main", "Bergen//Main"]),
        ('["site"]', ["7.0", "8"], ["7", "8"]),
        ('["site"]', ["7.50", "v7.0"], ["7.50", "v7.0"]),
        ('{ site = "s*e//*" }', ["Oslo//Main", "Bergen//Main"], ["Oslo//Main", "Bergen//Main"]),
        ('{ site = "site" }', ["1000001", "1000002.0"], ["1000001", "1000002"]),
        ('{ site = "site" }', ["100000001", "100000002"], ["100000001", "100000002"]),
        ('{ site = "site" }', ["0.1", "12345.678"], ["0.1", "12345.678"]),
        (
            '{ site = { codes = "site", bands = [0.21, 0.4] } }',
            ["0.21", "0.4"],
            ["0.21 to under 0.4", "0.4 and over"],
        ),
    ],
)
def test_categories_that_differ_stay_apart(tmp_path, groups, cells, found):
    static = "".join(f"{p},60,A,{c}\n" for p, c in zip(("p1", "p2"), cells, strict=True))
    text = f"groups = {groups}\n{LONG}"
    splits, _ = read(
        tmp_path,
        write(tmp_path, **{"static.csv": f"patient,age,unit,site\n{static}", "s.toml": text}),
    )
    examples = by_subject(splits)
    assert [examples[p]["groups"]["site"] for p in ("p1", "p2")] == found


@pytest.mark.parametrize(
    ("pattern", "code", "category"),
    [
        ("SITE//*", "SITE//Oslo//Main", "Oslo//Main"),
        ("A//SITE//*", "A//SITE//Oslo//Main", "Oslo//Main"),
        ("*//SITE//*", "A//SITE//Main", "Main"),
        ("re:SITE//.*", "SITE//Main", "Main"),
        ("SITE//Main", "SITE//Main", "Main"),
    ],
)
def test_a_category_stands_behind_what_the_pattern_says(tmp_path, pattern, code, category):
    events = EVENTS + f"p1,,{code},,\n"
    text = f'groups = {{ site = "{pattern.replace("re:", "re:E//")}" }}\n{LONG}'
    if not pattern.startswith(("re:", "*")):
        text = text.replace(f'"{pattern}"', f'"E//{pattern}"')
    splits, _ = read(tmp_path, write(tmp_path, **{"events.csv": events, "s.toml": text}))
    assert by_subject(splits)["p1"]["groups"]["site"] == category


@pytest.mark.parametrize("limit", [0.21, 0.1, 1e-3, 36.6, 7.0, 16777217])
def test_limits_are_inclusive_whatever_float32_makes_of_them(tmp_path, limit):
    apart = [limit * 0.999, limit, limit * 1.001]
    events = "patient,charted,item,value,comment\n" + "".join(
        f"p1,2100-01-01 0{hour}:00,lactate,{value!r},\n" for hour, value in enumerate(apart, 1)
    )
    for low, high, kept in ((limit, 1e300, apart[1:]), (-1e300, limit, apart[:2])):
        codes = f'{{ lactate = {{ codes = "E//lactate", low = {low!r}, high = {high!r} }} }}'
        text = LONG.replace('{ lactate = "E//lactate" }', codes)
        splits, _ = read(tmp_path, write(tmp_path, **{"events.csv": events, "s.toml": text}))
        found = by_subject(splits)["p1"]["inputs"]["labs"]["values"].ravel()
        np.testing.assert_array_equal(found, np.array(kept, np.float32))
