"""The vehicle that is driven: its measures, and how it obeys."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastloop.policies.driving.whole_plans import plan_action
from fastloop.policies.spec import ActionSpec
from fastloop.sims.driving.poses import Pose, rear_axle_pose, to_vehicle
from fastloop.sims.driving.scene import Body
from fastloop.sims.driving.tracker import Tracker, place

__all__ = ["ARGUMENTS", "REAR_AXLE", "TICK_S", "Control", "Driver"]

Control = Literal["plan", "steer_throttle"]

TICK_S = 0.1
REAR_AXLE = 1.4166  # m from the middle of the box, of MetaDrive's default vehicle
WHEELBASE = REAR_AXLE + 1.05234
MAX_ACCEL, MAX_BRAKE, MAX_STEER_DEG = 4.0, 8.0, 40.0
MASS, WHEELS, PHYSICS_S = 1100.0, 4, 0.02

# MetaDrive draws engine and brakes by lot for each vehicle, brakes with up to 3 g, and stops
# pulling at 80 km/h: the vehicle that is driven is always the same, and no slower than a log's.
# A brake is an impulse that each wheel takes at each step of the physics.
ARGUMENTS = {
    "max_engine_force": MASS * MAX_ACCEL / WHEELS,
    "max_brake_force": MASS * MAX_BRAKE * PHYSICS_S / WHEELS,
    "max_steering": MAX_STEER_DEG,
    "max_speed_km_h": 200.0,
}


class Driver:
    """Does with the vehicle what actions say.

    Args:
        control: ``plan``: actions are plans (`plan_action`), which `Tracker` follows;
            ``steer_throttle``: actions are steering (1 is 40 degrees to the left) and throttle (1
            is 4 m/s^2, -1 brakes with 8).
        plan_steps, plan_hz: T waypoints of a plan, and waypoints a second.

    Raises:
        ValueError: for another control.
    """

    def __init__(self, control: Control, plan_steps: int, plan_hz: float) -> None:
        self.spec: ActionSpec
        if control == "steer_throttle":
            self.spec = ActionSpec(2, control, (-1.0, -1.0), (1.0, 1.0), ("steer", "throttle"))
        elif control == "plan":
            if plan_steps < 1 or not 0 < plan_hz <= 1 / TICK_S:
                raise ValueError(
                    f"a plan has at least 1 waypoint and 0 to 10 a second, got {plan_steps} and "
                    f"{plan_hz}"
                )
            self.spec = plan_action(plan_steps, plan_hz)
        else:
            raise ValueError(
                f"control is plan or steer_throttle, got {control!r}: actions are plans, which are "
                "followed, or steering and throttle"
            )
        self.control = control
        self.hz = plan_hz
        self._poses: list[Pose] = []
        self._tracker = Tracker(
            WHEELBASE, math.radians(MAX_STEER_DEG), MAX_ACCEL, MAX_BRAKE, TICK_S, REAR_AXLE
        )

    def reset(self, ego: Body) -> None:
        """An episode begins."""
        self._poses = [rear_axle_pose(ego, REAR_AXLE)]

    def moved(self, ego: Body) -> None:
        """A tick went by."""
        self._poses.append(rear_axle_pose(ego, REAR_AXLE))

    def plan_along(
        self, way: NDArray[np.float64], ticks: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """(1 + 2T,) the action to be, now and at T ticks from the start, where a driver was.

        Args:
            way: (N, 3) x, y of the middle of its box, and heading, at each tick, N of 2 or more;
                beyond its end it goes on as it did last.
            ticks: (T,) need not be whole.
        """
        heading = np.unwrap(way[:, 2])
        axle = way[:, :2] - REAR_AXLE * np.stack([np.cos(heading), np.sin(heading)], axis=1)
        piece = np.clip(ticks.astype(int), 0, len(way) - 2)
        points = axle[piece] + (ticks - piece)[:, None] * (axle[piece + 1] - axle[piece])
        return np.append(0.0, to_vehicle(points, self._poses[-1]))

    def act(self, env: Any, action: NDArray[np.float64], ego: Body) -> None:
        """One tick.

        Args:
            env: the MetaDrive environment to step.
            action: (A,) as `spec` says.
            ego: the vehicle now, in the scene's frame.
        """
        if self.control == "steer_throttle":
            env.step(action)
            return
        control = self._tracker.control(*self._placed(action), ego)
        env.step(self._tracker.normalized(*control))

    def _placed(
        self, action: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A plan's points (T + 1, 2) in the scene, and when they are due, s from now."""
        age_s = float(action[0])
        ticks = min(round(age_s / TICK_S), len(self._poses) - 1)
        pose = self._poses[-1 - ticks]
        return place(action[1:].reshape(-1, 2), pose, hz=self.hz, age_s=age_s)
