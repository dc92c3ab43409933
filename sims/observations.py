"""Observations to calibrate and to time policies on, straight from a simulator."""

from __future__ import annotations

from collections.abc import Sequence

from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.spec import PolicySpec
from fastloop.sims.base import Sim

__all__ = ["first_observations"]


def first_observations(sim: Sim, spec: PolicySpec, seeds: Sequence[int]) -> History:
    """The first observation of each seed's episode, as a batch of histories.

    Args:
        sim: reset once a seed.
        spec: says which observations are kept, and how many frames.
        seeds: M of them.
    """
    episodes = []
    for seed in seeds:
        seen, _ = sim.reset(seed=seed)
        episode = EpisodeHistory(spec.n_obs_steps)
        episode.observe({key: seen[key] for key in spec.inputs})
        episodes.append(episode)
    return History.stack(episodes, spec.n_obs_steps)
