"""Two toys in which one moment does not tell what to do next: microseconds a step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.policies.spec import ActionSpec, EnvSpec, TensorSpec
from fastloop.sims.base import Observation, Sim

__all__ = ["Corridor", "CorridorExpert", "Touches", "TouchesExpert"]

Array = NDArray[np.float64]
DT = 0.1  # s
SNAP = 0.05  # m: so near to where two ways meet is there; at full speed nobody steps over it


class Corridor(Sim):
    """Start left or right of a corridor, walk through it, leave on the other side.

    The world is a thin H on its side: a row at y = 0 with the start on it, the corridor from (0, 0)
    to (0, 1), a row at y = 1 whose ends, at x = -1 and 1, are the exits. Inside the corridor the
    walls hold the walker at x = 0, so both beginnings look alike to the last digit there; how far
    away it started is random, so time tells nothing either. The wrong exit ends the episode.

    ``observation.state`` is (2,): x and y, m; the action (2,) is the velocity, m/s.
    ``info["figures"]["stage"]`` is 1 once the corridor is behind and 2 at success.

    Args:
        max_steps: ticks, at 10 Hz, after which an episode times out.
        render_size: side of what `render` returns, pixels.

    Attributes:
        side: -1 or 1, where it started; nothing shows it later.
        place: (2,) where the walker is.
    """

    def __init__(self, *, max_steps: int = 80, render_size: int = 64) -> None:
        names = ("x", "y")
        super().__init__(
            EnvSpec(
                name="Corridor",
                observations={"observation.state": TensorSpec((2,), names=names, unit="m")},
                action=ActionSpec(2, "velocity", (-1.0, -1.0), (1.0, 1.0), names=names, unit="m/s"),
                control_hz=1 / DT,
                max_steps=max_steps,
                success="the walker left on the side opposite to its start",
            )
        )
        self.render_size = render_size
        self.side, self.stage = 1, 0
        self.place = np.zeros(2)

    def _reset(self, seed: int) -> Observation:
        rng = np.random.default_rng(seed)
        self.side, self.stage = int(rng.choice([-1, 1])), 0
        self.place = np.array([self.side * rng.uniform(0.5, 0.9), 0.0])
        return self._observe()

    def _step(self, action: Array) -> tuple[Observation, float, bool, dict[str, Any]]:
        (x, y), (dx, dy) = self.place, DT * action
        if y in (0.0, 1.0):
            x = float(np.clip(x + dx, -1, 1))
        if abs(x) < SNAP:  # in the corridor, or where it ends
            x, y = 0.0, float(np.clip(y + dy, 0, 1))
            y = 1.0 if y > 1 - SNAP else y
        self.place = np.array([x, y])
        self.stage = max(self.stage, int(y == 1))
        left = y == 1 and abs(x) > 1 - SNAP
        success = bool(left and x * self.side < 0)
        self.stage += success
        info = {"is_success": success, "figures": {"stage": float(self.stage)}}
        return self._observe(), float(success), bool(left), info

    def _observe(self) -> Observation:
        return {"observation.state": self.place.astype(np.float32)}

    def _save(self) -> Any:
        return self.side, self.stage, self.place.tolist()

    def _restore(self, state: Any) -> Observation:
        self.side, self.stage, place = state
        self.place = np.array(place)
        return self._observe()

    def _render(self) -> NDArray[np.uint8]:
        image = np.full((self.render_size, self.render_size, 3), 90, np.uint8)
        track = np.linspace(-1, 1, 2 * self.render_size)
        for x, y in [(0, (s + 1) / 2) for s in track] + [(s, y) for s in track for y in (0, 1)]:
            _dot(image, x, 1.4 * y - 0.7, (255, 255, 255), 3)
        _dot(image, self.place[0], 1.4 * self.place[1] - 0.7, (200, 0, 0), 3)
        return image


class CorridorExpert:
    """Straight to the corridor, through it, and out on the side opposite to the start."""

    def reset(self, sim: Corridor) -> None:
        """There is nothing to forget: the simulator knows the side."""

    def act(self, sim: Corridor) -> Array:
        """The velocity (2,) of this tick."""
        x, y = sim.place
        if y == 1:
            return np.array([-sim.side, 0.0])
        if x:
            return np.array([np.clip(-x / DT, -1, 1), 0.0])
        return np.array([0.0, 1.0])

    def nudge(self, sim: Corridor, rng: np.random.Generator) -> Array:
        """A velocity (2,) that leads back to the corridor's beginning, and never to an exit."""
        return np.array([0.0, -rng.uniform(0, 1)])


