"""The structured configuration of `fastloop bench window`; see `fastloop.config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastloop.accel.samplers import SamplerConfig
from fastloop.policies.diffusion.vision import VisionConfig

__all__ = ["WindowBenchConfig"]


@dataclass
class WindowBenchConfig:
    """A tick of policies that see more and more frames, each frame encoded once, beside the same
    tick with all frames encoded again. The weights are random; the accelerator is ``exact``.

    Attributes:
        frames: O of each policy; the others are compared with the first.
        cameras, image_size: images of a frame, and pixels on a side.
        vision: how they are encoded.
        arch: of the denoising transformer.
        sampler: how it denoises.
        future: actions from now on that it plans, beside O - 1 past ones.
        repeats: ticks timed of each policy and way, in turns.
        device, threads: as in `PolicyConfig`.
    """

    frames: list[int] = field(default_factory=list)
    cameras: int = 3
    image_size: int = 84
    vision: VisionConfig = field(default_factory=VisionConfig)
    arch: dict[str, Any] = field(default_factory=dict)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    future: int = 16
    repeats: int = 30
    device: str = "cpu"
    threads: int = 1
    run_dir: str | None = None
