"""ECG waveforms: a header by hand, damage, and the way from files to a modality."""

import os
import struct

import numpy as np
import pytest

from m4.data import __main__ as data_main
from m4.data import wfdb
from m4.data.sets.mimiciv.embeddings import backends
from m4.errors import DataError
from tests.data import test_mimiciv_linked as toy

raw = toy.raw

# Two leads of three samples: gain 200 around 0, gain 100 around 10. Sums 600 and -32758 + 65536.
HEADER = """70 2 500 3 12:05:00 01/01/2180
70.dat 16 200.0(0)/mV 16 0 200 600 0 II
70.dat 16 100(10)/mV 16 0 10 -32738 0 I
# <subject_id>: 1
"""
SAMPLES = (200, 10, 400, -32768, 0, 20)


@pytest.fixture
def header(tmp_path):
    path = tmp_path / "70.hea"
    path.write_text(HEADER)
    path.with_suffix(".dat").write_bytes(struct.pack("<6h", *SAMPLES))
    return path


def test_a_record_by_hand(header):
    value_CT, rate, leads = wfdb.read(header)
    assert rate == 500 and leads == ("II", "I")
    np.testing.assert_array_equal(value_CT, np.float32([[1, 2, 0], [0, np.nan, 0.1]]))
    twelve = wfdb.twelve_leads(header, rate=500, length=4)  # gaps, other leads, the end: 0
    np.testing.assert_array_equal(twelve[:2], np.float32([[0, 0, 0.1, 0], [1, 2, 0, 0]]))
    assert not twelve[2:].any()
    assert wfdb.twelve_leads(header, rate=500, length=2).shape == (12, 2)
    with pytest.raises(DataError, match="500 samples per second, not 250"):
        wfdb.twelve_leads(header, rate=250, length=4)


@pytest.mark.parametrize(
    "damage",
    [
        lambda h: h.with_suffix(".dat").unlink(),
        lambda h: h.with_suffix(".dat").write_bytes(struct.pack("<5h", *SAMPLES[:5])),
        lambda h: h.with_suffix(".dat").write_bytes(struct.pack("<6h", 201, *SAMPLES[1:])),
        lambda h: h.write_text(HEADER.replace(" 16 200.0", " 212 200.0")),
        lambda h: h.write_text(HEADER.partition("\n70.dat 16 100")[0]),
        lambda h: h.write_bytes(b"\xff\x00"),
        lambda h: h.write_text(""),
        lambda h: h.write_text(HEADER.replace(" 2 500 3 ", " 2 500 -1 ")),
        lambda h: h.write_text(HEADER.replace(" 2 500 3 ", " 0 500 3 ")),
        lambda h: h.write_text(HEADER.replace(" 2 500 3 ", " -2 500 3 ")),
        lambda h: (h.unlink(), os.mkfifo(h)),
        lambda h: (h.with_suffix(".dat").unlink(), os.mkfifo(h.with_suffix(".dat"))),
        lambda h: h.write_text(HEADER.replace("70.dat", "/dev/zero")),
    ],
)
def test_damage_is_one_line_without_a_name(header, damage):
    damage(header)
    with pytest.raises(DataError, match="damaged or in another format") as error:
        wfdb.read(header)
    assert "70" not in str(error.value)


