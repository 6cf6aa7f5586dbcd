"""EMBED, RSNA, VinDr-Mammo and GAMMA from files whose every pixel and label is known."""

import csv

import numpy as np
import pytest

from m4 import config as configs
from m4.data import __main__ as data_main
from m4.data import build, fake
from m4.data.sets import imaging
from m4.data.sets.imaging import embed
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
            exam | {"side": "L", "asses": "B", "tissueden": "3.0"},
            exam | {"side": "L", "asses": "S"},
            exam | {"side": "R", "asses": "A"},
            later
            | {"side": "L", "asses": "K", "path_severity": "0.0", "procdate_anon": "2015-12-01"},
            other | {"side": "B", "asses": "N", "tissueden": "1.0"},
        ],
    )
    parts, found = examples(tmp_path, layout="embed", size=16)
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
    if layout == "vindr":  # the owner's split: every fifth of 30 exams, two breasts each
        assert len(stores[2]) == 12
    again, _ = examples(raw, **options)
    numbers = [{e["patient"] for e in part} for part in again.values()]
    assert not (numbers[0] & numbers[1] or numbers[0] & numbers[2] or numbers[1] & numbers[2])


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
