"""Scripted expert for PushT: pushes the T to its goal with straight pushes, closed loop.

Before each contact it looks again, at every tick, for the push that leaves the fewest ticks to go:
the way to its start, its length, and the estimate for the pose that it leads to. So its actions are
close to a function of what is visible, which a cloned policy needs. Once it touches, it keeps the
push and only chooses where to stop.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastloop.sims.experts import pusht_geometry as geometry
from fastloop.sims.experts.pusht_geometry import Array
from fastloop.sims.experts.pusht_pushes import GAP, LENGTHS, Physics, push_table
from fastloop.sims.experts.pusht_ways import ARENA, visible, way
from fastloop.sims.pusht import PushT

# Pixels that an action leads the agent by; the agent then moves about 0.4 of that a tick.
WAY_LEAD = 50.0
PUSH_LEAD = 36.0
# Speeds in pixels a tick and the fixed cost in ticks of one more push, as the plan counts them.
WAY_SPEED, PUSH_SPEED, PUSH_TICKS = 22.0, 15.0, 5.0
MIN_GAIN = 3.0  # ticks that a push must save to be worth choosing
UNFINISHED = 8.0  # ticks that a pose short of the goal costs on top of its distance


def ticks_to_go(centroid: Array, angle: Array) -> Array:
    """Estimated ticks (...) until success with the T at `centroid` (..., 2) and `angle` (...)."""
    error = geometry.pose_error(centroid, angle)
    ticks: Array = 12.0 * np.log1p(error / 2) + 0.2 * error + UNFINISHED
    near = error < 10
    # Success needs 95 % coverage; the soft step prefers poses well inside of it.
    missing = geometry.missing(centroid[near], angle[near])
    ticks[near] -= UNFINISHED / (1 + np.exp((missing - 0.04) / 0.01))
    return ticks


class Push(NamedTuple):
    """A straight push in the world: start (2,), unit direction (2,), length in pixels past `GAP`.

    `pose` (3,) is the T's when the push was chosen.
    """

    start: Array
    direction: Array
    length: float
    pose: Array

    def along(self, agent: Array) -> float:
        """How far `agent` (2,) has come along the push, in pixels from its start."""
        return float((agent - self.start) @ self.direction)

    def beside(self, agent: Array) -> float:
        """Distance of `agent` (2,) from the push's line in pixels."""
        return float(np.linalg.norm(agent - self.start - self.along(agent) * self.direction))


