"""A policy is the same whatever file its demonstrations come from."""

from __future__ import annotations

import pytest

from fastloop import cli
from fastloop.datasets import lerobot, robomimic

pytest.importorskip("pyarrow")
pytest.importorskip("av")

NETWORK = [
    "network.horizon=8", "network.n_action_steps=4", "network.arch.n_layer=1",
    "network.arch.n_head=2", "network.arch.n_emb=16", "train.batch_size=8", "threads=1",
    "sampler.num_train_timesteps=20", "sampler.num_inference_steps=20",
]  # fmt: skip
INPUTS = "network.inputs=[observation.state,observation.environment_state]"


def test_the_same_weights_from_hdf5_and_from_lerobot(tmp_path):
    hdf5 = tmp_path / "demos.hdf5"
    recorded = ["record", "sim=toy", "expert=toy", "episodes=3", "num_workers=1", f"out={hdf5}"]
    assert cli.main([*recorded, f"run_dir={tmp_path / 'record'}"]) == 0
    lerobot.write(tmp_path / "set", robomimic.read(hdf5), fps=10)
    weights = []
    for dataset, path in (("robomimic", hdf5), ("lerobot", tmp_path / "set")):
        run = tmp_path / dataset
        told = [f"dataset={dataset}", f"dataset.path={path}", f"run_dir={run}"]
        assert cli.main(["train", "sim=toy", *NETWORK, INPUTS, "train.steps=10", *told]) == 0
        weights.append((run / "policy/model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize("images", [False, True])
def test_pusht_as_it_was_recorded(images, realdata, tmp_path):
    pytest.importorskip("gym_pusht")
    inputs = "observation.state" + ",observation.images.top" * images
    path = realdata / "lerobot_v3_datasets/pusht"
    told = ["sim=pusht", f"sim.images={images}", f"network.inputs=[{inputs}]", "train.steps=2"]
    if images:
        told.append("dataset.rename={observation.image:observation.images.top}")
    source = ["dataset=lerobot", f"dataset.path={path}", f"run_dir={tmp_path / 'run'}"]
    assert cli.main(["train", *NETWORK, *told, *source]) == 0
    assert (tmp_path / "run/policy/model.safetensors").exists()


def test_recordings_without_actions_say_so(realdata, tmp_path, capsys):
    pytest.importorskip("gym_pusht")
    path = realdata / "lerobot_v1_episodes/umi_cup_in_the_wild"
    told = ["dataset=lerobot", f"dataset.path={path}", f"run_dir={tmp_path / 'run'}"]
    assert cli.main(["train", *NETWORK, "sim=pusht", "network.inputs=[observation.state]", *told])
    assert "the demonstrations hold no actions" in capsys.readouterr().err
