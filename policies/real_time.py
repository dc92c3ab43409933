"""Real-time chunking: a new plan that goes on from the one under way (Black et al. 2025).

While a plan is made the old one is executed, so the new one has to begin as the old one goes on:
the ticks that will have passed are frozen, the later ones that the old plan speaks of count less
and less, and the rest is free. Beyond the end of the old plan nothing is known, and nothing is
filled in. How many ticks pass is what the last plans of the episode really took, in ticks that were
consumed, never a guess from the wall clock.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastloop.accel.denoise import DenoiseLoop
from fastloop.accel.report import AccelReport
from fastloop.policies.base import Policy
from fastloop.policies.best_of import BestOf, underway
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.diffusion.steering import (
    GuidedLoop,
    Known,
    check_steerable,
    guidable,
    replaced_loop,
)
from fastloop.policies.driving.whole_plans import planner_of
from fastloop.policies.history import History

__all__ = ["FORMS", "SCHEDULES", "RealTimeConfig", "RealTimePolicy", "prefix_weights", "real_time"]

FORMS = ("prefix", "guidance")
SCHEDULES = ("exp", "linear", "ones", "zeros")


@dataclass
class RealTimeConfig:
    """How a plan goes on from the one under way.

    Attributes:
        form: `prefix` puts the old plan in place of the clean estimate at every step of the chain,
            without training, at no cost, with any accelerator; `guidance` draws it there through
            the network's vector-Jacobian product, at about the cost of another evaluation a step.
        schedule: how the old plan's weight falls behind the frozen ticks: `exp` (as published),
            `linear`, `ones` (it does not) or `zeros` (at once).
        limit: of the guidance's weight; null as `GuidedLoop` says.
        delay: frozen ticks while an episode has not shown yet how late its plans come.

    Raises:
        ValueError: from `check`.
    """

    form: str = "prefix"
    schedule: str = "exp"
    limit: float | None = None
    delay: int = 0

    def check(self) -> None:
        """Refuse unknown words, and numbers out of range."""
        for name, known in (("form", FORMS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"unknown real_time.{name} {getattr(self, name)!r}; have: {', '.join(known)}"
                )
        if self.limit is not None and not (math.isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"real_time.limit must be a finite number above 0, got {self.limit}")
        if self.delay < 0:
            raise ValueError(f"real_time.delay must be 0 ticks or more, got {self.delay}")


def prefix_weights(
    frozen: Sequence[int], ends: Sequence[int], ticks: int, schedule: str = "exp"
) -> torch.Tensor:
    """How much the old plan counts in each of the next ticks: 1 while frozen, then falling.

    Args:
        frozen: ticks that will have passed, of B environments.
        ends: ticks that the old plan still speaks of; beyond, it does not count.
        ticks: T.
        schedule: one of `SCHEDULES`.

    Returns:
        (B, T) float32.
    """
    place, end = torch.arange(ticks), torch.tensor(ends)[:, None]
    start = torch.minimum(torch.tensor(frozen)[:, None], end)
    if schedule == "ones":
        weights = torch.ones(len(ends), ticks)
    elif schedule == "zeros":
        weights = (place < start).float()
    else:
        weights = ((start - 1 - place) / (end - start + 1) + 1).clamp(0, 1)
        if schedule == "exp":
            weights = weights * torch.expm1(weights) / (math.e - 1)
    return torch.where(place < end, weights, 0.0)


class RealTimePolicy(DiffusionPolicy):
    """A diffusion policy whose plans go on from the one under way.

    Where none is under way, its plan is that of `policy` bit for bit, whatever stands beside it.
    Guidance takes the savings of ``accel=exact`` off, which have no derivative.

    Args:
        policy: plain or accelerated; not changed.
        config: how.

    Raises:
        ValueError: the two do not go together; the message says why.
    """

    def __init__(self, policy: DiffusionPolicy, config: RealTimeConfig) -> None:
        config.check()
        check_steerable(policy.sampler)
        if policy.model.cumulative:
            raise ValueError(
                "this policy's network plans steps from one action to the next, in which no tick "
                "can be held on its own: say chunking=receding"
            )
        super().__init__(policy.spec, policy.model, policy.sampler, digest=policy.digest)
        self.loop, self.window, self.config = policy.loop, policy.window, config
        if config.form == "guidance":
            self.loop = guidable(self.loop)

    @torch.inference_mode()
    def draw(
        self, history: History, noise: torch.Tensor
    ) -> tuple[torch.Tensor, AccelReport, tuple[AccelReport, ...]]:
        """See `DiffusionPolicy.draw`."""
        known = self.known(history, noise.shape[2])
        bound = (known.weights > 0).flatten(1).any(1).unflatten(0, noise.shape[1:3])[:, 0]
        if not bound.any():
            return super().draw(history, noise)
        steered = copy.copy(self)
        steered.loop = self._steered(known)
        chunks, report, reports = DiffusionPolicy.draw(steered, history, noise)
        if self.config.form == "guidance" and not bound.all():
            # Kernels that can be differentiated may round differently from those that need not.
            free, more, _ = super().draw(history, noise)
            chunks = torch.where(bound[:, None, None, None], chunks, free)
            evaluations = report.network_evaluations + more.network_evaluations
            report = replace(report, network_evaluations=evaluations)
        return chunks, report, reports

    def known(self, history: History, samples: int = 1) -> Known:
        """What the plans under way say of B environments' chunks, `samples` of each."""
        past, horizon = self.spec.n_obs_steps - 1, self.spec.horizon
        ahead, said = underway(history, horizon - past, self.spec.action.dim)
        weights = torch.zeros(len(history), horizon)
        if history.underway:
            ends = said.long().cumprod(1).sum(1).tolist()  # up to the first tick not spoken of
            frozen = [self._frozen(history, row) for row in range(len(history))]
            weights[:, past:] = prefix_weights(frozen, ends, horizon - past, self.config.schedule)
        actions = torch.cat([torch.zeros(len(history), past, ahead.shape[2]), ahead], 1)
        weight = next(self.model.model.parameters())
        normal = self.model.normalize_actions(actions.to(weight), self.reference(history))
        # What is not known may lie far from everything, and only has to be a number.
        weights = weights.to(weight)[..., None]
        normal = torch.where(weights > 0, normal, 0.0)
        return Known(normal.repeat_interleave(samples, 0), weights.repeat_interleave(samples, 0))

    def _frozen(self, history: History, row: int) -> int:
        """Ticks that will have passed when this plan is taken up: the most of late."""
        plan = history.underway[row]
        return max(plan.delays, default=self.config.delay) if plan is not None else 0

    def _steered(self, known: Known) -> DenoiseLoop:
        if self.config.form == "guidance":
            return GuidedLoop(guidable(self.loop), known, self.config.limit)
        return replaced_loop(self.loop, known)

    def with_loop(self, loop: DenoiseLoop) -> RealTimePolicy:
        """The same with another denoise loop; raises as the constructor."""
        return RealTimePolicy(super().with_loop(loop), self.config)

    def to(self, *args: Any, **kwargs: Any) -> RealTimePolicy:
        """The same on another device or in another dtype, un-accelerated."""
        return RealTimePolicy(super().to(*args, **kwargs), self.config)


def real_time(policy: Policy, config: RealTimeConfig | None = None) -> Policy:
    """`policy` with plans that go on from the one under way, to be executed with a
    `RecedingHorizon`; every candidate does so where it chooses the best of several.

    Raises:
        ValueError: a policy that does not denoise, or plans in a frame that moves; and as
            `RealTimePolicy`.
    """
    config = config or RealTimeConfig()
    if policy.spec.action.kind == "plan":
        raise ValueError(
            "chunking=real_time goes on from actions of the plan before, and plans of different "
            "moments are in different frames; say chunking=receding"
        )
    if isinstance(policy, BestOf):
        return policy.with_policy(RealTimePolicy(policy.policy, config))
    if not isinstance(policy, DiffusionPolicy):
        name = getattr(planner_of(policy), "name", type(policy).__name__)
        raise ValueError(
            f"chunking=real_time needs a policy that denoises, and {name} does not: say "
            "chunking=receding"
        )
    return RealTimePolicy(policy, config)
