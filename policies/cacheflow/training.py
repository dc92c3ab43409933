"""How CacheFlow's weights are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from fastloop.policies.cacheflow.model import CacheFlowModel
from fastloop.policies.cacheflow.samples import Samples
from fastloop.policies.training import TrainConfig, Trainer

__all__ = ["build_trainer"]


def build_trainer(
    model: CacheFlowModel,
    samples: Samples,
    config: TrainConfig,
    *,
    facts: Mapping[str, Any] | None = None,
) -> Trainer:
    """Trains flow and mixture; ``trainer.ema.averaged`` is what `CacheFlow.build` takes.

    Args:
        model: `CacheFlowModel.new`.
        samples: to learn from.
        config: how; the mixture is always computed in float32.
        facts: what else decides the weights, see `Trainer`.
    """

    def loss(batch: Mapping[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        return model.loss(batch, generator)

    def batch(step: int) -> dict[str, torch.Tensor]:
        return samples.batch(step, config.batch_size, config.seed)

    told = {"model": asdict(model.config), "samples": len(samples), **(facts or {})}
    return Trainer(model, loss, batch, config, facts=told)
