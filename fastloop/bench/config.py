"""The structured configuration of both benches; see `fastloop.config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastloop.accel.config import AccelConfig, RefineConfig
from fastloop.config import PolicyConfig, SamplerOverrides, TrainVerbConfig

__all__ = [
    "ArmConfig",
    "BenchConfig",
    "DecodeArmConfig",
    "DecodeBenchConfig",
    "ProjectionConfig",
    "TrainBenchConfig",
]


@dataclass
class ArmConfig:
    """One way to decide sooner.

    Attributes:
        accel: what is reused; a kind that needs a plan and names none is calibrated.
        refine: search for a better plan, started from that one; 0 evaluations for none.
        sampler: what replaces the policy's, with the parts of `SamplerConfig` that are not null.
        cuda: it is another arm's equal but for how a GPU runs it, and is left out elsewhere.
    """

    accel: AccelConfig = field(default_factory=AccelConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    sampler: SamplerOverrides = field(default_factory=SamplerOverrides)
    cuda: bool = False


@dataclass
class BenchConfig:
    """Every way to denoise sooner beside the policy as published: speed, action error, success.

    Attributes:
        arms: by name; `~arms.NAME` leaves one out, `'+arms={NAME: {accel: {kind: bac}}}'` adds one.
        batch: environments that a timed plan serves.
        repeats: plans timed of each arm, in turns.
        observations: held-out observations, each with its noise, that action errors are taken over.
        calibration_observations: observations that a cache plan is decided on.
        success_arms: arms that also run in closed loop, each paired with the policy as published.
        episodes: pairs of each of them; 0 tests no success.
        first_seed, seed, num_envs, plan_batch, margin, retries, step_timeout_s, allow_partial: as
            in `EvalConfig`.
    """

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    sim: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, ArmConfig] = field(default_factory=dict)
    batch: int = 1
    repeats: int = 30
    observations: int = 32
    calibration_observations: int = 8
    success_arms: list[str] = field(default_factory=list)
    episodes: int = 200
    first_seed: int = 0
    seed: int = 0
    num_envs: int = 8
    plan_batch: int = 8
    margin: float = 0.05
    retries: int = 2
    step_timeout_s: float = 60.0
    allow_partial: bool = False
    run_dir: str | None = None


@dataclass
class DecodeArmConfig:
    """One way to write an answer, in the words of `fastloop.policies.vla.decoding.DecodingConfig`.

    Attributes:
        driver: such as `denoise`, `self_speculative` or `scaffold_speculative`; a wrong one is
            answered with all that there are.
        commit: of drivers that denoise: which slots are written after a pass.
        threshold: of those that have one: the confidence from which on a token stands.
        filter: of the commit policy `learned`: path of a filter.
        skip: layers that are left out: of drafts by the driver `layer_skip`, else of every pass.
        prune: how tokens of pictures are left out: `withdrawn`, `early`, `late` or `progressive`.
        kept: the share of them that is kept then.
        guidance: weight of classifier-free guidance; 0 for none.
        captured: on a GPU, passes as CUDA graphs.
        temperature: 0 for the likeliest token.
        rollouts: answers that share all but their last section.
        selector: how they become one plan: `mean`, `medoid` or `feasible`.
    """

    driver: str = ""
    commit: str = "confidence"
    threshold: float = 0.9
    filter: str = ""
    skip: list[int] = field(default_factory=list)
    prune: str = ""
    kept: float = 0.5
    guidance: float = 0.0
    captured: bool = False
    temperature: float = 0.0
    rollouts: int = 1
    selector: str = "mean"


@dataclass
class ProjectionConfig:
    """Times of plans that were not measured; printed as such.

    Attributes:
        ms_per_forward: of another machine or model; null projects nothing.
        prefill_ms: of the pass over its prompt.
        forwards: passes of a plan, by name, as others published them; they stand beside those that
            are counted here.
    """

    ms_per_forward: float | None = None
    prefill_ms: float = 0.0
    forwards: dict[str, float] = field(default_factory=dict)


@dataclass
class DecodeBenchConfig:
    """Every way to write a vision-language model's answer beside token by token: equality, passes,
    time, error. Plain and jump-forward token by token are always there, or for models that do not
    write from left to right the surest token of each pass (``plain``).

    Attributes:
        policy: of it are read checkpoint, device, dtype and threads; the arms say how it writes.
        sim: where to look at moments; without it those of `dataset`, or of the drives that come
            with the policy. Its cameras are the policy's where it names none.
        dataset: recorded drives whose every frame holds the plan that was made there; then errors
            are measured, too.
        arms: by name; `~arms.NAME` leaves one out.
        every: also all other ways that there are, by name, ``denoise`` with each commit policy;
            those that cannot be right on this model are left out.
        prompts: moments at which answers are compared and plans timed.
        episode_prompts, apart_s: of a simulator: moments of an episode, and seconds between them.
        first_seed: of the first episode.
        repeats: times that a plan is timed at each moment.
        sampled_prompts: at how many of them rollouts are compared with sampling token by token.
        plan_hz: of `dataset`: waypoints a second.
        seed: of the noise.
    """

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    sim: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, DecodeArmConfig] = field(default_factory=dict)
    every: bool = False
    prompts: int = 32
    episode_prompts: int = 4
    apart_s: float = 1.0
    first_seed: int = 800_000
    repeats: int = 1
    sampled_prompts: int = 4
    plan_hz: float = 4.0
    seed: int = 0
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    run_dir: str | None = None


@dataclass
class TrainBenchConfig(TrainVerbConfig):
    """Training a head on kept embeddings beside training the same policy end to end: time of a step
    and of an epoch, and of writing the embeddings.

    Attributes:
        repeats: timed steps of each, in turns. The others are those of `TrainVerbConfig`.
    """

    repeats: int = 10
