"""Consecutive denoise steps that reuse every branch, as one kernel."""

from fastloop.accel.kernels.reused_run.ends import Ends
from fastloop.accel.kernels.reused_run.solver import Solver

__all__ = ["Ends", "Solver"]
