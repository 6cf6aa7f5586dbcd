"""PAM and CMU-MOSI: gaps, splits without overlap, the conversion that the guide describes."""

import re
from pathlib import Path

import numpy as np
import pytest

from m4 import config as configs
from m4.data import build, fake
from m4.data.sets import mosi, pam
from m4.data.store import Store
from m4.errors import ConfigError, DataError
from m4.main import main
from m4.run.setup import make_setup

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    for name, patients in (("pam", 30), ("mosi", 20)):
        fake.write(name, folder, patients=patients)
    return folder


def test_pam_windows_by_hand(tmp_path):
    folder = tmp_path / pam.FOLDER
    folder.mkdir(parents=True)
    values = np.zeros((3, 4, 17))
    values[1, :, 2] = [0, 5, 6, 7]  # a zero is a gap
    np.save(folder / pam.VALUES, values)
    np.save(folder / pam.CLASSES, np.array([[0.0], [7.0], [1.0]]))
    found = pam.cohort(tmp_path, seed=0, steps=4, every=2, block=3)
    (window,) = [e for start in found.splits.values() for e in start() if e["targets"]["activity"]
                 == 7]  # fmt: skip
    payload = window["inputs"]["sensor_02"]
    assert payload["values"].tolist() == [[6.0]]  # steps 0 and 2, of which 0 is a gap
    np.testing.assert_allclose(payload["times"], [2 / 100 / 3600])
    assert not len(window["inputs"]["sensor_03"]["values"]) and window["patient"] == 0
    np.save(folder / pam.CLASSES, np.array([[0.0], [8.0], [1.0]]))
    with pytest.raises(DataError, match="none of 0 to 7"):
        pam.cohort(tmp_path, seed=0, steps=4)
    np.save(folder / pam.VALUES, np.array([{}, 1], object), allow_pickle=True)
    with pytest.raises(DataError, match="no array of plain numbers"):
        pam.cohort(tmp_path, seed=0)


def test_neighbouring_windows_stay_together(raw):
    found = pam.cohort(raw, seed=0, block=20)
    counts = {n: [e["patient"] for e in start()] for n, start in found.splits.items()}
    assert sum(map(len, counts.values())) == 300
    for units in counts.values():
        assert all(units.count(u) == 20 for u in units)


def test_mosi_segments_by_hand(tmp_path):
    folder = tmp_path / "cmu-mosi"
    folder.mkdir()
    text = np.zeros((1, 3, 2))
    text[0, 1:] = [[1, 2], [3, 4]]
    audio = np.zeros((1, 3, 1))
    audio[0, 2] = -np.inf
    vision = np.zeros((1, 3, 1))
    vision[0, 2] = 7
    for part in mosi.PARTS.values():
        ids, labels = np.array(["vid$_$4"]), np.array([[[-0.5]]])
        np.savez(
            folder / f"{part}.npz", text=text, audio=audio, vision=vision, labels=labels, id=ids
        )
    found = mosi.cohort(tmp_path, seed=0, positions=3)
    (segment,) = found.splits["train"]()
    assert segment["inputs"]["text"]["values"].tolist() == [[1, 2], [3, 4]]
    assert segment["inputs"]["text"]["times"].tolist() == [1, 2]
    assert segment["inputs"]["vision"]["times"].tolist() == [2]
    assert not np.isfinite(segment["inputs"]["audio"]["values"]).any()
    assert segment["targets"] == {"sentiment": -0.5, "positive": 0.0}
    assert dict(found.flow)["train: not finite"] == 1
    with pytest.raises(DataError, match="shape"):
        mosi.cohort(tmp_path, seed=0)
    with pytest.raises(ConfigError, match="dataset"):
        mosi.spec(dataset="iemocap")
    (folder / "test.npz").unlink()
    assert mosi.missing_files(tmp_path) == [f"{folder / 'test.npz'}: missing"]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["w$_$0", "v$_$0", "v$_$1"], "train.npz: 3 entries of id, 2 of labels"),
        (["v$_$0"], "train.npz: 1 entries of id, 2 of labels"),
        ("v$_$0", "train.npz: no arrays as docs/datasets.md says"),
    ],
)
def test_every_mosi_segment_has_one_name(tmp_path, ids, said):
    path = mosi.invent(tmp_path, patients=1, seed=0) / "train.npz"
    arrays = {name: array[:2] for name, array in np.load(path).items()}
    np.savez(path, **arrays | {"id": np.array(ids)})
    with pytest.raises(DataError, match=said):
        mosi.cohort(tmp_path, seed=0)


def test_the_guide_converts_a_pickle(tmp_path, monkeypatch):
    import pickle

    rng = np.random.default_rng(0)
    parts = {}
    for k, part in enumerate(("train", "valid", "test")):
        parts[part] = {name: rng.normal(size=(2, 50, 3)) for name in mosi.MODALITIES}
        parts[part] |= {"labels": rng.normal(size=(2, 1, 1)), "id": [[f"v{k}", 0.0, 1.0]] * 2}
    (tmp_path / "mosi_data.pkl").write_bytes(pickle.dumps(parts))
    (tmp_path / "cmu-mosi").mkdir()
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/datasets.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    found = mosi.cohort(tmp_path, seed=0)
    assert [len([*start()]) for start in found.splits.values()] == [2, 2, 2]
    assert len({e["patient"] for start in found.splits.values() for e in start()}) == 3


@pytest.mark.parametrize("name", ["pam", "mosi"])
def test_build_and_configuration(name, raw, tmp_path):
    config = configs.load(configs.parse([f"--config=configs/fusemoe_{name}.py:tiny"]))
    folder = build.prepare(name, raw, tmp_path, options=config.data.options.to_dict())
    rows = Store(folder, "train").read(np.arange(8))
    assert all(np.isfinite(v).all() for k, v in rows.items() if k.endswith("values"))
    made = make_setup(config, folder)  # traces the method on a batch, compiles nothing
    assert config.train.select.split("/")[0] in made.spec.task_names


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pam", "mosi"])
def test_the_shipped_configuration_trains(name, raw, tmp_path, monkeypatch):
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path / "data"))
    args = [f"--config=configs/fusemoe_{name}.py:tiny", f"--config.data.raw_dir={raw}"]
    assert main([*args, f"--workdir={tmp_path / 'w'}", "--config.eval.subsets=false"]) == 0
