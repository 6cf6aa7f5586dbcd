"""Small MEDS data sets, written by hand."""

import datetime
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DAY0 = datetime.datetime(2100, 1, 1)
DEFINITION = """
folder = "hospital"
[window]
hours = 4
[splits]
from = "meds"
[tasks.death]
kind = "binary"
labels = "labels/death"
[modalities.vitals]
kind = "series"
prefix = "VITAL//"
every = 2
take = "mean"
features = { hr = "HR", temp = { codes = "TEMP*", low = 30, high = 45, take = "last" } }
[modalities.static]
kind = "table"
[modalities.static.features]
age = { codes = "MEDS_BIRTH", take = "years_since" }
male = { codes = "SEX//M", among = "SEX//*", take = "is" }
doses = { codes = "DRUG//*", take = "count" }
[modalities.drugs]
kind = "codes"
codes = "DRUG//*"
min_subjects = 1
vocab = 8
[modalities.notes]
kind = "text"
codes = "NOTE//*"
min_subjects = 1
vocab = 16
"""


def at(hours, *, us=0):
    return DAY0 + datetime.timedelta(hours=hours, microseconds=us)


def events(rows):
    """Rows (subject, hours or None, code[, number[, text]]) -> a MEDS table."""
    rows = [(*row, *(None,) * (5 - len(row))) for row in rows]
    subject, hours, code, number, text = zip(*rows, strict=True)
    when = [h if h is None or isinstance(h, datetime.datetime) else at(h) for h in hours]
    return pa.table(
        {
            "subject_id": pa.array(subject, pa.int64()),
            "time": pa.array(when, pa.timestamp("us")),
            "code": pa.array(code, pa.string()),
            "numeric_value": pa.array(number, pa.float32()),
            "text_value": pa.array(text, pa.large_string()),
        }
    )


def labels(rows, column="boolean_value", kind=None):
    """Rows (subject, hours, value) -> a label table."""
    subject, hours, value = zip(*rows, strict=True)
    times = [at(h) for h in hours]
    return pa.table(
        {
            "subject_id": pa.array(subject, pa.int64()),
            "prediction_time": pa.array(times, pa.timestamp("us")),
            column: pa.array(value, kind or pa.bool_()),
        }
    )


def write(folder, tables, *, definition=DEFINITION):
    """Writes {path below hospital/: table} and the definition; returns the definition's path."""
    for path, table in tables.items():
        target = folder / "hospital" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, target)
    (folder / "spec.toml").write_text(textwrap.dedent(definition))
    return str(folder / "spec.toml")


def splits(names):
    return pa.table(
        {
            "subject_id": pa.array([*names], pa.int64()),
            "split": pa.array([*names.values()], pa.string()),
        }
    )


def cohort_tables(num_subjects=60, seed=0):
    """A random data set in three shards, one or two prediction times each, everything missing
    sometimes; keys as `write` takes them."""
    rng = np.random.default_rng(seed)
    names = ("train", "tuning", "held_out")
    parts = {s: names[0 if s % 5 < 3 else s % 5 - 2] for s in range(1, num_subjects + 1)}
    rows, asked = {name: [] for name in names}, []
    for subject, part in parts.items():
        own = [(subject, None, "SEX//M" if subject % 2 else "SEX//F")]
        own += [(subject, -24.0 * 365.25 * (20 + subject), "MEDS_BIRTH")]
        for hour in np.sort(rng.uniform(0, 8, 12)).round(3):
            kind = rng.integers(0, 4)
            if kind == 0:
                own.append((subject, hour, "VITAL//HR", float(rng.normal(80, 9))))
            elif kind == 1:
                own.append((subject, hour, "VITAL//TEMP//C", float(rng.normal(37, 1))))
            elif kind == 2:
                own.append((subject, hour, f"DRUG//{'abcdef'[rng.integers(0, 6)]}"))
            else:
                words = ("pain", "no pain", "Sleeps well")
                own.append((subject, hour, "NOTE//nurse", None, words[rng.integers(0, 3)]))
        rows[part] += own
        asked += [(subject, hour, bool(rng.random() < 0.3)) for hour in (4, 8)[: 1 + subject % 2]]
    tables = {f"data/{name}/0.parquet": events(own) for name, own in rows.items()}
    tables["metadata/subject_splits.parquet"] = splits(parts)
    tables["labels/death/0.parquet"] = labels(asked)
    return tables
