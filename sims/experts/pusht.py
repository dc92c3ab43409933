import functools
from typing import Any, NamedTuple

import numpy as np
import pymunk
from numpy.typing import NDArray

from fastloop.extras import require
from fastloop.sims.experts import pusht_geometry as geo

Array = NDArray[np.float64]

GAP = 8.0  # free way between a push's start and the T
LOOK = 60.0  # an action is at most this far ahead of the agent
PUSH_LOOK = 36.0
LENGTHS = np.unique(np.round(np.concatenate([np.arange(1, 13), np.geomspace(13, 110, 20)])).astype(int))


class Block:
    """The T, the agent and the walls of gym-pusht in a space of their own, to try pushes in."""

    def __init__(self) -> None:
        env = require("gym_pusht.envs.pusht", extra="pusht").PushTEnv
        self.space = pymunk.Space()
        self.space.damping = 0.0
        box = [(5, 506), (5, 5), (506, 5), (506, 506), (5, 506)]
        self.space.add(*(env.add_segment(self.space, a, b, 2) for a, b in zip(box, box[1:])))
        self.agent = env.add_circle(self.space, (0, 0), geo.AGENT_RADIUS)
        self.block, _ = env.add_tee(self.space, (256, 300), 0)

    def push(self, pose: Array, start: Array, direction: Array, length: int) -> Array:
        """Poses (length + 1, 3) of the T while the agent goes straight, one a pixel."""
        a, b, space = self.agent, self.block, self.space
        b.angle = float(pose[2])
        b.position = tuple(pose[:2].tolist())
        b.velocity, b.angular_velocity = (0, 0), 0
        a.position = tuple(start.tolist())
        a.velocity = tuple((100 * direction).tolist())
        space.reindex_shapes_for_body(a)
        space.reindex_shapes_for_body(b)
        out = [(*b.position, b.angle)]
        for _ in range(length):
            space.step(0.01)
            out.append((*b.position, b.angle))
        return np.array(out)


class Pushes(NamedTuple):
    start: Array  # (M, 2) body frame
    direction: Array  # (M, 2) body frame
    ways: geo.Ways
    centroid: Array  # (M, L, 2) keypoint mean after the push, in the body frame before it
    turn: Array  # (M, L)
    poses: Array  # (M, L, 3) 


@functools.lru_cache(maxsize=1)
def push_table() -> Pushes:
    block = Block()
    start, direction = [], []
    for a, b in zip(geo.OUTLINE, np.roll(geo.OUTLINE, -1, 0)):
        length = float(np.linalg.norm(b - a))
        along = (b - a) / length
        normal = np.array([along[1], -along[0]])
        for u in np.arange(1.5, length, 3.0):
            for tilt in (-0.35, 0.0, 0.35):
                d = -geo.rotate(tilt, normal)
                s = a + u * along + geo.AGENT_RADIUS * normal - GAP * d
                line = s + np.arange(0, GAP - 1)[:, None] * d
                if geo.clearance(s) > geo.SAFE and geo.clearance(line).min() > geo.AGENT_RADIUS + 0.2:
                    start.append(s)
                    direction.append(d)
    start, direction = np.array(start), np.array(direction)
    origin = np.array([256.0, 256.0, 0.0])
    reach = int(GAP + LENGTHS[-1])
    poses = np.stack(
        [
            block.push(origin, s + origin[:2], d, reach)[(GAP + LENGTHS).astype(int)] - origin
            for s, d in zip(start, direction)
        ]
    )
    centroid = geo.rotate(poses[..., 2], np.broadcast_to(geo.CENTROID, (*poses.shape[:2], 2)))
    return Pushes(start, direction, geo.Ways(start), centroid + poses[..., :2], poses[..., 2], poses)


def ticks_to_go(error: Array) -> Array:
    return 12.0 * np.log1p(error / 2.0) + 0.2 * error


class Plan(NamedTuple):
    start: Array  # world
    direction: Array
    length: float
    pose: Array  # of the T at planning


