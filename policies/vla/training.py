"""Training a vision-language policy: stages, each a `Trainer` over the same samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from fastloop.accel.decoding.model import ModelSpec, Regime
from fastloop.policies.training import TrainConfig, Trainer
from fastloop.policies.vla.conversion import (
    Objective,
    annealed_block_size,
    autoregressive_loss,
    block_diffusion_loss,
    prefix_lm_loss,
)
from fastloop.policies.vla.noise import UNIFORM
from fastloop.policies.vla.samples import Batches, Samples

__all__ = ["STAGES", "StageConfig", "Trained", "build_loss", "build_trainer", "stop_behind"]

# And what a model may become in them.
STAGES = {
    "autoregressive": {Regime.CAUSAL_CONTEXT, Regime.PREFIX_LM},
    "block_diffusion": {Regime.CAUSAL_CONTEXT},
    "structured": {Regime.CAUSAL_CONTEXT},
    "prefix_lm": {Regime.PREFIX_LM},
}
# Fast-dDrive's: what plans is masked more and counts more than what sees.
NOISE = {
    "critical_objects": [1.0, 2.0],
    "explanation": [1.0, 1.0],
    "future_meta_behavior": [1.0, 1.5],
    "trajectory": [2.0, 1.0],
}
WEIGHTS = {
    "critical_objects": 1.5,
    "explanation": 1.0,
    "future_meta_behavior": 2.0,
    "trajectory": 3.0,
}


@dataclass  # not frozen: Hydra writes a composed configuration field by field
class StageConfig:
    """What one stage of training teaches.

    - ``autoregressive``: to answer, token by token;
    - ``block_diffusion``: to draft any answer in blocks of a fixed size (Fast-dVLM's direct
      conversion, arXiv 2604.06832); blocks begin anew with every answer and end with it;
    - ``structured``: to draft the values between the scaffold of a canvas, in its blocks
      (Fast-dDrive, arXiv 2605.23163);
    - ``prefix_lm``: to fill those values while all of the answer is seen (LaViDa, arXiv
      2505.16839).

    Attributes:
        stage: one of `STAGES`.
        block_size: of ``block_diffusion``.
        anneal: whether its blocks grow to that size, see `annealed_block_size`.
        noise: of ``structured``: section to (a, b) of its Beta; uniform where missing.
        weights: of ``structured`` and ``prefix_lm``: section to weight of its drafted tokens; 1
            where missing.
        draft_weight, causal_weight: of the two halves of the loss.
        eps: the least probability of being masked.
        share, lr_factor: where several stages make one training: the part of its steps, and of its
            learning rate, that is this one's; a share of 0 leaves it out.
    """

    stage: str = "structured"
    block_size: int = 32
    anneal: bool = True
    noise: dict[str, list[float]] = field(default_factory=lambda: dict(NOISE))
    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    draft_weight: float = 0.5
    causal_weight: float = 0.5
    eps: float = 1e-3
    share: float = 1.0
    lr_factor: float = 1.0


class Trained(nn.Module):
    """A model as `Trainer` takes it: norms and biases do not decay, and tied weights count once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Of AdamW; what needs no gradient is left out."""
        free = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in free if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in free if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]


def build_trainer(
    model: Any,
    spec: ModelSpec,
    samples: Samples,
    stage: StageConfig,
    config: TrainConfig,
    *,
    facts: Mapping[str, Any] | None = None,
) -> Trainer:
    """What trains one stage; ``trainer.ema.averaged.model`` is the average to keep.

    Args:
        model: of transformers, see `fastloop.policies.vla.conversion`; trained in place, on its
            device, but for what needs no gradient.
        spec: of what it shall become.
        samples: all of one canvas's sections; taken one by one when they are needed.
        stage: what to teach.
        config: how.
        facts: what else decides the weights, such as the data's digest; see `Trainer`.

    Raises:
        ValueError: for a stage or a section that does not exist, a schedule that is none, a model
            that reads no boolean masks, or no samples.
    """
    if not len(samples):
        raise ValueError("there are no samples to train on")
    loss = build_loss(model, spec, samples[0].canvas.sections, stage)
    _check_model(model, spec, stage)

    def blocks(step: int) -> int | None:
        if stage.stage != "block_diffusion":
            return None
        largest = stage.block_size
        return annealed_block_size(step / config.steps, largest) if stage.anneal else largest

    return Trainer(
        Trained(model),
        loss,
        Batches(samples, config.batch_size, config.seed, model, stop_behind(spec, stage), blocks),
        config,
        facts={"stage": asdict(stage), "samples": len(samples), **(facts or {})},
    )


def build_loss(
    model: Any, spec: ModelSpec, sections: Sequence[str], stage: StageConfig
) -> Callable[[Mapping[str, torch.Tensor], torch.Generator], torch.Tensor]:
    """What a stage minimizes, of a batch and the generator of its noise; raises as `build_trainer`.

    Args:
        model, spec, stage: as there.
        sections: of the canvas.
    """
    objective = _objective(stage, sections)

    def loss(batch: Mapping[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        if stage.stage == "autoregressive":
            return autoregressive_loss(model, batch)
        one = prefix_lm_loss if stage.stage == "prefix_lm" else block_diffusion_loss
        return one(model, batch, spec, objective, generator=generator)

    return loss


def stop_behind(spec: ModelSpec, stage: StageConfig) -> int | None:
    """The token behind every answer of a stage; none where a model sees all of an answer, because
    its decoder has no such slot to show."""
    return None if stage.stage == "prefix_lm" else spec.stop_id


def _check_model(model: Any, spec: ModelSpec, stage: StageConfig) -> None:
    attention = model.get_decoder().config._attn_implementation
    if attention != "sdpa":
        raise ValueError(
            f"attention {attention!r} reads no boolean masks: load the model with "
            "attn_implementation='sdpa'"
        )
    if spec.regime not in STAGES[stage.stage]:
        raise ValueError(
            f"the stage {stage.stage} does not make a model {spec.regime.value}, only "
            f"{' or '.join(sorted(STAGES[stage.stage]))}"
        )


def _objective(stage: StageConfig, sections: Sequence[str]) -> Objective:
    """The configuration as numbers, a section after the other."""
    if stage.stage not in STAGES:
        raise ValueError(f"unknown stage {stage.stage!r}; have: {', '.join(STAGES)}")
    if stage.block_size < 1:
        raise ValueError(f"a block has at least one slot, got block_size={stage.block_size}")
    if stage.stage == "block_diffusion" and stage.anneal:
        annealed_block_size(0.0, stage.block_size)
    for name, known in (("noise", NOISE), ("weights", WEIGHTS)):
        if unknown := set(getattr(stage, name)) - {*sections, *known}:
            raise ValueError(
                f"{name} names {', '.join(sorted(unknown))}; the sections are {', '.join(sections)}"
            )
    for section, schedule in stage.noise.items():
        if len(schedule) != 2 or min(schedule) <= 0:
            raise ValueError(f"noise of {section} must be (a, b), both above 0, got {schedule}")
    structured = stage.stage == "structured"
    sectioned = stage.stage in ("structured", "prefix_lm")
    noise = [stage.noise.get(s, UNIFORM) if structured else UNIFORM for s in sections]
    weights = [stage.weights.get(s, 1.0) if sectioned else 1.0 for s in sections]
    return Objective(
        noise=tuple((float(a), float(b)) for a, b in noise),
        weights=tuple(float(weight) for weight in weights),
        draft_weight=stage.draft_weight,
        causal_weight=stage.causal_weight,
        eps=stage.eps,
    )
