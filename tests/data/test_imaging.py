"""EMBED, RSNA, VinDr-Mammo and GAMMA from files whose every pixel and label is known."""

import csv
import shutil

import numpy as np
import pytest

from m4 import config as configs
from m4.data import __main__ as data_main
from m4.data import build, fake
from m4.data.sets import imaging
from m4.data.sets.imaging import embed, gamma
from m4.data.store import Store
from m4.errors import ConfigError, DataError
from m4.main import main
from m4.run.setup import make_setup

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra: images)")
pytest.importorskip("openpyxl", reason="openpyxl is not installed (extra: images)")

from m4.data.sets.imaging import invented as mammography  # noqa: E402
from m4.data.sets.imaging import pixels  # noqa: E402


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as handle:
        writer = csv.DictWriter(handle, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


def examples(root, **options):
    found = imaging.cohort(root, seed=0, **options)
    return {name: list(start()) for name, start in found.splits.items()}, found


# --- pixels -------------------------------------------------------------------------------------


def test_window_inversion_and_mirror_by_hand(tmp_path):
    # 2 x 4: windowed by centre 2048, width 4096 the ramp of 0..4095 maps to itself, then to 0..255.
    image = np.array([[4095, 2048, 0, 0], [4095, 2048, 0, 0]], np.uint16)
    mammography.write_dicom(tmp_path / "l.dcm", image)
    left = pixels.mammogram(tmp_path / "l.dcm", 4, "pad")
    # Height 2 of 4 at scale 1: one empty line above and below; 2048 / 4095 * 255 = 127.5.
    assert left.dtype == np.uint8 and left.shape == (4, 4, 3)
    assert left[0].max() == left[3].max() == 0
    assert left[1, :, 0].tolist() in ([255, 127, 0, 0], [255, 128, 0, 0])
    for name, change in {"right": {"side": "R"}, "inverted": {"inverted": True}}.items():
        stored = image[:, ::-1] if name == "right" else image
        mammography.write_dicom(tmp_path / f"{name}.dcm", stored, **change)
        np.testing.assert_array_equal(pixels.mammogram(tmp_path / f"{name}.dcm", 4, "pad"), left)
    stretched = pixels.mammogram(tmp_path / "l.dcm", 4, "stretch")
    assert stretched[0].max() == 255


def test_a_narrow_window_clips_what_lies_outside(tmp_path):
    image = np.array([[3000, 1100, 1000, 900]] * 4, np.uint16)
    mammography.write_dicom(tmp_path / "x.dcm", image)
    header = pydicom.dcmread(tmp_path / "x.dcm")
    header.WindowCenter, header.WindowWidth = 1000.5, 201  # 900 and below are 0, 1100 and above 1
    header.save_as(tmp_path / "x.dcm")
    row = pixels.mammogram(tmp_path / "x.dcm", 4, "pad")[0, :, 0]
    assert row[0] == row[1] == 255 and row[3] == 0 and 120 < row[2] < 135


def breast():
    """int32 [64, 48]: a half disc of 12 to 3000 that is soft at the skin, on 0."""
    y, x = np.mgrid[0:64, 0:48]
    inside = 1 - ((y - 32) / 29) ** 2 - (x / 36) ** 2
    return np.where(inside > 0, 12 + inside * 2988, 0).astype(np.int32)


def stored(path, image_hw, **elements):
    """The picture of a file of these stored values and elements of its header."""
    signed, bits = elements.pop("signed", False), elements.pop("bits", 12)
    mammography.write_dicom(path, np.zeros_like(image_hw, np.uint16))
    header = pydicom.dcmread(path)
    del header.WindowCenter, header.WindowWidth
    header.PixelRepresentation, header.BitsStored, header.HighBit = int(signed), bits, bits - 1
    header.PixelData = (image_hw % 2**bits).astype("<u2").tobytes()
    if signed:
        header.PixelData = image_hw.astype("<i2").tobytes()
    for name, value in elements.items():
        if name.startswith("PixelPadding"):
            header.add_new(name, "SS" if value < 0 else "US", value)
        else:
            setattr(header, name, value)
    header.save_as(path)
    return pixels.mammogram(path, 32, "stretch")


WINDOW = {"WindowCenter": 1500, "WindowWidth": 2000}
PADDING = {
    "above": (4095, {"PixelPaddingValue": 4095}),
    "at the end": (0, {"PixelPaddingValue": 0}),
    "a value of tissue": (777, {"PixelPaddingValue": 777}),
    "a range": ([4000, 4050, 4095], {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4000}),
    "a range upwards": ([4000, 4095], {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4095}),
    "windowed": (4095, {"PixelPaddingValue": 4095} | WINDOW),
    "rescaled": (
        4095,
        {"PixelPaddingValue": 4095, "RescaleSlope": 2, "RescaleIntercept": -1000},
    ),
    "rescaled and windowed": (
        4095,
        {"PixelPaddingValue": 4095, "RescaleSlope": 2, "RescaleIntercept": -1000}
        | {"WindowCenter": 2000, "WindowWidth": 5000},
    ),
    "signed": (-2000, {"PixelPaddingValue": -2000, "signed": True, "bits": 16}),
    "signed, sharp": (-32768, {"PixelPaddingValue": -32768, "signed": True, "bits": 16}),
    "signed, written without its sign": (-2000, {"PixelPaddingValue": 63536, "signed": True,
                                                "bits": 16}),
    "more bits than stored": (4095, {"PixelPaddingValue": 65535}),
}  # fmt: skip


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("name", PADDING)
def test_padding_is_background(name, inverted, tmp_path):
    value, elements = PADDING[name]
    if inverted and "range" in name:
        value, elements = 4095 - np.array(value), {k: 4095 - v for k, v in elements.items()}
    clean_hw = breast() + (500 * (breast() > 0) if "sharp" in name else 0)
    outside = clean_hw == 0
    clean_hw = 4095 - clean_hw if inverted else clean_hw
    padded_hw = clean_hw.copy()
    padded_hw[outside] = np.resize(value, outside.sum())
    if name == "a value of tissue":  # then, it must not be tissue
        clean_hw = clean_hw + (clean_hw == value)
        padded_hw[~outside] = clean_hw[~outside]
    elements = elements | {"PhotometricInterpretation": f"MONOCHROME{2 - inverted}"}
    if "WindowCenter" in elements and inverted:
        slope, zero = elements.get("RescaleSlope", 1), elements.get("RescaleIntercept", 0)
        elements["WindowCenter"] = slope * 4095 + 2 * zero - elements["WindowCenter"]
    plain = {key: value for key, value in elements.items() if "Padding" not in key}
    if inverted and "signed" in plain and plain["bits"] == 16:  # where black is nobody knows
        padded = stored(tmp_path / "p.dcm", padded_hw, **elements)
        inside = stored(tmp_path / "c.dcm", clean_hw, **plain) > 0
        assert padded[0, -1, 0] == 0 and padded.max() == 255 and padded[inside].mean() > 100
        return
    expected = stored(tmp_path / "c.dcm", clean_hw, **plain)
    assert expected[0, -1].max() == 0 and expected.max() == 255
    np.testing.assert_array_equal(stored(tmp_path / "p.dcm", padded_hw, **elements), expected)


def test_the_picture_of_the_case_is_the_same_in_three_files(tmp_path):
    """Padding of 0 under MONOCHROME1, of 4095 under MONOCHROME2, and none."""
    outside, one = breast() == 0, "MONOCHROME1"
    clean = stored(tmp_path / "1.dcm", breast())
    high = stored(tmp_path / "2.dcm", np.where(outside, 4095, breast()), PixelPaddingValue=4095)
    low_hw = np.where(outside, 0, 4095 - breast())
    low = stored(tmp_path / "3.dcm", low_hw, PixelPaddingValue=0, PhotometricInterpretation=one)
    np.testing.assert_array_equal(high, clean)
    np.testing.assert_array_equal(low, clean)
    assert 40 < clean.mean() < 110
    shifted_hw = np.where(outside, 2047, breast() - 2048)
    shifted = stored(tmp_path / "5.dcm", shifted_hw, PixelPaddingValue=2047, signed=True)
    np.testing.assert_array_equal(shifted, clean)
    # no end of the scale is near the picture: its darkest pixel is black
    far_hw = np.where(outside, 0, breast() + 30_000)
    far = stored(tmp_path / "4.dcm", far_hw, PixelPaddingValue=0, bits=16)
    assert np.abs(far.astype(int) - clean).max() <= 2


def test_padding_alone_is_no_picture(tmp_path):
    nothing = np.full((8, 8), 4095)
    assert stored(tmp_path / "x.dcm", nothing, PixelPaddingValue=4095) is None


def test_fundus_oct_and_cup(tmp_path):
    from PIL import Image

    photo = np.zeros((4, 8, 3), np.uint8)
    photo[:, 2:6] = 200  # the central square alone is bright
    Image.fromarray(photo).save(tmp_path / "f.png")
    assert (pixels.fundus(tmp_path / "f.png", 8, "pad") == 200).all()
    for k in range(9):  # slices at 2, 4 and 6 of 0..8
        Image.fromarray(np.full((4, 4), 10 * k, np.uint8)).save(tmp_path / f"{k}_image.png")
    assert pixels.oct_slices(tmp_path, 8, "pad")[0, 0].tolist() == [20, 40, 60]
    mask = np.full((4, 8), 255, np.uint8)
    mask[:, 3:5], mask[1:3, 3:5] = 128, 0
    Image.fromarray(mask).save(tmp_path / "m.png")
    assert pixels.cup(tmp_path / "m.png", 8, "pad").sum() == 16  # 2 x 2 of 4 x 4, twice as large


# --- labels and joins ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exam, expected",
    [
        ((1, "N", np.inf, 5.0), (0, 0, 0)),
        ((4, "B", np.inf, 1.0), (3, 1, 0)),
        ((2, "P", 0.5, 0.0), (1, 1, 1)),
        ((3, "S", 1.0, 0.2), (2, 2, 1)),
        ((2, "M", 3.0, 3.0), (1, 2, 0)),
        ((2, "K", np.inf, 0.4), (1, 2, None)),  # lost before a year: the release says 0
        ((5, "A", np.inf, 2.0), (None, None, 0)),  # male; more images needed
    ],
)
def test_embed_labels(exam, expected):
    found = embed.labels(*exam)
    assert tuple(found.values()) == expected and [*found] == ["density", "birads", "risk_1y"]


