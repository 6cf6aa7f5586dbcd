"""How stored values of a DICOM file become grey, against the standard's formulas pixel by pixel.

PS3.3 C.11.1 (modality rescale), C.11.2.1.1 (VOI table) and C.11.2.1.2 (window, linear and exact).
"""

import itertools
import os
import struct
import zlib
from collections import Counter

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra: images)")
pytest.importorskip("PIL", reason="pillow is not installed (extra: images)")

from m4.data.sets.imaging import invented, pixels  # noqa: E402
from m4.data.sets.imaging.exam import Picture  # noqa: E402
from m4.errors import DataError  # noqa: E402

TABLE = {"first": 100, "values": [int(60 + 55 * k**0.5) for k in range(1000)]}
TONES = {
    "none": {},
    "linear": {"WindowCenter": 900, "WindowWidth": 1300},
    "two windows": {"WindowCenter": [900, 50], "WindowWidth": [1300, 20]},
    "exact": {"WindowCenter": 900, "WindowWidth": 1300, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 900, "WindowWidth": 1300, "VOILUTFunction": "SIGMOID"},
    "table": {"table": TABLE},
}


def picture(signed):
    """int32 [24, 16]: a half disc of 50 to 1800 on the end of the scale."""
    y, x = np.mgrid[0:24, 0:16]
    inside = 1 - ((y - 12) / 11) ** 2 - (x / 12) ** 2
    return np.where(inside > 0, 50 + (inside * 1750).astype(int), 0) - (2048 if signed else 0)


def right(stored, *, slope, zero, tone, inverted, signed, bits):
    """f64 of one stored value: how bright it is."""
    value = slope * stored + zero
    if "table" in tone:
        place = min(max(int(value) - tone["table"]["first"], 0), 999)
        value = tone["table"]["values"][place]
    elif "WindowCenter" in tone:
        centre, width = np.ravel(tone["WindowCenter"])[0], np.ravel(tone["WindowWidth"])[0]
        if tone.get("VOILUTFunction") == "SIGMOID":
            value = 1 / (1 + np.exp(-4 * (value - centre) / width))
            return -value if inverted else value
        if "VOILUTFunction" not in tone:
            centre, width = centre - 0.5, width - 1
        value = min(max((value - centre) / width + 0.5, 0), 1)
    return -value if inverted else value


def write(path, stored_hw, *, signed, bits, tone, slope, zero, inverted, padding=None):
    invented.write_dicom(path, np.zeros_like(stored_hw, np.uint16))
    header = pydicom.dcmread(path)
    del header.WindowCenter, header.WindowWidth
    header.PixelRepresentation, header.BitsStored, header.HighBit = int(signed), bits, bits - 1
    header.PixelData = stored_hw.astype("<i2" if signed else "<u2").tobytes()
    header.RescaleSlope, header.RescaleIntercept = slope, zero
    header.PhotometricInterpretation = f"MONOCHROME{2 - inverted}"
    for name, value in tone.items():
        if name != "table":
            setattr(header, name, value)
    if "table" in tone:
        item = pydicom.Dataset()
        values = tone["table"]["values"]
        first = tone["table"]["first"]
        item.add_new("LUTDescriptor", "SS", [len(values), first, 12])
        item.add_new("LUTData", "US", values)
        header.VOILUTSequence = pydicom.Sequence([item])
    if padding is not None:
        header.add_new("PixelPaddingValue", "SS" if signed else "US", padding)
    header.save_as(path)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", TONES)
def test_grey_is_what_the_standard_says(name, signed, tmp_path):
    tone, stored_hw = TONES[name], picture(signed)
    for slope, inverted in itertools.product((1, -1, 0.5), (False, True)):
        # of a negative slope the values come out as from 4000 down; of signed ones, from 0 on
        zero = {1: 2048 * signed, 0.5: 1024 * signed, -1: 2000 - 2048 * signed}[slope]
        about = {"signed": signed, "bits": 12, "tone": tone, "slope": slope, "zero": zero}
        about["inverted"] = inverted
        write(tmp_path / "x.dcm", stored_hw, **about)
        shown_hw = [[right(v, **about) for v in line] for line in stored_hw.tolist()]
        expected = pixels.grey(np.array(shown_hw, np.float32), 32, "stretch").astype(int)
        found = pixels.mammogram(tmp_path / "x.dcm", 32, "stretch").astype(int)
        assert np.abs(found - expected).max() <= 1, (slope, inverted)
        assert found.max() >= 250 and found.min() <= 5


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", TONES)
def test_padding_is_black_whatever_the_tone(name, signed, tmp_path):
    """Padding beyond the scale's other end does not change the picture; it becomes the black."""
    tone, clean_hw = TONES[name], picture(signed)
    for slope, inverted in ((1, False), (-1, True)):
        zero = {1: 2048 * signed, -1: 2000 - 2048 * signed}[slope]
        about = {"signed": signed, "bits": 12, "tone": tone, "slope": slope, "zero": zero}
        about["inverted"] = inverted
        write(tmp_path / "c.dcm", clean_hw, **about)
        expected = pixels.mammogram(tmp_path / "c.dcm", 32, "stretch")
        padding = 2047 if signed else 4095
        outside = clean_hw == clean_hw.min()
        write(tmp_path / "p.dcm", np.where(outside, padding, clean_hw), **about, padding=padding)
        found = pixels.mammogram(tmp_path / "p.dcm", 32, "stretch")
        np.testing.assert_array_equal(found, expected, err_msg=f"slope {slope}")


