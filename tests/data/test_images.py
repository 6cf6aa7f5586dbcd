"""Image data sets: digits and generated views."""

import os
from pathlib import Path

import numpy as np
import pytest

from m4.data import build
from m4.data.sets import mfeat, synthetic_images
from m4.data.store import Store
from m4.errors import ConfigError, DataError
from m4.run.workspace import open_split


def write(root, view, rows):
    folder = root / "uci-mfeat"
    folder.mkdir(exist_ok=True)
    lines = [",".join(map(str, range(len(rows[0]))))]
    lines += [",".join(map(str, row)) for row in rows]
    (folder / f"mfeat-{view}.csv").write_text("\n".join(lines) + "\n")


def digits(root, **options):
    found = mfeat.cohort(root, seed=0, **options)
    return sorted((e for start in found.splits.values() for e in start()), key=_patient)


def _patient(example):
    return example["patient"]


def test_pixels_become_a_square_image(tmp_path):
    row = [0] * 239 + [6] + [3]
    write(tmp_path, "pix", [row] * 3)
    examples = digits(tmp_path)
    assert len(examples) == 3 and examples[0]["targets"]["digit"] == 3
    image = examples[0]["inputs"]["pix"]["values"]
    assert image.shape == (1, 16, 16, 1)
    assert image[0, 15, 14, 0] == 1.0 and image.sum() == -255 + 1  # all others, the pad too, -1


def test_views_must_describe_the_same_digits(tmp_path):
    write(tmp_path, "mor", [[0.5] * 6 + [c] for c in (0, 1)])
    write(tmp_path, "zer", [[0.5] * 47 + [c] for c in (1, 0)])
    with pytest.raises(DataError, match="not the digits of"):
        digits(tmp_path, views=("mor", "zer"))
    write(tmp_path, "mor", [[0.5] * 5 + [1]])
    with pytest.raises(DataError, match="expected 6 and the class"):
        digits(tmp_path, views=("mor",))
    with pytest.raises(ConfigError, match="views"):
        mfeat.spec(views=("colour",))
    assert len(mfeat.missing_files(tmp_path, views=("pix", "mor"))) == 1


@pytest.mark.parametrize("wrong", [3.7, -0.5, -1, 10, "inf"])
def test_a_class_is_a_digit(tmp_path, wrong):
    write(tmp_path, "mor", [[0.5] * 6 + [c] for c in (0, 9.0, wrong)])
    with pytest.raises(DataError, match="mfeat-mor.csv, line 4: a class that is no digit"):
        digits(tmp_path, views=("mor",))
    with pytest.raises(DataError, match="line 4: a class that is no digit"):
        [*mfeat.new(tmp_path, {"views": ("mor",)}, {}).splits["new"]()]


@pytest.mark.skipif(not os.environ.get("M4_RAW_DIR"), reason="M4_RAW_DIR is not set")
def test_the_real_digits():
    root = Path(os.environ["M4_RAW_DIR"])
    if mfeat.missing_files(root):
        pytest.skip("no UCI Multiple Features in M4_RAW_DIR")
    examples = digits(root, views=tuple(mfeat.VIEWS))
    counts = np.bincount([e["targets"]["digit"] for e in examples])
    assert counts.tolist() == [200] * 10
    image = np.stack([e["inputs"]["pix"]["values"] for e in examples])
    assert image.min() == -1.0 and image.max() == 1.0


def test_views_build_and_read_back(tmp_path):
    folder = build.prepare(
        "synthetic_images", tmp_path, tmp_path, options={"num_patients": 30, "size": 8}
    )
    store = Store(folder, "train")
    rows = store.read(np.arange(len(store)))
    assert rows["cview_cc/values"].shape[1:] == (1, 8, 8, 3)
    absent = ~rows["cview_cc/present"]
    assert absent.any() and not rows["cview_cc/values"][absent].any()
    assert rows["y/density"].dtype == np.int32 and len(open_split(folder, "test", 4))


def test_views_plant_what_they_say():
    found = synthetic_images.labels(0.3, np.array([1.0, -0.5, 0.7, 0.0]))
    assert found == {"density": 2, "risk": 0.0, "finding": 1.0}
    one, other = (
        list(start()) for start in (synthetic_images.cohort(seed=s, num_patients=40, size=4)
        .splits["train"] for s in (1, 1))
    )  # fmt: skip
    np.testing.assert_array_equal(
        one[0]["inputs"]["cview_cc"]["values"], other[0]["inputs"]["cview_cc"]["values"]
    )
    with pytest.raises(ConfigError, match="presence"):
        synthetic_images.spec(presence=0.0)