def embed_files(root, images, findings):
    image = {"spot_mag": "", "FinalImageType": "2D", "ViewPosition": "CC"}
    finding = {"asses": "", "tissueden": "", "path_severity": "", "procdate_anon": "", "side": ""}
    rows = []
    for number, row in enumerate(images):
        row = image | {"anon_dicom_path": f"/mnt/x/cohort_1/y/1/{number}/{number}.dcm"} | row
        pixels_hw = mammography.breast(
            np.random.default_rng(0), side="L", density=number, suspicious=False
        )
        file = root / "embed/images/cohort_1/1" / str(number) / f"{number}.dcm"
        mammography.write_dicom(file, pixels_hw)
        rows.append(row)
    table(root / "embed" / embed.METADATA, rows)
    finding |= {name: "" for row in findings for name in row}  # columns that some of them have
    table(root / "embed" / embed.CLINICAL, [finding | row for row in findings])


def test_embed_joins_findings_by_exam_and_side(tmp_path):
    exam = {"empi_anon": "7", "acc_anon": "70", "study_date_anon": "2015-01-01"}
    later = {"empi_anon": "7", "acc_anon": "71", "study_date_anon": "2016-06-01"}
    other = {"empi_anon": "8", "acc_anon": "80", "study_date_anon": "2015-01-01"}
    embed_files(
        tmp_path,
        [
            exam | {"ImageLateralityFinal": "L"},
            exam | {"ImageLateralityFinal": "L", "ViewPosition": "MLO"},
            exam | {"ImageLateralityFinal": "L"},  # a second CC: the first stands
            exam | {"ImageLateralityFinal": "R", "FinalImageType": "cview"},
            exam | {"ImageLateralityFinal": "R", "spot_mag": "1.0"},  # a magnification
            later | {"ImageLateralityFinal": "L"},
            other | {"ImageLateralityFinal": "R"},
        ],
        [
            exam
            | {"side": "L", "asses": "B", "tissueden": "3.0"}
            | {"age_at_study": "52.4", "ETHNICITY_DESC": "African American  or Black"},
            exam | {"side": "L", "asses": "S"},
            exam | {"side": "R", "asses": "A"},
            later
            | {"side": "L", "asses": "K", "path_severity": "0.0", "procdate_anon": "2015-12-01"},
            other
            | {"side": "B", "asses": "N", "tissueden": "1.0"}
            | {"age_at_study": "", "ETHNICITY_DESC": "Unknown, Unavailable or Unreported"},
        ],
    )
    parts, found = examples(tmp_path, layout="embed", size=16)
    assert found.spec.groups == ("age_band", "ethnicity")
    groups = {(e["patient"], *e["inputs"]): e["groups"] for part in parts.values() for e in part}
    known = {"age_band": "50 to under 60", "ethnicity": "African American  or Black"}
    assert groups[7, "cview_cc"] == groups[7, "ffdm_cc", "ffdm_mlo"] == known
    assert {*groups[8, "ffdm_cc"].values()} == {""}
    everyone = {(e["patient"], *e["inputs"]): e["targets"] for part in parts.values() for e in part}
    assert everyone == {
        # 2015: the worst of B and S, density C of the exam, cancer proven 11 months later
        (7, "ffdm_cc", "ffdm_mlo"): {"density": 2, "birads": 2, "risk_1y": 1},
        (7, "cview_cc"): {"density": 2, "birads": None, "risk_1y": 1},
        # 2016: the cancer lies behind; nothing is known after the last exam
        (7, "ffdm_cc"): {"density": None, "birads": 2, "risk_1y": None},
        (8, "ffdm_cc"): {"density": 0, "birads": 0, "risk_1y": None},
    }
    assert found.flow[:2] == [("images in the table", 7), ("breasts with a standard view", 4)]
    parts, _ = examples(tmp_path, layout="embed", size=16, record="exam")  # both sides mixed
    assert sorted(len(e["inputs"]) for part in parts.values() for e in part) == [1, 1, 3]


