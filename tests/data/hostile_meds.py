"""A valid MEDS data set that is as unlike the others as the schema allows.

Two hospitals' code systems in nested, unevenly sharded folders, one shard empty; subject ids up to
2^62 and negative; static events without time, birth as MEDS_BIRTH; times from 1900 to 2200 in other
units, with a time zone; codes with spaces, slashes, quotes, stars and letters beyond ASCII; the
same code with numbers and with texts; columns in another order, some absent from some shards, extra
ones; splits with names of their own beside the usual ones; label files of every kind.
"""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DAY0 = datetime.datetime(2150, 6, 1, tzinfo=datetime.UTC)
LABS = ("LAB//50912//mg/dL", "LAB//50931//mg/dL", "LOINC/2160-0", "LAB//Na+ [moles]//mmol/L")
DRUGS = ("RxNorm/1719", "RxNorm/7052", "ATC//N02BE01", 'DRUG//insulin "glargine" *PEN*', "DRUG//é")
NOTES = ("unremarkable", "in pain", "Ödem, 2+ — wheezing?", "O'Brien: stable\nno change")


def write(folder, num_subjects=80, seed=0):
    """Writes the data set below `folder`; returns subject -> prediction times."""
    rng = np.random.default_rng(seed)
    ids = [int(i) for i in rng.choice(2**40, num_subjects, replace=False)]
    ids[0], ids[1] = 2**62, -7
    shards = {"north/a": [], "north/b/deep": [], "south": []}
    points, risk = {}, {}
    for number, subject in enumerate(ids):
        rows = shards[[*shards][number % 3]]
        start = DAY0 + datetime.timedelta(days=int(rng.integers(-4000, 4000)))
        risk[subject] = rng.random() < 0.3
        rows += _subject(rng, subject, start, risk[subject])
        ends = [start + datetime.timedelta(hours=h) for h in (24, 60)[: 1 + number % 2]]
        points[subject] = [end.replace(tzinfo=None) for end in ends]
    for place, rows in shards.items():
        _shard(folder / "data" / place, rows, south=place == "south")
    _write(folder / "data/north/empty.parquet", _events([]))
    names = ("train", "tuning", "held_out", "external")
    parts = [names[(0, 0, 0, 0, 0, 0, 1, 1, 2, 2)[i % 10]] for i in range(num_subjects)]
    parts[-1] = names[3]
    table = pa.table({"split": pa.array(parts).dictionary_encode(), "subject_id": ids})
    _write(folder / "metadata/subject_splits.parquet", table)
    _write(folder / "metadata/codes.parquet", pa.table({"code": ["x"], "description": ["y"]}))
    _labels(folder / "tasks", rng, points, risk)
    return points


def _subject(rng, subject, start, sick):
    rows = [
        (subject, None, "MEDS_BIRTH" if rng.random() < 0.5 else "GENDER//F", None, None),
        (subject, None, f"ETHNICITY//{'ABC'[rng.integers(3)]} / other", None, None),
        (subject, start - datetime.timedelta(days=int(rng.integers(7000, 30000))), "MEDS_BIRTH",
         None, None),
    ]  # fmt: skip
    for hour in np.sort(rng.uniform(-5, 70, rng.integers(0, 60))):
        when = start + datetime.timedelta(hours=float(hour))
        kind = rng.integers(4)
        if kind == 0:
            value = float(rng.normal(3 if sick else 0, 1))
            rows.append((subject, when, LABS[rng.integers(4)], value, None))
        elif kind == 1:
            text = None if rng.random() < 0.5 else "negative"
            number = None if text else float(rng.integers(0, 3))
            rows.append((subject, when, "URINE//nitrite", number, text))
        elif kind == 2:
            rows.append((subject, when, DRUGS[rng.integers(5)], None, None))
        else:
            rows.append((subject, when, "NOTE//free text", None, NOTES[rng.integers(4)]))
    if sick:
        rows.append((subject, start + datetime.timedelta(days=9), "MEDS_DEATH", None, None))
    return rows


def _events(rows):
    columns = [*zip(*rows, strict=True)] or [[]] * 5
    kinds = (pa.int64(), pa.timestamp("us", "UTC"), pa.string(), pa.float32(), pa.large_string())
    names = ("subject_id", "time", "code", "numeric_value", "text_value")
    return pa.table({n: pa.array(c, k) for n, c, k in zip(names, columns, kinds, strict=True)})


def _shard(path, rows, *, south):
    table = _events(rows)
    if not south:
        half = len(table) // 2
        _write(path / "0.parquet", table.slice(0, half))
        _write(path / "1.parquet", table.slice(half))
        return
    table = table.set_column(1, "time", table["time"].cast(pa.timestamp("ms", "UTC"), safe=False))
    table = table.set_column(2, "code", table["code"].dictionary_encode())
    extra = pa.array([f"img/{i}.dcm" for i in range(len(table))])
    table = table.append_column("image_path", extra).select([5, 2, 0, 3, 1])  # without texts
    _write(path / "part-000.snappy.parquet", table)


def _labels(folder, rng, points, risk):
    flat = [(s, t) for s, times in points.items() for t in times]
    flat = [flat[i] for i in rng.permutation(len(flat))]
    sick = [bool(risk[s]) for s, _ in flat]
    base = {
        "subject_id": pa.array([s for s, _ in flat], pa.int64()),
        "prediction_time": pa.array([t for _, t in flat], pa.timestamp("us", "UTC")),
    }
    empty = {
        "boolean_value": pa.nulls(len(flat), pa.bool_()),
        "integer_value": pa.nulls(len(flat), pa.int64()),
        "float_value": pa.nulls(len(flat), pa.float32()),
        "categorical_value": pa.nulls(len(flat), pa.string()),
    }
    noise = rng.normal(size=len(flat))
    kinds = {
        "death in 30d": {"boolean_value": pa.array(sick)},
        "los-days": {"float_value": pa.array(np.exp(noise), pa.float32())},
        "visits": {"integer_value": pa.array(rng.integers(0, 9, len(flat)), pa.int64())},
        "ward": {"categorical_value": pa.array(["ICU 1" if n > 0 else "general" for n in noise])},
    }
    for name, column in kinds.items():
        table = pa.table(base | empty | column)  # all four columns, as ACES writes them
        for part, place in enumerate(("train/0", "held_out/0")):
            _write(folder / name / f"{place}.parquet", table.slice(part * len(flat) // 2))


def _write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
