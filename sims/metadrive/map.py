"""Closed loop on made-up roads: maps that are put together by lot, with MetaDrive's own traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.sims.driving.camera import SMALL_SIZE
from fastloop.sims.driving.scene import Body, Surroundings
from fastloop.sims.metadrive.engine import Engine, bare, metadrive
from fastloop.sims.metadrive.foresight import possible_ways
from fastloop.sims.metadrive.sim import MetaDriveSim
from fastloop.sims.metadrive.vehicle import ARGUMENTS, Control, Driver

__all__ = ["MetaDriveMap"]

MAPS = 2**16
SPACING_M = 2.0


class MetaDriveMap(MetaDriveSim):
    """Roads of several blocks (curves, ramps, crossings, roundabouts ...) in MetaDrive's
    MetaDriveEnv; the vehicle starts on a lane of the first, at rest, and goes to the end of the
    last, from the middle lane of the first road on along lanes that go on. The map of a seed is
    number ``seed % 65536``.

    Args:
        blocks: how many, or their letters in order, such as ``SCO`` (of MetaDrive: S straight, C
            curve, r and R ramps, X crossing, T junction, O roundabout, y and Y merge and split).
        traffic_density: vehicles for each 10 m of lane, 0 to 1.
        accident_prob: of an accident's cones or broken-down vehicle on a block, 0 to 1.
        control, plan_hz, plan_steps: see `Driver`.
        end_on_crash, cameras, image_size, score_plans, own_observation: see `MetaDriveSim`; of the
            future a plan is told that everybody keeps their velocity.
        max_steps: ticks after which an episode times out.

    Raises:
        MissingExtraError: without MetaDrive.
        ValueError: for arguments out of their range.
    """

    def __init__(
        self,
        *,
        blocks: int | str = 4,
        traffic_density: float = 0.1,
        accident_prob: float = 0.0,
        control: Control = "plan",
        plan_hz: float = 4.0,
        plan_steps: int = 20,
        end_on_crash: bool = True,
        cameras: Sequence[str] = (),
        image_size: tuple[int, int] = SMALL_SIZE,
        score_plans: bool = False,
        own_observation: bool = False,
        max_steps: int = 1000,
    ) -> None:
        if not blocks or (isinstance(blocks, int) and not 0 < blocks <= 20):
            raise ValueError(f"blocks are 1 to 20, or letters such as SCO, got {blocks!r}")
        for name, share in (("traffic_density", traffic_density), ("accident_prob", accident_prob)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be within 0 to 1, got {share}")
        driver = Driver(control, plan_steps, plan_hz)
        super().__init__(
            "MetaDriveMap",
            driver,
            max_steps=max_steps,
            end_on_crash=end_on_crash,
            cameras=cameras,
            image_size=image_size,
            score_plans=score_plans,
            own_observation=own_observation,
        )
        config = {"map": blocks, "traffic_density": traffic_density, "accident_prob": accident_prob}
        self.engine = Engine(lambda: _make(config), self.env_spec.name)
        self._names: dict[str, str] = {}

    def possible_ways(self) -> dict[str, list[NDArray[np.float64]]]:
        """Where the others may go along their lanes: ways (N, 2) by their key."""
        return {self._names[name]: ways for name, ways in possible_ways(self.engine.env).items()}

    def _begin(self, seed: int) -> str:
        env = self.engine.take()
        self._vehicle = metadrive("component.vehicle.base_vehicle").BaseVehicle
        env.reset(seed=seed % MAPS)
        self.surroundings = _surroundings(env)
        self._names = {}
        return f"map {seed % MAPS}"

    def _others(self) -> Mapping[str, Body]:
        managers = self.engine.env.engine.managers
        others = {}
        for manager in ("traffic_manager", "object_manager"):
            for name, thing in getattr(managers.get(manager), "spawned_objects", {}).items():
                # MetaDrive's names are another each time.
                key = self._names.setdefault(name, str(len(self._names)))
                kind = "vehicle" if isinstance(thing, self._vehicle) else "other"
                size = float(thing.LENGTH), float(thing.WIDTH), float(thing.HEIGHT)
                others[key] = self._body(Body(kind, 0, 0, 0, 0, 0, *size), thing)
        return others


def _make(config: Mapping[str, Any]) -> Any:
    first = metadrive("component.pgblock.first_block").FirstPGBlock
    spawn = {"spawn_lane_index": (first.NODE_1, first.NODE_2, 0)}
    env = metadrive("envs.metadrive_env").MetaDriveEnv
    return env(
        {
            "num_scenarios": MAPS,
            "agent_configs": {"default_agent": {**ARGUMENTS, **spawn}},
            **config,
            **bare(),
        }
    )


def _surroundings(env: Any) -> Surroundings:
    """The map of the present episode, and the way along the middle lanes."""
    features = env.current_map.get_map_features(SPACING_M)
    lanes = {str(key): f for key, f in features.items() if f["type"].startswith("LANE")}

    def lines(*kinds: str) -> tuple[NDArray[np.float64], ...]:
        return tuple(_flat(f["polyline"]) for f in features.values() if f["type"] in kinds)

    route = _route(env)
    return Surroundings(
        drivable=tuple(_flat(lane["polygon"]) for lane in lanes.values()),
        lanes={key: _flat(lane["polyline"]) for key, lane in lanes.items()},
        lines=lines("ROAD_LINE_BROKEN_SINGLE_WHITE", "ROAD_LINE_SOLID_SINGLE_YELLOW"),
        edges=lines("ROAD_LINE_SOLID_SINGLE_WHITE"),
        crossings=(),
        route=route,
    )


def _route(env: Any) -> NDArray[np.float64]:
    """The way (N, 2) to the end: along the middle lane of the first road, and of every other road
    along the lane that goes on from there."""
    nodes, graph = env.agent.navigation.checkpoints, env.current_map.road_network.graph
    route = np.zeros((0, 2))
    for start, end in pairwise(nodes):
        lines = [_center(lane) for lane in graph[start][end]]
        if not len(route):
            route = lines[len(lines) // 2]
            continue
        line = min(lines, key=lambda line: float(np.hypot(*(line[0] - route[-1]))))
        route = np.concatenate([route, line])
    apart = np.append(True, np.hypot(*np.diff(route, axis=0).T) > 0.1)
    kept: NDArray[np.float64] = route[apart]
    return kept


def _center(lane: Any) -> NDArray[np.float64]:
    stations = np.linspace(0, lane.length, 1 + max(1, round(lane.length / SPACING_M)))
    return _flat([lane.position(station, 0) for station in stations])


def _flat(points: Any) -> NDArray[np.float64]:
    return np.asarray(points, np.float64)[:, :2]