def test_rsna_labels_of_a_breast_and_a_file_that_lacks(tmp_path):
    row = {"patient_id": "5", "laterality": "L", "view": "CC", "cancer": "0", "BIRADS": ""}
    root = tmp_path / "rsna-breast-cancer-detection"
    table(
        root / "train.csv",
        [
            row | {"image_id": "1", "density": "D"},
            row | {"image_id": "2", "density": "", "view": "MLO", "BIRADS": "2.0", "cancer": "1"},
            row | {"image_id": "3", "density": "", "laterality": "R", "view": "AT"},
        ],
    )
    mammography.write_dicom(root / "train_images/5/1.dcm", np.eye(8, dtype=np.uint16))
    (root / "train_images/5/2.dcm").write_bytes(b"no dicom")
    tasks = ("density", "birads", "cancer")
    options = {"layout": "rsna", "size": 8, "tasks": tasks}
    with pytest.raises(DataError, match="train.csv line 3: its image cannot be decoded") as error:
        examples(tmp_path, **options)
    assert "/5/" not in str(error.value)
    parts, found = examples(tmp_path, **options, unreadable="skip")
    (breast,) = [e for part in parts.values() for e in part]
    assert [*breast["inputs"]] == ["cc"]
    assert breast["targets"] == {"density": 3, "birads": 2, "cancer": 1}
    assert [count for step, count in found.flow if "skipped" in step] == [1]
    (root / "train_images/5/2.dcm").unlink()
    _, found = examples(tmp_path, **options)
    assert [count for step, count in found.flow if "not there" in step] == [1]


