"""Closed-loop evaluation and calibration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastloop.accel.config import AccelConfig, RefineConfig
from fastloop.config.policy import PolicyConfig
from fastloop.policies.real_time import RealTimeConfig

__all__ = ["CalibrateConfig", "ClockConfig", "EvalConfig"]


@dataclass
class ClockConfig:
    """What the world does while a plan is made.

    Attributes:
        kind: `frozen` (it waits), `replay` (a latency trace in virtual time), `measured` (each
            policy's own latencies as this run times them, replayed) or `wall` (as late as each plan
            really is).
        latency_ms: the trace that `replay` repeats.
        scale: of the latencies; 5 drives as on a computer that is five times slower than this one.
    """

    kind: str = "frozen"
    latency_ms: list[float] = field(default_factory=list)
    scale: float = 1.0


@dataclass
class EvalConfig:
    """Closed-loop evaluation: the policy as published, and accelerated, over the same episodes.

    Attributes:
        episodes: paired episodes.
        first_seed: seed of the first; they count up.
        seed: root of the policy's noise.
        num_envs: simulators at once, each in a process of its own.
        plan_batch: rows of every policy call; results do not depend on `num_envs`, only on this.
        chunking: `receding`, `ensemble` or `real_time`, whose settings stand under `real_time`.
        margin: largest loss of success that counts as none, as a fraction.
        timed_plans: plans timed back to back for each arm, on the same observations.
        calibration_observations: observations that a cache plan is decided on.
        video: `none`, `first-k`, `failures` or `all`; `video_count` is the k.
        retries, step_timeout_s: for simulators that crash or hang.
        allow_partial: exit with 0 although episodes are missing.
        baselines: other policies, by name or path, that run over the same episodes, to be compared
            with the policy as published; such as stand_still, idm.
        demonstrations: robomimic HDF5 of an expert in this simulator; the report then says how
            predictable the policy's actions are beside the expert's.
    """

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    accel: AccelConfig = field(default_factory=AccelConfig)
    sim: dict[str, Any] = field(default_factory=dict)
    clock: ClockConfig = field(default_factory=ClockConfig)
    episodes: int = 100
    first_seed: int = 0
    seed: int = 0
    num_envs: int = 8
    plan_batch: int = 8
    chunking: str = "receding"
    real_time: RealTimeConfig = field(default_factory=RealTimeConfig)
    margin: float = 0.05
    timed_plans: int = 30
    calibration_observations: int = 8
    video: str = "first-k"
    video_count: int = 3
    retries: int = 2
    step_timeout_s: float = 60.0
    allow_partial: bool = False
    baselines: list[str] = field(default_factory=list)
    demonstrations: str | None = None
    run_dir: str | None = None


@dataclass
class CalibrateConfig:
    """Decide a cache plan for a policy on observations of a simulator.

    Attributes:
        refine: a search for a better or cheaper plan that starts from the accelerator's own, on
            observations of further episodes; 0 evaluations for none.
        observations: how many; the first of as many episodes.
        first_seed: seed of the first episode.
        seed: root of the policy's noise.
    """

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    accel: AccelConfig = field(default_factory=AccelConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    sim: dict[str, Any] = field(default_factory=dict)
    observations: int = 8
    first_seed: int = 900_000
    seed: int = 0
    run_dir: str | None = None
