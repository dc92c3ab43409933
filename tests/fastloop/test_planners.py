"""What verbs say of planners, which have no denoising loop."""

import json
from types import SimpleNamespace

import pytest
import torch

from fastloop import cli
from fastloop.accel.config import AccelConfig
from fastloop.arms import make_arms, policy_digest
from fastloop.config import EvalConfig, PolicyConfig, SamplerOverrides
from fastloop.policies.driving.ad_mlp import ADMLP
from fastloop.policies.driving.planners import PLANNERS
from fastloop.policies.spec import ActionSpec, EnvSpec, TensorSpec
from fastloop.setup import Setup, load
from fastloop.verbs.eval import _chunking


@pytest.mark.parametrize("name", sorted(set(PLANNERS) - {"metadrive_expert"}))
def test_info_of_a_baseline(name, tmp_path, capfd):
    assert cli.main(["info", f"ckpt={name}", f"run_dir={tmp_path / 'run'}"]) == 0
    assert "planner" in capfd.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"]["parameters"]["value"] == 0


def test_info_of_ad_mlp(tmp_path, capfd):
    path = tmp_path / "mlp.pth"
    torch.save(ADMLP().state_dict(), path)
    command = ["info", f"ckpt={path}", f"run_dir={tmp_path / 'run'}"]
    assert cli.main([*command, "keys=true"]) == 0
    out = capfd.readouterr().out
    assert "AD-MLP" in out
    assert "observation.intent" in out
    assert "plan_head.0.weight [512, 21]" in out
    assert cli.main([*command, f"convert={tmp_path / 'out'}"]) == 2
    assert "only checkpoints of policies are converted" in capfd.readouterr().err


def setup_of(policy):
    return Setup(None, None, policy, None)


def test_plans_of_different_moments_are_not_averaged():
    policy = SimpleNamespace(spec=SimpleNamespace(action=ActionSpec(1, "plan", (0.0,), (1.0,))))
    with pytest.raises(ValueError, match="different frames"):
        _chunking("ensemble", policy)


def test_there_is_nothing_to_accelerate(tmp_path):
    env = EnvSpec(
        "road", {"observation.ego_states": TensorSpec((2, 6))},
        ActionSpec(2, "waypoint", (-9.0, -9.0), (9.0, 9.0)), 4.0, 1, horizon=4,
    )  # fmt: skip
    policy = load(PolicyConfig("constant_velocity"), env, SamplerOverrides())
    with pytest.raises(ValueError, match=r"no denoising loop, so there is nothing to accelerate"):
        make_arms(EvalConfig(accel=AccelConfig("bac")), setup_of(policy), tmp_path)
    plain = EvalConfig(PolicyConfig("constant_velocity"), AccelConfig("none"))
    assert make_arms(plain, setup_of(policy), tmp_path) == {"constant_velocity": policy}
    assert policy_digest(policy) == "constant_velocity"
