"""From a checkpoint to a policy, and what is refused on the way."""

import dataclasses

import pytest
import torch

from fastloop.accel.apply import remove
from fastloop.accel.samplers import DDIM, SamplerConfig
from fastloop.policies.base import Policy
from fastloop.policies.checkpoints import Checkpoint, CheckpointError, native
from fastloop.policies.driving.planners import PLANNERS
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.load import WEIGHTS, find_checkpoint, load_policy, make_policy
from fastloop.policies.rng import Rng
from fastloop.policies.spec import ActionSpec, EnvSpec, SpecMismatchError, TensorSpec

ARCH = {
    "input_dim": 2, "output_dim": 2, "horizon": 8, "n_obs_steps": 2, "cond_dim": 7, "n_layer": 2,
    "n_head": 2, "n_emb": 16, "causal_attn": True, "time_as_cond": True, "n_cond_layers": 0,
}  # fmt: skip


@pytest.fixture
def policy(diffusion_policy):
    return diffusion_policy()


@pytest.fixture
def checkpoint(policy):
    """The debug policy as it would be read from a file, saying what its actions mean."""
    return Checkpoint(
        kind="fastloop", network="transformer", arch=ARCH, sampler=SamplerConfig("ddpm", 10, 5),
        state_dict=policy.model.state_dict(), inputs=policy.spec.inputs, action_dim=2,
        n_obs_steps=2, horizon=8, n_action_steps=3, action=policy.spec.action, control_hz=10.0,
        source="somewhere", digest="d1",
    )  # fmt: skip


def env(dim=2, hz=20.0):
    action = ActionSpec(dim, "delta_position", (-1.0,) * dim, (1.0,) * dim)
    return EnvSpec("Table", {}, action, control_hz=hz, max_steps=10)


def plan(policy, observe):
    history = EpisodeHistory(2)
    history.observe(observe(policy, 0))
    return policy.plan(History.stack([history], [1, 0]), rng=Rng.for_envs(0, [0], [0])).actions


def test_a_saved_policy_plans_as_before(policy, checkpoint, observe, tmp_path):
    native.save(tmp_path / "mine", checkpoint)
    loaded = load_policy(tmp_path / "mine")
    assert loaded.spec == policy.spec
    assert torch.equal(plan(remove(loaded), observe), plan(policy, observe))


def test_a_loaded_policy_computes_nothing_twice(policy, checkpoint, observe, tmp_path, monkeypatch):
    loaded = make_policy(checkpoint)
    torch.testing.assert_close(plan(loaded, observe), plan(policy, observe))
    assert (loaded.loop.fast.report().name, loaded.loop.fast.report().exact) == ("exact", True)
    monkeypatch.setenv("FASTLOOP_ACCEL", "off")
    assert torch.equal(plan(make_policy(checkpoint), observe), plan(policy, observe))


def test_the_sampler_and_the_action_steps_can_be_replaced(checkpoint, observe):
    made = make_policy(
        checkpoint, sampler={"kind": "ddim", "num_inference_steps": 3}, n_action_steps=5
    )
    assert isinstance(made.sampler, DDIM)
    assert len(made.sampler.timesteps) == 3
    assert made.spec.n_action_steps == 5
    assert made.digest == "d1"
    assert plan(made, observe).shape == (1, 7, 2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"sampler": {"steps": 3}},
            ValueError,
            r"unknown sampler fields \['steps'\]; have .*'kind'",
        ),
        ({"sampler": {"kind": "euler"}}, ValueError, "choose one of ddpm"),
        ({"sampler": {"num_inference_steps": 11}}, ValueError, "trained on 10 steps"),
        ({"n_action_steps": 8}, CheckpointError, "within the horizon"),
        ({"n_action_steps": 0}, CheckpointError, "positive"),
        ({"device": "tpu"}, ValueError, "device 'tpu'"),
    ],
)
def test_a_replacement_that_cannot_be_is_refused(checkpoint, changes, error, message):
    with pytest.raises(error, match=message):
        make_policy(checkpoint, **changes)


def test_a_file_that_says_what_its_actions_mean_is_believed(checkpoint):
    made = make_policy(checkpoint, env=env())
    assert made.spec.action.kind == "absolute_position"
    assert made.spec.control_hz == 10.0


def test_a_file_that_does_not_is_told_by_the_environment(checkpoint):
    silent = dataclasses.replace(checkpoint, action=None, control_hz=None)
    made = make_policy(silent, env=env())
    assert made.spec.action.kind == "delta_position"
    assert made.spec.control_hz == 20.0
    with pytest.raises(CheckpointError, match="what they mean"):
        make_policy(silent)
    with pytest.raises(SpecMismatchError, match="plans 2 elements, Table takes 3"):
        make_policy(silent, env=env(dim=3))
    rate_only = dataclasses.replace(checkpoint, control_hz=None)
    made = make_policy(rate_only, env=env())
    assert (made.spec.action.kind, made.spec.control_hz) == ("absolute_position", 20.0)


def test_a_checkpoint_that_is_not_there_lists_the_shipped_ones():
    shipped = sorted(folder.name for folder in WEIGHTS.glob("*") if folder.is_dir())
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint("dp_nothing")
    names = f"shipped: {', '.join(shipped) or 'none'}; planners: {', '.join(PLANNERS)}"
    assert str(caught.value).endswith(names)
    for name in shipped:
        assert find_checkpoint(name) == WEIGHTS / name


def test_a_path_comes_before_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dp_pusht").mkdir()
    assert not find_checkpoint("dp_pusht").is_absolute()


def test_planners_have_names(tmp_path, monkeypatch):
    waypoint = ActionSpec(2, "waypoint", (-100.0,) * 2, (100.0,) * 2)
    shown = {
        "observation.ego_states": TensorSpec((5, 6)),
        "observation.route": TensorSpec((30, 2)),
        "observation.neighbors": TensorSpec((8, 10)),
    }
    drives = EnvSpec("Drives", shown, waypoint, control_hz=2.0, max_steps=1, horizon=6)
    for name in set(PLANNERS) - {"metadrive_expert"}:
        planner = load_policy(name, env=drives, n_action_steps=3)
        assert isinstance(planner, Policy)
        assert (planner.spec.horizon, planner.spec.n_action_steps) == (6, 3)
    with pytest.raises(ValueError, match=r"constant_velocity plans .* give env="):
        load_policy("constant_velocity")
    with pytest.raises(ValueError, match="is a planner and has no sampler"):
        load_policy("constant_velocity", env=drives, sampler={"kind": "ddim"})
    with pytest.raises(SpecMismatchError, match="Table takes 2 elements of kind delta_position"):
        load_policy("constant_velocity", env=env())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stand_still").mkdir()
    with pytest.raises(CheckpointError, match="stand_still holds nothing"):
        load_policy("stand_still", env=drives)
