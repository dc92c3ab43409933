"""The best of several plans, in place of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fastloop.accel.block_cache.stack import ResidualStack
from fastloop.accel.denoise import DenoiseLoop
from fastloop.accel.samplers import Sampler
from fastloop.policies.base import Budget, Plan, Policy
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.driving.whole_plans import WholePlans, planner_of
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.selectors import Candidates, Selector, make_selector, select

__all__ = ["BestOf", "best_of"]


class BestOf:
    """Draws N plans in one chain from one condition, and takes the one that `selector` likes best.

    The first candidate has the noise of the policy by itself, so that one sample gives its plan bit
    for bit. Whatever accelerates the policy accelerates all candidates: `accelerate` takes this
    policy as it takes the one inside.

    Args:
        policy: what draws.
        selector: what chooses.
        samples: N.

    Raises:
        ValueError: fewer than 1 sample, or a selector that cannot tell this policy's plans apart.
    """

    def __init__(self, policy: DiffusionPolicy, selector: Selector, samples: int) -> None:
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        selector.check(policy.spec)
        self.policy = policy
        self.selector = selector
        self.samples = samples
        self.spec = policy.spec

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """The chosen plan of each environment, with all `candidates`; the budget is not used.

        Where nothing tells candidates apart, or none is finite, the report says why.
        """
        noise = self.policy.noises(rng, self.samples)
        chunks, report, reports = self.policy.draw(history, noise)
        chosen = select(self.selector, self._candidates(chunks, history, rng))
        index, chunks = chosen.index.cpu(), chunks.float().cpu()
        actions = chunks[torch.arange(len(index)), index]
        report = replace(report, candidates=self.samples)
        degraded = [{reason: 1} if reason else {} for reason in chosen.reasons]
        past = self.spec.n_obs_steps - 1
        return Plan(
            actions=actions[:, past:],
            dt=1.0 / self.spec.control_hz,
            t0=history.ticks,
            past_actions=actions[:, :past],
            candidates=chunks[:, :, past:],
            chosen=index,
            scores=chosen.scores.cpu(),
            report=replace(
                report,
                degraded={
                    reason: chosen.reasons.count(reason) for reason in chosen.reasons if reason
                },
            ),
            reports=tuple(
                replace(one, candidates=self.samples, degraded=why)
                for one, why in zip(reports or [report] * len(history), degraded, strict=True)
            ),
        )

    def _candidates(self, chunks: torch.Tensor, history: History, rng: Rng) -> Candidates:
        """What the selector sees of `chunks` (B, N, T, A)."""
        past, lags = self.spec.n_obs_steps - 1, self.spec.lags[:-1]

        def compare(actions: torch.Tensor) -> torch.Tensor:
            return self.comparable(actions, history)

        normal = compare(chunks)
        executed = history.executed(lags, self.spec.action.dim)
        previous, planned = underway(history, *chunks[0, 0, past:].shape)
        device = chunks.device
        return Candidates(
            actions=chunks[:, :, past:],
            future=normal[:, :, past:],
            past=normal[:, :, :past],
            allowed=chunks.isfinite().all(-1).all(-1),
            executed=replace(
                executed,
                actions=compare(executed.actions.to(chunks)[:, None])[:, 0],
                known=executed.known.to(device),
                overridden=executed.overridden.to(device),
            ),
            previous=compare(previous.to(chunks)[:, None])[:, 0],
            planned=planned.to(device),
            lags=lags,
            history=history,
            rng=rng,
            compare=compare,
        )

    def comparable(self, actions: torch.Tensor, history: History) -> torch.Tensor:
        """Actions (B, N, T, A) in the units in which they are compared, see `Candidates`."""
        policy = self.policy
        if policy.model.cumulative:
            return actions
        reference = policy.reference(history, actions.shape[1])
        normal = policy.model.normalize_actions(actions.flatten(0, 1), reference)
        return normal.unflatten(0, actions.shape[:2])

    @property
    def loop(self) -> DenoiseLoop:
        """The policy's."""
        return self.policy.loop

    @property
    def sampler(self) -> Sampler:
        """The policy's."""
        return self.policy.sampler

    @property
    def digest(self) -> str:
        """Of the policy's checkpoint."""
        return self.policy.digest

    def stack(self, kernels: Sequence[str] = ()) -> ResidualStack:
        """The policy's; raises as it does."""
        return self.policy.stack(kernels)

    def with_loop(self, loop: DenoiseLoop) -> BestOf:
        """The same choice between chunks of another denoise loop."""
        return self.with_policy(self.policy.with_loop(loop))

    def with_policy(self, policy: DiffusionPolicy) -> BestOf:
        """The same choice between another policy's plans."""
        return BestOf(policy, self.selector, self.samples)

    def to(self, *args: Any, **kwargs: Any) -> BestOf:
        """On another device or in another dtype, un-accelerated."""
        return self.with_policy(self.policy.to(*args, **kwargs))


def underway(history: History, ticks: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the plans in execution say of the next `ticks` ticks.

    Returns:
        (B, ticks, dim) actions, 0 where they say nothing, and (B, ticks) whether they do.
    """
    actions = torch.zeros(len(history), ticks, dim)
    planned = torch.zeros(len(history), ticks, dtype=torch.bool)
    for row, plan in enumerate(history.underway):
        if plan is not None:
            rest = plan.actions[int(history.ticks[row]) - plan.tick :][:ticks]
            actions[row, : len(rest)] = rest
            planned[row, : len(rest)] = rest.isfinite().all(-1)
    return actions.nan_to_num(0.0, 0.0, 0.0), planned


def best_of(policy: Policy, samples: int, selector: str) -> Policy:
    """`policy`, choosing the best of so many samples; inside of `WholePlans` where it is in one.

    Args:
        selector: by name, one of `SELECTORS`.

    Raises:
        ValueError: an unknown selector; fewer than 1 sample; several of a policy that does not
            denoise, or whose plans the selector cannot tell apart.
    """
    chooses = make_selector(selector)
    if samples == 1:
        return policy
    planner = planner_of(policy)
    if not isinstance(planner, DiffusionPolicy):
        raise ValueError(
            f"policy.samples={samples} needs a policy that denoises; "
            f"{getattr(planner, 'name', type(planner).__name__)} does not: say policy.samples=1"
        )
    best = BestOf(planner, chooses, samples)
    return policy.with_policy(best) if isinstance(policy, WholePlans) else best
