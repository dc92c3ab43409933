"""AD-MLP: its file, its axes, and what its published weights read."""

import contextlib
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.policies.base import Policy
from fastloop.policies.checkpoints import CheckpointError, RefusedError
from fastloop.policies.driving.ad_mlp import ADMLP, ad_mlp_inputs
from fastloop.policies.load import load_policy
from fastloop.policies.session import Session
from fastloop.policies.spec import SpecMismatchError, check_specs


@pytest.fixture
def weights(tmp_path):
    """A file of the published layout, with weights of no meaning."""
    torch.manual_seed(0)
    path = tmp_path / "mlp.pth"
    torch.save(ADMLP().state_dict(), path)
    return path


def observation(speed=8.0, turn=0.0, intent=1, acceleration=0.0):
    """A vehicle on a circle (or straight on), at 2 Hz, in the present frame."""
    t = np.arange(-4, 1) / 2
    heading = turn * t
    distance = speed * t + acceleration * t**2 / 2
    where = distance[:, None] * np.stack([np.cos(heading / 2), np.sin(heading / 2)], -1)
    speeds = speed + acceleration * t
    velocity = speeds[:, None] * np.stack([np.cos(heading), np.sin(heading)], -1)
    states = np.concatenate([where, velocity, np.full((5, 1), acceleration), np.zeros((5, 1))], -1)
    return {
        "observation.ego_states": torch.tensor(states, dtype=torch.float32),
        "observation.ego_heading": torch.tensor(heading, dtype=torch.float32),
        "observation.intent": torch.tensor(intent),
    }


def plan(policy, *observations):
    session = Session(policy, num_envs=len(observations))
    for env, each in enumerate(observations):
        session.observe(env, each)
    return session.plan(range(len(observations))).actions


def inputs(**motion):
    return ad_mlp_inputs(*(value[None] for value in observation(**motion).values()))[0]


def test_the_file_becomes_a_policy(weights, short, long):
    policy = load_policy(weights)
    assert isinstance(policy, Policy)
    assert len(policy.digest) == 64
    check_specs(policy.spec, short)
    both = plan(policy, observation(), observation(speed=3.0))
    assert both.shape == (2, 6, 2)
    assert both.dtype == torch.float32
    torch.testing.assert_close(plan(policy, observation(speed=3.0))[0], both[1])
    with pytest.raises(SpecMismatchError, match=r"(?s)rate: .*horizon: policy plans 6.*judges 20"):
        check_specs(policy.spec, long)


def test_the_command_is_declared():
    assert "observation.intent" in ADMLP().spec.inputs


def test_the_inputs_in_their_order():
    """Straight on at 8 m/s: both speeds ahead (y of the lidar), straight, rows the newest first."""
    straight = [0, 1, 0]
    rows = [value for step in range(1, 5) for value in (0, -4.0 * step, 0)]
    expected = torch.tensor([0, 8, 0, *straight, 0, 8, 0, *rows])
    torch.testing.assert_close(inputs(), expected)
    for intent, command in enumerate((straight, straight, [1, 0, 0], [0, 0, 1], straight)):
        assert inputs(intent=intent)[3:6].tolist() == command


def test_left_is_minus_x():
    turning = inputs(turn=0.4)
    assert turning[9] < 0  # the circle to the left was left of here before, too
    assert turning[11] == pytest.approx(-0.2)  # the yaw of half a second ago
    assert turning[2] == turning[8] == pytest.approx(0.4)


def test_speeds_are_extrapolated_to_a_stop():
    braking = inputs(speed=4.0, acceleration=-3.0)
    assert braking[1] == 0.0  # 2 s on it stands
    assert braking[7] == pytest.approx(4.0 - 0.75 * 3.0)


def test_waypoints_are_in_the_vehicles_axes(weights):
    policy = ADMLP.load(weights)
    with torch.no_grad():
        policy.plan_head[4].weight.zero_()
        policy.plan_head[4].bias.copy_(torch.arange(21.0))
    # Poses (x right, y forward, yaw): 0 1 2 is now, 3 4 5 the first waypoint.
    assert plan(policy, observation())[0].tolist() == [[4 + 3 * k, -3.0 - 3 * k] for k in range(6)]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, "holds {}"),
        ([1.0], "holds list"),
        ({"plan_head.0.weight": torch.zeros(512, 21)}, "expected the state dict of AD-MLP"),
        ({"state_dict": ADMLP().state_dict()}, "'state_dict': 'OrderedDict'"),
        ({**ADMLP().state_dict(), "plan_head.0.bias": torch.zeros(4)}, r"only that one is known"),
        ({**ADMLP().state_dict(), "extra": torch.zeros(1)}, "only that one is known"),
        ({**ADMLP().state_dict(), "plan_head.4.bias": torch.full((21,), torch.nan)}, "not finite"),
    ],
)
def test_another_layout_is_refused(tmp_path, payload, message):
    path = tmp_path / "other.pth"
    torch.save(payload, path)
    with pytest.raises(CheckpointError, match=message):
        load_policy(path)


class Bomb:
    def __reduce__(self):
        return (print, ("ran",))


def test_nothing_in_the_file_is_run(tmp_path, capsys):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(RefusedError):
        load_policy(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="bare pickle"):
        load_policy(path)
    assert "ran" not in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="is no file"):
        load_policy(tmp_path / "nothing.pth")


