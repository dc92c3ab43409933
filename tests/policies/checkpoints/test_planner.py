"""A diffusion planner of driving scenes: through its folder and back, and accelerated."""

import dataclasses
import json
import math

import pytest
import torch

from fastloop.accel.apply import accelerate, remove
from fastloop.accel.config import AccelConfig
from fastloop.accel.samplers import SamplerConfig, build_sampler
from fastloop.policies.checkpoints import Checkpoint, CheckpointError, describe, load_checkpoint
from fastloop.policies.checkpoints.model import build_model
from fastloop.policies.checkpoints.native import save
from fastloop.policies.diffusion.model import ACTION, DiffusionModel
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.diffusion.scene import SceneConfig, SceneEncoder
from fastloop.policies.diffusion.transformer import TransformerForDiffusion
from fastloop.policies.spec import ActionSpec, TensorSpec

T, M = 6, 5
INPUTS = {
    "observation.ego_states": TensorSpec((4, 6)),
    "observation.intent": TensorSpec((), "int64", 0, 3),
    "observation.neighbors": TensorSpec((3, 10)),
    "observation.map": TensorSpec((4, 5, 6)),
    "observation.route": TensorSpec((6, 2)),
}
SCENE = SceneConfig(width=16, layers=1, heads=2, tokens=M, neighbors=2, polylines=3)
ARCH = {
    "input_dim": 2, "output_dim": 2, "horizon": T, "n_obs_steps": M, "cond_dim": 16, "n_layer": 2,
    "n_head": 2, "n_emb": 16, "causal_attn": False, "time_as_cond": True, "n_cond_layers": 0,
}  # fmt: skip
WAYPOINTS = ActionSpec(2, "waypoint", (-math.inf,) * 2, (math.inf,) * 2, ("x", "y"), "m")


@pytest.fixture
def checkpoint():
    torch.manual_seed(0)
    normalizer = LinearNormalizer()
    for key in INPUTS:
        normalizer.set_identity(key)
    normalizer.set_field(ACTION, torch.tensor([0.4, 0.8]), torch.tensor([-0.5, 0.1]))
    net = TransformerForDiffusion(**ARCH)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    encoder = SceneEncoder(INPUTS, 1, SCENE)
    model = DiffusionModel(net, normalizer, tuple(INPUTS), encoder, cumulative=True)
    return Checkpoint(
        kind="fastloop", network="transformer", arch=ARCH, sampler=SamplerConfig("ddpm", 10, 8),
        state_dict=model.state_dict(), inputs=INPUTS, action_dim=2, n_obs_steps=1, horizon=T,
        n_action_steps=2, scene=SCENE, cumulative=True, action=WAYPOINTS, control_hz=4.0,
        source="somewhere",
    )  # fmt: skip


@pytest.fixture
def policy(checkpoint):
    """In float64, un-accelerated."""
    plain = DiffusionPolicy(
        checkpoint.spec, build_model(checkpoint), build_sampler(checkpoint.sampler), digest="d1"
    )
    return plain.to(torch.float64)


def scenes(batch=3):
    random = torch.Generator().manual_seed(0)
    seen = {k: torch.randn(batch, 1, *s.shape, generator=random) for k, s in INPUTS.items()}
    seen["observation.intent"] = torch.tensor([[0], [2], [3]])
    seen["observation.neighbors"][..., 8:] = 1
    return {k: v.double() if v.is_floating_point() else v for k, v in seen.items()}


def test_comes_back_as_it_was(checkpoint, tmp_path):
    folder = save(tmp_path / "planner", checkpoint)
    loaded = load_checkpoint(folder)
    assert (loaded.scene, loaded.cumulative, loaded.spec) == (SCENE, True, checkpoint.spec)
    before, after = build_model(checkpoint).double(), build_model(loaded).double()
    assert after.cumulative
    assert torch.equal(before.condition(scenes()), after.condition(scenes()))
    told = describe(folder)
    assert told["scene"] == dataclasses.asdict(SCENE)
    assert told["cumulative"] is True


def test_folders_of_before_scenes_were_known_still_load(checkpoint, tmp_path):
    arch = ARCH | {"n_obs_steps": 1, "cond_dim": 6}
    torch.manual_seed(0)
    key = "observation.state"
    normalizer = LinearNormalizer({key: 6, ACTION: 2})
    model = DiffusionModel(TransformerForDiffusion(**arch), normalizer, [key])
    old = dataclasses.replace(
        checkpoint, arch=arch, state_dict=model.state_dict(), inputs={key: TensorSpec((6,))},
        scene=None, cumulative=False,
    )  # fmt: skip
    folder = save(tmp_path / "old", old)
    config = json.loads((folder / "config.json").read_text())
    assert (config.pop("scene"), config.pop("cumulative")) == (None, False)
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_checkpoint(folder)
    assert (loaded.scene, loaded.cumulative) == (None, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scene": dataclasses.replace(SCENE, tokens=4)}, "n_obs_steps is 4, its network's 5"),
        ({"arch": ARCH | {"causal_attn": True}}, "causal_attn is False, its network's True"),
        ({"scene": None}, "n_obs_steps is 1, its network's 5"),
    ],
)
def test_a_network_that_does_not_fit_the_scene_is_refused(checkpoint, changes, message):
    with pytest.raises(CheckpointError, match=message):
        dataclasses.replace(checkpoint, **changes)


@pytest.mark.parametrize(
    ("scene", "message"),
    [
        ({"layers": 2}, "the observation encoder and its weights differ"),
        ({"width": 24}, "the observation encoder and its weights differ"),
        ({"width": "16"}, "no observation encoder"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_configuration_of_another_scene_is_refused(checkpoint, tmp_path, scene, message):
    folder = save(tmp_path / "planner", checkpoint)
    config = json.loads((folder / "config.json").read_text())
    config["scene"] |= scene
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_plans_are_the_same_with_nothing_computed_twice(policy):
    cond = policy.model.condition(scenes())
    assert cond.shape == (3, M, 16)
    random = torch.Generator().manual_seed(1)
    shape = (policy.sampler.num_noises, 3, T, 2)
    noise = torch.randn(shape, generator=random, dtype=torch.float64)
    with torch.inference_mode():
        plain, _ = policy.loop(noise, cond)
        fast, report = accelerate(policy, AccelConfig("exact")).loop(noise, cond)
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)
    assert (plain[0] - plain[1]).abs().max() > 1e-3, "the scene decides"
    assert not report.reused


def test_block_caches_run(policy):
    cond = policy.model.condition(scenes())
    random = torch.Generator().manual_seed(1)
    shape = (policy.sampler.num_noises, 3, T, 2)
    noise = torch.randn(shape, generator=random, dtype=torch.float64)
    bac = accelerate(policy, AccelConfig("bac", budget=4, union=1), observations=(noise, cond))
    with torch.inference_mode():
        plain, _ = remove(bac).loop(noise, cond)
        sample, report = bac.loop(noise, cond)
    assert report.reused
    assert 0 < (sample - plain).abs().max() < 1
