"""The CacheFlow planner that comes along, on a road that it has not seen."""

import json

import torch

from fastloop import cli, load_policy
from fastloop.policies.cacheflow.frame import ROUTE, AlongRoute
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.rng import Rng
from fastloop.sims.toy_road import ToyRoad


def test_it_is_described(capsys, tmp_path):
    words = ["info", "ckpt=cacheflow_drive", "keys=true", f"run_dir={tmp_path}"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "fastloop.cacheflow" in out
    told = json.loads((tmp_path / "result.json").read_text())["provenance"]["checkpoint"]
    planner = load_policy("cacheflow_drive", env=ToyRoad().env_spec).policy
    assert told["futures"] == len(planner.cacheflow.table.futures)
    assert set(told["keys"]) == set(planner.cacheflow.model.state_dict())
    assert cli.main([*words, f"convert={tmp_path / 'other'}"]) == 2
    assert "is a CacheFlow policy" in capsys.readouterr().err


def test_its_plans_keep_to_the_route():
    sim = ToyRoad()
    planner = load_policy("cacheflow_drive", env=sim.env_spec).policy
    for seed in range(5):
        seen = sim.reset(seed=seed)[0]
        episode = EpisodeHistory(1)
        episode.observe(seen)
        history = History.stack([episode], [0])
        plan = planner.plan(history, rng=Rng.for_envs(0, [seed], [0])).actions
        along = AlongRoute(torch.from_numpy(seen[ROUTE])[None]).relative(plan)[0]
        assert along[:, 1].abs().max() < 2, "m beside the route"
        assert along[-1, 0] > along[0, 0], "and ahead"
