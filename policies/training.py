"""The training loop of a policy's weights: AdamW, cosine rate, EMA, resume after a kill."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastloop.policies.diffusion.ema import EMA

__all__ = ["TrainConfig", "Trainer", "learning_rate"]

Batch = Mapping[str, torch.Tensor]


@dataclass  # not frozen: Hydra writes a composed configuration field by field
class TrainConfig:
    """How weights are trained; the defaults are Diffusion Policy's (Chi et al. 2023) but for
    `steps` and `autocast`.

    Attributes:
        steps: optimizer steps in all.
        batch_size: samples a step.
        lr, betas, weight_decay: of AdamW; a module's own `parameter_groups` says what decays.
        warmup_steps: steps of linear rise before the cosine fall to 0.
        max_grad_norm: gradients are scaled down to this length; 0 leaves them.
        ema_power: growth of the average's decay towards 0.9999.
        autocast: forward pass in bfloat16.
        seed: of batches, noise and dropout.
    """

    steps: int = 20_000
    batch_size: int = 256
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-3
    warmup_steps: int = 1_000
    max_grad_norm: float = 1.0
    ema_power: float = 0.75
    autocast: bool = True
    seed: int = 0


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of a step: linear warm-up, then half a cosine to 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(config.steps - config.warmup_steps, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / span))


class Trainer:
    """Trains `model` on batches that are a pure function of the step, so a resumed run equals an
    unbroken one.

    Args:
        model: decays as a whole, but for the parts with a method `parameter_groups(weight_decay)`.
        loss: of a batch; draws its noise from the generator it is given.
        batch: the batch of a step, on the CPU.
        config: how.
        facts: what else decides the weights (data, network), as plain values; a saved state is
            only resumed by a run with the same.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Batch, torch.Generator], torch.Tensor],
        batch: Callable[[int], Batch],
        config: TrainConfig,
        *,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model.train()
        self.loss = loss
        self.batch = batch
        self.config = config
        self.facts = dict(facts or {})
        self.ema = EMA(model, power=config.ema_power)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(model, config.weight_decay), lr=config.lr, betas=config.betas,
            fused=True,
        )  # fmt: skip
        self.step = 0

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def advance(self) -> float:
        """One optimizer step; returns the loss before it.

        Raises:
            FloatingPointError: when the loss is no longer finite; the last saved state is intact.
        """
        config = self.config
        torch.manual_seed(config.seed * 1_000_003 + self.step)  # dropout
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config)
        batch = {key: value.to(self.device) for key, value in self.batch(self.step).items()}
        # On CPUs the fused attention's backward pass is most of a step when there are few tokens.
        attention = sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()
        with attention, torch.autocast(self.device.type, torch.bfloat16, enabled=config.autocast):
            loss = self.loss(batch, generator)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value} at step {self.step}; train again with a lower train.lr, "
                "in another run_dir"
            )
        loss.backward()
        if config.max_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model)
        self.step += 1
        return value

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs; a kill leaves the old file or the new one.

        Raises:
            OSError: when the disk is full; the old file is untouched.
        """
        state = {
            "config": asdict(self.config) | self.facts,
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = path.with_suffix(".partial")
        try:
            torch.save(state, partial)
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # torch hides the file system's error
            partial.unlink(missing_ok=True)
            raise OSError(
                f"cannot write {path} ({error}); the state saved before is safe"
            ) from error

    def resume(self, path: Path) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: when it is damaged, or was saved by a run with another configuration.
        """
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location=self.device)
        except (EOFError, OSError, RuntimeError, UnpicklingError) as error:
            what = type(error).__name__  # its text advises to run what the file says
            raise ValueError(f"{path} is damaged ({what}); remove it to start again") from error
        ours = asdict(self.config) | self.facts
        changed = {
            k: (state["config"].get(k), ours[k]) for k in ours if state["config"].get(k) != ours[k]
        }
        if changed:
            raise ValueError(
                f"{path} was saved by a run with other settings (then, now): {changed}; use "
                "another run_dir, or the old settings"
            )
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The groups of the parts that name their own, and one for everything else."""
    if hasattr(module, "parameter_groups"):
        return module.parameter_groups(weight_decay)
    groups: list[dict[str, Any]] = []
    rest = [*module.parameters(recurse=False)]
    for child in module.children():
        if hasattr(child, "parameter_groups"):
            groups += child.parameter_groups(weight_decay)
        else:
            rest += child.parameters()
    rest = [parameter for parameter in rest if parameter.requires_grad]
    return groups + ([{"params": rest, "weight_decay": weight_decay}] if rest else [])