class PushTExpert:
    """Pushes the T to its goal from any state, one target position a control tick.

    Args:
        seed: seeds the wandering where no push can be reached; all else is deterministic.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._table = push_table()
        self._clear()

    def _clear(self) -> None:
        self._rng = np.random.default_rng(self._seed)
        self._physics = Physics()  # anew: contacts of earlier pushes linger in a used one
        self._aim: Push | None = None
        self._pushing = False

    def reset(self, sim: PushT) -> None:
        """Forget the current push; call it whenever the state did not follow from `act`."""
        self._clear()

    def act(self, sim: PushT) -> NDArray[np.float32]:
        """Choose the next target position of the agent.

        Args:
            sim: only read.

        Returns:
            (2,) float32 in pixels, within [0, 512].
        """
        block = sim.engine.block
        pose = np.array([*block.position, block.angle])
        agent = np.array(sim.engine.agent.position)
        return np.clip(self._target(pose, agent), 0, 512).astype(np.float32)

    def nudge(self, sim: PushT, rng: np.random.Generator) -> NDArray[np.float32]:
        """A target anywhere on the table, or near the agent, with equal chances."""
        agent = np.array(sim.engine.agent.position)
        wide = rng.uniform() < 0.5
        target = rng.uniform(20, 492, 2) if wide else agent + rng.uniform(-80, 80, 2)
        return np.clip(target, 0, 512).astype(np.float32)

    def _target(self, pose: Array, agent: Array) -> Array:
        if self._aim and not self._pushing and _moved(self._aim.pose, pose):
            self._pushing = self._on_line(self._aim, pose, agent, slack=4.0)
        target = self._push(self._aim, pose, agent) if self._aim and self._pushing else None
        if target is not None:
            return target

        self._aim = self._choose(pose, agent)
        if self._aim is None:
            self._pushing = False
            return agent + self._rng.normal(0, 40, 2)
        self._pushing = self._on_line(self._aim, pose, agent, slack=1.0)
        target = self._push(self._aim, pose, agent) if self._pushing else None
        if target is not None:
            return target
        self._pushing = False
        return self._approach(self._aim, pose, agent)

    def _choose(self, pose: Array, agent: Array) -> Push | None:
        """The push with the fewest ticks to success, or None if no start can be reached."""
        table = self._table
        way_lengths = table.ways.lengths(pose, agent)
        start = geometry.to_world(pose, table.start)
        direction = geometry.rotate(float(pose[2]), table.direction)
        free = ((start > ARENA[0]) & (start < ARENA[1])).all(-1) & np.isfinite(way_lengths)
        edge = np.where(direction > 0, 512.0 - start, start) / np.maximum(np.abs(direction), 1e-9)
        possible = free[:, None] & (edge.min(-1)[:, None] > GAP + LENGTHS)
        if not possible.any():
            return None

        centroid = geometry.to_world(pose, table.centroid)
        angle = table.turn + pose[2]
        after = ticks_to_go(centroid, angle)
        # Averaged with the contact points beside it: a push that forgives a contact 3 px off.
        one_side, other_side = table.neighbors
        after = 0.5 * after + 0.25 * (after[one_side] + after[other_side])
        score = after + (way_lengths / WAY_SPEED)[:, None] + PUSH_TICKS + LENGTHS / PUSH_SPEED
        here = geometry.centroids(pose)
        worth = possible & (after < ticks_to_go(here[None], pose[2:]) - MIN_GAIN)
        score = np.where(worth if worth.any() else possible, score, np.inf)

        best = np.argpartition(score, 200, axis=None)[:200]
        i, j = np.unravel_index(best[np.argsort(score.flat[best], kind="stable")], score.shape)
        if np.abs(here - 256).max() > 90:  # near a wall, which the table does not know
            now = geometry.wall_overlap(here, pose[2])
            blocked = geometry.wall_overlap(centroid[i, j], angle[i, j]) > now + 1
            order = np.argsort(blocked, kind="stable")
            i, j = i[order], j[order]
        return Push(start[i[0]], direction[i[0]], float(LENGTHS[j[0]]), pose)

    def _on_line(self, push: Push, pose: Array, agent: Array, slack: float) -> bool:
        near = -GAP < push.along(agent) < 2 * GAP
        return near and push.beside(agent) < slack * _line_tolerance(pose)

    def _approach(self, push: Push, pose: Array, agent: Array) -> Array:
        """Go around the T to the start of `push`, turning onto its line at the end."""
        corners = way(pose, agent, push.start)
        if len(corners) == 1 and np.linalg.norm(agent - push.start) < 45:
            off = push.beside(agent) / (4 * _line_tolerance(pose))
            ahead = max(0.0, push.along(agent)) + PUSH_LEAD * max(0.0, 1 - off)
            return push.start + push.direction * min(ahead, push.length + GAP)
        return _follow(np.vstack([agent, corners]), pose)

    def _push(self, push: Push, pose: Array, agent: Array) -> Array | None:
        """Go on along `push`, or None where it is best to stop."""
        done = push.along(agent)
        reach = int(push.length + GAP + 12 - done)
        if reach < 1:
            return None
        poses = self._physics.push(pose, agent, push.direction, reach)
        score = ticks_to_go(geometry.centroids(poses), poses[:, 2])
        score += np.arange(reach + 1) / PUSH_SPEED
        least = max(0, int(0.5 * push.length + GAP - done))
        left = least + int(np.argmin(score[least:]))
        # Waiting for the last pixels pays only close to the goal.
        close_enough = np.clip(0.15 * _error(pose), 1.0, 5.0)
        if left <= min(close_enough, 0.5 * push.length):
            return None
        return push.start + push.direction * (done + min(PUSH_LEAD, left))


def _error(pose: Array) -> float:
    return float(geometry.pose_error(geometry.centroids(pose), pose[2]))


def _line_tolerance(pose: Array) -> float:
    """How far beside a push's line, in pixels, it may begin: tighter close to the goal."""
    return float(np.clip(1.5 + 0.1 * _error(pose), 2.0, 6.0))


def _moved(before: Array, after: Array) -> bool:
    return bool(np.any(np.abs(after - before) > [0.5, 0.5, 0.01]))


def _follow(path: Array, pose: Array) -> Array:
    """Target (2,) at a constant lead toward the furthest visible point of `path` (W, 2)."""
    ends = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    along = np.arange(5.0, min(60.0, ends[-1]) + 5.0, 5.0)
    ahead = np.stack([np.interp(along, ends, path[:, axis]) for axis in (0, 1)], -1)
    seen = visible(geometry.to_body(pose, path[0]), geometry.to_body(pose, ahead))
    hidden = int(np.argmin(seen)) if not seen.all() else len(seen)
    toward = ahead[max(hidden - 1, 0)] - path[0]
    lead = min(WAY_LEAD, float(ends[-1])) / max(float(np.linalg.norm(toward)), 1e-9)
    return np.asarray(path[0] + lead * toward)
