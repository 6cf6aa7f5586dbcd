"""The study on the page of the lab can be run; its arms are shown by `--plan`."""

import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    "variant", ["tiny", "one", "physionet2012", pytest.param("ladder", marks=pytest.mark.slow)]
)
def test_shipped_studies_are_valid(variant):
    arms, left = study.arms(study.load(f"configs/lab_gates.py:{variant}"))
    assert len(arms) >= 3 and len({arm.key for arm in arms}) == len(arms)
    assert ("dense_mean (num_experts=16384)" in left) == (variant == "ladder")