class Touches(Sim):
    """Go and touch the wall three times, coming home in between, and stay home after the third.

    Home is at x = 0, the wall at x = 1: it stops the point, so that every way back is the same to
    the last digit, and nothing but the count of touches tells whether to go again. A fourth touch
    ends the episode, and so does staying home, for 10 ticks after a first touch.

    ``observation.state`` is (2,): x, m, and velocity, m/s; the action (1,) is the acceleration,
    m/s^2. ``info["figures"]["stage"]`` is how often the wall was touched.

    Args:
        touches: how many are wanted.
        max_steps: ticks, at 10 Hz, after which an episode times out.
        render_size: side of what `render` returns, pixels.

    Attributes:
        stage: touches up to now; nothing observed tells it.
        body: (2,) position and velocity.
    """

    HOME = 0.1  # m: not further away is at home
    STAY = 10  # ticks at home that end the episode

    def __init__(self, *, touches: int = 3, max_steps: int = 200, render_size: int = 64) -> None:
        super().__init__(
            EnvSpec(
                name="Touches",
                observations={"observation.state": TensorSpec((2,), names=("x", "vx"))},
                action=ActionSpec(1, "acceleration", (-4.0,), (4.0,), names=("x",), unit="m/s^2"),
                control_hz=1 / DT,
                max_steps=max_steps,
                success=f"the wall was touched {touches} times, and then the point stayed home",
            )
        )
        self.touches, self.render_size = touches, render_size
        self.stage = self.stayed = 0
        self.away = False
        self.body = np.zeros(2)

    def _reset(self, seed: int) -> Observation:
        self.stage = self.stayed = 0
        self.away = False
        self.body = np.array([np.random.default_rng(seed).uniform(-0.05, 0.05), 0.0])
        return self._observe()

    def _step(self, action: Array) -> tuple[Observation, float, bool, dict[str, Any]]:
        x, v = self.body
        v = v + DT * action[0]
        x = x + DT * v
        if x >= 1:
            x, v = 1.0, 0.0
            self.stage += not self.away
            self.away = True
        home = abs(x) < self.HOME
        self.away = self.away and not home
        self.stayed = self.stayed + 1 if home and self.stage else 0
        self.body = np.array([x, v])
        stays = self.stayed == self.STAY
        success = stays and self.stage == self.touches
        info = {"is_success": success, "figures": {"stage": float(self.stage)}}
        return self._observe(), float(success), stays or self.stage > self.touches, info

    def _observe(self) -> Observation:
        return {"observation.state": self.body.astype(np.float32)}

    def _save(self) -> Any:
        return self.stage, self.stayed, self.away, self.body.tolist()

    def _restore(self, state: Any) -> Observation:
        self.stage, self.stayed, self.away, body = state
        self.body = np.array(body)
        return self._observe()

    def _render(self) -> NDArray[np.uint8]:
        image = np.full((self.render_size, self.render_size, 3), 255, np.uint8)
        for y in np.linspace(-0.6, 0.6, self.render_size):
            _dot(image, 0.95, y, (90, 90, 90), 2)
        _dot(image, -0.8, 0, (0, 160, 0), 4)
        _dot(image, 1.6 * self.body[0] - 0.8, 0, (200, 0, 0), 2)
        return image


class TouchesExpert:
    """A damped spring to beyond the wall until it is touched, then to home; it counts."""

    def __init__(self) -> None:
        self._out = True

    def reset(self, sim: Touches) -> None:
        """Head for the wall, unless it was touched often enough."""
        self._out = True

    def act(self, sim: Touches) -> Array:
        """The acceleration (1,) of this tick."""
        x, v = sim.body
        if x >= 1:
            self._out = False
        elif abs(x) < sim.HOME:
            self._out = sim.stage < sim.touches
        goal = 1.1 if self._out and sim.stage < sim.touches else 0.0
        return np.clip([16 * (goal - x) - 8 * v], -4, 4)

    def nudge(self, sim: Touches, rng: np.random.Generator) -> Array:
        """A weak acceleration (1,) towards home."""
        return np.array([-rng.uniform(0, 1)])


def _dot(image: NDArray[np.uint8], x: float, y: float, color: tuple[int, int, int], r: int) -> None:
    """A square of 2 r + 1 pixels around (x, y) in -1..1, y upwards."""
    column, row = (
        int((v + 1) / 2 * (len(image) - 1 - 2 * r)) + r for v in (np.clip([x, -y], -1, 1))
    )
    image[row - r : row + r + 1, column - r : column + r + 1] = color