def test_a_picture_beyond_the_limit_is_not_decoded(tmp_path):
    invented.write_dicom(tmp_path / "x.dcm", np.zeros((4, 4), np.uint16))
    header = pydicom.dcmread(tmp_path / "x.dcm")
    header.Rows, header.Columns = 60_000, 60_000
    header.save_as(tmp_path / "x.dcm")
    with pytest.raises(DataError, match="3,600,000,000 pixels, the limit is"):
        pixels.mammogram(tmp_path / "x.dcm", 32, "stretch")


def test_frames_count_and_are_refused(tmp_path):
    invented.write_dicom(tmp_path / "x.dcm", np.zeros((4, 4), np.uint16))
    header = pydicom.dcmread(tmp_path / "x.dcm")
    for number, words in ((1 << 30, "17,179,869,184 pixels, the limit is"), (2, "2 frames")):
        header.NumberOfFrames = number
        header.save_as(tmp_path / "x.dcm")
        with pytest.raises(DataError, match=words):
            pixels.mammogram(tmp_path / "x.dcm", 32, "stretch")


def test_a_deflated_file_is_inflated_up_to_a_limit(tmp_path, monkeypatch):
    plain, deflated = tmp_path / "x.dcm", tmp_path / "y.dcm"
    image_hw = np.arange(256, dtype=np.uint16).reshape(16, 16)
    invented.write_dicom(plain, image_hw)
    header = pydicom.dcmread(plain)
    header.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    header.save_as(deflated)
    expected = pixels.mammogram(plain, 32, "stretch")
    np.testing.assert_array_equal(pixels.mammogram(deflated, 32, "stretch"), expected)
    monkeypatch.setattr(pixels, "MOST_BYTES", 1 << 20)
    header.add_new((0x0011, 0x0010), "LO", "m4")
    header.add_new((0x0011, 0x1001), "OB", bytes(1 << 22))  # 4 kB on the disk
    header.save_as(deflated)
    assert deflated.stat().st_size < 1 << 16
    with pytest.raises(DataError, match="more than 1,048,576 bytes when inflated"):
        pixels.mammogram(deflated, 32, "stretch")


@pytest.mark.parametrize("length", [None, 0, 0x7FFFFFFF])
def test_a_deflated_file_begins_where_it_begins(tmp_path, monkeypatch, length):
    """Whatever its header says of its own length, or without a word of it."""
    path = tmp_path / "x.dcm"
    invented.write_dicom(path, np.zeros((4, 4), np.uint16))
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    header.add_new((0x0011, 0x0010), "LO", "m4")
    header.add_new((0x0011, 0x1001), "OB", bytes(1 << 22))
    header.save_as(path)
    content = path.read_bytes()  # bytes 132 to 144 say how long the header is
    said = b"" if length is None else content[132:140] + struct.pack("<I", length)
    path.write_bytes(content[:132] + said + content[144:])
    monkeypatch.setattr(pixels, "MOST_BYTES", 1 << 20)
    inflated = []  # as a whole, by pydicom
    monkeypatch.setattr(zlib, "decompress", lambda *args: inflated.append(args) or b"")
    picture = Picture(path, "mammogram", "t.csv line 2", side="L")
    with pytest.raises(DataError, match="line 2: its image has more than 1,048,576 bytes when"):
        pixels._decode(picture, 8, "pad", False, Counter())
    with pytest.raises(DataError):
        pixels._side(path)
    assert pixels._syntax(path) == "" and not inflated


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.dcm")
    picture = Picture(tmp_path / "x.dcm", "mammogram", "t.csv line 2", side="L")
    with pytest.raises(DataError, match=r"t.csv line 2: its image cannot be decoded \(OSError\)"):
        pixels._decode(picture, 8, "pad", False, Counter())


@pytest.mark.parametrize("function", ["SIGMOID", "LINEAR", "LINEAR_EXACT"])
def test_a_window_without_width_is_a_threshold(tmp_path, function):
    about = {"signed": False, "bits": 12, "slope": 1, "zero": 0, "inverted": False}
    tone = {"WindowCenter": 900, "WindowWidth": 0, "VOILUTFunction": function}
    stored_hw = picture(False)
    write(tmp_path / "x.dcm", stored_hw, tone=tone, **about)
    found = pixels.mammogram(tmp_path / "x.dcm", 32, "stretch").astype(int)
    edge = 899.5 if function == "LINEAR" else 900
    expected = pixels.grey((stored_hw > edge).astype(np.float32), 32, "stretch").astype(int)
    np.testing.assert_array_equal(found, expected)
