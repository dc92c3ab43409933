"""MetaDrive's expert: what its network computes, and files that are not its weights."""

import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastloop.extras import MissingExtraError
from fastloop.policies.base import Policy
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.driving import metadrive_expert
from fastloop.policies.driving.metadrive_expert import SPEC, VIEW, VIEW_SPEC, MetaDriveExpert
from fastloop.policies.driving.planners import describe_planner, is_planner
from fastloop.policies.load import load_policy
from fastloop.policies.session import Session
from fastloop.policies.spec import ActionSpec, EnvSpec, SpecMismatchError, TensorSpec

ROAD = EnvSpec("Road", {VIEW: VIEW_SPEC}, SPEC.action, control_hz=10.0, max_steps=9)
LAYERS = {"fc_1": (275, 256), "fc_2": (256, 256), "fc_out": (256, 4)}


def drawn(seed=0):
    """Weights as the file has them, float32, kernels (inputs, outputs)."""
    rng = np.random.default_rng(seed)
    return {
        f"default_policy/{layer}/{kind}": rng.normal(0, shape[0] ** -0.5, shape[axis:]).astype("f4")
        for layer, shape in LAYERS.items()
        for kind, axis in (("kernel", 0), ("bias", 1))
    }


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "expert_weights.npz"
    np.savez(path, **drawn())
    return path


def reference(views, weights):
    """As MetaDrive's numpy_expert, in float64."""
    views = views.astype(np.float64)
    views[:, 15], views[:, 10] = 1 - views[:, 15], 1 - views[:, 10]
    layer = {k.removeprefix("default_policy/"): v.astype(np.float64) for k, v in weights.items()}
    hidden = np.tanh(views @ layer["fc_1/kernel"] + layer["fc_1/bias"])
    hidden = np.tanh(hidden @ layer["fc_2/kernel"] + layer["fc_2/bias"])
    return np.split(hidden @ layer["fc_out/kernel"] + layer["fc_out/bias"], 2, axis=1)[0]


def test_it_computes_what_metadrive_computes(weights):
    expert = MetaDriveExpert.load(weights)
    views = np.random.default_rng(1).random((7, 275), dtype=np.float32)
    kept = torch.from_numpy(views.copy())
    means = expert(kept)
    np.testing.assert_allclose(means, reference(views, drawn()), atol=1e-12)
    np.testing.assert_array_equal(kept, views)
    assert describe_planner(weights)["parameters"] == sum(w.size for w in drawn().values())


def test_actions_are_the_mean_within_bounds(weights):
    policy = load_policy(weights, env=ROAD)
    assert isinstance(policy, Policy)
    assert policy.digest
    views = 30 * np.random.default_rng(2).normal(size=(16, 275)).astype("f4")
    actions = Session(policy, num_envs=16).select_action({VIEW: views})
    expected = np.clip(reference(views, drawn()), -1, 1)
    assert (np.abs(expected) == 1).any()
    assert (np.abs(expected) < 1).any()
    np.testing.assert_array_equal(actions.numpy(), expected.astype("f4"))
    again = Session(policy, num_envs=1, seed=5).select_action({VIEW: views[:1]})
    np.testing.assert_array_equal(again, actions[:1])


@pytest.mark.parametrize(
    "change",
    [
        {"action": ActionSpec(2, "waypoint", (-9.0,) * 2, (9.0,) * 2)},
        {"observations": {"observation.state": TensorSpec((2,))}},
    ],
)
def test_what_it_cannot_drive_is_told_what_to_say(weights, change):
    env = EnvSpec(**{**vars(ROAD), **change})
    with pytest.raises(SpecMismatchError, match=r"sim.control=steer_throttle.*own_observation"):
        load_policy(weights, env=env)


def test_without_metadrive_the_install_line_is_told(monkeypatch):
    nothing = SimpleNamespace(find_spec=lambda name: None)
    monkeypatch.setattr(metadrive_expert.importlib, "util", nothing)
    with pytest.raises(MissingExtraError, match=r'install -c constraints.txt -e "\.\[driving\]"'):
        load_policy("metadrive_expert", env=ROAD)


def changed(**changes):
    weights = {
        **drawn(),
        **{f"default_policy/{k.replace('.', '/')}": v for k, v in changes.items()},
    }
    return {key: value for key, value in weights.items() if value is not None}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (changed(**{"fc_2.bias": None}), "it holds"),
        (changed(**{"fc_9.bias": np.zeros(3)}), "fc_9"),
        (changed(**{"fc_1.kernel": np.zeros((256, 275))}), r"\(256, 275\)"),
        (changed(**{"fc_2.bias": np.full(256, np.nan)}), "not finite"),
        (changed(**{"fc_2.bias": np.array(["a"] * 256)}), "could not convert"),
        (changed(**{"fc_2.bias": np.array([{}] * 256)}), "allow_pickle=False"),
        ({"zeros": np.zeros(3 << 20)}, "plenty"),
    ],
)
def test_other_weights_are_refused(tmp_path, arrays, message):
    path = tmp_path / "weights.npz"
    np.savez_compressed(path, **arrays)
    assert is_planner(path)
    with pytest.raises(CheckpointError, match=message):
        load_policy(path, env=ROAD)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"cos\nsystem\n(S'true'\ntR."])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "weights.npz"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not MetaDrive's expert_weights"):
        MetaDriveExpert.load(path)
    with pytest.raises(CheckpointError, match="is no file"):
        MetaDriveExpert.load(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("header", [b"(275, 256,", b"(99999,99)", b"(-75, 256)"])
def test_a_header_that_lies_is_refused(weights, tmp_path, header):
    lying = tmp_path / "lying.npz"
    with zipfile.ZipFile(weights) as honest, zipfile.ZipFile(lying, "w") as archive:
        for name in honest.namelist():
            archive.writestr(name, honest.read(name).replace(b"(275, 256)", header))
    with pytest.raises(CheckpointError, match="not MetaDrive's expert_weights"):
        MetaDriveExpert.load(lying)
