"""A policy that needs no weights, for the toy simulator."""

import pytest
import torch
from torch.nn.functional import pad

from fastloop.accel.report import AccelReport
from fastloop.policies.base import Plan
from fastloop.policies.spec import PolicySpec
from fastloop.sims.toy import PointMass


class Homing:
    """Heads for the goal with noise; its matrix products round like those of a real network."""

    def __init__(self, *, noise=0.4, accelerator="none", reused=0):
        env = PointMass().env_spec
        self.spec = PolicySpec(
            inputs=env.observations,
            action=env.action,
            n_obs_steps=2,
            horizon=9,
            n_action_steps=4,
            control_hz=env.control_hz,
        )
        self.noise = noise
        self.report = AccelReport(
            accelerator, network_evaluations=2, computed=3, reused=reused, stage_ms={"denoise": 1.0}
        )
        self.calls = []
        weights = torch.Generator().manual_seed(0)
        self.mix = torch.randn(8, 64, generator=weights)  # of even width, see `Session`
        self.unmix = torch.linalg.pinv(self.mix)

    def plan(self, history, *, rng, budget=None):
        self.calls.append([key[1:] for key in rng.keys])
        seen = [history[key][:, -1] for key in self.spec.inputs]
        x = pad(torch.cat(seen, 1), (0, 2)) @ self.mix @ self.unmix
        pull = 1.5 * (x[:, 4:6] - x[:, :2]) - 1.5 * x[:, 2:4]
        actions = pull[:, None] + self.noise * rng.normal((8, 2))
        return Plan(actions.clamp(-1, 1), dt=0.1, t0=history.ticks, report=self.report)


@pytest.fixture(scope="session")
def homing():
    """The class of a policy that solves most episodes of the toy simulator."""
    return Homing
