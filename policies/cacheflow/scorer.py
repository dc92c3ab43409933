"""How likely the plans of any other policy are."""

from __future__ import annotations

import torch

from fastloop.policies.cacheflow.policy import CacheFlowPolicy
from fastloop.policies.history import History
from fastloop.policies.selectors.base import Candidates

__all__ = ["PlanScorer"]


class PlanScorer:
    """log p(plan | history) by CacheFlow, of plans in the cache or not.

    It is what the selector `Density` takes: ``Density(PlanScorer(policy))``. The rest of a plan
    that is longer than a future is not looked at.

    Args:
        policy: whose model says how likely plans are; it plans the same actions at the same rate.
    """

    def __init__(self, policy: CacheFlowPolicy) -> None:
        self.policy = policy

    def __call__(self, candidates: Candidates) -> torch.Tensor:
        """(B, N) of candidates, drawn by a policy that sees no fewer frames; NaN where one is not
        finite."""
        return self.score(candidates.history, candidates.actions, lags=(*candidates.lags, 0))

    def score(
        self, history: History, actions: torch.Tensor, *, lags: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        """log-density of plans (B, N, T, A) in the environment's units: (B, N).

        Args:
            history: of B environments.
            actions: from the present tick on.
            lags: of the history's frames, when they are not the scorer's own.

        Raises:
            ValueError: for plans that are too short or of another width, and a history that lacks
                frames.
        """
        spec = self.policy.spec
        steps = spec.horizon - spec.n_obs_steps + 1
        if actions.shape[2] < steps or actions.shape[3] != spec.action.dim:
            raise ValueError(
                f"plans of at least {steps} actions of {spec.action.dim} elements can be scored, "
                f"got {actions.shape[2]} of {actions.shape[3]}"
            )
        seen = self.policy.read(_frames(history, lags, spec.lags) if lags else history)
        plans = actions[:, :, :steps].float()
        relative = self.policy.frame(history).relative(plans.cpu()).to(actions.device)
        return self.policy.cacheflow.log_prob(future=relative, **seen)


def _frames(history: History, given: tuple[int, ...], wanted: tuple[int, ...]) -> History:
    """The frames that lie `wanted` ticks back, of those `given` ticks back."""
    if missing := [lag for lag in wanted if lag not in given]:
        raise ValueError(
            f"plans are scored by what was seen {list(wanted)} ticks ago, and {missing} of these "
            f"are not in the history, which holds {list(given)}"
        )
    places = [given.index(lag) for lag in wanted]
    rows = tuple(tuple(row[place] for place in places) for row in history.frames)
    return History(rows, history.actions, history.ticks, history.overridden, history.underway)
