"""The 17 variables of the MIMIC-III benchmark, and FlexCare's hourly grid of 76 columns of them.

`benchmark`: the variables as they were measured (Harutyunyan et al. 2019; item ids of MIMIC-IV as
in FlexCare's item map). Two of them cannot occur in MIMIC-IV (capillary refill and the total GCS
have items of the older system only) and stay unobserved.

`flexcare`: what FlexCare (Xu et al., KDD 2024) makes of them: 48 bins of an hour; in a bin the last
value counts; an empty bin carries the last observed one, before the first a normal value; the five
categorical variables are one-hot over the benchmark's vocabularies; 17 columns say what was
observed. The numbers are scaled by the constants of its release, so that each bin is a vector that
goes into a model as it is, without m4's scaling and flags: the input of its checkpoints.

Departures: values out of range are dropped (FlexCare ships a table of ranges and does not apply
it); FiO2 is a fraction, or a percentage divided by 100 (`features.py`); GCS categories come from
the number of the score, whose text the benchmark spells in several ways.

Letters: e events, T bins, c columns.
"""

from typing import Any

import numpy as np

from m4.data.sets.mimiciv.features import Feature

FEATURES = (  # in the order of the benchmark, which is the alphabet's
    Feature("capillary_refill", (), 0, 1),
    Feature("diastolic_bp", (220051, 225310, 220180, 224643), 5, 250),
    Feature("fio2", (223835,), 0.2, 1, oxygen=True),
    Feature("gcs_eye", (220739,), 1, 4),
    Feature("gcs_motor", (223901,), 1, 6),
    Feature("gcs_total", (), 3, 15),
    Feature("gcs_verbal", (223900,), 1, 5),
    Feature("glucose", (50931, 50809, 225664, 220621, 226537), 0, 2500),
    Feature("heart_rate", (220045,), 10, 300),
    Feature("height", (226730,), 100, 240),
    Feature("mean_bp", (220052, 225312, 224322, 220181), 10, 280),
    Feature("oxygen_saturation", (50817, 220227, 220277), 20, 100),
    Feature("respiratory_rate", (220210, 224689, 224422, 224690), 1, 100),
    Feature("systolic_bp", (220050, 225309, 220179, 224167, 227243), 20, 320),
    Feature("temperature", (223762, 223761), 25, 45, fahrenheit=(223761,)),
    Feature("weight", (224639, 226512), 20, 400),
    Feature("ph", (50820, 50831, 51094, 223830, 220274), 6.3, 8.4),
)
NAMES = tuple(f.name for f in FEATURES)
EYE = (  # vocabulary of the benchmark: several spellings of a category, one column each
    "To Pain", "3 To speech", "1 No Response", "4 Spontaneously", "None", "To Speech",
    "Spontaneously", "2 To pain",
)  # fmt: skip
MOTOR = (
    "1 No Response", "3 Abnorm flexion", "Abnormal extension", "No response", "4 Flex-withdraws",
    "Localizes Pain", "Flex-withdraws", "Obeys Commands", "Abnormal Flexion", "6 Obeys Commands",
    "5 Localizes Pain", "2 Abnorm extensn",
)  # fmt: skip
VERBAL = (
    "1 No Response", "No Response", "Confused", "Inappropriate Words", "Oriented",
    "No Response-ETT", "5 Oriented", "Incomprehensible sounds", "1.0 ET/Trach", "4 Confused",
    "2 Incomp sounds", "3 Inapprop words",
)  # fmt: skip
TOTAL = (11, 10, 13, 12, 15, 14, 3, 5, 4, 7, 6, 9, 8)
VOCABULARY = {
    "capillary_refill": (0, 1),
    "gcs_eye": EYE,
    "gcs_motor": MOTOR,
    "gcs_total": TOTAL,
    "gcs_verbal": VERBAL,
}
SPELLED = {  # score -> MIMIC-IV's spelling
    "gcs_eye": {1: "None", 2: "To Pain", 3: "To Speech", 4: "Spontaneously"},
    "gcs_motor": {1: "No response", 2: "Abnormal extension", 3: "Abnormal Flexion",
                  4: "Flex-withdraws", 5: "Localizes Pain", 6: "Obeys Commands"},
    "gcs_verbal": {1: "No Response", 2: "Incomprehensible sounds", 3: "Inappropriate Words",
                   4: "Confused", 5: "Oriented"},
}  # fmt: skip
NORMAL = {
    "capillary_refill": 0, "diastolic_bp": 59.0, "fio2": 0.21, "gcs_eye": "4 Spontaneously",
    "gcs_motor": "6 Obeys Commands", "gcs_total": 15, "gcs_verbal": "5 Oriented",
    "glucose": 128.0, "heart_rate": 86.0, "height": 170.0, "mean_bp": 77.0,
    "oxygen_saturation": 98.0, "respiratory_rate": 19.0, "systolic_bp": 118.0,
    "temperature": 36.6, "weight": 81.0, "ph": 7.4,
}  # fmt: skip
SCALE = {  # mean and deviation of the release's normaliser
    "diastolic_bp": (61.73746731237323, 221.89647947315552),
    "fio2": (0.2941986945120962, 0.1714931950435367),
    "glucose": (140.38699662380586, 1766.7412133808477),
    "heart_rate": (85.53853938464474, 57.11693013941011),
    "height": (169.80350234321443, 6.222631784123813),
    "mean_bp": (79.59640838796953, 148.53013549514117),
    "oxygen_saturation": (104.98108350952208, 5135.238732591619),
    "respiratory_rate": (19.867925156740334, 7.3213287278950965),
    "systolic_bp": (122.3975667186341, 141.3988560835634),
    "temperature": (36.94399135355236, 5.277914736088037),
    "weight": (83.76208973419455, 27.233083363220278),
    "ph": (7.207267791681239, 1.6568268628593597),
}
EDGE = 1e-6  # FlexCare's: a value on the hour belongs to the bin before


