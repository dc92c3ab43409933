"""AD-MLP: the nuScenes planner that sees nothing, with its authors' published weights.

Zhai et al., "Rethinking the Open-Loop Evaluation of End-to-End Autonomous Driving in nuScenes",
arXiv 2305.10430; weights of github.com/E2E-AD/AD-MLP (``pytorch/admlp/mlp.pth``). It shows what
open-loop figures are worth: history and a command alone score like a planner with cameras.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from fastloop.policies.base import Budget, Plan
from fastloop.policies.checkpoints.archive import open_archive
from fastloop.policies.checkpoints.checkpoint import file_digest
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.checkpoints.unpickle import StoredTensor
from fastloop.policies.driving.baselines import HEADING, STATES
from fastloop.policies.driving.extrapolation import turn_rate
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import ActionSpec, PolicySpec, TensorSpec

__all__ = ["ADMLP", "INTENT", "ad_mlp_inputs"]

INTENT = "observation.intent"
PAST, WAYPOINTS, HZ = 4, 6, 2.0
# Seconds from now of the velocities in the slots that the paper calls acceleration and velocity.
SLOT_TIMES = (2.0, 0.75)
LEFT, RIGHT = 2, 3  # of observation.intent

SPEC = PolicySpec(
    inputs={
        STATES: TensorSpec((PAST + 1, 6)),
        HEADING: TensorSpec((PAST + 1,)),
        INTENT: TensorSpec((), "int64"),
    },
    action=ActionSpec(
        2, "waypoint", (-math.inf,) * 2, (math.inf,) * 2, names=("x", "y"), unit="m"
    ),
    n_obs_steps=1, horizon=WAYPOINTS, n_action_steps=1, control_hz=HZ,
)  # fmt: skip


class ADMLP(nn.Module):
    """AD-MLP: three linear layers from two seconds of ego motion and a command to waypoints.

    The command, ``observation.intent``, is made from the recorded future in nuScenes, so every
    score of this planner knows a little of the answer. So do the published weights, and more: see
    `ad_mlp_inputs`. They are not shipped with fastloop, being trained on non-commercial data.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spec = SPEC
        self.digest = ""
        self.plan_head = nn.Sequential(
            nn.Linear(3 * (PAST + 3), 512), nn.ReLU(),
            nn.Linear(512, 512), nn.ReLU(),
            nn.Linear(512, 3 * (WAYPOINTS + 1)),
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> ADMLP:
        """The planner with the published weights, read without running anything from the file.

        Raises:
            CheckpointError: when the file is missing, damaged or holds anything but AD-MLP.
            RefusedError: when it tries to import or call anything.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"{path} is no file; expected AD-MLP's mlp.pth")
        planner = cls()
        expected = {key: tuple(value.shape) for key, value in planner.state_dict().items()}
        with open_archive(path) as archive:
            payload = archive.payload
            found = (
                {key: _shape(value) for key, value in payload.items()}
                if isinstance(payload, Mapping)
                else type(payload).__name__
            )
            if found != expected:
                raise CheckpointError(
                    f"{path} holds {found!s:.300}; expected the state dict of AD-MLP, "
                    f"{expected}: of driving policies in .pth files only that one is known"
                )
            weights = archive.read_all(payload)
        if not all(value.isfinite().all() for value in weights.values()):
            raise CheckpointError(f"{path} holds weights that are not finite")
        planner.load_state_dict(weights)
        planner.digest = file_digest(path)
        return planner.requires_grad_(False).eval()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs (B, 21) to poses (B, 7, 3): x right, y forward in m and yaw in rad, for now and
        for the six waypoints."""
        poses: torch.Tensor = self.plan_head(inputs)
        return poses.reshape(-1, WAYPOINTS + 1, 3)

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """Six waypoints at 2 Hz."""
        inputs = ad_mlp_inputs(
            history[STATES][:, -1], history[HEADING][:, -1], history[INTENT][:, -1]
        )
        poses = self(inputs)[:, 1:]
        actions = torch.stack([poses[..., 1], -poses[..., 0]], -1)
        return Plan(actions=actions, dt=1 / HZ, t0=history.ticks)


def ad_mlp_inputs(
    states: torch.Tensor, headings: torch.Tensor, intent: torch.Tensor
) -> torch.Tensor:
    """The 21 numbers that the published network reads, from nothing but the past and the command.

    Three numbers each, in lidar axes (x right, y forward) of the present frame: "acceleration",
    command, "velocity", and x, y, yaw of the last four keyframes, the newest first.

    The paper's names do not fit the published weights. They drive straight on at constant speed
    only when both slots hold that speed, and on recorded futures they are most exact with the
    velocity about 2 s after now in the first and 0.75 s after now in the other: the file was
    trained on values taken from the future (its users report it of an earlier release).
    Here both are extrapolated from the present velocity and acceleration, up to a stop, so that
    the planner can be used at all, and it scores less well than its paper says.

    Args:
        states: (B, 5, 6) x, y, vx, vy, ax, ay at 2 Hz, the newest last; x forward, y left.
        headings: (B, 5) rad relative to the last.
        intent: (B,) int64: 1 straight, 2 left, 3 right; anything else is unknown and drives
            straight.

    Returns:
        (B, 21) float32.
    """
    velocity, acceleration = states[:, -1, 2:4], states[:, -1, 4:6]
    rate = turn_rate(states, headings, 1 / HZ)
    slots = []
    for seconds in SLOT_TIMES:
        later = velocity + seconds * acceleration
        onward = (later * velocity).sum(-1, keepdim=True) > 0
        slots.append(torch.cat([_lidar_axes(later * onward), rate[:, None]], -1))
    left, right = intent == LEFT, intent == RIGHT
    command = torch.stack([left, ~(left | right), right], -1)
    rows = torch.cat([_lidar_axes(states[..., :2]), headings[..., None]], -1)
    past = rows[:, -1 - PAST : -1].flip(1).flatten(1)
    return torch.cat([slots[0], command, slots[1], past], -1).float()


def _lidar_axes(vehicle: torch.Tensor) -> torch.Tensor:
    """(..., 2) x forward, y left to x right, y forward."""
    return torch.stack([-vehicle[..., 1], vehicle[..., 0]], -1)


def _shape(value: object) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, StoredTensor) else type(value).__name__
