"""The tasks of the lab's other studies, against a second reading of what they promise."""

import json

import numpy as np
import pytest

from m4.errors import DataError
from m4.lab import cifar10, quadrants, study
from m4.lab.__main__ import main
from m4.lab.documents import rows
from m4.run import preflight


def write_cifar(folder, each=20, size=3073):
    """Small files in the layout of CIFAR-10's binary version, and what was written."""
    rng, wrote = np.random.default_rng(0), {}
    (folder / cifar10.FOLDER).mkdir(parents=True)
    for name in (*cifar10.TRAIN, cifar10.TEST):
        records = []
        for _ in range(each):
            label, pixels = int(rng.integers(10)), rng.integers(256, size=(32, 32, 3))
            planes = b"".join(bytes(pixels[..., c].ravel().tolist()) for c in range(3))
            records.append((label, pixels, bytes([label]) + planes))
        wrote[name] = [record[:2] for record in records]
        text = b"".join(record[2] for record in records)
        (folder / cifar10.FOLDER / name).write_bytes(text[: len(text) - 3073 + size])
    return wrote


def test_pictures_are_those_of_the_files(tmp_path):
    wrote = write_cifar(tmp_path)
    assert cifar10.missing_files(tmp_path) == []
    splits = {k: list(v()) for k, v in cifar10.cohort(tmp_path, seed=0).splits.items()}
    assert {name: len(found) for name, found in splits.items()} == {
        "train": 90,
        "val": 10,
        "test": 20,
    }
    everything = [example["patient"] for found in splits.values() for example in found]
    assert len({*everything}) == 120
    for example, (label, pixels) in zip(splits["test"], wrote[cifar10.TEST], strict=True):
        assert example["targets"]["label"] == label
        assert np.array_equal(example["inputs"]["image"]["values"][0], pixels)
    last = [pair for name in cifar10.TRAIN for pair in wrote[name][18:]]
    found = [example["targets"]["label"] for example in splits["val"]]
    assert found == [label for label, _ in last]


def test_a_file_that_is_cut_short_is_named(tmp_path):
    assert len(cifar10.missing_files(tmp_path)) == 6
    write_cifar(tmp_path, size=3000)
    with pytest.raises(DataError, match=r"data_batch_1.bin: 61387 bytes are no records of 3073"):
        next(cifar10.cohort(tmp_path, seed=0).splits["train"]())


@pytest.mark.parametrize("name", ["cifar10", "hierarchy"])
def test_shipped_studies_can_be_built(name):
    for variant in ("", ":tiny"):
        arms, left = study.arms(study.load(f"configs/lab_{name}.py{variant}"))
        assert len(arms) >= 2 and not left and sum(arm.reference for arm in arms) == 1
    for arm in arms:
        preflight.require(arm.at(0), None, files=False)


def test_the_quarters_have_their_functions():
    points, answers, quarters = quadrants.draw(rows=500, noise=0.0, world=1)
    for (x0, x1), y, quarter in zip(points, answers, quarters, strict=True):
        if x0 < 0.5:
            wanted = (0, np.sin(2 * np.pi * x0)) if x1 < 0.5 else (1, np.cos(2 * np.pi * x1))
        else:
            wanted = (2, x0 * x0) if x1 < 0.5 else (3, 2 * x1 - 2 * x0)
        assert (quarter, y) == pytest.approx(wanted)


@pytest.mark.slow
def test_two_levels_of_gates_run(tmp_path, monkeypatch):
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path / "data"))
    assert main(["--config=configs/lab_hierarchy.py:tiny", f"--out={tmp_path}/out"]) == 0
    found = rows(tmp_path / "out")
    assert {row["label"] for row in found} == {"softmax", "softmax, laplace"}
    router = {row["label"]: row["parameters"]["router"] for row in found}
    assert router == {"softmax": 2 * 8, "softmax, laplace": 2 * 8 + 2 * 4}
    assert "softmax, laplace" in (tmp_path / "out/verdicts.tex").read_text()


@pytest.mark.slow
def test_gates_in_a_vision_transformer_run_on_generated_pictures(tmp_path, monkeypatch):
    write_cifar(tmp_path / "raw")
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("M4_RAW_DIR", str(tmp_path / "raw"))
    assert main(["--config=configs/lab_cifar10.py:tiny", f"--out={tmp_path}/out"]) == 0
    row = json.loads(next((tmp_path / "out/rows").iterdir()).read_text())
    assert 0 <= row["value"] <= 1 and row["experts"]["moe_0"]["by_modality"]
