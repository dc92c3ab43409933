"""Every sampler against diffusers, step by step, and the forward process against its definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from fastloop.accel.samplers import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    SAMPLERS,
    SamplerConfig,
    build_sampler,
    build_schedule,
    denoise,
)

SHAPE = (3, 5, 2)
CONFIGS = [
    SamplerConfig(
        num_inference_steps=steps, prediction_type=prediction, clip_sample=clip, beta_schedule=betas
    )
    for steps in (100, 16, 10, 8, 1)
    for prediction in PREDICTION_TYPES
    for clip in (True, False)
    for betas in BETA_SCHEDULES
]


def noises(n, dtype=torch.float64, seed=0):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class ClippedDPMSolver(DPMSolverMultistepScheduler):
    """diffusers' solver with its x_0 clipped, as our `clip` does."""

    def convert_model_output(self, *args, **kwargs):
        return super().convert_model_output(*args, **kwargs).clamp(-1, 1)


def reference(config, cls, **extra):
    """diffusers' scheduler, computing in double precision."""
    scheduler = cls(
        num_train_timesteps=config.num_train_timesteps,
        beta_schedule=config.beta_schedule,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        prediction_type=config.prediction_type,
        **extra,
    )
    single = scheduler.alphas_cumprod
    scheduler.alphas_cumprod = build_schedule(config).alphas_cumprod
    torch.testing.assert_close(single, scheduler.alphas_cumprod.float(), rtol=2e-5, atol=1e-7)
    scheduler.set_timesteps(config.num_inference_steps)
    return scheduler


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_ddpm_equals_diffusers(config, monkeypatch):
    sampler = build_sampler(config)
    theirs = reference(config, DDPMScheduler, clip_sample=config.clip_sample)
    assert sampler.timesteps.tolist() == theirs.timesteps.tolist()
    assert sampler.num_noises == config.num_inference_steps
    noise, outputs = noises(sampler.num_noises), noises(config.num_inference_steps, seed=1)
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    sample = noise[0]
    for k, t in enumerate(theirs.timesteps):
        here = noise[k + 1] if k + 1 < len(noise) else None
        monkeypatch.setattr(module, lambda *_, here=here, **__: here)
        expected = theirs.step(outputs[k], t, sample).prev_sample
        sample, _ = sampler.step(k, sample, outputs[k], here)
        torch.testing.assert_close(sample, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", [replace(c, kind="ddim") for c in CONFIGS], ids=str)
def test_ddim_equals_diffusers(config):
    sampler = build_sampler(config)
    theirs = reference(config, DDIMScheduler, clip_sample=config.clip_sample)
    assert sampler.timesteps.tolist() == theirs.timesteps.tolist()
    sample, outputs = noises(1)[0], noises(config.num_inference_steps, seed=1)
    for k, t in enumerate(theirs.timesteps):
        expected = theirs.step(outputs[k], t, sample).prev_sample
        sample, _ = sampler.step(k, sample, outputs[k])
        torch.testing.assert_close(sample, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "config",
    [replace(c, kind="dpm_solver") for c in CONFIGS if c.num_inference_steps < 100],
    ids=str,
)
def test_dpm_solver_equals_diffusers(config):
    sampler = build_sampler(config)
    cls = ClippedDPMSolver if config.clip_sample else DPMSolverMultistepScheduler
    theirs = reference(config, cls)
    abar = theirs.alphas_cumprod[theirs.timesteps]
    theirs.sigmas = torch.cat([((1 - abar) / abar).sqrt(), abar.new_zeros(1)])
    assert sampler.timesteps.tolist() == theirs.timesteps.tolist()
    sample, outputs, memory = noises(1)[0], noises(config.num_inference_steps, seed=1), None
    for k, t in enumerate(theirs.timesteps):
        # diffusers rounds the sample of every step to single precision
        sample = sample.float().double()
        expected = theirs.step(outputs[k], t, sample).prev_sample
        sample, memory = sampler.step(k, sample, outputs[k], None, memory)
        torch.testing.assert_close(sample, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 10, 16])
