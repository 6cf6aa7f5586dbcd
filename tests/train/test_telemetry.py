"""Writers: what is on disk and on the screen."""

import io
import json
import math
import struct
import threading

import numpy as np
import pytest
from rich.console import Console

from m4 import seal
from m4.train import telemetry


def rows(path):
    return [
        {k: v for k, v in json.loads(line).items() if k not in (seal.NUMBER, seal.SUM)}
        for line in path.read_text().splitlines()
    ]


def test_json_lines_are_cut_back_to_the_restored_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = telemetry.JsonLines(path)
    for step in (10, 20, 30):
        writer.write_scalars(step, {"train/loss": step / 7})
    writer.close()
    with open(path, "a") as file:
        file.write('{"step": 40, "train/lo')  # a crash in the middle of a line
    writer = telemetry.JsonLines(path, resume=20)
    writer.write_scalars(30, {"train/loss": 1})
    writer.close()
    found = rows(path)
    assert [row["step"] for row in found] == [10, 20, 30]
    assert found[0]["train/loss"] == 10 / 7  # every bit survives
    assert found[-1]["train/loss"] == 1


def test_json_has_no_nan(tmp_path):
    writer = telemetry.JsonLines(tmp_path / "m.jsonl")
    writer.write_scalars(1, {"a": float("nan"), "b": np.float32(0.5), "c": float("inf")})
    writer.close()
    assert rows(tmp_path / "m.jsonl") == [{"step": 1, "a": None, "b": 0.5, "c": None}]


def progress(terminal):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=200, soft_wrap=True)
    writer = telemetry.ProgressLine(steps=100, start=0, select="death/auroc", console=console)
    times = {"time/examples_per_s": 1234.5, "time/input_wait": 0.034}
    writer.write_scalars(10, {"train/loss": 0.41234, "train/skipped": 0} | times)
    writer.write_scalars(10, {"val/death/auroc": 0.8765})
    writer.write_scalars(20, {"train/loss": 0.4, "train/skipped": 2} | times)
    writer.close()
    return screen.getvalue()


def test_plain_lines_where_there_is_no_terminal():
    first, second = progress(terminal=False).splitlines()
    assert first == "step 10/100 10% | loss 0.4123 | 1.23e+03 ex/s | wait 3% | ETA -"
    assert "val death/auroc 0.8765" in second and "2 steps skipped" in second
    assert "ETA 0:00:0" in second


def test_one_live_line_on_a_terminal():
    text = progress(terminal=True)
    assert "step 20/100 20%" in text and "\x1b[" in text


def events(folder):
    """Events of all files, in the format of TFRecord: length, its checksum, bytes, checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    for file in sorted(folder.glob("events*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("Q", data[:8])
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_tensorboard_reads_back(tmp_path):
    pytest.importorskip("tensorboardX")
    before = set(threading.enumerate())  # one of another test's may end meanwhile
    writer = telemetry.TensorBoard(tmp_path, resume=2)
    writer.write_scalars(3, {"train/loss": 0.5, "val/auroc": math.nan})
    writer.write_texts(3, {"config": "text"})
    writer.write_histograms(3, {"load": np.arange(4.0)}, num_buckets=2)
    writer.flush()
    assert set(threading.enumerate()) <= before
    writer.close()
    version, start, loss, auroc, text, load = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (3, start.session_log.START)
    assert loss.step == 3 and loss.summary.value[0].tag == "train/loss"
    assert loss.summary.value[0].simple_value == 0.5
    assert math.isnan(auroc.summary.value[0].simple_value)
    assert text.summary.value[0].tensor.string_val[0] == b"text"
    histogram = load.summary.value[0].histo
    assert (histogram.num, histogram.sum) == (4, 6)  # 0 + 1 + 2 + 3


def test_events_are_seen_while_a_run_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    writer = telemetry.TensorBoard(tmp_path)
    monkeypatch.setattr(telemetry, "FLUSH_EVERY", -1.0)
    writer.write_scalars(1, {"x": 1.0})
    assert len([*events(tmp_path)]) == 2
    writer.close()


def test_writers_have_clus_method_names_and_fan_out(tmp_path):
    lines = [telemetry.JsonLines(tmp_path / name) for name in ("a", "b")]
    writer = telemetry.Writers(lines)
    writer.write_scalars(1, {"x": 2.0})
    writer.write_texts(1, {"note": "hello"})
    writer.write_histograms(1, {"h": np.zeros(3)})
    writer.flush()
    writer.close()
    assert rows(tmp_path / "a") == rows(tmp_path / "b") == [{"step": 1, "x": 2.0}]
