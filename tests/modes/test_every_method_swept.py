"""`--mode=sweep --methods=all`: one command for the table of every method on one data set."""

import pytest

from m4 import config as configs
from m4.config import code
from m4.errors import ConfigError
from m4.modes import sweep

P12 = "configs/fusemoe_physionet2012.py"


OWN = {"train.select": "death/auroc", "data.options.file": "docs/example/ward.toml"}


def made(name, tmp_path, **more):
    """The configuration that a point of a sweep trains."""
    args = sweep.command(name, 3, tmp_path, {"train.steps": "700", **more})
    return configs.load(configs.parse(args[3:]))


def test_all_methods_on_one_data_set(tmp_path, capsys):
    points = sweep.asked(P12, "all")
    assert points == sweep.asked(None, "all") and len({*points}) == len(code.method_names())
    found = {name: made(name, tmp_path) for name in points}
    assert sorted(c.method.name for c in found.values()) == [*code.method_names()]
    assert {c.data.name for c in found.values()} == {"physionet2012"}
    assert {(c.seed, c.train.steps) for c in found.values()} == {(3, 700)}
    assert "configs/m3h_physionet2012.py" in points and f"{P12}@concat" in points
    assert capsys.readouterr().out.count("left out, fields for fusemoe that ") == 7


def test_some_methods_and_variants(tmp_path):
    assert sweep.asked(f"{P12}:tiny", "m4oe,mult") == [
        "configs/m4oe_physionet2012.py:tiny",
        f"{P12}:tiny@mult",
    ]
    assert sweep.asked("a.py,b.py", None) == ["a.py", "b.py"]
    assert sweep.asked("configs/support2.py", "flexmoe,m3h,concat") == [
        "configs/support2.py:flexmoe",
        "configs/m3h_support2.py",
        "configs/support2.py@concat",
    ]
    assert made("configs/own.py@concat", tmp_path, **OWN).method.name == "concat"
    with pytest.raises(ConfigError, match="--methods=conkat: must be one of .*did you mean concat"):
        sweep.asked(P12, "concat,conkat")
