"""The guide in docs/data.md: its definitions are read, its commands run."""

import gzip
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from m4 import config as configs
from m4.data.__main__ import main
from m4.data.sets import meds, tables
from m4.run import preflight
from tests.data import meds_folder as mf

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/data.md").read_text().partition("## Bring your own MEDS data")[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE, re.DOTALL)
TOML = [text for kind, text in BLOCKS if kind == "toml"]
COMMANDS = "".join(text for kind, text in BLOCKS if kind == "sh").replace("\\\n", " ")


def examples(cohort):
    return [e for start in cohort.splits.values() for e in start()]


@pytest.fixture
def ward(tmp_path, monkeypatch):
    """The guide's MEDS folder, raw/ward, and ward.toml in the working directory."""
    place = tmp_path / "raw"
    place.mkdir()
    mf.write(place, mf.cohort_tables(60))
    (place / "hospital").rename(place / "ward")
    (tmp_path / "ward.toml").write_text(TOML[0])
    monkeypatch.chdir(tmp_path)
    return place


def test_the_meds_definition_reads_a_meds_folder(ward):
    found = examples(meds.cohort(ward, seed=0, file="ward.toml"))
    assert len(found) == 90
    seen = {name for e in found for name in e["inputs"]}
    assert seen == {"vitals", "static", "drugs", "notes"}
    (one,) = [e for e in found if e["key"][0] == 2]
    age, sex = one["inputs"]["static"]["values"]
    assert age == pytest.approx(22, abs=0.01) and sex == 0


def test_the_commands_are_valid(ward, capsys, monkeypatch):
    monkeypatch.setenv("M4_RAW_DIR", str(ward))
    lines = [shlex.split(line, comments=True) for line in COMMANDS.splitlines()]
    drafting, training, describing, asking = [line for line in lines if line][:4]
    assert drafting[:4] == ["python", "-m", "m4.data", "draft"] and drafting[-2] == ">"
    assert main(drafting[3:5]) == 0
    Path(drafting[-1]).write_text(capsys.readouterr().out)
    assert meds.spec(file=drafting[-1]).task_names == ("death",)
    assert training[:3] == ["python", "-m", "m4.main"]
    flags = configs.parse([a.replace("=configs", f"={ROOT}/configs") for a in training[3:]])
    config = configs.load(flags)
    preflight.require(config, flags.config)
    assert flags.mode == "crossval" and config.data.options.file == "ward.toml"
    assert describing == ["python", "-m", "m4.data", "describe", "data/meds"]
    assert configs.parse(asking[3:]).mode == "predict"  # it is run by tests/modes/test_new.py


def test_the_tables_definition_reads_tables(tmp_path):
    rng = np.random.default_rng(0)
    place = tmp_path / "study"
    place.mkdir()
    rows = [f"{p},2100-01-01 {h:02}:00,{i},{rng.random():.2f}" for p in range(40)
            for h in range(0, 20, 4) for i in ("creatinine", "urea")]  # fmt: skip
    (place / "measurements.csv.gz").write_bytes(
        gzip.compress("\n".join(["patient,charted,item,result", *rows]).encode())
    )
    rows = [f"{p},{40 + p},{('medical', 'surgical', 'other')[p % 3]}" for p in range(40)]
    (place / "patients.csv").write_text("\n".join(["patient,age,unit", *rows]) + "\n")
    rows = [f"{p},2100-01-01 12:00,{p % 2}" for p in range(40)]
    (place / "outcomes.csv").write_text("\n".join(["patient,asked_at,aki_48h", *rows]) + "\n")
    (tmp_path / "study.toml").write_text(TOML[1])
    found = examples(tables.cohort(tmp_path, seed=0, file=str(tmp_path / "study.toml")))
    assert len(found) == 40
    (one,) = [e for e in found if e["key"][0] == 5]
    np.testing.assert_array_equal(one["inputs"]["labs"]["times"], [12, 16, 20, 24])
    np.testing.assert_array_equal(one["inputs"]["baseline"]["values"][:1], [45])
    assert np.isnan(one["inputs"]["baseline"]["values"][1:]).all()  # 'other' is neither
    assert one["targets"]["aki"] == [1.0]