@given(data=st.data())
def test_a_damaged_file_is_a_policy_or_a_checkpoint_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    torch.save(ADMLP().state_dict(), folder / "mlp.pth")
    content = bytearray((folder / "mlp.pth").read_bytes())
    head = len(content) if data.draw(st.booleans()) else 2000
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, head - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    (folder / "mlp.pth").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with contextlib.suppress(CheckpointError):
        ADMLP.load(folder / "mlp.pth")


def keyframes(root):
    """For every sample with two seconds before it and three after it, in a scene: x, y, yaw (12, 3)
    of LIDAR_TOP, 5 rows of past and now and 6 of future, in the present lidar axes."""
    table = {
        name: {row["token"]: row for row in json.loads((root / f"{name}.json").read_text())}
        for name in ("sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor", "scene")
    }

    def matrix(row):
        w, x, y, z = row["rotation"]
        out = np.eye(4)
        out[:3, 3] = row["translation"]
        out[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
        return out

    pose = {}
    for row in table["sample_data"].values():
        mount = table["calibrated_sensor"][row["calibrated_sensor_token"]]
        if table["sensor"][mount["sensor_token"]]["channel"] == "LIDAR_TOP":
            ego = table["ego_pose"][row["ego_pose_token"]]
            pose[row["sample_token"]] = matrix(ego) @ matrix(mount)
    windows = []
    for scene in table["scene"].values():
        chain = [scene["first_sample_token"]]
        while following := table["sample"][chain[-1]]["next"]:
            chain.append(following)
        for now in range(4, len(chain) - 6):
            to_now = np.linalg.inv(pose[chain[now]])
            seen = [to_now @ pose[token] for token in chain[now - 4 : now + 7]]
            windows.append([(m[0, 3], m[1, 3], np.arctan2(m[1, 0], m[0, 0])) for m in seen])
    return np.array(windows)


def average_up_to(error):
    """Mean L2 at 1, 2 and 3 s, as ST-P3 counts it."""
    return [error[:, : 2 * s].mean() for s in (1, 2, 3)]


@pytest.fixture(scope="module")
def published(realdata):
    return ADMLP.load(realdata / "driving_policies" / "admlp_nuscenes_mlp.pth")


@pytest.fixture(scope="module")
def drives(realdata, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drives")
    with tarfile.open(realdata / "nuscenes_mini_tables" / "nusc_mini_reconstructed.tar.gz") as file:
        file.extractall(folder, filter="data")
    (root,) = folder.rglob("v1.0-mini")
    windows = keyframes(root)
    assert len(windows) == 304
    return windows


def test_the_published_weights_drive_straight_on(published):
    """The layout is right: at a steady speed the waypoints are evenly spaced, to a few percent."""
    for speed in (4.0, 8.0, 12.0):
        expected = torch.stack([speed * torch.arange(1, 7) / 2, torch.zeros(6)], -1)
        torch.testing.assert_close(
            plan(published, observation(speed=speed))[0], expected, atol=0.6, rtol=0.03
        )


def test_published_figures_need_velocities_from_the_future(published, drives):
    """With recorded velocities of 2 s and 0.75 s after now it is as good as its paper says (0.20,
    0.26, 0.41 m); with the past alone it is no better than constant acceleration."""
    lateral = drives[:, -1, 0]
    intent = np.where(lateral >= 2, 3, np.where(lateral <= -2, 2, 1))
    rate = 2 * np.diff(drives, axis=1)  # row k: velocity a quarter second after keyframe k - 4
    past = drives[:, 3::-1].reshape(-1, 12)
    inputs = np.concatenate(
        [
            (rate[:, 7] + rate[:, 8]) / 2,
            np.eye(3)[np.array([1, 1, 0, 2])[intent]],
            rate[:, 5],
            past,
        ],
        -1,
    )
    poses = published(torch.tensor(inputs, dtype=torch.float32)).numpy()[:, 1:]
    leaked = average_up_to(np.linalg.norm(poses[..., :2] - drives[:, 5:, :2], axis=-1))
    assert all(ours < paper for ours, paper in zip(leaked, (0.20, 0.26, 0.41), strict=True))

    now = {"observation.intent": torch.tensor(intent)}
    velocity = np.concatenate([rate[:, :1], rate[:, :4]], 1)
    acceleration = np.zeros_like(velocity)
    acceleration[:, 2:] = 2 * np.diff(velocity[:, 1:], axis=1)
    states = np.concatenate([a[..., :2] for a in (drives[:, :5], velocity, acceleration)], -1)
    forward = states[..., [1, 0, 3, 2, 5, 4]] * [1, -1, 1, -1, 1, -1]
    now["observation.ego_states"] = torch.tensor(forward, dtype=torch.float32)
    now["observation.ego_heading"] = torch.tensor(drives[:, :5, 2], dtype=torch.float32)
    plans = Session(published, num_envs=304).predict_action_chunk(now).numpy()
    truth = np.stack([drives[:, 5:, 1], -drives[:, 5:, 0]], -1)
    causal = average_up_to(np.linalg.norm(plans - truth, axis=-1))
    assert causal == pytest.approx([0.2055, 0.4837, 0.9047], abs=2e-4)
