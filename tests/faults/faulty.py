"""A small data set of every kind of modality and task, with one fault in it if asked for.

The table `FAULTS` holds what a data set module can get wrong; `fault=""` is the same data without
it. Text and numbers that stand for a patient's begin with `catalogue.TEXT` and `NUMBER`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m4.data.cohort import Cohort
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests.faults.catalogue import NUMBER, TEXT

VERSION, LICENCE, WHERE = "1", "Apache-2.0; generated", "generated"
ROWS = {"train": 12, "val": 4, "test": 4}
SECRET, LARGE = f"{TEXT} has chest pain", float(f"{NUMBER}.5")

SPEC = DataSpec(
    (
        ModalitySpec("vitals", "series", (6, 3)),
        ModalitySpec("reports", "vectors", (3, 4)),
        ModalitySpec("static", "table", (4,)),
        ModalitySpec("drugs", "codes", (5,), dtype="int32", vocab=50),
        ModalitySpec("notes", "text", (5,), dtype="int32", vocab=50),
        ModalitySpec("xray", "image", (1, 4, 4, 1), dtype="uint8"),
        ModalitySpec("ecg", "signal", (8, 2)),
        ModalitySpec("half", "table", (2,), dtype="float16"),
    ),
    (
        TaskSpec("death", "binary"),
        TaskSpec("phe", "multilabel", dim=3),
        TaskSpec("unit", "multiclass", dim=3),
        TaskSpec("los", "regression"),
        TaskSpec("survival", "survival", dim=2, labels=("7", "30")),
    ),
)
SHAPES = {"vitals": (4, 3), "reports": (2, 4), "static": (4,), "ecg": (8, 2), "half": (2,)}


def spec(*, fault: str = "") -> DataSpec:
    """The schema, which a fault does not change."""
    return SPEC


def missing_files(raw_dir, *, fault: str = "") -> list[str]:
    """Always empty: it is generated."""
    return []


def example(number: int) -> dict[str, Any]:
    """A record in which everything is present and known."""
    rng = np.random.default_rng(number)
    inputs = {name: {"values": rng.normal(size=shape)} for name, shape in SHAPES.items()}
    for name in ("vitals", "reports"):
        inputs[name]["times"] = np.arange(len(inputs[name]["values"]), dtype=float)
    for name in ("drugs", "notes"):
        inputs[name] = {"values": rng.integers(0, 50, 3)}
    inputs["xray"] = {"values": rng.integers(0, 255, (1, 4, 4, 1))}
    targets = {
        "death": number % 2,
        "phe": [number % 2, 1, 0],
        "unit": number % 3,
        "los": 1.0 + number,
        "survival": [10.0 + number, number % 2],
    }
    return {"patient": number, "inputs": inputs, "targets": targets}


def cohort(raw_dir, *, seed: int, fault: str = "") -> Cohort:
    """The records; the fault is in the third of the train split."""
    splits = {}
    for s, (name, rows) in enumerate(ROWS.items()):
        splits[name] = lambda start=100 * s, rows=rows: map(example, range(start, start + rows))
    if fault in RECORDS:

        def broken() -> Iterator[Any]:
            for number in range(ROWS["train"]):
                yield RECORDS[fault](example(number)) if number == 2 else example(number)

        splits["train"] = broken
    elif fault:
        splits = COHORTS[fault](splits)
    return Cohort(SPEC, splits, sources={}, licence=LICENCE, version=VERSION)


def _values(modality: str, values: Any) -> Callable[[dict], dict]:
    def change(record: dict) -> dict:
        record["inputs"][modality]["values"] = values
        return record

    return change


def _times(times: Any) -> Callable[[dict], dict]:
    def change(record: dict) -> dict:
        record["inputs"]["vitals"]["times"] = times
        return record

    return change


def _payload(modality: str, payload: Any) -> Callable[[dict], dict]:
    return lambda record: record | {"inputs": record["inputs"] | {modality: payload}}


def _target(task: str, value: Any) -> Callable[[dict], dict]:
    return lambda record: record | {"targets": record["targets"] | {task: value}}


def _without(*keys: str) -> Callable[[dict], dict]:
    return lambda record: {k: v for k, v in record.items() if k not in keys}


def _tables() -> Iterator[tuple[str, Callable[[dict], Any]]]:
    """Name of a fault, which begins with the field that must be named -> change of a record."""
    shapes = {
        "vitals": [np.zeros(3), np.zeros((4, 2)), np.zeros((4, 3, 1)), np.zeros((4, 0)), 1.0],
        "reports": [np.zeros((2, 3)), np.zeros(4)],
        "static": [np.zeros(3), np.zeros((1, 4)), np.zeros(0), 2.0],
        "drugs": [np.zeros((2, 2), int), 3],
        "notes": [np.zeros((2, 2), int), 3],
        "xray": [
            np.zeros((4, 4, 1)),
            np.zeros((1, 4, 4, 3)),
            np.zeros((1, 5, 4, 1)),
            np.zeros((1, 0, 0, 1)),
            np.zeros((4, 4)),
        ],
        "ecg": [np.zeros((8, 3)), np.zeros(8)],
    }
    for modality, wrong in shapes.items():
        for values in wrong:
            yield f"{modality}: shape {np.shape(values)}", _values(modality, values)
    for modality in (*shapes, "half"):
        right = np.shape(example(0)["inputs"][modality]["values"])
        for what, value in {"text": SECRET, "bytes": b"\xff\x00", "objects": {}}.items():
            yield f"{modality}: {what}", _values(modality, np.full(right, value, object))
        yield f"{modality}: infinite", _values(modality, np.full(right, np.inf))
        yield f"{modality}: complex", _values(modality, np.full(right, 1j))
        yield f"{modality}: None", _values(modality, None)
        yield f"{modality}: ragged", _values(modality, [[1.0], [1.0, 2.0]])
        yield f"{modality}: one text", _values(modality, SECRET)
        yield f"{modality}: payload is a list", _payload(modality, [1, 2])
        yield f"{modality}: payload is text", _payload(modality, SECRET)
        yield f"{modality}: no values", _payload(modality, {})
        yield f"{modality}: another key", _payload(modality, {"values": [], "units": SECRET})
    for modality in ("reports", "ecg", "drugs", "notes", "xray"):
        right = np.shape(example(0)["inputs"][modality]["values"])
        yield f"{modality}: NaN", _values(modality, np.full(right, np.nan))
    for modality in ("drugs", "notes"):
        for value in (-1, 50, 2**31, 2**63 - 1, 1.5, LARGE):
            yield f"{modality}: code {value}", _values(modality, np.array([1, value]))
    for value in (-1, 256, 0.5):
        yield f"xray: pixel {value}", _values("xray", np.full((1, 4, 4, 1), value))
    yield "half: too large", _values("half", np.array([LARGE, 1.0]))
    yield "static: too large", _values("static", np.array([1e39, 1.0, 1.0, 1.0]))
    times = {"short": [0.0], "long": range(9), "none": None, "text": [SECRET] * 4}
    times |= {"NaN": [0, 1, np.nan, 3], "infinite": [0, 1, np.inf, 3], "two": np.zeros((4, 2))}
    for what, value in times.items():
        yield f"vitals: times {what}", _times(value)
    targets: dict[str, list[Any]] = {
        "death": [2, -1, 0.5, np.inf, LARGE, SECRET, [0, 1], b"1", {}],
        "phe": [[0, 1], [0, 1, 2], [0, 1, -1], 1, SECRET, [SECRET] * 3],
        "unit": [3, -1, 1.5, SECRET, [1, 2], np.inf],
        "los": [np.inf, -np.inf, SECRET, [1.0, 2.0], {}, 1e39],
        "survival": [[1.0], 1.0, [1.0, 2.0], [-1.0, 0.0], SECRET, [np.inf, 1.0]],
    }
    for task, wrong in targets.items():
        for value in wrong:
            word = "a text" if value in (SECRET, [SECRET] * 3) else f"{value}"
            yield f"{task}: label {word}", _target(task, value)


def _records() -> dict[str, Callable[[dict], Any]]:
    found = dict(_tables())
    for value in (None, SECRET, 1.5, np.nan, np.inf, 2**64, [1], {}):
        word = "a text" if value == SECRET else f"{value}"
        found[f"patient: {word}"] = lambda record, v=value: record | {"patient": v}
    for key in ("patient", "inputs", "targets"):
        found[f"{key}: not there"] = _without(key)
        found[f"{key}: a list"] = lambda record, k=key: record | {k: [SECRET]}
    found["mystery: not in the schema"] = _payload("mystery", {"values": [1]})
    found["riddle: not in the schema"] = _target("riddle", 1)
    found["record: None"] = lambda record: None
    found["record: text"] = lambda record: SECRET
    found["record: raises"] = lambda record: float(SECRET)
    found["record: another key"] = lambda record: {}[SECRET]
    found["record: not UTF-8"] = lambda record: b"\xff\xfe".decode()
    found["record: no file"] = lambda record: Path(f"/nonexistent/{SECRET}").read_text()
    found["record: assertion"] = lambda record: [][5]
    return found


RECORDS = _records()


def _raises(splits: dict) -> dict:
    raise ValueError(SECRET)


COHORTS: dict[str, Callable[[dict], Any]] = {
    "split: train is empty": lambda s: s | {"train": lambda: iter(())},
    "split: val is empty": lambda s: s | {"val": lambda: iter(())},
    "split: test is empty": lambda s: s | {"test": lambda: iter(())},
    "split: no train": lambda s: {k: v for k, v in s.items() if k != "train"},
    "split: no val": lambda s: {k: v for k, v in s.items() if k != "val"},
    "split: no test": lambda s: {k: v for k, v in s.items() if k != "test"},
    "split: none": lambda s: {},
    "split: twice the same patients": lambda s: s | {"val": s["train"]},
    "split: not a function": lambda s: s | {"val": [1, 2]},
    "split: returns None": lambda s: s | {"val": lambda: None},
    "cohort: raises": _raises,
}


def names() -> Iterator[str]:
    """Of every fault."""
    yield from RECORDS
    yield from COHORTS
