"""ECG waveforms in the WFDB format of MIMIC-IV-ECG: a text header `.hea` and its `.dat`.

Only what that data set uses: one signal file, format 16 (little-endian int16, samples of all leads
in turn), gain and baseline per lead. Source: PhysioNet's `header(5)` and `signal(5)`. For anything
else convert with the `wfdb` package first.

Letters: C leads, T samples.
"""

import re
from pathlib import Path

import numpy as np

from m4.errors import DataError

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
INVALID = -(2**15)
DEFAULT_GAIN = 200.0  # of a header that gives 0 or none
SIGNAL = re.compile(  # file, format, gain (baseline) / units, resolution, zero, first, checksum
    r"(\S+)\s+16\s+([-+.\deE]+)(?:\(([-+]?\d+)\))?(?:/(\S+))?"
    r"\s+\d+\s+([-+]?\d+)\s+[-+]?\d+\s+([-+]?\d+)\s+\d+\s+(.+)"
)


def read(header: Path) -> tuple[np.ndarray, float, tuple[str, ...]]:
    """Samples f32[C, T] in the header's units with NaN where invalid, samples per second, leads.

    Raises DataError for damaged files, without their names: they hold the patient's number.
    """
    try:
        lines = [s for s in header.read_text("ascii").splitlines() if s and not s.startswith("#")]
        name, count, rate, length = re.split(r"\s+", lines[0])[:4]
        found = [SIGNAL.fullmatch(line.strip()) for line in lines[1 : 1 + int(count)]]
        signals = [match for match in found if match]
        if len(signals) != int(count) or len({s[1] for s in signals}) != 1:
            raise ValueError
        place = header.parent / Path(signals[0][1]).name
        raw_TC = np.fromfile(place, "<i2").reshape(int(length), int(count))
        sums = [int(s[6]) & 0xFFFF for s in signals]
        if [int(x) & 0xFFFF for x in raw_TC.sum(0, dtype=np.int64)] != sums:
            raise ValueError
        gain_C = np.array([abs(float(s[2])) or DEFAULT_GAIN for s in signals], np.float32)
        base_C = np.array([int(s[3] or s[5]) for s in signals], np.float32)
    except (OSError, ValueError, LookupError, TypeError):
        raise DataError(
            "ecg: a waveform is damaged or in another format than MIMIC-IV-ECG's; get it again"
        ) from None
    value_TC = np.where(raw_TC == INVALID, np.nan, (raw_TC - base_C) / gain_C)
    return value_TC.T.astype(np.float32), float(rate.split("/")[0]), tuple(s[7] for s in signals)


def twelve_leads(header: Path, *, rate: int, length: int) -> np.ndarray:
    """f32[12, length] millivolts in the order of `LEADS`; gaps and absent leads are 0.

    Longer records are cut, shorter ones filled. Raises DataError for another sampling rate.
    """
    value_CT, found, names = read(header)
    if found != rate:
        raise DataError(f"ecg: a waveform of {found:g} samples per second, not {rate}")
    out_CT = np.zeros((len(LEADS), length), np.float32)
    for c, lead in enumerate(LEADS):
        for own_T in [value_CT[i, :length] for i, n in enumerate(names) if n == lead]:
            out_CT[c, : len(own_T)] = np.nan_to_num(own_T)
    return out_CT


def write(header: Path, value_CT: np.ndarray, *, rate: int, leads: tuple[str, ...]) -> None:
    """Millivolts f32[C, T] -> header and `.dat` as in MIMIC-IV-ECG; NaN becomes `INVALID`."""
    raw_CT = np.where(np.isnan(value_CT), INVALID, np.rint(np.nan_to_num(value_CT) * DEFAULT_GAIN))
    raw_TC = raw_CT.T.astype("<i2")
    lines = [f"{header.stem} {len(leads)} {rate} {len(raw_TC)} 12:05:00 01/01/2180"]
    for c, lead in enumerate(leads):
        total = int(raw_TC[:, c].sum(dtype=np.int64)) & 0xFFFF
        total -= 2**16 if total >= 2**15 else 0
        first = raw_TC[0, c]
        lines.append(f"{header.stem}.dat 16 200.0(0)/mV 16 0 {first} {total} 0 {lead}")
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_text("\n".join(lines) + "\n")
    raw_TC.tofile(header.with_suffix(".dat"))
