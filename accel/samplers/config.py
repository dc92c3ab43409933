"""Which sampler, in words: the config that a checkpoint stores and a user overrides."""

from __future__ import annotations

from dataclasses import dataclass

from fastloop.accel.samplers.base import Sampler
from fastloop.accel.samplers.ddim import DDIM
from fastloop.accel.samplers.ddpm import DDPM
from fastloop.accel.samplers.dpm_solver import DPMSolver
from fastloop.accel.samplers.flow import FlowEuler
from fastloop.accel.samplers.runge_kutta import FlowRK4
from fastloop.accel.samplers.schedule import BETA_SCHEDULES, FlowPath, NoiseSchedule

__all__ = ["SAMPLERS", "SamplerConfig", "build_sampler", "build_schedule"]

SAMPLERS = ("ddpm", "ddim", "dpm_solver", "flow", "flow_rk4")

FLOWS: dict[str, type[FlowEuler] | type[FlowRK4]] = {"flow": FlowEuler, "flow_rk4": FlowRK4}


@dataclass  # not frozen: Hydra writes a composed configuration field by field
class SamplerConfig:
    """Names and defaults as published with Diffusion Policy (Chi et al. 2023).

    Attributes:
        kind: one of `SAMPLERS`.
        num_train_timesteps: steps of the forward process that the network was trained on.
        num_inference_steps: K, steps of the reverse process; flow_rk4 evaluates the network four
            times in each.
        beta_schedule: one of `BETA_SCHEDULES`; flow has none.
        beta_start, beta_end: of the linear schedule.
        prediction_type: `epsilon`, `sample` or `v_prediction`; flow predicts its own velocity.
        clip_sample, clip_sample_range: whether and how far the x_0 estimate is clipped.
    """

    kind: str = "ddpm"
    num_train_timesteps: int = 100
    num_inference_steps: int = 100
    beta_schedule: str = "squaredcos_cap_v2"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction_type: str = "epsilon"
    clip_sample: bool = True
    clip_sample_range: float = 1.0


def build_schedule(config: SamplerConfig) -> NoiseSchedule | FlowPath:
    """The forward process of `config`, on which a network is trained.

    Raises:
        ValueError: an unknown name (the choices are listed), or a number that makes no schedule.
    """
    _check_kind(config)
    if config.kind in FLOWS:
        return FlowPath(config.num_train_timesteps)
    return _noise_schedule(config)


def _check_kind(config: SamplerConfig) -> None:
    if config.kind not in SAMPLERS:
        raise ValueError(f"unknown sampler {config.kind!r}; choose one of {', '.join(SAMPLERS)}")
    if config.num_train_timesteps < 1:
        raise ValueError(
            f"num_train_timesteps must be at least 1, got {config.num_train_timesteps}"
        )


def _noise_schedule(config: SamplerConfig) -> NoiseSchedule:
    if config.beta_schedule == "squaredcos_cap_v2":
        return NoiseSchedule.squared_cosine(config.num_train_timesteps)
    if config.beta_schedule != "linear":
        raise ValueError(
            f"unknown beta_schedule {config.beta_schedule!r}; choose one of "
            + ", ".join(BETA_SCHEDULES)
        )
    if not 0 < config.beta_start <= config.beta_end < 1:
        raise ValueError(
            "a linear schedule needs 0 < beta_start <= beta_end < 1, got "
            f"{config.beta_start} and {config.beta_end}"
        )
    return NoiseSchedule.linear(config.num_train_timesteps, config.beta_start, config.beta_end)


def build_sampler(config: SamplerConfig) -> Sampler:
    """The reverse process of `config`, its tables in float64 on the CPU.

    Raises:
        ValueError: an unknown name (the choices are listed), or more steps than were trained.
    """
    _check_kind(config)
    steps = config.num_inference_steps
    if steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {steps}")
    if config.kind in FLOWS:
        return FLOWS[config.kind].build(steps, config.num_train_timesteps)
    schedule = _noise_schedule(config)
    if steps > len(schedule):
        raise ValueError(
            f"num_inference_steps is {steps}, but the network was trained on {len(schedule)} steps"
        )
    clip = config.clip_sample_range if config.clip_sample else None
    if config.kind == "ddpm":
        return DDPM.build(schedule, steps, config.prediction_type, clip)
    if config.kind == "ddim":
        return DDIM.build(schedule, steps, config.prediction_type, clip)
    return DPMSolver.build(schedule, steps, config.prediction_type, clip)