def counted(flow):
    return {step: count for step, count in flow if count and "table" not in step}


def test_embed_counts_what_its_tables_contradict(tmp_path):
    dates = {7: "2015-01-01", 8: "2015-01-02"}
    seen = [
        {"empi_anon": str(who), "acc_anon": f"{who}{k}", "study_date_anon": f"{2015 + k}-01-01"}
        for who in dates
        for k in range(2)
    ]
    lost = {"empi_anon": "9", "acc_anon": "90", "study_date_anon": "2015-01-01"}
    third = seen[1] | {"acc_anon": "72", "anon_dicom_path": "/cohort_1/y/1/0/0.dcm"}
    image = {"ImageLateralityFinal": "L"}
    embed_files(
        tmp_path,
        [
            *(row | image for row in seen),
            seen[0] | {"ImageLateralityFinal": ""},  # of no breast
            lost | image,  # the same exam as a patient's ...
            lost | image | {"empi_anon": "10"},  # ... and another's
            *(third | {"ImageLateralityFinal": side} for side in "LR"),  # one file, two sides
        ],
        [
            seen[0] | {"side": "L", "asses": "N", "tissueden": "3.0"},
            seen[0] | {"side": "R", "asses": "N", "tissueden": "2"},  # another density
            seen[1] | {"side": "L", "asses": "N", "tissueden": "2", "path_severity": "1"},
            seen[2] | {"side": "L", "asses": "N", "tissueden": "odd"},
            seen[3] | {"side": "L", "asses": "N", "tissueden": "2.0"},
            seen[3] | {"side": "L", "asses": "B", "study_date_anon": "2017-01-01"},
            {"empi_anon": "8", "acc_anon": "89", "study_date_anon": "2015-02-01", "side": "L"},
        ],
    )
    parts, found = examples(tmp_path, layout="embed", size=16)
    labels = [(e["patient"], *e["targets"].values()) for part in parts.values() for e in part]
    assert sorted(labels, key=str) == [
        (7, 1, 0, None),  # a cancer at an unknown time
        (7, None, 0, None),  # two densities
        (8, 1, 1, None),  # two dates
        (8, None, 0, None),  # no follow-up that the tables agree on but of a month
    ]
    assert counted(found.flow) == {
        "breasts with a standard view": 4,
        "images listed with another side, view or exam as well, left out": 2,
        "images of exams of two patients, left out": 2,
        "images without a side, left out": 1,
        "exams with findings but no standard view": 1,
        "exams with two dates, no risk": 1,
        "exams with two densities, no density": 1,
        "cancers without a date": 1,
    }


