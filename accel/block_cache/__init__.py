"""Reuse a denoiser's residual branches between denoise steps, on a schedule fixed in advance."""

from fastloop.accel.block_cache.cached import CachedLoop
from fastloop.accel.block_cache.calibrate import Calibration, calibrate, make_plan
from fastloop.accel.block_cache.plan import CachePlan, Provenance
from fastloop.accel.block_cache.stack import Branch, ResidualStack

__all__ = [
    "Branch",
    "CachePlan",
    "CachedLoop",
    "Calibration",
    "Provenance",
    "ResidualStack",
    "calibrate",
    "make_plan",
]
