"""fastloop train network=cacheflow, and what becomes of its folder."""

from __future__ import annotations

import json

import pytest

from fastloop import cli
from fastloop.policies.load import load_policy

SMALL = [
    "sim=toy", "network=cacheflow", "network.horizon=8", "network.n_obs_steps=2",
    "network.n_action_steps=4", "network.inputs=[observation.state,observation.environment_state]",
    "network.arch.dims=4", "network.arch.components=4", "network.arch.width=16",
    "network.arch.flow_layers=2", "network.arch.flow_width=16", "network.arch.budget=64",
    "train.batch_size=16", "train.lr=1e-3", "threads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    told = ["sim=toy", "expert=toy", "episodes=4", "num_workers=1", f"out={folder / 'demos.hdf5'}"]
    assert cli.main(["record", *told, f"run_dir={folder / 'record'}"]) == 0
    return f"dataset.path={folder / 'demos.hdf5'}"


def test_a_policy_is_trained_and_drives(demonstrations, tmp_path):
    run = tmp_path / "train"
    told = [*SMALL, demonstrations, "train.steps=20", f"run_dir={run}", "check_every=10"]
    assert cli.main(["train", *told]) == 0
    policy = load_policy(run / "policy")
    assert (policy.spec.n_obs_steps, policy.spec.horizon, policy.spec.n_action_steps) == (2, 8, 4)
    assert len(policy.cacheflow.table) == 64
    assert 0 < policy.alarm <= 0.01
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert metrics["best_of_20"]["value"] >= 0
    assert 0 <= metrics["coverage"]["value"] <= 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "nll" in line] == [10, 20]
    eval_dir = tmp_path / "eval"
    drive = [f"policy.checkpoint={run / 'policy'}", "accel=none", "episodes=2", "num_envs=1"]
    assert cli.main(["eval", "sim=toy", *drive, "video=none", f"run_dir={eval_dir}"]) == 0
    assert (eval_dir / "result.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("+network.arch.dimensions=3", "have: dims, components"),
        ("network.arch.dims=500", "components, got dims=500"),
        ("network.arch.flow=spline", "unknown flow 'spline'"),
        ("init=dp_pusht", "init is for diffusion policies"),
        ("network.inputs=[observation.nothing]", "shows no observation.nothing"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_there_is_a_folder(
    demonstrations, tmp_path, capsys, change, message
):
    run = tmp_path / "run"
    assert cli.main(["train", *SMALL, demonstrations, change, f"run_dir={run}"]) != 0
    assert message in capsys.readouterr().err
    assert not run.exists()
