"""`fastloop bench plans`: what chooses among plans, and what tells where left and right changed."""

import json

import numpy as np
import pytest

from fastloop import cli
from fastloop.bench.plans.config import PlansBenchConfig
from fastloop.bench.plans.run import run
from fastloop.config import PolicyConfig
from fastloop.datasets import robomimic
from fastloop.datasets.demonstration import Demonstration
from fastloop.sims.toy_road import ToyRoad

PLANNER = [
    "network=planner", "network.arch.n_layer=1", "network.arch.n_head=2", "network.arch.n_emb=16",
    "network.scene.width=16", "network.scene.layers=1", "network.scene.heads=2",
    "network.scene.tokens=3", "train.steps=4", "pretrain.steps=3", "pretrain.batch_size=8",
    "sampler.prediction_type=sample", "sampler.num_train_timesteps=10",
    "sampler.num_inference_steps=10",
]  # fmt: skip
CACHEFLOW = [
    "network=cacheflow_planner", "network.arch.dims=4", "network.arch.components=4",
    "network.arch.width=16", "network.arch.flow_layers=2", "network.arch.flow_width=16",
    "network.arch.budget=64", "train.steps=60", "train.lr=5e-3",
]  # fmt: skip


def drives(path, seeds):
    """Drives on, at any speed, with others coming on the left."""
    sim, made = ToyRoad(), []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        plan = np.zeros(41, np.float32)
        plan[1::2] = rng.uniform(1, 3) * np.arange(1, 21)
        frames = [sim.reset(seed=seed)[0], *(sim.step(plan)[0] for _ in range(4))]
        seen = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
        for rows in seen["observation.neighbors"]:
            rows[:12] = [[x, 3.5, -1, 0, -8, 0, 4.5, 2, 0, 1] for x in rng.uniform(5, 40, 12)]
        made.append(Demonstration(seen, np.tile(plan, (len(frames), 1)), seed=seed))
    return robomimic.write(path, made, env_args={"env_name": "ToyRoad"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of a planner and a CacheFlow, and drives of others."""
    folder = tmp_path_factory.mktemp("plans")
    learned = drives(folder / "learned.hdf5", range(30))
    for name, network in {"planner": PLANNER, "cacheflow": CACHEFLOW}.items():
        told = [*network, f"dataset.path={learned}", f"out={folder / name}", "train.batch_size=16"]
        run = f"run_dir={folder / 'run' / name}"
        assert cli.main(["train", "sim=toy_road", "dataset=drives", *told, "threads=1", run]) == 0
    drives(folder / "others.hdf5", range(30, 42))
    return folder


TOY = [
    "sim=toy", "network.horizon=8", "network.n_obs_steps=2", "network.n_action_steps=4",
    "network.inputs=[observation.state,observation.environment_state]", "train.batch_size=16",
    "threads=1",
]  # fmt: skip
DENOISER = [
    "network=transformer", "network.arch.n_layer=1", "network.arch.n_head=2",
    "network.arch.n_emb=16", "train.steps=4", "train.warmup_steps=1",
    "sampler.num_train_timesteps=10", "sampler.num_inference_steps=10",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained_on_chunks(tmp_path_factory):
    """The same of who acts in chunks of single actions."""
    folder = tmp_path_factory.mktemp("chunks")
    for name, seed in {"learned": 0, "others": 50}.items():
        told = ["sim=toy", "expert=toy", "episodes=6", "num_workers=1", f"first_seed={seed}"]
        out = [f"out={folder / name}.hdf5", f"run_dir={folder / 'record' / name}"]
        assert cli.main(["record", *told, *out]) == 0
    short = ["network=cacheflow", *CACHEFLOW[1:]]
    for name, network in {"planner": DENOISER, "cacheflow": short}.items():
        told = [*network, *TOY, f"dataset.path={folder / 'learned.hdf5'}", f"out={folder / name}"]
        assert cli.main(["train", *told, f"run_dir={folder / 'run' / name}"]) == 0
    return folder


def bench(trained, run, *overrides):
    return cli.main(
        [
            "bench", "plans", f"policy.checkpoint={trained / 'planner'}", f"run_dir={run}",
            f"judge={trained / 'cacheflow'}", f"dataset.path={trained / 'others.hdf5'}", *overrides,
        ]
    )  # fmt: skip


def test_plans_are_chosen_among_and_the_other_side_is_told(trained, tmp_path, capsys):
    assert bench(trained, tmp_path / "run", "moments=20") == 0
    found = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    away = {name: found[f"ade_{name}"]["value"] for name in ("nearest", "likeliest", "mean")}
    assert away["nearest"] < away["mean"]
    assert away["nearest"] <= away["likeliest"]
    difference = found["ade_difference_likeliest"]
    assert difference["value"] == pytest.approx(away["likeliest"] - away["mean"])
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert found["auroc_novelty"]["value"] > 0.9
    assert found["novel"]["value"] < found["novel_other_side"]["value"]
    assert found["ade_mean"]["n"] == 20
    assert found["latency_p50_judge"]["value"] > 0
    assert "20 moments of 12 episodes" in capsys.readouterr().out


CHUNKS = [
    "dataset=robomimic", "dataset.keys=[observation.state,observation.environment_state]",
    "dataset.rows=null", "policy.samples=4",
]  # fmt: skip


def test_chunks_of_who_sees_several_frames_are_chosen_among(trained_on_chunks, tmp_path, capsys):
    assert bench(trained_on_chunks, tmp_path / "run", "moments=24", *CHUNKS) == 0
    found = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    away = {name: found[f"ade_{name}"]["value"] for name in ("nearest", "likeliest", "mean")}
    assert away["nearest"] < away["mean"]
    assert away["nearest"] <= away["likeliest"]
    assert found["ade_judge"]["value"] < away["mean"], "it knows where the expert goes"
    assert found["ade_judge"]["unit"] == "normalized"
    assert not any("novel" in name for name in found), "left and right mean nothing here"
    assert "24 moments of 6 episodes" in capsys.readouterr().out


def test_a_judge_of_other_frames_is_refused(trained_on_chunks, trained, tmp_path, capsys):
    judge = f"judge={trained / 'cacheflow'}"
    assert bench(trained_on_chunks, tmp_path / "run", judge, *CHUNKS) == 2
    assert "sees frames [1, 0] ticks ago" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("judge=dp_drive", "judge=dp_drive is no CacheFlow policy"),
        ("policy.checkpoint={}/cacheflow", "cacheflow does not denoise plans"),
        ("moments=0", "moments must be at least 1, or null for all"),
    ],
)
def test_what_cannot_be_measured_is_refused(trained, tmp_path, capsys, change, message):
    assert bench(trained, tmp_path / "run", change.format(trained)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dataset_of_no_drives_is_refused(trained):
    config = PlansBenchConfig(
        PolicyConfig(str(trained / "planner")),
        judge=str(trained / "cacheflow"),
        dataset={"_target_": "fastloop.sims.toy.PointMass"},
    )
    with pytest.raises(ValueError, match="PointMass holds no episodes to look at"):
        run(config)
