"""What names no local path is refused in one line, wherever a path can be given."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from m4 import config as configs
from m4 import local, main
from m4.bench import aot
from m4.data import __main__ as data_command
from m4.errors import ConfigError
from m4.interop import __main__ as interop_command
from tests.test_config import TOY

ROOT = Path(__file__).parents[1]
REMOTE = ("gs://b/x", "gs:/b/x", "s3://b/x", "file:///b", "hdfs:/x", "C:\\x", "C:/x", " gs://b")


@pytest.mark.parametrize("text", REMOTE)
def test_schemes_are_seen(text):
    assert local.problem(text)
    with pytest.raises(ConfigError, match="must be a local path, not"):
        local.folder(text, "--workdir")


@pytest.mark.parametrize("text", ["runs/x", "/a:b/c", "./gs:/x", "a:b", "~/x", "..", "", "x=gs"])
def test_names_of_this_machine_pass(text):
    assert local.problem(text) is None


@pytest.mark.parametrize(
    "flag",
    [
        *("--workdir", "--config.data.dir", "--config.data.raw_dir", "--config.train.from"),
        *("--config.text.file", "--config.image.file", "--on"),
    ],
)
@pytest.mark.parametrize("text", ["gs://b/x", "s3:/b"])
def test_the_command_refuses_in_one_line_and_makes_nothing(
    flag, text, tmp_path, monkeypatch, capsys
):
    if (flag, text) == ("--workdir", "gs://b/x"):
        text = "s3://b/x"  # gs:// is for work directories
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    others = ["--workdir=w"] if flag != "--workdir" else []
    assert main.main(["--config=toy.py", *others, f"{flag}={text}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    name = flag.removeprefix("--config.")
    assert (
        len(lines) == 1
        and name in lines[0]
        and "data.options.more: no" in lines[0]
        or (f"{text}" in lines[0] and "must be a local path" in lines[0])
    )
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py"] == []


@pytest.mark.parametrize("name", local.VARIABLES)
def test_variables_are_refused(name, monkeypatch, capsys):
    monkeypatch.setenv(name, "gs://bucket/x")
    assert main.main(["--config=configs/m3h_mimic.py:tiny", "--workdir=w", "--mode=check"]) == 2
    assert f"{name}=gs://bucket/x: must be a local path" in capsys.readouterr().err


def test_the_other_commands_refuse(capsys):
    assert data_command.main(["describe", "s3://b/x"]) == 2
    assert data_command.main(["download", "physionet2012", "gs:/b"]) == 2
    job = ["--method=flexmoe", "--config=configs/flexmoe_mimic.py:tiny"]
    assert interop_command.main(["import", *job, "--torch=gs://b/x.pt", "--out=w"]) == 2
    assert interop_command.main(["import", *job, "--torch=x.pt", "--out=gs://b"]) == 2
    err = capsys.readouterr().err
    assert all(f"{name}=" in err for name in ("FOLDER", "RAW_DIR", "--torch", "--out"))
    assert err.count("must be a local path") == err.count("\n") == 4
    with pytest.raises(ConfigError, match="--json=gs://b"):
        aot.main(["--json=gs://b"])


@pytest.mark.parametrize("command", [["render.py", "slurm"], ["local.py"]])
def test_launchers_refuse_before_anything_starts(command):
    args = [sys.executable, str(ROOT / "launch" / command[0]), *command[1:], "--", "--config=c.py"]
    done = subprocess.run(
        [*args, "--workdir=gs:/b/x"], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("m4: config error: --workdir=gs:/b/x: must be a local path")


def test_nested_values_are_seen():
    values = {"data": {"options": {"files": ("a", {"b": "gs://b"})}}}
    with pytest.raises(ConfigError, match="must be a local path"):
        configs.check(values | {"method": {"name": "m3h"}}, {}, "a test")


def test_a_name_of_others_stays_below_its_folder(tmp_path):
    long = "z" * 300
    for text in ("", ".", "..", "/", "/etc/x", "../x", "a/../../x", "a/..", "a\0b", "a\\b", long):
        assert local.below(tmp_path, text) is None and not local.is_name(text)
    assert local.below(tmp_path, "z/" * 3000 + "z") is None
    assert local.below(tmp_path, "./a//b.png") == tmp_path / "a/b.png"
    assert local.is_name("é" * 100) and not local.is_name("é" * 200)
    assert not local.is_name("a/b") and local.is_name("...") and local.is_name(".a")
