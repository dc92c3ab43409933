"""What a bench compares: the policy as published, and each way to decide sooner."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from fastloop.accel.apply import AcceleratedLoop, accelerate, remove
from fastloop.accel.block_cache.cached import CachedLoop
from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.config import AccelConfig
from fastloop.accel.report import AcceleratorIdleError
from fastloop.accel.samplers.base import describe
from fastloop.bench.chunks import Chunks
from fastloop.config import BenchConfig
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.run_folder import config_digest
from fastloop.setup import Setup, load

__all__ = ["PUBLISHED", "BenchArm", "make_arm", "published_arm"]

PUBLISHED = "published"


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
    return BenchArm(PUBLISHED, remove(setup.policy), AccelConfig(), exact=True)


def make_arm(
    name: str, config: BenchConfig, setup: Setup, folder: Path, calibration: Chunks
) -> BenchArm:
    """The arm that `config` calls `name`.

    A cache plan that is made here is kept in `folder`, so that a run which is continued uses the
    same one.

    Raises:
        ValueError: naming the arm, when the policy cannot be accelerated like this, or nothing
            would be saved.
    """
    if os.environ.get("FASTLOOP_ACCEL") == "off":
        raise ValueError("FASTLOOP_ACCEL=off turns off what is to be measured; unset it")
    wanted = config.arms[name]
    policy = published = remove(setup.policy)
    changes = {k: v for k, v in dataclasses.asdict(wanted.sampler).items() if v is not None}
    if changes:
        sampler = dataclasses.replace(config.policy.sampler, **changes)
        policy = remove(load(config.policy, setup.sim.env_spec, sampler))
    decided_on = f"{policy.digest[:8]}-{config_digest(wanted)}-{config.calibration_observations}"
    kept = folder / "plans" / f"{name}-{decided_on}-{config.seed}.json"
    accel = wanted.accel
    if accel.plan is None and kept.exists():
        accel = dataclasses.replace(accel, plan=str(kept))
    try:
        data = None if accel.plan else calibration.inputs(policy)
        fast = accelerate(policy, accel, observations=data)
        arm = BenchArm(name, fast, accel, exact=False)
        if arm.cached and arm.plan:
            arm.cached.report().check_engaged()
            kept.parent.mkdir(exist_ok=True)
            arm.plan.save(kept)
            accel = dataclasses.replace(accel, plan=str(kept))
    except (ValueError, AcceleratorIdleError) as error:
        raise ValueError(
            f"arm {name!r}: {error}; change it, or leave it out with '~arms.{name}'"
        ) from error
    same_chain = describe(policy.sampler) == describe(published.sampler)
    exact = same_chain and not (arm.plan and arm.plan.reused)
    return BenchArm(name, fast, accel, exact)
