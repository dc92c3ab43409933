"""The vision-language planners that come along, at moments that they were not trained on."""

import json

import pytest
import torch

from fastloop.accel.decoding.model import Regime
from fastloop.bench.config import DecodeBenchConfig
from fastloop.bench.decode.subject import open_subject
from fastloop.policies.rng import Rng

pytest.importorskip("transformers", reason="vision-language models are of transformers (extra vla)")

SHIPPED = {"fast_ddrive_small": Regime.CAUSAL_CONTEXT, "prefix_lm_small": Regime.PREFIX_LM}
FILE = {"_target_": "fastloop.datasets.robomimic.read", "path": None, "mask": None}


@pytest.mark.parametrize("name", SHIPPED)
def test_it_writes_plans_like_those_that_were_driven(name):
    config = DecodeBenchConfig(prompts=3, dataset=dict(FILE))
    config.policy.checkpoint, config.policy.device = name, "cpu"
    subject = open_subject(config)
    planner = subject.planner
    assert planner.model.spec.regime is SHIPPED[name]
    for moment in subject.moments:
        plan = planner.plan(moment.history, rng=Rng.for_envs(0, [0], [0]))
        assert list(json.loads(plan.text[0])) == list(planner.layout.canvas.sections)
        away = torch.linalg.vector_norm(plan.actions[0] - moment.driven, dim=-1)
        assert away.mean() < 4, "meters, as a mean over 5 s"
