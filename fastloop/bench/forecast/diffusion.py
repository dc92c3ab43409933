"""A diffusion forecaster: the policies' denoiser, with futures in the place of actions."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fastloop.accel.denoise import PlainLoop
from fastloop.accel.samplers import build_sampler, build_schedule
from fastloop.bench.forecast.config import DiffusionForecasterConfig
from fastloop.bench.forecast.forecasters import Forecaster
from fastloop.policies.cacheflow.samples import Samples
from fastloop.policies.diffusion.model import ACTION, DiffusionModel, steps_between
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.transformer import TransformerForDiffusion
from fastloop.policies.rng import Rng
from fastloop.policies.training import Trainer

__all__ = ["DiffusionForecaster", "diffusion_trainer"]

HISTORY = "observation.history"


def diffusion_trainer(
    config: DiffusionForecasterConfig, train: Samples, device: str, digest: str
) -> Trainer:
    """What trains the weights: a future is denoised as the steps from one time to the next.

    Args:
        config: size and training.
        train: what is learned.
        device: where.
        digest: of `train`; a saved state of other data is not resumed.

    Raises:
        ValueError: no such network or sampler.
    """
    steps, width = train.future.shape[1:]
    schedule, kind = build_schedule(config.sampler), config.sampler.prediction_type
    build_sampler(config.sampler)
    normalizer = LinearNormalizer()
    past, future = train.history, train.future
    moves = steps_between(future - past[:, -1:])
    normalizer.fit({HISTORY: past, ACTION: moves}, mode="gaussian")
    torch.manual_seed(config.train.seed)
    try:
        network = TransformerForDiffusion(
            width, width, steps, n_obs_steps=past.shape[1], cond_dim=width, **config.arch
        )
    except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"no denoiser can be built from diffusion.arch={config.arch}: {error}"
        ) from error
    model = DiffusionModel(network, normalizer, [HISTORY], relative_to=HISTORY, cumulative=True)

    def loss(batch: Mapping[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        named = {HISTORY: batch["history"], ACTION: batch["future"]}
        return model.loss(named, schedule, kind, generator=generator)

    return Trainer(
        model.to(device),
        loss,
        lambda step: train.batch(step, config.train.batch_size, config.train.seed),
        config.train,
        facts={"data": digest, "arch": config.arch, "sampler": vars(config.sampler)},
    )


class DiffusionForecaster(Forecaster):
    """Samples of a trained `DiffusionModel`, one chain each.

    Args:
        model: its weights; put in evaluation mode.
        config: how it was trained.
    """

    def __init__(self, model: DiffusionModel, config: DiffusionForecasterConfig) -> None:
        self.model = model.eval()
        weight = next(model.model.parameters())
        self.sampler = build_sampler(config.sampler).to(weight.device, weight.dtype)
        self.loop = PlainLoop(model.denoise, self.sampler)
        self.device = weight.device

    @torch.inference_mode()
    def forecast(self, past: torch.Tensor, samples: int, rng: Rng) -> torch.Tensor:
        """See `Forecaster`."""
        network = self.model.model
        history = past.to(self.device).repeat_interleave(samples, 0)
        seen = {HISTORY: history}
        shape = (samples, self.sampler.num_noises, network.horizon, past.shape[-1])
        noise = rng.normal(shape).flatten(0, 1).transpose(0, 1).to(self.device)
        sample, _ = self.loop(noise, self.model.condition(seen))
        futures = self.model.unnormalize_actions(sample, seen)
        return futures.cpu().unflatten(0, (len(past), samples))