def test_rsna_and_vindr_count_what_their_tables_contradict(tmp_path):
    row = {"patient_id": "5", "laterality": "L", "view": "CC", "cancer": "0", "BIRADS": "1"}
    root = tmp_path / "rsna-breast-cancer-detection"
    (root / "train_images").mkdir(parents=True)
    table(
        root / "train.csv",
        [
            row | {"image_id": "1", "density": "D"},
            row | {"image_id": "2", "density": "C", "view": "MLO", "cancer": "1"},
            row | {"image_id": "3", "density": "B", "patient_id": "6"},
            row | {"image_id": "3", "density": "B", "patient_id": "6", "laterality": "R"},
            row | {"image_id": "4", "density": "B", "patient_id": "6", "laterality": ""},
        ],
    )
    tasks = ("density", "birads", "cancer")
    parts, found = examples(tmp_path, layout="rsna", size=8, tasks=tasks)
    (breast,) = [e for part in parts.values() for e in part]
    assert breast["targets"] == {"density": None, "birads": 1, "cancer": 1}
    steps = {k: v for k, v in counted(found.flow).items() if "split" not in k and "listed" in k}
    assert steps["images listed with another side, view or exam as well, left out"] == 2
    flow = dict(found.flow)
    assert (
        flow["breasts with two labels of density"] == 1 == flow["images without a side, left out"]
    )
    assert flow["breasts with two labels of cancer"] == 1

    row = {"study_id": "a", "laterality": "L", "view_position": "CC", "split": "training"}
    root = tmp_path / "vindr-mammo"
    (root / "images").mkdir(parents=True)
    labels = {"breast_birads": "BI-RADS 2", "breast_density": "DENSITY B"}
    table(
        root / "breast-level_annotations.csv",
        [
            row | labels | {"image_id": "1"},
            row | labels | {"image_id": "2", "view_position": "MLO", "breast_birads": "BI-RADS 4"},
            row | labels | {"image_id": "3", "study_id": "b"},
            row | labels | {"image_id": "4", "study_id": "b", "split": "test"},
        ],
    )
    parts, found = examples(tmp_path, layout="vindr", size=8)
    (breast,) = [e for part in parts.values() for e in part]
    assert breast["targets"] == {"density": 1, "birads": None}
    flow = dict(found.flow)
    assert flow["images of exams in two splits, left out"] == 2
    assert flow["breasts with two labels of birads"] == 1


