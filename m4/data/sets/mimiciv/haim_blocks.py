"""HAIM's blocks of summary features (Soenksen et al., npj Digital Medicine 2022), the input of M3H.

Eleven statistics of each of 9 charted signals, 22 laboratory values and 10 procedures, from ICU
admission to the end of the input, and six demographic columns:

| modality | features | HAIM's prefix |
|---|---|---|
| `haim_chart` | 9 x 11 = 99 | `ts_ce_` |
| `haim_labs` | 22 x 11 = 242 | `ts_le_` |
| `haim_procedures` | 10 x 11 = 110 | `ts_pe_` |
| `haim_demographics` | 6 | `de_` |

HAIM starts at hospital admission, appends a row of zeros to every table before taking statistics
(so that a minimum is never above 0), and writes 0 for a signal without values. Here a window
starts in the ICU as everywhere in m4, no row is appended, and a signal without values is missing.

Letters: e values of a signal in the order of their times, f features.
"""

import numpy as np

from m4.data.sets.mimiciv.features import LABS, VITALS, Feature

STATISTICS = (
    "max", "min", "mean", "variance", "mean_difference", "mean_abs_difference",
    "max_abs_difference", "sum_abs_difference", "last_minus_first", "peaks", "slope",
)  # fmt: skip
ITEMS = {  # of procedures
    229351: "foley",
    224264: "picc",
    224385: "intubation",
    225805: "peritoneal_dialysis",
    225400: "bronchoscopy",
    221223: "eeg",
    225802: "crrt",
    224270: "dialysis_catheter",
    227712: "chest_tube_removed",
    225441: "haemodialysis",
}
DEMOGRAPHICS = ("age", "gender", "race", "marital_status", "language", "insurance")
SIGNALS = {
    "haim_chart": tuple(f for f in VITALS if f.name != "temperature"),
    "haim_labs": LABS,
    "haim_procedures": tuple(Feature(t, (i,), -np.inf, np.inf) for i, t in ITEMS.items()),
}


def columns(name: str) -> tuple[str, ...]:
    """Names of a block's features."""
    if name == "haim_demographics":
        return DEMOGRAPHICS
    return tuple(f"{f.name}_{statistic}" for f in SIGNALS[name] for statistic in STATISTICS)


def block(feature_e: np.ndarray, value_e: np.ndarray, num: int) -> np.ndarray:
    """f32[num * 11]: statistics of signals 0 to num - 1, NaN for one without values."""
    out = np.full((num, len(STATISTICS)), np.nan, np.float32)
    for signal in np.unique(feature_e):
        out[signal] = statistics(value_e[feature_e == signal])
    return out.reshape(-1)


def statistics(value_e: np.ndarray) -> np.ndarray:
    """The eleven statistics of one signal with at least one value.

    Differences of a single value are 0; a peak is above both neighbours; the slope is that of the
    least-squares line over the number of the value.
    """
    x = np.asarray(value_e, np.float64)
    step = np.diff(x) if len(x) > 1 else np.zeros(1)
    peaks = ((x[1:-1] > x[:-2]) & (x[1:-1] > x[2:])).sum() if len(x) > 2 else 0
    number = np.arange(len(x)) - (len(x) - 1) / 2
    slope = (number * x).sum() / (number**2).sum() if len(x) > 1 else 0.0
    change = np.abs(step)
    return np.array(
        [x.max(), x.min(), x.mean(), x.var(), step.mean(), change.mean(), change.max(),
         change.sum(), x[-1] - x[0], peaks, slope]
    )  # fmt: skip


def demographics(age, texts: list[np.ndarray]) -> np.ndarray:
    """f32[n, 6]: age and integer codes of five texts; codes are in the order of the alphabet.

    HAIM's codes are numbers without meaning, too. Codes are fitted on everybody: they carry no
    label. An empty text is unknown.
    """
    coded = []
    for text in texts:
        words, codes = np.unique(text.astype(str), return_inverse=True)
        coded.append(np.where(text == "", np.nan, codes - ("" in words)))
    return np.stack([age, *coded], axis=1).astype(np.float32)
