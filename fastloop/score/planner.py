"""A policy asked for its plan at recorded moments."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastloop.accel.graph import recording
from fastloop.datasets.benchmark import Benchmark
from fastloop.datasets.errors import DatasetError
from fastloop.policies.base import Policy
from fastloop.policies.session import Session
from fastloop.policies.spec import ActionSpec, EnvSpec, SpecMismatchError, TensorSpec, check_specs

__all__ = ["Planner", "env_spec"]


def env_spec(benchmark: Benchmark) -> EnvSpec:
    """What a benchmark shows a policy and takes from it, as a simulator would say it."""
    anywhere = (math.inf, math.inf)
    return EnvSpec(
        name=benchmark.name,
        observations={
            key: TensorSpec(shape, dtype) for key, (shape, dtype) in benchmark.inputs.items()
        },
        action=ActionSpec(
            2, "waypoint", low=(-math.inf, -math.inf), high=anywhere, names=("x", "y"), unit="m"
        ),
        control_hz=benchmark.hz,
        max_steps=1,
        horizon=benchmark.steps,
    )


class Planner:
    """Plans for the samples of a benchmark, the same whatever other samples are asked for.

    Args:
        policy: reads one observation, in which the past is contained, and plans waypoints.
        benchmark: whose samples.
        batch: rows of every policy call, filled up by repetition (see `Session`).
        seed: root of the policy's noise; a sample's name keys its own.

    Raises:
        SpecMismatchError: the policy does not fit the benchmark; every difference is named.
    """

    def __init__(self, policy: Policy, benchmark: Benchmark, *, batch: int, seed: int) -> None:
        check_specs(policy.spec, env_spec(benchmark), policy_name="the policy")
        if policy.spec.n_obs_steps != 1:
            raise SpecMismatchError(
                f"the policy reads {policy.spec.n_obs_steps} observations; {benchmark.name} shows "
                "one moment, whose past is inside of observation.ego_states"
            )
        self.policy, self.benchmark, self.batch = policy, benchmark, batch
        self.session = Session(policy, num_envs=batch, plan_batch=batch, seed=seed)

    def plan(self, keys: Sequence[str]) -> tuple[NDArray[np.float64], dict[str, str]]:
        """Waypoints (N, T, 2) in m, nan where there is no plan, and by key why there is none."""
        plans = np.full((len(keys), self.benchmark.steps, 2), np.nan)
        faults: dict[str, str] = {}
        seen: list[int] = []
        for row, key in enumerate(keys):
            try:
                observation = self.benchmark.observe(key, list(self.policy.spec.inputs))
            except DatasetError as error:
                faults[key] = str(error)
            else:
                env = len(seen)
                self.session.begin(env, _episode(key))
                self.session.observe(env, observation)
                seen.append(row)
            if seen and (len(seen) == self.batch or row == len(keys) - 1):
                with recording():  # nobody waits for a single plan
                    decided = self.session.plan(range(len(seen))).actions[: len(seen)]
                plans[seen] = decided[:, : self.benchmark.steps].double().cpu().numpy()
                seen = []
        for row, key in enumerate(keys):
            if key not in faults and not np.isfinite(plans[row]).all():
                faults[key] = "the policy's plan holds numbers that are not finite"
                plans[row] = np.nan
        return plans, faults


def _episode(key: str) -> int:
    """The number that keys the noise: of the sample's name alone."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest(), "big")
