"""Observations to calibrate and to time policies on, straight from a simulator."""

from __future__ import annotations

from collections.abc import Sequence

from fastloop.policies.base import Policy
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.session import Session
from fastloop.sims.base import Sim

__all__ = ["visited_observations"]

SPREAD = 6  # chunks of an episode


def visited_observations(sim: Sim, policy: Policy, seeds: Sequence[int]) -> History:
    """What `policy` sees after 0 to 5 chunks of its own, in turns, as a batch of histories.

    First observations of episodes are much alike, and what is decided on them alone may not hold
    where most plans are made.

    Args:
        sim: reset once a seed; an episode that ends before its turn stays at its end.
        policy: what acts on the way.
        seeds: M of them, one an episode.
    """
    episodes = [
        _after(sim, policy, seed, chunks=index % SPREAD) for index, seed in enumerate(seeds)
    ]
    return History.stack(episodes, policy.spec.lags)


def _after(sim: Sim, policy: Policy, seed: int, chunks: int) -> EpisodeHistory:
    session = Session(policy)
    session.begin(0, seed)
    seen, _ = sim.reset(seed=seed)
    session.observe(0, {key: seen[key] for key in policy.spec.inputs})
    for _ in range(chunks):
        session.install(0, session.plan([0]).actions[0])
        while not session.due(0):
            seen, _, terminated, truncated, _ = sim.step(session.act(0).numpy())
            session.observe(0, {key: seen[key] for key in policy.spec.inputs})
            if terminated or truncated:
                return session.histories[0]
    return session.histories[0]