COLUMNS = (
    *(f"{n}={v}" if v else n for n in NAMES for v in map(str, VOCABULARY.get(n, ("",)))),
    *(f"{name}_observed" for name in NAMES),
)


def discretise(rows: list[tuple[float, str, Any]], *, hours: float) -> np.ndarray:
    """f32[T, 76] of (hour, variable, value) in the order of their times, not scaled.

    A categorical value is a spelling of `VOCABULARY`, or a score of the GCS.
    """
    num_bins = int(hours + 1 - EDGE)
    last: dict[str, Any] = {}
    grid: list[dict[str, Any]] = [{} for _ in range(num_bins)]
    for hour, name, value in rows:
        if hour <= hours + EDGE:
            grid[int(hour - EDGE)][name] = value
    out = np.zeros((num_bins, len(COLUMNS)), np.float32)
    place = {name: c for c, name in enumerate(COLUMNS)}
    for t, found in enumerate(grid):
        last |= found
        for name in NAMES:
            value = last.get(name, NORMAL[name])
            if name in VOCABULARY:
                value = SPELLED.get(name, {}).get(value, value)
                out[t, place[f"{name}={value}"]] = 1
            else:
                out[t, place[name]] = value
            out[t, place[f"{name}_observed"]] = name in found
    return out


def grid(events: np.ndarray, *, hours: float, num_bins: int) -> dict[str, np.ndarray]:
    """A payload of kind vectors, at most `num_bins`, from events with feature, time and value."""
    events = events[np.argsort(events["time"], kind="stable")]
    rows = [(float(e["time"]), NAMES[e["feature"]], float(e["value"])) for e in events]
    rows = [(t, n, int(v) if n in VOCABULARY else v) for t, n, v in rows]
    values_Tc = discretise(rows, hours=hours)[-num_bins:]
    for name, (mean, deviation) in SCALE.items():
        c = COLUMNS.index(name)
        values_Tc[:, c] = (values_Tc[:, c] - mean) / deviation
    first = max(int(hours + 1 - EDGE) - num_bins, 0)
    return {"values": values_Tc, "times": np.arange(first, first + len(values_Tc)) + 1.0}
