"""Which accelerator, in words: the structured config behind `configs/accel/`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KINDS", "METRICS", "AccelConfig"]

KINDS = ("none", "uniform", "unified", "bac")
METRICS = ("cosine", "l1", "relative_l2")


@dataclass  # not frozen: Hydra writes a composed configuration field by field
class AccelConfig:
    """One block cache.

    Attributes:
        kind: `none`; `uniform`, all branches every K/S steps; `unified`, all branches on the
            schedule of the first one; `bac`, a schedule per branch (Block-wise Adaptive Caching).
        budget: S, updates of each branch in one chunk, the first step included.
        union: n, the volatile branches that are also updated with every feed-forward branch
            downstream (Bubbling Union); 0 for none. Only `bac` uses it.
        metric: distance between a branch's values at two steps, one of `METRICS`.
        force_last: also update every branch at the last step, as the published code does.
        plan: path of a saved `CachePlan` of this kind to run as it is; the settings above make a
            plan, and a saved one brings its own.
    """

    kind: str = "none"
    budget: int = 10
    union: int = 5
    metric: str = "cosine"
    force_last: bool = False
    plan: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown accelerator {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric {self.metric!r}; choose one of {', '.join(METRICS)}")
        if self.budget < 1:
            raise ValueError(f"budget must be at least 1 update a branch, got {self.budget}")
        if self.union < 0:
            raise ValueError(f"union must be 0 or more branches, got {self.union}")
