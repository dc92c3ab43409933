"""What a policy would have seen at moments of a recorded drive, to calibrate on."""

from __future__ import annotations

import copy
from pathlib import Path

from fastloop.deploy.assembly import make_inputs
from fastloop.deploy.clock import VirtualClock
from fastloop.deploy.config import DeployConfig
from fastloop.deploy.inputs import Snapshot
from fastloop.deploy.messages import Messages
from fastloop.deploy.planner import SessionPlanner
from fastloop.deploy.replay import Replay
from fastloop.deploy.transport.base import Sample
from fastloop.deploy.transport.loopback import Bus, LoopbackTransport
from fastloop.policies.base import Policy
from fastloop.policies.history import EpisodeHistory, History

__all__ = ["recorded_history"]


def recorded_history(
    config: DeployConfig, policy: Policy, messages: Messages, bag: str | Path, count: int
) -> History:
    """The policy's histories at `count` ticks that lie evenly over a bag.

    The bag is heard as the node would hear it, through the same topics, limits of age and readers.
    What was done is not known: nobody planned.

    Raises:
        ValueError: the bag has fewer ticks at which everything is there; why, where it has none.
        BagError: it cannot be read.
    """
    topics = {config.state.topic, *(one.topic for one in config.inputs.values() if one.topic)}
    replay = Replay(bag, sorted(topics))
    clock, bus = replay.clock, Bus(replay.clock)
    assert isinstance(clock, VirtualClock)
    inputs, readers = make_inputs(config, {"": policy}, messages, clock)
    planner = SessionPlanner({"": policy}, readers)
    ear, mouth = LoopbackTransport(messages, bus), LoopbackTransport(messages, bus)

    def heard(sample: Sample) -> None:
        inputs.offer(sample)

    for topic in inputs.topics:
        ear.subscribe(topic.name, topic.type, heard)
    ended: list[bool] = []
    replay.start(mouth, lambda: ended.append(True))
    episode = EpisodeHistory(1 + policy.spec.lags[0])
    seen: list[EpisodeHistory] = []
    ticks, every, why = 0, 1, ""
    while not ended:
        clock.advance(1 / config.hz)
        looked = inputs.look()
        if not isinstance(looked, Snapshot):
            why = looked
            continue
        episode.observe(planner.read(looked))
        if ticks % every == 0:
            seen.append(copy.copy(episode))
            seen[-1].frames = copy.copy(episode.frames)
        if len(seen) == 2 * count:  # of a bag of any length, no more than these are kept
            seen, every = seen[::2], 2 * every
        ticks += 1
    if len(seen) < count:
        told = f": {why}" if why and not seen else ""
        raise ValueError(f"{bag} has {len(seen)} moments to look at, {count} are wanted{told}")
    chosen = [seen[index * len(seen) // count] for index in range(count)]
    return History.stack(chosen, policy.spec.lags)
