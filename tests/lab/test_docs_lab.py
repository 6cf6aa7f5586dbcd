"""The study on the page of the lab can be run; its arms are shown by `--plan`."""

import re
from pathlib import Path

from m4.lab import study
from m4.lab.__main__ import main

PAGE = (Path(__file__).parents[2] / "docs/lab.md").read_text()


def test_the_page_s_study(tmp_path, capsys):
    (text,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    path = tmp_path / "lab_small.py"
    path.write_text(text)
    assert main([f"--config={path}", "--plan"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"linear .*num_experts': 4.* 64 ", printed)


def test_shipped_studies_are_valid():
    for variant in ("", ":tiny", ":one", ":laptop", ":ladder", ":physionet2012"):
        asked = study.load(f"configs/lab_gates.py{variant}")
        arms, left = study.arms(asked)
        assert len(arms) >= 3, variant
        assert ("dense_mean (num_experts=16384)" in left) == (variant == ":ladder")
