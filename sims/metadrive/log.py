"""Closed loop on recorded scenes: the vehicle drives in traffic that was recorded there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.driving_log import DrivingLog
from fastloop.datasets.logs.scenarionet_writer import to_scenario
from fastloop.sims.driving.camera import SMALL_SIZE
from fastloop.sims.driving.progress import along_route
from fastloop.sims.driving.scene import Body, Moment
from fastloop.sims.driving.world import body_of, moment_of
from fastloop.sims.metadrive.engine import Engine, bare, metadrive
from fastloop.sims.metadrive.plan_scores import Future
from fastloop.sims.metadrive.scenes import ParkedError, read_scenes
from fastloop.sims.metadrive.sim import MetaDriveSim
from fastloop.sims.metadrive.vehicle import ARGUMENTS, TICK_S, Control, Driver

__all__ = ["MetaDriveLog"]

OVERTIME = 100  # ticks after the longest record
SPAWN_AHEAD_M = 5.0  # nearer to the vehicle nobody appears: a car's length
MAP_MARGIN_M = 150.0


class MetaDriveLog(MetaDriveSim):
    """Recorded scenes in MetaDrive's ScenarioEnv: a vehicle of the recorder's size starts where and
    as fast as the recorder did, and shall go where it went, among recorded traffic.

    Frames are those of the logs, which are brought to an even 10 Hz (`retimed`). After its record
    a scene is empty. Whatever is no vehicle, pedestrian, cyclist, cone or barrier is left out, and
    so is who would appear where the vehicle is. Cones and barriers that were seen for less than 2 s
    are, too; the others stay where they were first.

    Args:
        scenes: a file or folder, or several, of anything that `open_logs` reads. The scene of a
            seed is ``seed % number of scenes``.
        traffic: ``replay``: everybody moves as recorded, whatever the vehicle does; ``reactive``:
            vehicles that are behind the vehicle when they appear, and move, follow their recorded
            way by MetaDrive's IDM, the others are replayed.
        control, plan_hz, plan_steps: see `Driver`.
        end_on_crash, cameras, image_size, score_plans: see `MetaDriveSim`; plans are scored against
            what was recorded, as far as the record goes, and in reactive traffic, which leaves it,
            against all keeping their velocities.
        min_distance: m that the recorder must have moved; else the scene is parked, and left out.
        max_steps: ticks after which an episode times out; None is 10 s after the longest record.

    Attributes:
        left_out, notes: why scenes were left out: those that cannot be used, and parked ones.

    Raises:
        DatasetError: when no scene is left.
        MissingExtraError: without MetaDrive.
    """

    def __init__(
        self,
        scenes: str | Path | Sequence[str | Path],
        *,
        traffic: Literal["replay", "reactive"] = "replay",
        control: Control = "plan",
        plan_hz: float = 4.0,
        plan_steps: int = 20,
        end_on_crash: bool = True,
        cameras: Sequence[str] = (),
        image_size: tuple[int, int] = SMALL_SIZE,
        score_plans: bool = False,
        min_distance: float = 10.0,
        max_steps: int | None = None,
    ) -> None:
        if traffic not in ("replay", "reactive"):
            raise ValueError(f"traffic is replay or reactive, got {traffic!r}")
        driver = Driver(control, plan_steps, plan_hz)
        paths = [scenes] if isinstance(scenes, str | Path) else list(scenes)
        self.scenes, faults = read_scenes(paths, min_distance=min_distance)
        self.distinct_seeds = len(self.scenes)
        self.left_out = [str(fault) for fault in faults if not isinstance(fault, ParkedError)]
        self.notes = [str(fault) for fault in faults if isinstance(fault, ParkedError)]
        if max_steps is None:
            max_steps = max(len(scene.log) for scene in self.scenes) + OVERTIME
        super().__init__(
            "MetaDriveLog",
            driver,
            max_steps=max_steps,
            end_on_crash=end_on_crash,
            cameras=cameras,
            image_size=image_size,
            score_plans=score_plans,
        )
        self.reactive = traffic == "reactive"
        self.engine = Engine(lambda: _make(reactive=self.reactive), self.env_spec.name)
        self._scene = self.scenes[0]

    def recorded_plan(self) -> NDArray[np.float64]:
        """(1 + 2T,) the action that goes where the recorder went, of this tick.

        Raises:
            ValueError: where nobody recorded the scene, or actions are no plans.
        """
        if self.recorded is None or self.driver.control == "steer_throttle":
            raise ValueError(f"{self.scene_name} has no recorded plan for {self.driver.control}")
        now = len(self.moments) - 1
        steps = (self.driver.spec.dim - 1) // 2
        due = now + (1 + np.arange(steps)) / self.driver.hz / TICK_S
        return self.driver.plan_along(self.recorded, due)

    def _begin(self, seed: int) -> str:
        self._scene = scene = self.scenes[seed % len(self.scenes)]
        ego = scene.log.tracks[scene.log.ego or ""]
        env = self.engine.take()
        scenario = metadrive("scenario.scenario_description").ScenarioDescription(
            to_scenario(_bare(scene.log))
        )
        env.engine.data_manager.set_scenario(scenario)
        env.reset(seed=0)
        turn = math.remainder(ego.heading[1] - ego.heading[0], math.tau)
        env.agent.set_angular_velocity(turn / TICK_S)  # else a start in a curve is a jolt
        self.surroundings, self.recorded = scene.surroundings, scene.recorded
        self._origin = ego.position[0, :2]
        self._recorded_moments: dict[int, Moment] = {}
        self._like = {key: body_of(track, 0) for key, track in scene.log.tracks.items()}
        return scene.log.name

    def _others(self) -> Mapping[str, Body]:
        manager = self.engine.env.engine.traffic_manager
        things = manager.spawned_objects
        return {
            key: self._body(self._like[key], things[name])
            for name, key in manager._obj_id_to_scenario_id.items()
        }

    def _future(self, tick: int, steps: int) -> Future | None:
        """As recorded; whoever was not let in, see `MetaDriveLog`, stays out, and things stay."""
        if self.reactive:
            return super()._future(tick, steps)
        log, now = self._scene.log, self.moments[tick]
        if tick + steps >= len(log):
            return None
        things = {key: body for key, body in now.others.items() if body.kind == "other"}

        def there(moment: Moment) -> Moment:
            others = {
                key: body
                for key, body in moment.others.items()
                if body.kind != "other" and (key in now.others or not log.tracks[key].valid[tick])
            }
            return replace(moment, others={**others, **things})

        moments = [self._moment(index) for index in range(tick, tick + steps + 1)]
        way = np.array([[moment.ego.x, moment.ego.y] for moment in moments])
        places = along_route(self.surroundings.route, way)
        return Future([now, *map(there, moments[1:])], max(float(places[-1] - places[0]), 0.0))

    def _moment(self, index: int) -> Moment:
        """As recorded, read once an episode."""
        if index not in self._recorded_moments:
            self._recorded_moments[index] = moment_of(self._scene.log, index)
        return self._recorded_moments[index]


def _make(*, reactive: bool) -> Any:
    """A ScenarioEnv whose scenes come from memory, one at a time."""
    envs = metadrive("envs.scenario_env")
    env = envs.ScenarioEnv(
        {
            "num_scenarios": 1,
            "reactive_traffic": reactive,
            "use_bounding_box": True,  # everybody is as large as recorded
            "no_light": True,
            "need_lane_localization": False,
            "agent_configs": {"default_agent": ARGUMENTS},
            **bare(),
        }
    )

    def set_up() -> None:
        metadrive("envs.base_env").BaseEnv.setup_engine(env)
        traffic = envs.ScenarioTrafficManager()
        traffic.GENERATION_FORWARD_CONSTRAINT = SPAWN_AHEAD_M
        for name, manager in (
            ("data_manager", envs.ScenarioOnlineDataManager()),
            ("map_manager", envs.ScenarioMapManager()),
            ("traffic_manager", traffic),
            ("curriculum_manager", envs.ScenarioCurriculumManager()),
        ):
            env.engine.register_manager(name, manager)

    env.setup_engine = set_up
    return env


def _bare(log: DrivingLog) -> DrivingLog:
    """What MetaDrive shall see of a log: tracks and lanes near the way, no word of the source.

    (A track's ``spawn_info`` names a module that MetaDrive would import.)
    """
    way = log.tracks[log.ego or ""].position[:, :2]
    low, high = way.min(0) - MAP_MARGIN_M, way.max(0) + MAP_MARGIN_M
    return replace(
        log,
        tracks={key: replace(track, properties={}) for key, track in log.tracks.items()},
        map=tuple(
            replace(feature, properties={}, category="")
            for feature in log.map
            if feature.kind == "lane"
            and not feature.area
            and len(feature.points) > 1
            and (feature.points[:, :2].max(0) > low).all()
            and (feature.points[:, :2].min(0) < high).all()
        ),
        signals={},
        metadata={},
    )
