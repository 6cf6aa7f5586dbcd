"""The columns of vitals and labs: which raw items each merges, its range and its unit.

A value outside the range is discarded as an artefact.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Feature:
    """One column of a series. `fahrenheit` lists items to convert to degrees Celsius."""

    name: str
    items: tuple[int, ...]
    low: float
    high: float
    fahrenheit: tuple[int, ...] = ()


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


def features(name: str, variables: str = "m4") -> tuple[Feature, ...]:
    """The columns of "vitals" or "labs"; `variables` "fusemoe" leaves its 30 of the 32."""
    every = VITALS if name == "vitals" else LABS
    return tuple(f for f in every if variables == "m4" or f.name not in FUSEMOE_DROPS)
