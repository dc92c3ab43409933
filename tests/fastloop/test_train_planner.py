"""A planner of driving scenes, from a file of drives to plans on a road."""

import json

import numpy as np
import pytest
import torch

from fastloop import cli, load_policy
from fastloop.datasets import robomimic
from fastloop.datasets.demonstration import Demonstration
from fastloop.policies.driving.whole_plans import WholePlans
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.rng import Rng
from fastloop.sims.toy_road import ToyRoad

NETWORK = [
    "network=planner", "network.arch.n_layer=1", "network.arch.n_head=2", "network.arch.n_emb=16",
    "network.scene.width=16", "network.scene.layers=1", "network.scene.heads=2",
    "network.scene.tokens=3", "network.scene.neighbors=4", "network.scene.polylines=5",
]  # fmt: skip
TRAIN = [
    "train", "sim=toy_road", "dataset=drives", *NETWORK, "train.steps=4", "train.batch_size=8",
    "pretrain.steps=3", "pretrain.batch_size=8", "sampler.prediction_type=sample",
    "sampler.num_train_timesteps=10", "sampler.num_inference_steps=10", "mirror=true", "threads=1",
]  # fmt: skip


def straight_on(path, speed):
    """Frames of three drives straight on, with the plan to go so many m/s."""
    sim = ToyRoad()
    plan = np.zeros(41, np.float32)
    plan[1::2] = speed / 4 * np.arange(1, 21)
    made = []
    for seed in range(3):
        frames = [sim.reset(seed=seed)[0], *(sim.step(plan)[0] for _ in range(4))]
        seen = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
        made.append(Demonstration(seen, np.tile(plan, (len(frames), 1))))
    return robomimic.write(path, made, env_args={"env_name": "ToyRoad"})


@pytest.fixture(scope="module")
def drives(tmp_path_factory):
    return straight_on(tmp_path_factory.mktemp("drives") / "drives.hdf5", 8.0)


def train(drives, folder, *overrides):
    return cli.main([*TRAIN, f"dataset.path={drives}", f"run_dir={folder}", *overrides])


@pytest.fixture(scope="module")
def trained(drives, tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "run"
    assert train(drives, folder) == 0
    return folder


def test_what_was_trained_plans_whole_plans(trained):
    sim = ToyRoad()
    policy = load_policy(trained / "policy", env=sim.env_spec)
    assert isinstance(policy, WholePlans)
    assert policy.spec.n_action_steps == 5, "half a second"
    episode = EpisodeHistory(1)
    episode.observe(sim.reset(seed=7)[0])
    plan = policy.plan(History.stack([episode], [0]), rng=Rng.for_envs(0, [0], [0])).actions
    assert plan.shape == (1, 51, 41)
    assert plan.isfinite().all()
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["encoder", "trainer"]


def test_steps_are_fitted_to_all_drives(trained):
    """All plans go on 2 m a step: the range of a step is one number, and the first is like any."""
    model = load_policy(trained / "policy", env=ToyRoad().env_spec).policy.model
    stats = model.normalizer.stats("action")
    assert stats["min"].tolist() == stats["max"].tolist() == [2.0, 0.0]


def test_the_pretrained_encoder_is_frozen(trained):
    first = torch.load(trained / "encoder.pt", weights_only=True)["ema"]["averaged"]
    last = torch.load(trained / "trainer.pt", weights_only=True)["model"]
    encoder = {k.removeprefix("encoder."): v for k, v in first.items() if k.startswith("encoder.")}
    assert len(encoder) > 10
    for name, value in encoder.items():
        assert torch.equal(last["obs_encoder." + name], value), name


def test_a_policy_is_trained_on(trained, tmp_path):
    faster = straight_on(tmp_path / "faster.hdf5", 12.0)
    hardly = ["pretrain.steps=0", "train.steps=1", "train.warmup_steps=1000"]
    assert train(faster, tmp_path / "run", *hardly, f"init={trained / 'policy'}") == 0
    before, after = (
        load_policy(folder / "policy", env=ToyRoad().env_spec).policy.model.state_dict()
        for folder in (trained, tmp_path / "run")
    )
    for name, value in after.items():
        torch.testing.assert_close(value, before[name], atol=1e-3, rtol=1e-3)
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert torch.equal(
        after["normalizer.params_dict.action.scale"], before["normalizer.params_dict.action.scale"]
    )


def test_another_origin_is_another_run(drives, trained, tmp_path, capsys):
    other = tmp_path / "other"
    assert train(drives, other, "train.seed=1") == 0
    assert train(drives, tmp_path / "run", f"init={trained / 'policy'}") == 0
    assert train(drives, tmp_path / "run", f"init={other / 'policy'}") == 2
    assert "saved by a run with other settings" in " ".join(capsys.readouterr().err.split())


def test_eval_drives_it(trained, tmp_path):
    assert cli.main(
        ["eval", "sim=toy_road", "sim.max_steps=8", f"policy.checkpoint={trained / 'policy'}",
         f"run_dir={tmp_path}", "episodes=1", "num_envs=1", "plan_batch=1", "timed_plans=1",
         "accel=none", "video=none", "policy.threads=1"]
    ) == 0  # fmt: skip


def test_training_checks_itself_on_the_road(drives, tmp_path):
    checked = ["pretrain.steps=0", "train.steps=2", "check_every=2", "check_episodes=1"]
    assert train(drives, tmp_path, *checked, "sim.max_steps=8") == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any("success" in line for line in lines)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["network.horizon=8"], "takes plans of 20 waypoints"),
        (["network.n_obs_steps=2"], "network.n_obs_steps=1 instead of 20 and 2"),
        (["init=dp_pusht"], "holds another network than the one configured"),
        (["init=nowhere"], "no checkpoint at nowhere"),
        (["sim.plan_steps=10", "network.horizon=10"], "action has shape (41,) in the"),
        (["dataset.rows={observation.map:2}"], "observation.map has shape (2, 20, 6) in the"),
        (
            ["network.scene.layers=0", "network.inputs=[observation.ego_states]"],
            "pretrain.steps trains the encoder of a state or a scene",
        ),
        (["network.arch.causal_attn=true"], "causal_attn is False"),
        (["network.scene.heads=5"], "multiple of twice the heads"),
    ],
)
def test_what_cannot_be_trained_is_refused(drives, tmp_path, capsys, overrides, message):
    assert train(drives, tmp_path, *overrides) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_mirroring_is_for_plans(tmp_path, capsys):
    told = ["train", "sim=toy", "dataset.path=nothing.hdf5", f"run_dir={tmp_path}", "mirror=true"]
    assert cli.main(told) == 2
    assert "mirror=true is for plans" in capsys.readouterr().err
