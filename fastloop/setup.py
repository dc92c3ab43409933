"""From a configuration to the things it names: a simulator, and a policy that fits it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastloop.accel.apply import AcceleratedLoop, accelerate
from fastloop.accel.config import AccelConfig
from fastloop.cameras import with_cameras
from fastloop.config import PolicyConfig, SamplerOverrides
from fastloop.deploy.server.remote import RemotePolicy
from fastloop.policies.base import Policy
from fastloop.policies.best_of import BestOf, best_of
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.checkpoints.files import read_json
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.driving.whole_plans import WholePlans, planner_of
from fastloop.policies.history import History
from fastloop.policies.load import find_checkpoint, load_policy
from fastloop.policies.prepare import Preparation, prepare
from fastloop.policies.rng import Rng
from fastloop.policies.spec import EnvSpec, SpecMismatchError, check_specs
from fastloop.sims.base import Sim
from fastloop.sims.config import SimConfig
from fastloop.sims.observations import visited_observations

__all__ = ["Setup", "calibration_data", "denoiser_of", "device_of", "load", "read_key", "set_up"]


@dataclass(frozen=True)
class Setup:
    """A policy that fits a simulator and is ready to be timed.

    Attributes:
        sim_config: how other processes build the simulator.
        sim: one in this process, for observations.
        policy: with its exact savings on, and warm.
        preparation: thread count and what it was chosen by.
    """

    sim_config: SimConfig
    sim: Sim
    policy: Policy
    preparation: Preparation

    @property
    def denoises(self) -> bool:
        """Whether there is a denoising loop, which could be accelerated."""
        return isinstance(planner_of(self.policy), DiffusionPolicy | BestOf)

    @property
    def denoiser(self) -> DiffusionPolicy:
        """What denoises inside the policy; raises as `denoiser_of`."""
        return denoiser_of(self.policy)

    def driving(self, planner: Policy) -> Policy:
        """`planner` as it drives the simulator: in the form in which `policy` does."""
        ours = planner_of(self.policy)
        driver = ours.with_policy(planner) if isinstance(ours, BestOf) else planner
        return self.policy.with_policy(driver) if isinstance(self.policy, WholePlans) else driver

    def observations(self, count: int, first_seed: int) -> History:
        """What the policy sees in `count` episodes; the first one is an episode's first."""
        policy, seeds = self.policy, range(first_seed, first_seed + count)
        if self.denoises and isinstance(self.denoiser.loop, AcceleratedLoop):
            # Near enough to where the policy goes.
            steps = len(self.denoiser.sampler.timesteps)
            quick = accelerate(self.denoiser, AccelConfig("uniform", budget=min(10, steps)))
            policy = self.driving(quick)
        return visited_observations(self.sim, policy, seeds)


def denoiser_of(policy: Policy) -> DiffusionPolicy:
    """The diffusion policy that decides inside `policy`.

    Raises:
        ValueError: it has no denoising loop, so there is nothing to accelerate.
    """
    planner = planner_of(policy)
    if isinstance(planner, BestOf):
        return planner.policy
    if not isinstance(planner, DiffusionPolicy):
        raise ValueError(
            f"{getattr(planner, 'name', type(planner).__name__)} decides in one pass: it has no "
            "denoising loop, so there is nothing to accelerate; say accel=none"
        )
    return planner


def set_up(policy: PolicyConfig, sim: dict[str, Any]) -> Setup:
    """Load the policy, build its simulator, check that they fit, and warm up.

    Raises:
        SpecMismatchError: naming both sides of every difference.
        CheckpointError: when the policy cannot be read.
        MissingExtraError: when the simulator is not installed.
    """
    sim_config = SimConfig.from_config(with_cameras(sim, policy.checkpoint))
    world = sim_config.build()
    loaded = load(policy, world.env_spec, policy.sampler)
    try:
        check_specs(loaded.spec, world.env_spec, policy_name=policy.checkpoint)
    except SpecMismatchError as error:
        trained = _trained_in(policy.checkpoint)
        raise SpecMismatchError(f"{error}\n{trained}: say sim=...") if trained else error from None
    return Setup(sim_config, world, loaded, prepare(loaded, threads=policy.threads))


def _trained_in(checkpoint: str) -> str:
    """A sentence about one of our folders; empty where nothing is known."""
    try:
        told = read_json(find_checkpoint(checkpoint) / "config.json")
        return f"{checkpoint} was trained in {told['training']['environment']}"
    except (CheckpointError, KeyError, TypeError):
        return ""


def load(policy: PolicyConfig, env: EnvSpec | None, sampler: SamplerOverrides) -> Policy:
    """The configured policy, with `sampler` over the checkpoint's; raises as `load_policy`, and
    RemoteError where it lives in a server that cannot be reached."""
    if policy.checkpoint.startswith(("ws://", "wss://")):
        return _remote(policy, env)
    loaded = load_policy(
        policy.checkpoint,
        env=env,
        sampler={
            name: value
            for name, value in (asdict(sampler) | asdict(policy.decoding)).items()
            if value is not None
        },
        n_action_steps=policy.n_action_steps,
        device=device_of(policy.device),
        dtype=policy.dtype,
    )
    return best_of(loaded, policy.samples, policy.selector)


def device_of(name: str) -> str:
    """The torch device of that name; `best` is CUDA where there is one, else the CPU."""
    if name != "best":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _remote(policy: PolicyConfig, env: EnvSpec | None) -> Policy:
    return RemotePolicy(
        policy.checkpoint,
        env=env,
        names=policy.remote.names,
        constants=policy.remote.constants,
        n_action_steps=policy.n_action_steps,
        timeout_s=policy.remote.timeout_s,
        api_key=read_key(policy.remote.api_key_file),
    )


def read_key(path: str | None) -> str:
    """The key in a file; empty where no file is named.

    Raises:
        ValueError: there is no key in it.
    """
    if path is None:
        return ""
    key = Path(path).read_text(encoding="utf-8").strip()
    if not key:
        raise ValueError(f"api_key_file: {path} holds no key; write one into it, or name no file")
    return key


def calibration_data(
    setup: Setup, count: int, first_seed: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noises (num_noises, M, T, A) and conditions (M, O, D) of `count` observations."""
    seeds = range(first_seed, first_seed + count)
    history = setup.observations(count, first_seed)
    noises = setup.denoiser.noise(Rng.for_envs(seed, seeds, [0] * count))
    cond = setup.denoiser.condition(history)
    return noises.to(cond), cond
