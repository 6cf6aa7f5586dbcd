"""What a layer is compiled for is asked once, whatever mesh is set, and reaches every method."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from m4.moe.engine import ragged
from m4.moe.engine.dispatch import Target, current_target, target_of


class Device:
    """What a layer asks a device for."""

    def __init__(self, platform):
        self.platform, self.device_kind = platform, "any"


@pytest.fixture
def tpu(monkeypatch):
    """A TPU whose compiler is this host's, and how often it was asked."""
    asked, pays = [], ragged.pays

    def ask(device):
        asked.append(device)
        return pays(jax.devices()[0])

    monkeypatch.setattr(ragged, "pays", ask)
    target_of.cache_clear()
    yield Device("tpu"), asked
    target_of.cache_clear()


def eight():
    devices = np.array(jax.devices()[:8]).reshape(2, 4)
    return jax.set_mesh(Mesh(devices, ("data", "expert"), axis_types=(AxisType.Auto,) * 2))


def test_the_question_itself_cannot_be_asked_with_a_mesh_of_several_devices():
    with eight(), pytest.raises(ValueError, match="incompatible devices"):
        ragged.pays(jax.devices()[0])


def test_it_is_asked_apart_from_the_mesh_once_and_inside_a_trace(tpu):
    device, asked = tpu
    with eight():
        assert target_of(device) == target_of(device) == Target("tpu", False)
        assert len(asked) == 1
        target_of.cache_clear()
        jax.eval_shape(lambda x: x * target_of(device).grouped, 1.0)
    assert len(asked) == 2


def test_no_other_platform_is_asked(monkeypatch):
    monkeypatch.setattr(ragged, "pays", None)
    assert target_of(Device("gpu")) == Target("gpu", False)
    assert current_target() == Target("cpu", False)
    with eight():
        assert current_target() == Target("cpu", False)