def test_images_without_an_identifier_are_nobodys(tmp_path):
    """They were one breast, with the CC of one person and the MLO and cancer of another."""
    row = {"laterality": "L", "cancer": "1", "BIRADS": "1", "density": "A"}
    root = tmp_path / "rsna-breast-cancer-detection"
    (root / "train_images").mkdir(parents=True)
    rows = [("", "1", "CC"), ("", "2", "MLO"), ("5", "", "CC"), ("6", "3", "CC")]
    rows = [row | dict(zip(("patient_id", "image_id", "view"), own, strict=True)) for own in rows]
    table(root / "train.csv", rows)
    parts, found = examples(tmp_path, layout="rsna", size=8)
    assert len([e for part in parts.values() for e in part]) == 1
    what = "images without an identifier of a patient, exam or image, left out"
    assert dict(found.flow)[what] == 3
    exam = {"study_date_anon": "2015-01-01", "ImageLateralityFinal": "L"}
    images = [("", "70"), ("", "80"), ("9", ""), ("7", "71")]
    images = [exam | {"empi_anon": who, "acc_anon": which} for who, which in images]
    finding = {"empi_anon": "7", "acc_anon": "71", "study_date_anon": "2015-01-01"}
    embed_files(tmp_path, images, [finding])
    parts, found = examples(tmp_path, layout="embed", size=16)
    assert len([e for part in parts.values() for e in part]) == 1
    assert dict(found.flow)[what] == 3


@pytest.mark.parametrize("who", ["../5", "/etc", "..", "a\\b", "z" * 300])
@pytest.mark.parametrize("layout", ["rsna", "vindr", "embed"])
def test_an_identifier_that_leads_elsewhere_is_refused(layout, who, tmp_path):
    row = {"laterality": "L", "image_id": "1", "view": "CC", "view_position": "CC"}
    row |= {"cancer": "0", "BIRADS": "1", "density": "A", "split": "training"}
    row |= {"breast_birads": "BI-RADS 2", "breast_density": "DENSITY B"}
    row |= {"patient_id": who, "study_id": who}
    if layout == "embed":
        exam = {"empi_anon": "7", "acc_anon": "70", "study_date_anon": "2015-01-01"}
        row = exam | {"ImageLateralityFinal": "L"}
        embed_files(tmp_path, [row | {"anon_dicom_path": "/x/cohort_1/1/1/0.dcm"}], [exam])
        path = tmp_path / "embed" / embed.METADATA
        path.write_text(path.read_text().replace("cohort_1/1/1", f"cohort_1/1/../{who}"))
    elif layout == "rsna":
        (tmp_path / "rsna/train_images").mkdir(parents=True)
        table(tmp_path / "rsna/train.csv", [row])
    else:
        (tmp_path / "vindr-mammo/images").mkdir(parents=True)
        table(tmp_path / "vindr-mammo/breast-level_annotations.csv", [row])
    with pytest.raises(DataError, match="line 2: .* (is no name|leads elsewhere)") as error:
        examples(tmp_path, layout=layout, size=16)
    assert who not in error.value.args[0].removeprefix(str(tmp_path))