@pytest.mark.parametrize(
    ("about", "millivolts"),
    [  # of the sample 400
        ("200/mV 16 0", 2.0),
        ("200 16 0", 2.0),  # no unit: mV
        ("0/mV 16 0", 2.0),  # no gain: 200
        ("0.2/uV 16 0", 2.0),
        ("0.2/\u00b5V 16 0", 2.0),
        ("0.2/\u03bcV 16 0", 2.0),
        ("200000/V 16 0", 2.0),
        ("2e2(100)/mV 16 0", 1.5),
        ("200(100)/mV 16 300", 1.5),  # a baseline stands before the ADC's zero
        ("200/mV 16 100", 1.5),  # none: the ADC's zero
        ("-200/mV 16 0", -2.0),  # a gain has a sign
        ("", 2.0),  # a header may end after the format
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_units_gain_and_baseline_of_a_header(about, millivolts, encoding, tmp_path):
    try:
        text = f"70 1 500 1\n70.dat 16 {about}\n".encode(encoding)
    except UnicodeEncodeError:
        pytest.skip("no such letter")
    (tmp_path / "70.hea").write_bytes(text)
    (tmp_path / "70.dat").write_bytes(struct.pack("<h", 400))
    value_CT, _, _ = wfdb.read(tmp_path / "70.hea")
    np.testing.assert_allclose(value_CT, [[millivolts]], rtol=1e-6)


def test_a_unit_that_is_no_voltage_is_refused(header):
    header.write_text(HEADER.replace("(0)/mV", "(0)/mmHg_of_J_Doe"))
    with pytest.raises(DataError, match="a lead in a unit that is none of voltage") as error:
        wfdb.read(header)
    assert "Doe" not in str(error.value)


@pytest.mark.parametrize(
    "about", ["1e-45 16 0", "1e-60 16 0", f"200({10**40}) 16 0", f"200 16 {10**40}"]
)
def test_a_voltage_that_is_infinite_is_refused(header, about, recwarn):
    header.write_text(HEADER.replace("200.0(0)/mV 16 0", about))
    with pytest.raises(DataError, match="gain and baseline in the header, a voltage is infinite"):
        wfdb.read(header)
    header.write_text(HEADER.replace("200.0(0)/mV", f"200({10**400})/mV"))
    with pytest.raises(DataError, match="damaged or in another format"):
        wfdb.read(header)
    assert not recwarn


@pytest.mark.parametrize(
    ("names", "lead"),
    [
        (("II", "ii", "Lead II", "LEAD_II", "ECG II", "MDC_ECG_LEAD_II", "DII", "D2"), "II"),
        (("aVR", "AVR", "avr", "Lead aVR", "MDC_ECG_LEAD_AVR"), "aVR"),
        (("V4", "v4", "C4", "ECG_V4"), "V4"),
        (("ABP", "MLII", "V7", "IV", "", "Resp"), None),
    ],
)
def test_leads_in_every_usual_spelling(names, lead):
    assert {wfdb.lead_of(name) for name in names} == {(lead, 1) if lead else None}
    assert {wfdb.lead_of(f"-{name}") for name in names[:1]} == {(lead, -1) if lead else None}


def test_leads_that_come_twice_or_under_no_known_name(header):
    header.write_text(HEADER.replace("0 II", "0 lead i"))  # and then "I"
    first = wfdb.twelve_leads(header, rate=500, length=3)
    np.testing.assert_array_equal(first[0], np.float32([1, 2, 0]))
    header.write_text(HEADER.replace("0 II", "0 -aVR").replace("0 I\n", "0 ABP\n"))
    twelve = wfdb.twelve_leads(header, rate=500, length=3)
    np.testing.assert_array_equal(twelve[3], np.float32([-1, -2, 0]))
    assert not np.delete(twelve, 3, axis=0).any()
    header.write_text(HEADER.replace("0 II", "0 PLETH").replace("0 I\n", "0 ABP\n"))
    with pytest.raises(DataError, match="none of the twelve"):
        wfdb.twelve_leads(header, rate=500, length=3)


def test_what_is_written_is_read(tmp_path):
    value_CT = np.random.default_rng(0).normal(size=(12, 30)).round(2).astype(np.float32)
    value_CT[3, 4] = np.nan
    wfdb.write(tmp_path / "a/1.hea", value_CT, rate=500, leads=wfdb.LEADS)
    found_CT, _, leads = wfdb.read(tmp_path / "a/1.hea")
    np.testing.assert_allclose(found_CT, value_CT, atol=0.5 / 200)
    assert leads == wfdb.LEADS


def test_from_waveforms_to_a_modality(raw, tmp_path, capsys):
    time_T = np.arange(5000) / 500
    lead_T = np.sin(2 * np.pi * 10 * time_T)  # 10 Hz: power 5000 / 4 in one band
    place = raw / "mimic-iv-ecg-1.0/files/x/70.hea"
    wfdb.write(place, np.tile(lead_T, (12, 1)), rate=500, leads=wfdb.LEADS)
    out = tmp_path / "vectors"
    assert data_main.main(["embed", "ecg", str(raw), str(out), "--backend=bands"]) == 0
    found, _ = toy.toy.examples(raw, modalities=("static", "ecg"), embeddings={"ecg": str(out)})
    (vector,) = (e["inputs"]["ecg"]["values"][0] for e in found.values() if "ecg" in e["inputs"])
    assert vector.shape == (12 * 21,)
    strongest = vector.reshape(12, 21)[0, :-1].argmax()
    assert backends.BANDS[strongest] <= 10 < backends.BANDS[strongest + 1]
    assert vector.reshape(12, 21)[0, -1] == pytest.approx(np.log1p(5000 / 4), rel=1e-3)
    assert data_main.main(["embed", "cxr", str(raw), str(out), "--backend=bands"]) == 2
    assert "--backend=bands reads ecg, not cxr" in capsys.readouterr().err
