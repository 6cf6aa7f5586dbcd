"""Images of files named in tables: read, absent, damaged, outside; and trained on nothing else."""

import os

import numpy as np
import pandas as pd
import pytest

from m4.data import pictures
from m4.data.sets import tables
from m4.errors import ConfigError, DataError

Image = pytest.importorskip("PIL.Image")
N = 24
TOML = """
[[rows]]
files = "scans.csv"
subject = "patient"
[labels]
files = "scans.csv"
subject = "patient"
[tasks.ill]
kind = "binary"
column = "ill"
[modalities.xray]
kind = "image"
codes = "file"
size = 8
"""


def write(folder, names=None, **files):
    (folder / "pictures").mkdir(exist_ok=True)
    for i in range(N):
        pixels = np.full((12, 20), 10 * i, np.uint8)  # wider than high: the sides are cut
        pixels[:, :4], pixels[:, 16:] = 255, 255
        Image.fromarray(pixels).save(folder / f"pictures/{i}.png")
    frame = pd.DataFrame({"patient": range(N), "ill": [i % 2 for i in range(N)]})
    frame["file"] = names or [f"pictures/{i}.png" for i in range(N)]
    frame.to_csv(folder / "scans.csv", index=False)
    for name, data in files.items():
        (folder / "pictures" / name.replace("_", ".")).write_bytes(data)
    (folder / "scans.toml").write_text(TOML)


def read(folder):
    found = tables.cohort(folder, seed=0, file=str(folder / "scans.toml"))
    examples = {e["key"][0]: e for start in found.splits.values() for e in start()}
    return examples, dict(found.flow)


def test_the_central_square_of_every_file(tmp_path):
    write(tmp_path)
    examples, _ = read(tmp_path)
    for i, example in examples.items():
        values = example["inputs"]["xray"]["values"]
        assert values.shape == (1, 8, 8, 1) and values.dtype == np.uint8
        assert (values == 10 * i).all()


def test_what_is_not_there_damaged_or_outside_is_absent_and_counted(tmp_path):
    names = [f"pictures/{i}.png" for i in range(N)]
    names[3:7] = ["pictures/none.png", "../scans.png", "/etc/passwd", ""]
    names[10:12] = ["z" * 300 + ".png", "z/" * 3000 + "z.png"]  # longer than may be
    write(tmp_path, names, **{"9_png": b"no picture"})
    examples, flow = read(tmp_path)
    assert {i for i, e in examples.items() if "xray" not in e["inputs"]} == {3, 4, 5, 6, 9, 10, 11}
    assert flow["xray: image files that are not there"] == 5
    assert flow["xray: image files that cannot be decoded"] == 1


def test_a_picture_of_another_format_starts_no_program(tmp_path, monkeypatch):
    """An EPS is shown by Ghostscript, whatever its name says."""
    program, started = tmp_path / "bin/gs", tmp_path / "started"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {started}\necho 10.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    box = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    write(tmp_path, **{"7_png": box, "9_png": b"P2 4 4 255\nJOHN DOE\n"})
    examples, flow = read(tmp_path)
    assert {i for i, e in examples.items() if "xray" not in e["inputs"]} == {7, 9}
    assert flow["xray: image files that cannot be decoded"] == 2
    assert not started.exists()


@pytest.mark.parametrize("ending", ["png", "jpg", "tiff", "bmp"])
def test_the_formats_that_are_promised_are_read_whatever_the_name(tmp_path, ending):
    Image.new("L", (8, 8), 70).save(tmp_path / f"x.{ending}")
    (tmp_path / f"x.{ending}").rename(tmp_path / "x.png")
    assert (pictures.square(tmp_path / "x.png", 4, 1) == 70).all()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(OSError, match="is no regular file"):
        pictures.square(tmp_path / "x.png", 4, 1)


def test_none_at_all_is_refused_without_a_name(tmp_path):
    write(tmp_path, [f"scan-of-{i}.png" for i in range(N)])
    with pytest.raises(DataError, match="none of the 24 image files of modality xray") as error:
        read(tmp_path)
    assert "scan-of" not in str(error.value)


def test_colour_and_deep_grey(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(tmp_path / "deep.png")
    deep = pictures.square(tmp_path / "deep.png", 8, 1)
    assert deep.min() == 0 and deep.max() == 255 and (np.diff(deep.ravel().astype(int)) > 0).all()
    assert pictures.square(tmp_path / "deep.png", 4, 3).shape == (4, 4, 3)


def test_wrong_keys_are_named(tmp_path):
    write(tmp_path)
    (tmp_path / "scans.toml").write_text(
        TOML.replace("size = 8", "size = 2\nchannels = 2\nlength = 3")
    )
    with pytest.raises(ConfigError) as error:
        tables.spec(file=str(tmp_path / "scans.toml"))
    text = str(error.value)
    assert "xray.size: must be an integer from 8" in text and "channels: must be 1" in text
    assert "xray.length: no such key" in text
