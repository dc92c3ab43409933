"""What a policy would have seen in a recording: the right frames, evenly, or words why not."""

import numpy as np
import pytest
import torch

pytest.importorskip("rosbags", reason="messages are rosbags' (extra ros)")
pytest.importorskip("mcap", reason="bags are written by mcap (extra ros)")

from fastloop.deploy.bags.writing import BagWriter
from fastloop.deploy.config import DeployConfig, InputConfig
from fastloop.deploy.messages import Messages
from fastloop.deploy.recorded import recorded_history
from fastloop.deploy.transport.base import Sample
from fastloop.policies.spec import ActionSpec, PolicySpec, TensorSpec

JOINTS = "sensor_msgs/msg/JointState"
KEY = "observation.state"
CONFIG = DeployConfig(
    body="arm", joints=["a"], state=InputConfig("/joints", JOINTS, 0.3), inputs={KEY: InputConfig()}
)


class Arm:
    """A policy that looks back two ticks."""

    spec = PolicySpec(
        {KEY: TensorSpec((1,))}, ActionSpec(1, "joint_position", (-9.0,), (9.0,)),
        n_obs_steps=3, horizon=8, n_action_steps=2, control_hz=10.0,
    )  # fmt: skip


def record(path, seconds, *, silent=(0.0, 0.0)):
    """A joint at 50 Hz whose place is the time."""
    messages = Messages()
    with BagWriter(path, messages) as bag:
        for t in np.arange(0, seconds, 0.02):
            if silent[0] <= t < silent[1]:
                continue
            stamp = 10**18 + round(t * 1e9)
            joint = messages.type(JOINTS)(
                messages.header(stamp, ""), ["a"], np.array([t]), np.zeros(1), np.zeros(1)
            )
            bag.write(Sample("/joints", JOINTS, messages.encode(joint), stamp, stamp))
    return path


def places(history):
    """(M, O) what was seen, oldest first."""
    rows = [[float(frame.values[KEY]) for frame in row] for row in history.frames]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("seconds", "count"), [(10.0, 8), (61.0, 5), (0.9, 8)])
def test_ticks_are_a_period_apart_and_moments_lie_evenly(tmp_path, seconds, count):
    bag = record(tmp_path / "joints.mcap", seconds)
    seen = places(recorded_history(CONFIG, Arm(), Messages(), bag, count))
    assert seen.shape == (count, 3)
    later = seen[seen[:, -1] > 0.35]  # the first ones repeat the first frame
    assert torch.allclose(later.diff(dim=1), torch.tensor(0.1).double(), atol=0.021)
    apart = seen[:, -1].diff()
    assert apart.min() > 0
    assert apart.max() <= 2.5 * apart.min()
    assert seen[-1, -1] > 0.5 * seconds


def test_a_gap_is_nothing_to_calibrate_on(tmp_path):
    bag = record(tmp_path / "joints.mcap", 8.0, silent=(2.0, 6.0))
    seen = places(recorded_history(CONFIG, Arm(), Messages(), bag, 16))[:, -1]
    assert ((seen < 2.4) | (seen > 5.9)).all()
    assert (seen > 6).any()


def test_too_short_a_recording_is_refused(tmp_path):
    bag = record(tmp_path / "joints.mcap", 0.5)
    with pytest.raises(ValueError, match=r"joints.mcap has . moments to look at, 8 are wanted"):
        recorded_history(CONFIG, Arm(), Messages(), bag, 8)


def test_a_recording_without_the_topics_is_refused(tmp_path):
    bag = record(tmp_path / "joints.mcap", 0.5)
    elsewhere = DeployConfig(state=InputConfig("/odometry", "nav_msgs/msg/Odometry"))
    with pytest.raises(ValueError, match="no message on /odometry; it holds /joints"):
        recorded_history(elsewhere, Arm(), Messages(), bag, 8)