def test_a_file_that_names_the_other_side_is_counted(tmp_path):
    row = {"patient_id": "5", "laterality": "R", "cancer": "0", "BIRADS": "1", "density": "A"}
    root = tmp_path / "rsna-breast-cancer-detection"
    table(root / "train.csv", [row | {"image_id": str(k), "view": v} for k, v in
                               enumerate(("CC", "MLO"))])  # fmt: skip
    for k, side in enumerate("LR"):
        mammography.write_dicom(root / f"train_images/5/{k}.dcm", np.eye(8, dtype=np.uint16),
                                side=side)  # fmt: skip
    _, found = examples(tmp_path, layout="rsna", size=8)
    assert [count for step, count in found.flow if "another side than the table" in step] == [1]


def test_gamma_pairs_with_two_grades_have_none(tmp_path):
    grading = tmp_path / "gamma" / gamma.TABLE
    for place in (gamma.IMAGES, gamma.MASKS):
        (tmp_path / "gamma" / place).mkdir(parents=True)
    rows = ["data,non,early,mid_advanced", "1,1,0,0", "2,1,1,0", "3,0,0,1", "3,0,1,0", "4,0,0,0"]
    (grading / "glaucoma_grading_training_GT.csv").write_text("\n".join(rows) + "\n")
    parts, found = examples(tmp_path, layout="gamma", size=8, tasks=("glaucoma",))
    labels = {e["patient"]: e["targets"]["glaucoma"] for part in parts.values() for e in part}
    assert labels == {1: 0, 2: None, 3: None, 4: None}
    assert dict(found.flow)["pairs with no grade or with two, no label"] == 3


def grades(root, *lines):
    """The labels of a table of these lines."""
    path = root / f"{gamma.FILE}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["data,non,early,mid_advanced", *lines]) + "\n")
    return [exam.targets["glaucoma"] for exam in gamma.load(root, [], record="pair")[0]]


def test_gamma_pairs_are_one_however_their_number_is_written(tmp_path):
    assert grades(tmp_path, "1,1,0,0", "0001,0,1,0", "2,0,1,0", "0002,0,1.0,") == [None, 1]


@pytest.mark.parametrize("cell", ["1.5", "-1", "inf", "nan", "x", ""])
def test_gamma_numbers_that_are_none_are_refused(cell, tmp_path):
    with pytest.raises(DataError, match=r"training_GT.csv: line 3: data is no"):
        grades(tmp_path, "1,1,0,0", f"{cell},1,0,0")
    if cell:
        with pytest.raises(DataError, match=r"training_GT.csv: line 2: early is no"):
            grades(tmp_path, f"1,0,{cell},0")


def test_gamma_workbooks_that_are_none_are_refused(tmp_path):
    import openpyxl

    path = tmp_path / f"{gamma.FILE}.xlsx"
    path.parent.mkdir(parents=True)
    path.write_text("no zip")
    with pytest.raises(DataError, match="training_GT.xlsx: empty, or no readable workbook"):
        gamma.load(tmp_path, [], record="pair")
    openpyxl.Workbook().save(path)
    with pytest.raises(DataError, match="training_GT.xlsx"):
        gamma.load(tmp_path, [], record="pair")


# --- whole data sets ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    for name in imaging.LAYOUTS:
        fake.write(name, folder, patients=15 if name == "embed" else 30)
    return folder


