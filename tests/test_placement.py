"""Sizes of a mesh's axes on the devices at hand, their places, slices; idle ones are told."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from m4 import config as configs
from m4 import placement, sharding
from m4.errors import ConfigError
from m4.run import devices
from tests.test_config import TOY

ROOT = Path(__file__).parents[1]


def write(folder, rows=16):
    """A configuration of the toy with batches of `rows`, evaluated in batches of 16."""
    path = folder / "toy.py"
    path.write_text(TOY.replace("batch_size=16, select", f"batch_size={rows}, select"))
    return path


def asked(**axes):
    return dict.fromkeys(sharding.AXES, 1) | axes


@pytest.mark.parametrize(
    ("axes", "found"),
    [
        ({"data": -1}, (8, 1, 1, 1)),
        ({"data": -1, "expert": 4}, (2, 1, 4, 1)),
        ({"data": 2, "fsdp": -1}, (2, 4, 1, 1)),
        ({"data": -1, "fsdp": -1}, (1, 8, 1, 1)),  # the default of data gives way
        ({"data": -1, "expert": -1, "tensor": 2}, (1, 1, 4, 2)),
        ({"expert": 3, "tensor": -1}, (1, 1, 3, 2)),  # two stay idle
        ({"data": 2}, (2, 1, 1, 1)),
    ],
)
def test_minus_one_is_the_rest(axes, found):
    assert tuple(placement.sizes(asked(**axes), 8).values()) == found


def test_the_rest_is_as_large_as_it_fits():
    sizes = placement.sizes(asked(data=-1), 8, fits=lambda sizes: 12 % sizes["data"] == 0)
    assert sizes["data"] == 6


def test_two_rests_and_too_few_devices_are_refused():
    with pytest.raises(ConfigError, match="mesh.fsdp=-1 and mesh.expert=-1: only one"):
        placement.sizes(asked(fsdp=-1, expert=-1), 8)
    with pytest.raises(
        ConfigError, match=r"data=1\*fsdp=16.*needs 16 devices, found 8; on a CPU XLA_FLAGS"
    ):
        placement.sizes(asked(data=1, fsdp=16), 8)


def numbers(grid):
    return np.vectorize(lambda device: device.id, otypes=[int])(grid)


def test_one_axis_lies_across_slices():
    here = jax.devices()
    grid = placement.grid(asked(data=4, expert=2), here, slices=2)
    ids = numbers(grid)[:, 0, :, 0]
    assert {*ids[:2].flat} == {0, 1, 2, 3} and {*ids[2:].flat} == {4, 5, 6, 7}
    grid = placement.grid(asked(data=2, expert=4), here, slices=2, across="expert")
    ids = numbers(grid)[:, 0, :, 0]
    assert {*ids[:, :2].flat} == {0, 1, 2, 3} and {*ids[:, 2:].flat} == {4, 5, 6, 7}
    with pytest.raises(ConfigError, match="mesh.data=1: lies across 2 slices.*multiple of 2"):
        placement.grid(asked(data=1, expert=8), here, slices=2)
    with pytest.raises(ConfigError, match="mesh.slices=3: the 8 devices are 1"):
        placement.grid(asked(data=8), here, slices=3)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What is asked of a device."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "a chip"


def test_slices_are_those_of_the_devices():
    chips = [Chip(i, i // 4, i // 8) for i in range(16)]
    grid = placement.grid(asked(data=2, fsdp=8), chips)
    slices = np.vectorize(lambda chip: chip.slice_index)(grid)
    assert (slices[0] == 0).all() and (slices[1] == 1).all()


def test_rows_of_a_process_stay_one_block():
    chips = [Chip(i, i // 4, 0) for i in range(8)]
    mixed = np.asarray([chips[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)], object).reshape(8, 1, 1, 1)
    kept = placement.in_blocks(mixed, chips)
    assert [chip.id for chip in kept.flat] == [*range(8)]
    by_tensor = mixed.reshape(4, 1, 1, 2)  # every row's devices are of both processes
    kept = placement.in_blocks(by_tensor, chips)
    assert [chip.id for chip in kept.flat] == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize(
    ("rows", "axes", "size", "says"),
    [
        (16, ("data=-1",), 8, None),
        (12, ("data=-1",), 4, "warning  4 of 8 devices are idle: train.batch_size=12 and eval"),
        (16, ("data=2",), 2, "warning  6 of 8 devices are idle: the mesh is data=2"),
        (16, ("data=-1", "tensor=2"), 8, None),
    ],
)
def test_idle_devices_are_told(tmp_path, capsys, rows, axes, size, says):
    path = write(tmp_path, rows=rows)
    flags = [f"--config={path}", *(f"--config.mesh.{axis}" for axis in axes)]
    mesh = devices.make_mesh(configs.load(configs.parse(flags)))
    assert mesh.size == size
    out = capsys.readouterr().out
    assert (says in out and out.count("\n") == 1) if says else out == ""


@pytest.mark.parametrize(
    ("axis", "says"),
    [
        ("fsdp=0", "mesh.fsdp=0: must be at least 1, or -1"),
        ("slices=0", "mesh.slices=0: must be at least 1, or -1"),
        ("data=-2", "mesh.data=-2: must be an integer at least -1"),
        ("across=experts", "did you mean expert"),
    ],
)
def test_axes_are_refused_in_words(tmp_path, axis, says):
    flags = [f"--config={write(tmp_path)}", f"--config.mesh.{axis}"]
    with pytest.raises(ConfigError, match=says):
        configs.load(configs.parse(flags))


REAL_DEFAULT = """
import sys
from m4 import config as configs
from m4.run import devices
flags = ["--config=configs/m3h_mimic.py:tiny"]
print(dict(devices.make_mesh(configs.load(configs.parse(flags))).shape))
"""


def test_the_default_takes_all_devices():
    flags = "--xla_force_host_platform_device_count=8"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", REAL_DEFAULT],
        cwd=ROOT, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "{'data': 8, 'fsdp': 1, 'expert': 1, 'tensor': 1}\n"
