"""Spoken, drawn and spelt digits: files, spectrograms, who is tested, what is absent."""

import os
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from m4.data.sets import digits
from m4.data.sets.digits import recordings, written
from m4.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    digits.invent(folder, patients=120, seed=0)
    return folder


def rows(root, **options):
    found = digits.cohort(root, **options)
    return {name: [*start()] for name, start in found.splits.items()}


def sound(path, rate=8000, channels=1, bits=16, seconds=0.3, name="3_eve_1.wav"):
    path = path / name
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(bits // 8)
        file.setframerate(rate)
        file.writeframes(bytes(int(seconds * rate) * channels * bits // 8))
    return path


def test_samples_are_scipys(root):
    path = sorted((root / digits.FOLDER / "recordings").glob("*.wav"))[0]
    rate, values = wavfile.read(path)
    assert rate == recordings.RATE
    np.testing.assert_array_equal(recordings.read(path) * 32768, values)


@pytest.mark.parametrize("hz", [200, 1000, 3000])
def test_a_tone_is_in_its_band(hz):
    seconds = np.arange(4000) / 8000
    level_TF = recordings.spectrogram(np.sin(2 * np.pi * hz * seconds), 100)
    assert level_TF.shape == (48, 40)
    near = np.abs(recordings.centres() - hz).argmin()
    assert (np.abs(level_TF.argmax(1) - near) <= 1).all()
    assert level_TF.mean() == pytest.approx(0, abs=1e-5)
    assert level_TF.std() == pytest.approx(1, abs=1e-3)


def test_loudness_does_not_matter():
    x = np.random.default_rng(0).standard_normal(3000) * 0.2
    for make in (recordings.waveform, recordings.spectrogram):
        np.testing.assert_allclose(make(x * 0.01, 9000), make(x, 9000), atol=2e-3)
    assert len(recordings.waveform(x, 1000)) == 1000
    assert recordings.spectrogram(x, 10).shape == (10, 40)
    for silent in (np.zeros(3000), np.zeros(1)):
        assert np.isfinite(recordings.spectrogram(silent, 9)).all()
        assert np.isfinite(recordings.waveform(silent, 9)).all()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "3_eve_1.wav")
    with pytest.raises(DataError, match="cannot be read as WAV"):
        recordings.read(tmp_path / "3_eve_1.wav")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": 16000}, "1 channels of 16000 Hz and 16 bits, must be mono of 8000 Hz"),
        ({"channels": 2}, "2 channels of 8000 Hz"),
        ({"bits": 8}, "and 8 bits"),
        ({"seconds": 0}, "0 samples, must be 1 to 480000"),
        ({"seconds": 61}, "488000 samples, must be 1 to"),
        ({"name": "three_eve_1.wav"}, "must be called <digit>_<speaker>_<take>.wav"),
        ({"name": "3_eve_01.wav"}, "the same take as"),
    ],
)
def test_wrong_files_are_refused_in_a_line(tmp_path, options, said):
    sound(tmp_path)
    path = sound(tmp_path, **options)
    with pytest.raises(DataError) as caught:
        recordings.find(tmp_path)
        recordings.read(path)
    assert len(caught.value.args) == 1 and said in str(caught.value)
    assert "wav" in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_files_are_refused_in_a_line(tmp_path):
    whole = sound(tmp_path).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "3_eve_1.wav"
    for number in range(200):
        damaged = bytearray(whole[: rng.integers(len(whole))] if number % 2 else whole)
        for at in rng.integers(0, 44, 3):
            if at < len(damaged):
                damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert np.isfinite(recordings.read(path)).all()
        except DataError as error:
            assert str(path) in str(error) and len(error.args) == 1
    path.write_bytes(whole[:-10])
    with pytest.raises(DataError, match="is cut short|cannot be read"):
        recordings.read(path)


@pytest.mark.parametrize("fold", range(4))
def test_speakers_are_unseen_and_so_are_their_images(root, fold, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        written, "pixels", lambda rng, n, noise: shown.setdefault(n, np.zeros((1, 8, 8, 1)))
    )
    parts, images = {}, {}
    for name, start in digits.cohort(root, fold=fold).splits.items():
        found = [*start()]
        parts[name] = {e["groups"]["speaker"] for e in found}
        images[name] = {*shown}
        shown.clear()
    assert parts["test"] == {("ada", "bea", "cy", "dan")[fold]}
    assert parts["test"].isdisjoint(parts["train"] | parts["val"])
    assert images["test"] and images["test"].isdisjoint(images["train"] | images["val"])


def test_two_folds_are_pairs_of_speakers(root):
    tested = [
        {e["groups"]["speaker"] for e in rows(root, fold=k, num_folds=2)["test"]} for k in (0, 1)
    ]
    assert tested == [{"ada", "bea"}, {"cy", "dan"}]