@pytest.mark.parametrize("layout", imaging.LAYOUTS)
def test_invented_files_build_and_read_back(layout, raw, tmp_path):
    options = {"layout": layout, "size": 16}
    assert imaging.missing_files(raw, **options) == []
    folder = build.prepare("imaging", raw, tmp_path, options=options)
    stores = [Store(folder, split) for split in ("train", "val", "test")]
    rows = stores[0].read(np.arange(len(stores[0])))
    for modality in stores[0].spec.modalities:
        values = rows[f"{modality.name}/values"]
        assert values.dtype == np.uint8 and values.shape[1:] == (1, 16, 16, 3)
        there = rows[f"{modality.name}/present"]
        assert there.mean() > 0.8 and values[there].max() > 100 and not values[~there].any()
    shares = [rows[f"y/{task.name}/mask"].mean() for task in stores[0].spec.tasks]
    assert min(shares) > 0.2
    if layout == "gamma":
        assert rows["y/cup"].shape[1:] == (16, 16, 1) and 0 < rows["y/cup"].mean() < 0.5
        assert stores[0].manifest["splits"]["train"]["labels"]["cup"]["known"] == len(rows["y/cup"])
    if layout == "rsna":
        groups = stores[0].groups()
        assert {*groups["site"]} == {"1", "2"} and {*groups["age_band"]} == {"60 to under 70"}
    if layout == "vindr":  # the owner's split: every fifth of 30 exams, two breasts each
        assert len(stores[2]) == 12
    again, _ = examples(raw, **options)
    numbers = [{e["patient"] for e in part} for part in again.values()]
    assert not (numbers[0] & numbers[1] or numbers[0] & numbers[2] or numbers[1] & numbers[2])


def test_images_that_are_nowhere_are_refused_before_a_build(raw, tmp_path):
    options = {"layout": "rsna", "size": 16}
    (line, _) = imaging.cohort(raw, seed=0, **options).joining()
    assert line.startswith("cc: 100% of the listed images are there")
    root = tmp_path / "rsna-breast-cancer-detection"
    (root / "train_images").mkdir(parents=True)
    shutil.copy(raw / root.name / "train.csv", root)
    with pytest.raises(DataError, match="not one image that train.csv lists is there"):
        build.prepare("imaging", tmp_path, tmp_path / "d", options=options)


@pytest.mark.parametrize("layout", ["rsna", "gamma"])
def test_the_shipped_configuration_takes_them(layout, raw, tmp_path):
    path = f"configs/m4oe_{layout}.py:tiny"
    config = configs.load(configs.parse([f"--config={path}"]))
    folder = build.prepare("imaging", raw, tmp_path, options=config.data.options.to_dict())
    made = make_setup(config, folder)  # traces the method on a batch, compiles nothing
    assert made.spec.modality_names == imaging.LAYOUTS[layout][0]
    assert config.train.select.split("/")[0] in made.spec.task_names


@pytest.mark.slow
@pytest.mark.parametrize("layout", imaging.LAYOUTS)
def test_the_shipped_configuration_trains(layout, raw, tmp_path, monkeypatch):
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path / "data"))
    args = [f"--config=configs/m4oe_{layout}.py:tiny", f"--config.data.raw_dir={raw}"]
    assert main([*args, f"--workdir={tmp_path / 'w'}", "--config.eval.subsets=false"]) == 0
    assert (tmp_path / "w" / "results" / "test.json").exists()


@pytest.mark.parametrize("layout", imaging.LAYOUTS)
def test_missing_files_are_one_line_each(layout, tmp_path):
    (line,) = imaging.missing_files(tmp_path, layout=layout)
    assert str(tmp_path) in line and "\n" not in line
    with pytest.raises(DataError):
        build.prepare("imaging", tmp_path, tmp_path / "d", options={"layout": layout})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layout": "mias"}, "layout"),
        ({"layout": "rsna", "record": "exam"}, "record"),
        ({"layout": "vindr", "tasks": ("cancer",)}, "tasks"),
        ({"fit": "crop", "unreadable": "ignore"}, "fit"),
        ({"size": 4}, "size"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=f"data.options.*{message}"):
        imaging.spec(**options)


def test_fake_refuses_to_overwrite(raw, capsys):
    with pytest.raises(ConfigError, match="not empty"):
        fake.write("rsna", raw)
    with pytest.raises(ConfigError, match="none of"):
        fake.write("mnist", raw)
    assert data_main.main(["fake", "vindr", str(raw)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