def test_flow_equals_diffusers(steps):
    sampler = build_sampler(SamplerConfig("flow", 1000, steps))
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    torch.testing.assert_close(sampler.timesteps, theirs.timesteps)
    sample, outputs = noises(1, torch.float32)[0], noises(steps, torch.float32, seed=1)
    for k, t in enumerate(theirs.timesteps):
        expected = theirs.step(outputs[k], t, sample).prev_sample
        sample, _ = sampler.step(k, sample, outputs[k])
        torch.testing.assert_close(sample, expected, rtol=1e-6, atol=1e-6)


def test_runge_kutta_equals_the_textbook():
    """dx/ds = x s + 1 from s = 1 to 0 in 5 steps."""
    sampler = build_sampler(SamplerConfig("flow_rk4", 1, 5))
    assert len(sampler.timesteps) == 20

    def slope(s, x):
        return x * s + 1

    x, h = noises(1)[0], -0.2
    result = denoise(sampler, lambda k, x: slope(sampler.timesteps[k].double(), x), noises(1))
    for i in range(5):
        s = 1 + i * h
        k1 = slope(s, x)
        k2 = slope(s + h / 2, x + h / 2 * k1)
        k3 = slope(s + h / 2, x + h / 2 * k2)
        k4 = slope(s + h, x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    torch.testing.assert_close(result, x, rtol=1e-6, atol=1e-6)  # timesteps are single precision


@pytest.mark.parametrize("kind", SAMPLERS)
def test_single_precision_stays_close_to_double(kind):
    sampler = build_sampler(SamplerConfig(kind, 100, 20))
    single = sampler.to("cpu", torch.float32)
    noise = noises(sampler.num_noises)
    outputs = noises(len(sampler.timesteps), seed=1).clamp(-1, 1)
    exact = denoise(sampler, lambda k, x: 0.5 * x + outputs[k], noise)
    rough = denoise(single, lambda k, x: 0.5 * x + outputs[k].float(), noise.float())
    assert rough.dtype == torch.float32
    assert single.timesteps.dtype == sampler.timesteps.dtype
    torch.testing.assert_close(rough.double(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["ddim", "dpm_solver", "ddpm"])
@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
def test_a_network_that_knows_the_answer_reaches_it(kind, prediction):
    """The target of `NoiseSchedule` and the inverse in the samplers are each other's inverse."""
    config = SamplerConfig(kind, 100, 10, prediction_type=prediction)
    sampler, schedule = build_sampler(config), build_schedule(config)
    x0 = noises(1, seed=2)[0].clamp(-1, 1)

    def network(k, sample):
        t = sampler.timesteps[k].expand(len(x0))
        abar = schedule.alphas_cumprod[sampler.timesteps[k]]
        noise = (sample - abar.sqrt() * x0) / (1 - abar).sqrt()
        return schedule.target(x0, noise, t, prediction)

    result = denoise(sampler, network, noises(sampler.num_noises))
    torch.testing.assert_close(result, x0, rtol=1e-9, atol=1e-9)


def test_forward_process_equals_diffusers():
    config = SamplerConfig()
    schedule, theirs = build_schedule(config), reference(config, DDPMScheduler)
    x0, noise = noises(2)
    t = torch.tensor([0, 42, 99])
    torch.testing.assert_close(
        schedule.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        schedule.target(x0, noise, t, "v_prediction"), theirs.get_velocity(x0, noise, t)
    )
    assert schedule.add_noise(x0.float(), noise.float(), t).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "ddmp"}, "ddpm, ddim, dpm_solver, flow, flow_rk4"),
        ({"prediction_type": "eps"}, "epsilon, sample, v_prediction"),
        ({"beta_schedule": "cosine"}, "squaredcos_cap_v2, linear"),
        ({"num_inference_steps": 101}, "trained on 100"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"num_train_timesteps": 0}, "at least 1"),
        ({"kind": "dpm_solver"}, "at most 99"),
        ({"beta_schedule": "linear", "beta_end": 1.5}, "beta_end"),
    ],
)
def test_bad_config_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build_sampler(replace(SamplerConfig(), **change))


def test_wrong_number_of_noises_is_refused():
    with pytest.raises(ValueError, match="needs 100 noise tensors, got 1"):
        denoise(build_sampler(SamplerConfig()), lambda k, x: x, noises(1))