def test_absence(root):
    found = rows(root, absent=0.4)
    assert all(len(e["inputs"]) == 5 for e in found["test"])
    kept = Counter(m for e in found["train"] + found["val"] for m in e["inputs"])
    assert kept["waveform"] == kept["spectrogram"] and 0.4 < kept["word"] / 90 < 0.8
    assert all(e["inputs"] for e in found["train"])
    only = rows(root, absent={"word": 1.0}, absent_in_test=True)["test"]
    assert all("word" not in e["inputs"] and "pixels" in e["inputs"] for e in only)
    one = rows(root, absent=1.0)["train"]
    assert all(len({*e["inputs"]} - {"waveform"}) == 1 for e in one)


def test_a_record_does_not_depend_on_which_others_are_there(root, tmp_path):
    folder = tmp_path / digits.FOLDER / "recordings"
    folder.mkdir(parents=True)
    for path in (root / digits.FOLDER / "recordings").glob("*.wav"):
        if not path.stem.startswith("4"):
            (folder / path.name).write_bytes(path.read_bytes())
    few = {e["patient"]: e for part in rows(tmp_path).values() for e in part}
    many = {e["patient"]: e for part in rows(root).values() for e in part}
    assert len(few) == 108 and {*few} < {*many}
    for key, one in few.items():
        np.testing.assert_equal(one, many[key])


def test_words_lose_change_and_swap_letters():
    rng = np.random.default_rng(0)
    assert written.spelled(written.word(rng, 7, 0.0)) == "seven"
    spelt = [written.spelled(written.word(rng, 7, 0.5)) for _ in range(2000)]
    lost = np.mean([len(word) for word in spelt]) / 5
    right = np.mean([word == "seven" for word in spelt])
    assert lost == pytest.approx(0.75, abs=0.02)
    assert right == pytest.approx(0.5**6, abs=0.008)  # all five letters, and no swap
    assert all(written.word(rng, 1, 1.0).size for _ in range(50))


def test_images_are_spoilt_by_noise_alone():
    rng = np.random.default_rng(0)
    plain = written.pixels(rng, 5, 0.0)[0, :, :, 0]
    np.testing.assert_allclose((plain + 1) * 8, written.images()[0][5] * 16)
    blotted = np.mean([np.abs(written.pixels(rng, 5, 1e-9)) < 1e-6 for _ in range(200)])
    assert blotted == pytest.approx(0.25, abs=0.1)
    sums = written.profile(rng, 5, 0.0)
    assert sums[:8].sum() == pytest.approx(sums[8:].sum()) and len(written.SUMS) == 16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fold": 4}, "data.options.fold: 4 must be below 4"),
        ({"num_folds": 1}, "data.options.num_folds: 1 must be at least 2"),
        ({"absent": 1.5}, "data.options.absent: 1.5 must be between 0 and 1"),
        ({"absent": {"sound": 0.1}}, "data.options.absent: \\['sound'\\] not in audio, pixels"),
        ({"absent": {"word": 2}}, "data.options.absent.word: 2 must be between"),
        ({"modalities": ("smell",)}, "\\['smell'\\] not in waveform"),
        ({"modalities": ("word",)}, "speaker_group needs the modality spectrogram"),
        ({"noise": -1}, "data.options.noise: -1 must be at least 0"),
    ],
)
def test_refused_options(options, said):
    with pytest.raises(ConfigError, match=said):
        digits.spec(**options)


def test_more_folds_than_speakers(root):
    with pytest.raises(ConfigError, match="num_folds=5: there are recordings of 4 speakers"):
        digits.cohort(root, num_folds=5)


def test_new_recordings_are_of_anybody(root, tmp_path):
    sound(tmp_path, name="7_zoe_0.wav")
    example = next(digits.new(tmp_path, {"fold": 3}, {}).splits["new"]())
    assert example["targets"] == {"digit": 7, "parity": 1, "speaker_group": None}
    assert len(example["inputs"]) == 5 and example["key"] == (example["patient"], None)
    assert len([*digits.new(root, {}, {}).splits["new"]()]) == 120
    with pytest.raises(DataError, match="has no recordings"):
        digits.new(tmp_path / "none", {}, {})


def test_the_real_recordings():
    folder = Path(os.environ.get("M4_RAW_DIR", "/none"))
    if digits.missing_files(folder):
        pytest.skip("M4_RAW_DIR has no free-spoken-digits/recordings")
    found = recordings.find(folder / digits.FOLDER / "recordings")
    assert len(found) >= 2000
    counts = Counter((r.speaker, r.digit) for r in found)
    assert {*counts.values()} == {50}
    for recording in found[::97]:
        assert 0.1 < len(recordings.read(recording.path)) / recordings.RATE < 3
