"""The columns of vitals and labs: which raw items each merges, its range and its unit.

A value is brought to the column's unit first; outside the range it is discarded as an artefact.

Letters: e events.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Feature:
    """One column of a series. `fahrenheit` lists items to convert to degrees Celsius.

    With `oxygen` a value is a fraction of inspired oxygen, charted as one (0.21 to 1) or as a
    percentage (20 to 100); anything else may be either or neither, and is implausible.
    """

    name: str
    items: tuple[int, ...]
    low: float
    high: float
    fahrenheit: tuple[int, ...] = ()
    oxygen: bool = False


ROOM_AIR = 0.21  # its fraction of oxygen: there is no less
# Non-invasive and arterial pressures are merged; items are of icu/chartevents.
VITALS = (
    Feature("heart_rate", (220045,), 10, 300),
    Feature("systolic_bp", (220179, 220050, 225309), 20, 320),
    Feature("diastolic_bp", (220180, 220051, 225310), 5, 250),
    Feature("mean_bp", (220181, 220052, 225312), 10, 280),
    Feature("respiratory_rate", (220210, 224690), 1, 100),
    Feature("spo2", (220277,), 20, 100),
    Feature("temperature", (223762, 223761), 25, 45, fahrenheit=(223761,)),
    Feature("gcs_verbal", (223900,), 1, 5),
    Feature("gcs_eye", (220739,), 1, 4),
    Feature("gcs_motor", (223901,), 1, 6),
)
# Items are of hosp/labevents, blood only; whole-blood analysers and the two white-cell items are
# merged with the laboratory's.
LABS = (
    Feature("potassium", (50971, 50822), 0.5, 15),
    Feature("sodium", (50983, 50824), 80, 220),
    Feature("chloride", (50902, 50806), 50, 180),
    Feature("creatinine", (50912,), 0, 60),
    Feature("urea_nitrogen", (51006,), 0, 400),
    Feature("bicarbonate", (50882,), 0, 80),
    Feature("anion_gap", (50868,), -20, 80),
    Feature("haemoglobin", (51222, 50811), 0, 30),
    Feature("haematocrit", (51221, 50810), 0, 80),
    Feature("magnesium", (50960,), 0, 20),
    Feature("platelets", (51265,), 0, 3000),
    Feature("phosphate", (50970,), 0, 30),
    Feature("white_cells", (51301, 51300), 0, 1000),
    Feature("calcium", (50893,), 0, 30),
    Feature("mch", (51248,), 5, 80),
    Feature("red_cells", (51279,), 0, 12),
    Feature("mchc", (51249,), 10, 60),
    Feature("mcv", (51250,), 30, 180),
    Feature("rdw", (51277,), 5, 60),
    Feature("neutrophils", (51256,), 0, 100),
    Feature("vancomycin", (51009,), 0, 200),
    Feature("glucose", (50931, 50809), 0, 2500),
)
FUSEMOE_DROPS = ("temperature", "glucose")  # of the 32 variables; its 30 are without these
SERIES = {"vitals": VITALS, "labs": LABS, "fusemoe": VITALS + LABS}


def features(name: str, variables: str = "m4") -> tuple[Feature, ...]:
    """The columns of "vitals" or "labs"; `variables` "fusemoe" leaves its 30 of the 32.

    Those of "fusemoe" are all 30 in one series, in the order of the authors' list.
    """
    less = FUSEMOE_DROPS if "fusemoe" in (name, variables) else ()
    return tuple(f for f in SERIES[name] if f.name not in less)


def in_units(
    features: Sequence[Feature], feature_e: np.ndarray, item_e: np.ndarray, value_e: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values of e events in their features' units, f64[e], and whether they are plausible.

    `feature_e` holds numbers of `features`, `item_e` those of the raw items.
    """
    value_e = np.array(value_e, float)
    for item in (item for f in features for item in f.fahrenheit):
        value_e[item_e == item] = (value_e[item_e == item] - 32) / 1.8
    low, high, oxygen = np.array([(f.low, f.high, f.oxygen) for f in features]).T[:, feature_e]
    percent = (oxygen == 1) & (value_e >= 20) & (value_e <= 100)
    value_e = np.where(percent, value_e / 100, value_e)
    plausible = (value_e >= low) & (value_e <= high)
    return value_e, plausible & ((oxygen == 0) | percent | (value_e >= ROOM_AIR))
