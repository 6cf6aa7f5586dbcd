"""ECG waveforms in the WFDB format of MIMIC-IV-ECG and PTB-XL: a text header `.hea`, its `.dat`.

Only what those data sets use: one signal file, format 16 (little-endian int16, samples of all leads
in turn). What a header says of a lead, or leaves out, is read as PhysioNet's `header(5)` asks: gain
(0 or none: 200), baseline (none: the ADC's zero), unit (none: mV), name in any usual spelling. For
anything else convert with the `wfdb` package first.

Letters: C leads, T samples.
"""

import errno
import re
from pathlib import Path

import numpy as np

from m4 import regular
from m4.errors import DataError

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
INVALID = -(2**15)
MAX_HEADER, MAX_BYTES = 1 << 16, 1 << 26  # bytes; of samples hundreds of times those of 10 s
DEFAULT_GAIN = 200.0  # of a header that gives 0 or none
FORMAT = re.compile(r"16(?:x1)?(?:\+(\d+))?")  # samples per frame, first byte
GAIN = re.compile(r"([-+.\deE]+)?(?:\(([-+]?\d+)\))?(?:/(\S+))?")  # (baseline) / unit
MILLIVOLTS = {"": 1, "mv": 1, "v": 1e3, "nv": 1e-6} | dict.fromkeys(
    ("uv", "\u00b5v", "\u03bcv", "\ufffdv"), 1e-3  # micro, as sign, letter or in a lost encoding
)  # fmt: skip
NAME = re.compile(
    r"(?:MDC_)?(?:ECG|EKG)?[ _]*(?:LEAD)?[ _]*(-?)(?:D?(I{1,3}|[123])|(AV[RLF])|[VC]([1-6]))", re.I
)
DAMAGED = "ecg: a waveform is damaged or in another format than MIMIC-IV-ECG's; get it again"


def read(header: Path) -> tuple[np.ndarray, float, tuple[str, ...]]:
    """Millivolts f32[C, T] with NaN where invalid, samples per second, leads as the header says.

    Raises DataError for damaged files, units that are no voltage and voltages that are infinite,
    without the files' names: they hold the patient's number.
    """
    try:
        text = _bytes(header, MAX_HEADER, ".hea").decode(errors="replace").splitlines()
        lines = [line for line in text if line.strip() and not line.startswith("#")]
        _, count, rate, length = lines[0].split()[:4]
        signals = [_signal(line) for line in lines[1 : 1 + int(count)]]
        if len(signals) != int(count) or len({signal[:2] for signal in signals}) != 1:
            raise ValueError
        if int(length) < 0:  # NumPy takes -1 for "as many as there are"
            raise ValueError
        (name, start), names = signals[0][:2], tuple(signal[-1] for signal in signals)
        samples = _bytes(header.parent / Path(name).name, MAX_BYTES, ".dat")
        raw_TC = np.frombuffer(samples[start:], "<i2").reshape(int(length), int(count))
        sums = raw_TC.sum(0, dtype=np.int64).tolist()
        if any(
            s[5] and (int(s[5]) - total) % 2**16 for s, total in zip(signals, sums, strict=True)
        ):
            raise ValueError
        with np.errstate(all="ignore"):
            gain_C, base_C, scale_C = np.array([s[2:5] for s in signals], np.float32).T
            value_TC = (raw_TC - base_C) / gain_C * scale_C
        if not np.isfinite(value_TC).all():
            raise DataError("ecg: by gain and baseline in the header, a voltage is infinite")
        value_TC = np.where(raw_TC == INVALID, np.nan, value_TC)
        return value_TC.T.astype(np.float32), float(rate.split("/")[0]), names
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        raise DataError(DAMAGED) from None


def _bytes(path: Path, most: int, kind: str) -> bytes:
    """What is in a file. Raises DataError for more bytes, OSError for what is no file."""
    try:
        return regular.read(path, most)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise DataError(f"ecg: a {kind} file of {error.strerror}") from None


def _signal(line: str) -> tuple:
    """File, first byte, gain, baseline, millivolts per unit, checksum ("" without), lead."""
    fields = [*line.split(maxsplit=8), *[""] * 7]
    name, form, about, _, zero, _, total, _, lead = fields[:9]
    found, gain = FORMAT.fullmatch(form), GAIN.fullmatch(about)
    if not found or not gain or not np.isfinite(float(gain[1] or 0)):
        raise ValueError
    unit = (gain[3] or "").lower()
    if unit not in MILLIVOLTS:
        raise DataError("ecg: a lead in a unit that is none of voltage; convert it to mV")
    baseline = int(gain[2] or zero or 0)
    per_unit = float(gain[1] or 0) or DEFAULT_GAIN
    return name, int(found[1] or 0), per_unit, baseline, MILLIVOLTS[unit], total, lead.strip()


def lead_of(name: str) -> tuple[str, int] | None:
    """A lead's name in one of the usual spellings -> one of `LEADS` and its sign, or None.

    "II", "Lead II", "DII", "D2", "MDC_ECG_LEAD_II"; "AVR", "avr", and "-aVR" with sign -1; "C1".
    """
    found = NAME.fullmatch(name.strip())
    if not found:
        return None
    sign, limb, augmented, chest = found.groups()
    if limb:
        lead = "I" * (int(limb) if limb.isdecimal() else len(limb))
    else:
        lead = f"aV{augmented[-1].upper()}" if augmented else f"V{chest}"
    return lead, -1 if sign else 1


def twelve_leads(header: Path, *, rate: int, length: int) -> np.ndarray:
    """f32[12, length] millivolts in the order of `LEADS`; gaps and absent leads are 0.

    Longer records are cut, shorter ones filled; of a lead that comes twice the first stands.
    Raises DataError for another sampling rate, and for names none of which is one of the twelve.
    """
    value_CT, found, names = read(header)
    if found != rate:
        raise DataError(f"ecg: a waveform of {found:g} samples per second, not {rate}")
    out_CT = np.zeros((len(LEADS), length), np.float32)
    place = {known: c for c, name in reversed([*enumerate(names)]) if (known := lead_of(name))}
    if not place:
        raise DataError("ecg: a waveform names none of the twelve standard leads")
    for (lead, sign), c in place.items():
        own_T = sign * np.nan_to_num(value_CT[c, :length])
        out_CT[LEADS.index(lead), : len(own_T)] = own_T
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
