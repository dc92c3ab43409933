"""What a bench compares: the policy as published, and each way to decide sooner."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fastloop.accel.apply import AcceleratedLoop, accelerate, remove, stack_of
from fastloop.accel.block_cache.cached import CachedLoop
from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.block_cache.search import refine
from fastloop.accel.config import AccelConfig, RefineConfig
from fastloop.accel.report import AcceleratorIdleError
from fastloop.accel.samplers.base import describe
from fastloop.bench.chunks import Chunks
from fastloop.bench.config import ArmConfig, BenchConfig
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.run_folder import config_digest
from fastloop.setup import Setup, denoiser_of, load

__all__ = ["PUBLISHED", "BenchArm", "arm_names", "make_arm", "published_arm"]

PUBLISHED = "published"
CALIBRATION = 900_000  # first seed of the episodes that plans are decided on


@dataclass(frozen=True)
class BenchArm:
    """One side of the comparison.

    Attributes:
        name: in tables and metrics.
        policy: ready to plan.
        accel: how to build the same accelerator again; its plan is saved.
        exact: whether it must answer what the policy as published answers.
    """

    name: str
    policy: DiffusionPolicy
    accel: AccelConfig
    exact: bool

    @property
    def cached(self) -> CachedLoop | None:
        """The block cache's loop, None where nothing is cached."""
        loop = self.policy.loop
        return loop.fast if isinstance(loop, AcceleratedLoop) else None

    @property
    def plan(self) -> CachePlan | None:
        """What it computes and what it reuses."""
        return self.cached and self.cached.plan


def published_arm(setup: Setup) -> BenchArm:
    """The network evaluated as a whole at every step, nothing shared between steps."""
    return BenchArm(PUBLISHED, remove(setup.denoiser), AccelConfig(), exact=True)


def arm_names(config: BenchConfig, policy: DiffusionPolicy) -> list[str]:
    """The arms that are compared on the policy's device, in their order."""
    on_cuda = policy.sampler.timesteps.is_cuda
    return [name for name, arm in config.arms.items() if on_cuda or not arm.cuda]


def make_arm(
    name: str,
    config: BenchConfig,
    setup: Setup,
    folder: Path,
    told: Callable[[str], None] = lambda note: None,
) -> BenchArm:
    """The arm that `config` calls `name`.

    A cache plan that is made here is kept in `folder`, so that a run which is continued uses the
    same one.

    Args:
        told: called with what a search for a better plan is at.

    Raises:
        ValueError: naming the arm, when the policy cannot be accelerated like this, or nothing
            would be saved.
    """
    if os.environ.get("FASTLOOP_ACCEL") == "off":
        raise ValueError("FASTLOOP_ACCEL=off turns off what is to be measured; unset it")
    wanted = config.arms[name]
    policy = published = remove(setup.denoiser)
    changes = {k: v for k, v in dataclasses.asdict(wanted.sampler).items() if v is not None}
    if changes:
        sampler = dataclasses.replace(config.policy.sampler, **changes)
        policy = remove(denoiser_of(load(config.policy, setup.sim.env_spec, sampler)))
    decided_on = f"{policy.digest[:8]}-{config_digest(wanted)}-{config.calibration_observations}"
    kept = folder / "plans" / f"{name}-{decided_on}-{config.seed}.json"
    try:
        accel, policy = _accelerated(wanted, policy, config, setup, kept, told)
    except (ValueError, AcceleratorIdleError) as error:
        raise ValueError(
            f"arm {name!r}: {error}; change it, or leave it out with '~arms.{name}'"
        ) from error
    arm = BenchArm(name, policy, accel, exact=False)
    same_chain = describe(policy.sampler) == describe(published.sampler)
    return dataclasses.replace(arm, exact=same_chain and not (arm.plan and arm.plan.reused))


def _accelerated(
    wanted: ArmConfig,
    policy: DiffusionPolicy,
    config: BenchConfig,
    setup: Setup,
    kept: Path,
    told: Callable[[str], None],
) -> tuple[AccelConfig, DiffusionPolicy]:
    """The policy with its accelerator, and how to build that again from the plan at `kept`."""
    accel, search = wanted.accel, wanted.refine

    def inputs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return Chunks.draw(setup, count, CALIBRATION, config.seed).inputs(policy)

    if kept.exists() and (search.evaluations or not accel.plan):
        accel, search = dataclasses.replace(accel, plan=str(kept)), RefineConfig()
    data = None if accel.plan else inputs(config.calibration_observations)
    fast = accelerate(policy, accel, observations=data)
    if not isinstance(fast.loop, AcceleratedLoop):
        return accel, fast
    cached = fast.loop.fast
    cached.report().check_engaged()
    plan = cached.plan
    if search.evaluations:
        plan = refine(
            plan, stack_of(policy, accel), cached.sampler,
            *inputs(search.observations + search.held_out), search,
            progress=lambda done, note: told(f"plan {done}: {note}"),
        ).plan  # fmt: skip
    kept.parent.mkdir(exist_ok=True)
    plan.save(kept)
    accel = dataclasses.replace(accel, plan=str(kept))
    return accel, accelerate(policy, accel)
