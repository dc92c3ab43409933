"""A planner that follows the route behind whoever is ahead: the Intelligent Driver Model."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fastloop.policies.base import Budget, Plan
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import EnvSpec, PolicySpec, SpecMismatchError

__all__ = ["IDM"]

STATES, ROUTE, NEIGHBORS = (
    "observation.ego_states", "observation.route", "observation.neighbors",
)  # fmt: skip
STEP_S = 0.05
MERGE_M = 8.0  # within which a vehicle beside its route comes back to it
MARGIN_M = 0.3  # beside the vehicle, to what it passes


class IDM:
    """Treiber, Hennecke and Helbing (2000) along the route: as fast as it may, at a safe distance
    behind whatever is in the way, and slower into curves.

    What is in the way: everybody whose box reaches into the strip that the vehicle will sweep,
    each moving on at its present velocity, but for those behind. It knows no right of way, no
    lights and no lane change.

    It reads ``observation.ego_states`` (P, 6), ``observation.route`` (R, 2) and
    ``observation.neighbors`` (M, 10) and computes in float64 on the CPU.

    Args:
        env: what it plans for; its action must be a waypoint (x, y) and its horizon known.
        desired_speed: m/s on a free straight road.
        headway_s: to the one ahead, beside `standstill` in m.
        acceleration, braking: comfortable ones, m/s^2; it brakes harder where it must.
        lateral: largest acceleration in a curve, m/s^2.
        front: m from the rear axle to the vehicle's front; `width` of the vehicle, m.

    Raises:
        SpecMismatchError: when `env` takes no plans of waypoints or does not say what is read.
    """

    name = digest = "idm"

    def __init__(
        self,
        env: EnvSpec,
        *,
        desired_speed: float = 13.9,
        headway_s: float = 1.5,
        standstill: float = 2.0,
        acceleration: float = 1.5,
        braking: float = 2.0,
        lateral: float = 2.0,
        front: float = 3.8,
        width: float = 2.0,
    ) -> None:
        if env.horizon is None or (env.action.kind, env.action.dim) != ("waypoint", 2):
            raise SpecMismatchError(
                f"idm plans waypoints (x, y) over a horizon; {env.name} takes {env.action.dim} "
                f"elements of kind {env.action.kind}"
            )
        missing = [key for key in (STATES, ROUTE, NEIGHBORS) if key not in env.observations]
        if missing:
            offered = ", ".join(env.observations) or "nothing"
            raise SpecMismatchError(f"idm reads {missing}; {env.name} offers {offered}")
        self.spec = PolicySpec(
            inputs={key: env.observations[key] for key in (STATES, ROUTE, NEIGHBORS)},
            action=env.action, n_obs_steps=1, horizon=env.horizon, n_action_steps=1,
            control_hz=env.control_hz,
        )  # fmt: skip
        self.desired_speed, self.headway_s, self.standstill = desired_speed, headway_s, standstill
        self.acceleration, self.braking, self.lateral = acceleration, braking, lateral
        self.front, self.width = front, width

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """Waypoint k (from 0) is for ``(k + 1) / control_hz`` seconds from now."""
        states, routes, others = (
            history[key][:, -1].cpu().double().numpy() for key in (STATES, ROUTE, NEIGHBORS)
        )
        rows = [self.waypoints(*row) for row in zip(states, routes, others, strict=True)]
        actions = torch.from_numpy(np.stack(rows)).float()
        return Plan(actions=actions, dt=1 / self.spec.control_hz, t0=history.ticks)

    def waypoints(
        self, states: NDArray[np.float64], route: NDArray[np.float64], others: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The waypoints (T, 2) of one vehicle, from its observations: `states` (P, 6), `route`
        (R, 2), `others` (M, 10)."""
        way = _Way(route)
        limits = self._limits(way)
        others = others[(others[:, 9] > 0) & (others[:, 0] > 0)]  # who follows keeps away by itself
        speed, station = max(0.0, float(states[-1, 2])), 0.0
        per_waypoint = max(1, round(1 / (self.spec.control_hz * STEP_S)))
        step_s = 1 / (self.spec.control_hz * per_waypoint)
        stations = []
        for k in range(self.spec.horizon):
            ahead = self._ahead(way, others, k / self.spec.control_hz)
            for n in range(per_waypoint):
                pull = self._pull(speed, station, limits, ahead, n * step_s)
                new = max(0.0, speed + pull * step_s)
                station, speed = station + (speed + new) / 2 * step_s, new
            stations.append(station)
        return way.at(np.array(stations))

    def _pull(
        self,
        speed: float,
        station: float,
        limits: tuple[NDArray[np.float64], NDArray[np.float64]],
        ahead: tuple[NDArray[np.float64], NDArray[np.float64]],
        later_s: float,
    ) -> float:
        """Acceleration, m/s^2."""
        wanted = max(0.1, float(np.interp(station, *limits)))
        free = 1 - (speed / wanted) ** 4 if speed <= wanted else -(speed - wanted) / self.headway_s
        rears, speeds = ahead
        gaps = rears + speeds * later_s - station - self.front
        there = gaps > -self.front  # whoever is beside or behind is no reason to brake
        if there.any():
            nearest = int(np.argmin(np.where(there, gaps, np.inf)))
            closing = speed - speeds[nearest]
            comfortable = 2 * np.sqrt(self.acceleration * self.braking)
            safe = self.standstill + max(
                0.0, speed * self.headway_s + speed * closing / comfortable
            )
            free -= (safe / max(gaps[nearest], 0.1)) ** 2
        return float(np.clip(self.acceleration * free, -8.0, self.acceleration))

    def _ahead(
        self, way: _Way, others: NDArray[np.float64], when_s: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of those in the way `when_s` from now: the station of their rear, and their speed along
        the way."""
        x, y, cos, sin, vx, vy, length, width = others[:, :8].T
        places = np.stack([x + vx * when_s, y + vy * when_s], axis=1)
        stations, aside, along = way.place(places)
        turned = np.abs(cos * along[:, 1] - sin * along[:, 0])
        straight = np.abs(cos * along[:, 0] + sin * along[:, 1])
        reach = (turned * length + straight * width) / 2
        rear = stations - (straight * length + turned * width) / 2
        inside = (aside < reach + self.width / 2 + MARGIN_M) & (stations > 0)
        speeds = np.maximum(0.0, (np.stack([vx, vy], axis=1) * along).sum(1))
        return rear[inside], speeds[inside]

    def _limits(self, way: _Way) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Stations, and how fast they may be passed so that every curve behind them can be."""
        fastest = np.sqrt(self.lateral / np.maximum(way.curvature, 1e-6))
        fastest = np.minimum(fastest, self.desired_speed)
        gaps = way.stations[None, :] - way.stations[:, None]
        allowed = np.sqrt(fastest[None, :] ** 2 + 2 * self.braking * np.maximum(gaps, 0.0))
        return way.stations, np.where(gaps >= 0, allowed, np.inf).min(axis=1)


class _Way:
    """The route by the distance along it, joined smoothly from where the vehicle is."""

    def __init__(self, route: NDArray[np.float64]) -> None:
        steps = np.linalg.norm(np.diff(route, axis=0), axis=1)
        kept = np.concatenate([[True], steps > 1e-3])
        points = route[kept]
        if len(points) < 2:  # no route: straight on
            points = np.array([[0.0, 0.0], [3.0, 0.0]])
        self.points = points
        lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
        self.stations = np.concatenate([[0.0], np.cumsum(lengths)])
        self.tangents = np.diff(points, axis=0) / lengths[:, None]
        headings = np.unwrap(np.arctan2(self.tangents[:, 1], self.tangents[:, 0]))
        turns = np.abs(np.diff(headings)) / np.maximum((lengths[1:] + lengths[:-1]) / 2, 1e-3)
        self.curvature = np.concatenate([[0.0], turns, [0.0]])

    def at(self, stations: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2): on the route, but for the offset that the vehicle has now, which fades; beyond
        the route's end it goes straight on."""
        x, y = (np.interp(stations, self.stations, column) for column in self.points.T)
        beyond = np.maximum(0.0, stations - self.stations[-1])[:, None] * self.tangents[-1]
        offset = -self.points[0] * np.exp(-stations / MERGE_M)[:, None]
        places: NDArray[np.float64] = np.stack([x, y], axis=1) + beyond + offset
        return places

    def place(
        self, points: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Of points (N, 2): station, distance from the way, and its direction there (N, 2)."""
        lengths = np.diff(self.stations)
        toward = points[:, None] - self.points[:-1]
        along = np.clip((toward * self.tangents).sum(-1), 0.0, lengths)
        apart = np.linalg.norm(toward - along[..., None] * self.tangents, axis=-1)
        nearest = apart.argmin(axis=1)
        row = np.arange(len(points))
        stations = self.stations[nearest] + along[row, nearest]
        return stations, apart[row, nearest], self.tangents[nearest]
