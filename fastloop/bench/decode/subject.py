"""What is measured: a vision-language policy, and the moments at which it plans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastloop.bench.config import DecodeBenchConfig
from fastloop.bench.decode.moments import Moment, recorded, visited
from fastloop.cameras import cameras_of, with_cameras
from fastloop.datasets.plans import Plans
from fastloop.policies.dlm.folder import is_language_model
from fastloop.policies.driving.whole_plans import waypoint_env
from fastloop.policies.load import find_checkpoint
from fastloop.policies.prepare import prepare
from fastloop.policies.spec import ActionSpec, EnvSpec, TensorSpec
from fastloop.policies.vla.checkpoint import is_vlm
from fastloop.policies.vla.policy import IMAGES, INTENT, STATES, VisionLanguagePlanner
from fastloop.setup import device_of
from fastloop.sims.base import Sim
from fastloop.sims.config import SimConfig
from fastloop.sims.targets import build

__all__ = ["Subject", "open_subject"]

HELD_OUT = "held_out.hdf5"  # recorded drives that come with a policy


@dataclass(frozen=True)
class Subject:
    """A policy and its questions.

    Attributes:
        planner: ready to plan, as fast as it may.
        env: that it plans for, by waypoints.
        moments: the questions.
        source: where these are from, in words.
        device: that it computes on.
        threads: torch's.
    """

    planner: VisionLanguagePlanner
    env: EnvSpec
    moments: Sequence[Moment]
    source: str
    device: str
    threads: int


def open_subject(config: DecodeBenchConfig) -> Subject:
    """Load the policy, and look at moments of the drives or the simulator that are configured.

    Without either, those of a file ``held_out.hdf5`` in the policy's folder.

    Raises:
        CheckpointError: as `VisionLanguagePlanner.load`.
        ValueError: for a policy of another kind; without moments.
    """
    folder = find_checkpoint(config.policy.checkpoint)
    if not is_vlm(folder) and not is_language_model(folder):
        raise ValueError(f"{folder} holds no vision-language model, so there is no text to decode")
    path = config.dataset.get("path")
    if path is None and not config.sim:
        path = folder / HELD_OUT
        if not path.exists():
            raise ValueError(
                "say what it shall look at: sim=metadrive_map or sim=toy_road, or dataset.path=... "
                f"for recorded drives; {folder} comes without any ({HELD_OUT})"
            )
    sim: Sim | None = None
    if path is None:
        sim = SimConfig.from_config(with_cameras(config.sim, str(folder))).build()
        env, source = waypoint_env(sim.env_spec), sim.env_spec.name
    else:
        keys = [STATES, INTENT, *(IMAGES + camera for camera in cameras_of(folder))]
        drives = build({**config.dataset, "path": str(path), "keys": keys}, "dataset")
        plans = Plans.cut(drives, keys)
        env, source = _recorded_env(plans, config.plan_hz), str(path)
    device = device_of(config.policy.device)
    planner = VisionLanguagePlanner.load(folder, env, device=device, dtype=config.policy.dtype)
    threads = prepare(planner, threads=config.policy.threads).threads
    if sim is None:
        moments = recorded(plans, keys, config.prompts)
    else:
        moments = visited(
            sim, planner, config.prompts, first_seed=config.first_seed,
            an_episode=config.episode_prompts, apart_s=config.apart_s,
        )  # fmt: skip
        sim.close()
    return Subject(planner, env, moments, source, device, threads)


def _recorded_env(plans: Plans, hz: float) -> EnvSpec:
    """What recorded drives would be as an environment: what was seen, and how far plans reach."""
    observations = {
        key: TensorSpec(tuple(frames.shape[1:]), str(frames.dtype).removeprefix("torch."))
        for key, frames in plans.observations.items()
    }
    action = ActionSpec(2, "waypoint", (-math.inf,) * 2, (math.inf,) * 2, ("x", "y"), "m")
    waypoints = plans.actions.shape[1] // 2
    return EnvSpec("recorded drives", observations, action, hz, max_steps=1, horizon=waypoints)
