"""The kinematic bicycle: how a vehicle moves whose wheels do not slip."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloop.sims.driving.scene import Body

__all__ = ["Bicycle"]


@dataclass(frozen=True)
class Bicycle:
    """A kinematic bicycle, seen from its rear axle (Kong et al., Kinematic and dynamic vehicle
    models for autonomous driving control design, IV 2015).

    Attributes:
        wheelbase: m.
        max_steer: rad, of the front wheel to either side.
        max_accel, max_brake: m/s^2, both positive.
    """

    wheelbase: float = 2.6
    max_steer: float = 0.7
    max_accel: float = 4.0
    max_brake: float = 8.0

    def step(self, states: ArrayLike, controls: ArrayLike, dt: float) -> NDArray[np.float64]:
        """Where vehicles are `dt` seconds later: each goes along an arc, its speed changes
        steadily, and it stops rather than reverse. Exact for controls that stay as they are.

        Args:
            states: (..., 4) x, y of the rear axle (m), heading (rad), speed (m/s, never negative).
            controls: (..., 2) steering angle (rad) and acceleration (m/s^2); beyond the limits the
                limits are taken.
            dt: s.

        Returns:
            (..., 4) float64; headings go on beyond pi.
        """
        x, y, heading, speed = np.moveaxis(np.asarray(states, np.float64), -1, 0)
        steer, accel = np.moveaxis(np.asarray(controls, np.float64), -1, 0)
        accel = np.clip(accel, -self.max_brake, self.max_accel)
        curvature = np.tan(np.clip(steer, -self.max_steer, self.max_steer)) / self.wheelbase
        stops = speed + accel * dt < 0
        moving = np.divide(speed, -accel, out=np.full(np.shape(stops), dt), where=stops)
        distance = (speed + accel * moving / 2) * moving
        turn = distance * curvature
        chord = distance * np.sinc(turn / 2 / np.pi)
        return np.stack(
            [
                x + chord * np.cos(heading + turn / 2),
                y + chord * np.sin(heading + turn / 2),
                heading + turn,
                np.maximum(speed + accel * moving, 0.0),
            ],
            -1,
        )

    def body(
        self, state: ArrayLike, *, rear_axle: float, length: float = 4.5, width: float = 1.9
    ) -> Body:
        """The vehicle in a state (4,) as others see it.

        Args:
            state: as for `step`.
            rear_axle: m from the middle of its box back to its rear axle.
            length, width: m, of its box.
        """
        x, y, heading, speed = map(float, np.asarray(state, np.float64))
        c, s = math.cos(heading), math.sin(heading)
        return Body(
            "vehicle", x + rear_axle * c, y + rear_axle * s, heading, speed * c, speed * s,
            length, width,
        )  # fmt: skip
