"""The moments at which a planner is asked: on drives of its own, or recorded ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch

from fastloop.datasets.windows import Windows
from fastloop.policies.base import Policy
from fastloop.policies.driving.whole_plans import WholePlans
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.session import Session
from fastloop.sims.base import Sim

__all__ = ["Moment", "recorded", "visited"]


@dataclass(frozen=True)
class Moment:
    """One question.

    Attributes:
        history: of one environment.
        episode: in which it was seen; moments of one episode are alike.
        driven: (T, A) the plan of whoever drove, where an expert did.
    """

    history: History
    episode: int
    driven: torch.Tensor | None = None


def visited(
    sim: Sim, planner: Policy, moments: int, *, first_seed: int, an_episode: int, apart_s: float
) -> list[Moment]:
    """The first moments of episodes, and some along the way, which `planner` drives itself.

    Args:
        sim: takes whole plans.
        planner: of waypoints.
        moments: how many.
        first_seed: of the first episode; they count up.
        an_episode: moments of an episode, or fewer where it ends before.
        apart_s: seconds between them, for which it follows one plan.

    Raises:
        ValueError: when the simulator has not so many episodes.
    """
    seeds, have = -(-moments // an_episode), sim.distinct_seeds
    if have is not None and first_seed + seeds > have:
        raise ValueError(
            f"{sim.env_spec.name} has the seeds 0 to {have - 1}, and {moments} prompts take "
            f"{seeds} from {first_seed} on: say first_seed=0, fewer prompts, or more "
            "episode_prompts"
        )
    ticks = max(1, round(apart_s * sim.env_spec.control_hz))
    policy = WholePlans(planner, sim.env_spec, n_action_steps=ticks)
    seen = (
        Moment(history, seed)
        for seed in count(first_seed)
        for history in islice(_drive(sim, policy, seed), an_episode)
    )
    return list(islice(seen, moments))


def _drive(sim: Sim, policy: Policy, seed: int) -> Iterator[History]:
    """What is seen whenever a plan is made in an episode."""
    session = Session(policy)
    session.begin(0, seed)
    seen, _ = sim.reset(seed=seed)
    while True:
        session.observe(0, {key: seen[key] for key in policy.spec.inputs})
        if session.due(0):
            yield History.stack(session.histories, [0])
            session.install(0, session.plan([0]).actions[0])
        seen, _, terminated, truncated, _ = sim.step(session.act(0).numpy())
        if terminated or truncated:
            return


def recorded(samples: Windows, keys: Iterable[str], moments: int) -> list[Moment]:
    """Moments of recorded episodes, evenly over all of them.

    Args:
        samples: every frame with its plan, or with what was done from it on.
        keys: observations.
        moments: how many.

    Raises:
        ValueError: when there are not so many.
    """
    if moments > len(samples):
        raise ValueError(
            f"the recorded drives hold {len(samples)} moments, {moments} prompts are asked for: "
            f"say prompts={len(samples)}"
        )
    places, frames = np.linspace(0, len(samples) - 1, moments).round().astype(int), samples.past
    found = []
    for place in places.tolist():
        sample = samples.gather(torch.tensor([place]))
        episode = EpisodeHistory(len(frames))
        for k in range(len(frames)):
            episode.observe({key: sample[key][0, k] for key in keys})
        history = History.stack([episode], range(len(frames))[::-1])
        driven = sample["action"][0, len(frames) - 1 :]
        found.append(Moment(history, int(samples.first[place]), driven))
    return found
