"""What plans, and how, for the verbs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

__all__ = ["DecodingOverrides", "PolicyConfig", "RemoteConfig", "SamplerOverrides"]


@dataclass
class SamplerOverrides:
    """The fields of `SamplerConfig`; null leaves what the checkpoint says."""

    kind: str | None = None
    num_train_timesteps: int | None = None
    num_inference_steps: int | None = None
    beta_schedule: str | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    prediction_type: str | None = None
    clip_sample: bool | None = None
    clip_sample_range: float | None = None


@dataclass
class DecodingOverrides:
    """The fields of `DecodingConfig`; null leaves its default."""

    driver: str | None = None
    commit: str | None = None
    threshold: float | None = None
    filter: str | None = None
    skip: list[int] | None = None
    prune: str | None = None
    kept: float | None = None
    guidance: float | None = None
    captured: bool | None = None
    temperature: float | None = None
    rollouts: int | None = None
    selector: str | None = None


@dataclass
class RemoteConfig:
    """What a policy server is asked; for a checkpoint that begins with ``ws://``.

    Attributes:
        names: our observation keys to what the server calls them; another server than ours gets
            exactly these, where some are given.
        constants: what else goes into every request, such as ``prompt``.
        timeout_s: for an answer.
        api_key_file: a file that holds the server's key.
    """

    names: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    timeout_s: float = 10.0
    api_key_file: str | None = None


@dataclass
class PolicyConfig:
    """Which weights decide, and how they are run.

    Attributes:
        checkpoint: a shipped policy's name, one of our folders, a LeRobot policy folder, or a
            ``.ckpt`` of diffusion_policy. Or the address of a policy server, ``ws://...``.
        n_action_steps: actions executed before planning again; null as the checkpoint says.
        sampler: what replaces the checkpoint's.
        decoding: how a vision-language model writes.
        device: torch device; `best` is CUDA where there is one, else the CPU.
        dtype: of a vision-language model's weights; empty for bfloat16 on a GPU and float32
            elsewhere.
        threads: torch threads inside a process; 0 measures which number is fastest.
        samples: plans that a denoising policy draws for each environment, of which one is executed.
        selector: by what it is chosen, `past` (PTP's self-verification), `past_partial` (that, on
            as much of the past as there is), `coherence` (with the plan under way) or `medoid`.
        remote: what a policy server is asked.
    """

    checkpoint: str = MISSING
    n_action_steps: int | None = None
    sampler: SamplerOverrides = field(default_factory=SamplerOverrides)
    decoding: DecodingOverrides = field(default_factory=DecodingOverrides)
    device: str = "cpu"
    dtype: str = ""
    threads: int = 0
    samples: int = 1
    selector: str = "past"
    remote: RemoteConfig = field(default_factory=RemoteConfig)
