"""The structured configuration of `fastloop bench plans`; see `fastloop.config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastloop.config import PolicyConfig

__all__ = ["PlansBenchConfig"]


@dataclass
class PlansBenchConfig:
    """A CacheFlow policy on episodes that it did not learn from: which of another policy's plans it
    finds likeliest, and, of drives, how well its alarm tells the same with left and right changed.

    Attributes:
        policy: one that denoises, which draws the plans; of it are read checkpoint, sampler,
            samples and threads.
        judge: the CacheFlow policy: a shipped policy's name, or a folder.
        dataset: drives with the plans that an expert made, or demonstrations of what was done.
        moments: of them that are looked at, evenly over all; null for all of them.
        seed: of the plans.
    """

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    judge: str = ""
    dataset: dict[str, Any] = field(default_factory=dict)
    moments: int | None = 300
    seed: int = 0
    run_dir: str | None = None