class PushTExpert:
    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._table = push_table()
        self._block = Block()
        self._plan: Plan | None = None
        self._pushing = False
        self.nplans = 0

    def reset(self, env: Any) -> None:
        self._plan = None
        self._pushing = False

    def act(self, env: Any) -> NDArray[np.float32]:
        u = env.unwrapped
        agent = np.array(u.agent.position)
        pose = np.array([*u.block.position, u.block.angle])
        target = None
        for _ in range(3):
            if self._plan is None:
                self._plan, self._pushing = self._choose(pose, agent), False
            target = self._push(pose, agent) if self._pushing else self._approach(pose, agent)
            if target is not None:
                break
            self._plan = None
        else:
            target = agent + self._rng.normal(0, 30, 2)
        return np.clip(target, 0, 512).astype(np.float32)

    def _approach(self, pose, agent):
        p = self._plan
        if np.abs(pose - p.pose).max() > 0.5:
            return None
        rel = agent - p.start
        along = float(rel @ p.direction)
        lateral = float(np.linalg.norm(rel - along * p.direction))
        self._tol = 2.0 + 0.1 * float(self._error(pose))
        if along > -6 and lateral < min(self._tol, 6.0) and along < GAP:
            self._pushing = True
            return self._push(pose, agent)
        points = geo.way(pose, agent, p.start)
        if len(points) == 1:
            gap = float(np.linalg.norm(rel))
            if gap < LOOK:
                ahead = (PUSH_LOOK) * np.clip(1 - lateral / 10, 0, 1)
                return p.start + p.direction * min(max(0, along) + ahead, p.length + GAP)
        return self._chase(pose, agent, points)

    def _chase(self, pose, agent, points):
        path = np.vstack([agent, points])
        left = LOOK
        a = geo.to_body(pose, agent)
        best = path[1]
        for q0, q1 in zip(path, path[1:]):
            n = float(np.linalg.norm(q1 - q0))
            for f in np.arange(5.0, min(n, left) + 5.0, 5.0):
                q = q0 + (q1 - q0) * min(f, n, left) / max(n, 1e-9)
                if not geo.visible(a[None, None], geo.to_body(pose, q)[None, None])[0, 0]:
                    return self._cap(agent, best)
                best = q
            left -= n
            if left <= 0:
                break
        return self._cap(agent, best)

    def _cap(self, agent, q):
        v = q - agent
        return agent + v * min(1.0, LOOK / max(float(np.linalg.norm(v)), 1e-9))

    def _push(self, pose, agent):
        p = self._plan
        done = float((agent - p.start) @ p.direction)
        top = int(p.length + GAP + 12 - done)
        if top < 1:
            return None
        q = self._block.push(pose, agent, p.direction, top)
        left = np.arange(top + 1)
        score = ticks_to_go(self._error(q)) + left / 15.0
        best = int(np.argmin(score))
        error = float(self._error(pose))
        tol = np.clip(0.15 * error, 1.0, 5.0)
        if best <= tol and done > GAP-2:
            return None
        if best == 0:
            return None
        foot = p.start + done * p.direction
        return foot + p.direction * min(PUSH_LOOK, best)

    def _error(self, pose):
        c = geo.rotate(pose[..., 2], np.broadcast_to(geo.CENTROID, (*pose.shape[:-1], 2))) + pose[..., :2]
        return geo.pose_error(c, pose[..., 2])

    def _choose(self, pose, agent) -> Plan:
        self.nplans += 1
        t = self._table
        centroid = geo.rotate(pose[2], t.centroid) + pose[:2]
        error = geo.pose_error(centroid, t.turn + pose[2])
        way = t.ways.distances(pose, agent)
        start = geo.to_world(pose, t.start)
        direction = geo.rotate(pose[2], t.direction)
        inside = ((start > geo.ARENA[0]) & (start < geo.ARENA[1])).all(-1)
        end = start[:, None] + (GAP + LENGTHS)[:, None] * direction[:, None]
        ok = inside[:, None] & ((end > 0) & (end < 512)).all(-1)
        score = ticks_to_go(error) + (way / 26.0)[:, None] + 5 + LENGTHS / 15.0
        score = np.where(ok & np.isfinite(way)[:, None], score, np.inf)
        best_per = score.min(1)
        order = np.argsort(best_per, kind="stable")[:12]
        best = (np.inf, None)
        for i in order:
            if not np.isfinite(best_per[i]):
                break
            L = int(LENGTHS[score[i].argmin()])
            reach = int(GAP + L + 5)
            q = self._block.push(pose, start[i], direction[i], reach)
            s = ticks_to_go(self._error(q)) + way[i] / 26 + 5 + np.maximum(np.arange(reach + 1) - GAP, 0) / 15
            k = int(s.argmin())
            if s[k] < best[0] and k > GAP:
                best = (s[k], Plan(start[i], direction[i], k - GAP, pose.copy()))
        if best[1] is None:
            i = order[0]
            return Plan(start[i], direction[i], 10.0, pose.copy())
        return best[1]
