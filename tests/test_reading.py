"""Documents are read by `seal.load` alone: no pipe is waited for, no depth ends in a traceback."""

import json
import os
import re
from pathlib import Path

import pytest

import m4
from m4 import seal

ROOT = Path(m4.__file__).parent
# Texts that m4's own child wrote, or that are checked as they are parsed.
ELSEWHERE = {"bench/device_runs.py"}
READ = re.compile(r"json\.loads?\([^\n]*(read_text|read_bytes|open\()")


def test_no_document_is_read_otherwise():
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in ROOT.rglob("*.py")
        if str(path.relative_to(ROOT)) not in ELSEWHERE
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if READ.search(line)
    ]
    assert not wrong
    assert READ.search("x = json.loads(path.read_text())")


@pytest.mark.parametrize("make", ["pipe", "device", "folder", "deep", "long", "binary", "absent"])
def test_what_is_no_document_is_refused_at_once(tmp_path, monkeypatch, make):
    path = tmp_path / "x.json"
    if make == "pipe":
        os.mkfifo(path)
    elif make == "device":
        path.symlink_to("/dev/zero")
    elif make == "folder":
        path.mkdir()
    elif make == "deep":
        path.write_text("[" * 200_000)
    elif make == "long":
        monkeypatch.setattr(seal, "MOST", 100)
        path.write_text(json.dumps("x" * 100))
    elif make == "binary":
        path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises((OSError, ValueError)):
        seal.load(path)


def test_a_document_and_a_link_to_one_are_read(tmp_path):
    (tmp_path / "x.json").write_text('{"a": "ü"}', encoding="utf-8")
    (tmp_path / "y.json").symlink_to("x.json")
    assert seal.load(tmp_path / "x.json") == seal.load(tmp_path / "y.json") == {"a": "ü"}
