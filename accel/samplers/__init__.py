"""From noise to actions: the reverse processes, each a table of coefficients."""

from fastloop.accel.samplers.base import Sampler, denoise
from fastloop.accel.samplers.config import SAMPLERS, SamplerConfig, build_sampler, build_schedule
from fastloop.accel.samplers.ddim import DDIM
from fastloop.accel.samplers.ddpm import DDPM
from fastloop.accel.samplers.dpm_solver import DPMSolver
from fastloop.accel.samplers.flow import FlowEuler
from fastloop.accel.samplers.runge_kutta import FlowRK4
from fastloop.accel.samplers.schedule import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    FlowPath,
    NoiseSchedule,
)

__all__ = [
    "BETA_SCHEDULES",
    "DDIM",
    "DDPM",
    "PREDICTION_TYPES",
    "SAMPLERS",
    "DPMSolver",
    "FlowEuler",
    "FlowPath",
    "FlowRK4",
    "NoiseSchedule",
    "Sampler",
    "SamplerConfig",
    "build_sampler",
    "build_schedule",
    "denoise",
]
