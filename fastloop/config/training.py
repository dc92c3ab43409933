"""Demonstrations, and what learns from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from fastloop.accel.samplers import SamplerConfig
from fastloop.policies.diffusion.scene import SceneConfig
from fastloop.policies.diffusion.state import StateConfig
from fastloop.policies.diffusion.vision import VisionConfig
from fastloop.policies.training import TrainConfig
from fastloop.policies.vla.training import StageConfig

__all__ = ["NetworkConfig", "RecordConfig", "TrainVerbConfig", "VLAConfig"]


@dataclass
class RecordConfig:
    """Demonstrations by a scripted expert, as robomimic HDF5.

    Attributes:
        episodes: successful episodes wanted.
        first_seed: seed of the first attempt; they count up.
        disturb: probability that an episode is disturbed by bursts of random actions, which are
            not recorded: the demonstration is split there, so that recovery is learned.
        noise: in disturbed episodes, the largest deviation of the executed action from the recorded
            one, as a fraction of each action's range.
        bursts, burst_every: at most that many of them in an episode, that many ticks apart on
            average.
        student: a policy that drives instead, while the expert says what it would do (DAgger).
        n_action_steps: ticks until the student plans again; null as it says itself.
        num_workers: processes.
        out: the file; a recording that was stopped is continued.
    """

    sim: dict[str, Any] = field(default_factory=dict)
    expert: dict[str, Any] = field(default_factory=dict)
    episodes: int = 200
    first_seed: int = 1_000_000
    disturb: float = 0.0
    noise: float = 0.0
    bursts: int = 3
    burst_every: int = 25
    student: str = ""
    n_action_steps: int | None = None
    num_workers: int = 2
    out: str = MISSING
    run_dir: str | None = None


@dataclass
class VLAConfig:
    """What a vision-language planner is asked, what it answers, and how it is taught.

    Attributes:
        schema: of the answer: the name of one that comes along, or the path of a ``.yaml``.
        prompt: name of the question's template.
        stages: of training, one after the other; their shares of its steps are in all 1.
        compile: train with the decoder's layers compiled: they round differently, and need a C++
            compiler where there is no GPU.
    """

    schema: str = ""
    prompt: str = ""
    stages: dict[str, StageConfig] = field(default_factory=dict)
    compile: bool = False


@dataclass
class NetworkConfig:
    """The network that is trained, a group of its own: ``network=transformer``, for instance.

    Attributes:
        kind: `transformer`, `unet` or `unet_cross`, which denoise, `cacheflow`, which looks plans
            up, or `qwen2_5_vl`, which writes; of what follows, the last one has arch (``text`` and
            ``vision``), inputs and vla.
        arch: arguments of its constructor, without the widths that follow from the data.
        horizon, n_obs_steps, n_action_steps: T, O, and actions executed before planning again.
        inputs: observation keys that condition it, in this order.
        state: encoder of low-dimensional observations; depth 0 lets the denoiser see them as they
            are, as published.
        scene: encoder of the driving vocabulary's vectors; 0 layers for none.
        stride, spacing: ticks between two frames, and whether they are so everywhere (`uniform`) or
            only in the older half of the window (`mixed`).
        past_steps: newest past actions that are learned beside the present and future ones; null
            for all, O - 1.
        contexts: numbers of frames, one of which each batch sees, drawn at random; the policy can
            then be run with any of them. Empty for always O.
        encoder: policy whose image encoder is taken over, frozen, with its `vision` and normalizer:
            a name or a path. Null trains one.
        embeddings: file that keeps what it makes of the demonstrations, so that several trainings
            share it; null for one in the run folder.
        relative_to: observation that the network's actions are relative to; null for none.
        cumulative: inside the network an action is the step from the one before.
        vla: of a vision-language planner.
    """

    kind: str = "transformer"
    arch: dict[str, Any] = field(default_factory=dict)
    horizon: int = 16
    n_obs_steps: int = 2
    n_action_steps: int = 8
    stride: int = 1
    spacing: str = "uniform"
    past_steps: int | None = None
    contexts: list[int] = field(default_factory=list)
    inputs: list[str] = field(default_factory=lambda: ["observation.state"])
    state: StateConfig = field(default_factory=lambda: StateConfig(depth=0))
    scene: SceneConfig = field(default_factory=lambda: SceneConfig(layers=0))
    encoder: str | None = None
    embeddings: str | None = None
    relative_to: str | None = None
    cumulative: bool = False
    vla: VLAConfig = field(default_factory=VLAConfig)


@dataclass
class TrainVerbConfig:
    """Train a diffusion policy, or a vision-language planner, on demonstrations.

    Attributes:
        sim: where the policy will act: it gives the shapes, and runs the checks.
        dataset: where the demonstrations are.
        sampler: how noise is added in training and taken away afterwards.
        vision: how images become features, for policies with cameras.
        init: policy of the same network to start from, its normalizer included; by default from
            random weights.
        mirror: train planners also on every drive with left and right changed.
        pretrain: how the encoder of a state or a scene is trained by itself, before the denoiser;
            0 steps for not at all. It is frozen afterwards.
        check_every: steps between checks, 0 for none: `check_episodes` in closed loop; for a
            vision-language planner moments of as many of the last drives, which are not trained on.
        save_every: steps between saved states, from which a killed run goes on.
        out: folder of the finished policy (half precision), beside the run folder by default.
    """

    sim: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    pretrain: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=0, batch_size=1024, lr=1.5e-3, weight_decay=1e-2, warmup_steps=200
        )
    )
    vision: VisionConfig = field(default_factory=VisionConfig)
    init: str | None = None
    mirror: bool = False
    check_every: int = 0
    check_episodes: int = 20
    save_every: int = 500
    device: str = "cpu"
    threads: int = 0
    out: str | None = None
    run_dir: str | None = None
