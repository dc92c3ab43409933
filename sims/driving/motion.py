"""Bodies as arrays, and when two of them meet: what every score of a drive is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fastloop.sims.driving.scene import Body, Drive

__all__ = ["Motion", "Traffic", "ego_of", "meeting", "time_step", "traffic_of"]

Floats = NDArray[np.float64]

# Of the length, from the middle of the box: where the rear axle of nuPlan's vehicle is.
REAR_AXLE = 1.461 / 5.176


@dataclass(frozen=True)
class Motion:
    """N bodies, or one at N moments; all (N,), in the scene's frame: m, rad and m/s.

    Attributes:
        x, y, heading, vx, vy, length, width: as of `Body`.
    """

    x: Floats
    y: Floats
    heading: Floats
    vx: Floats
    vy: Floats
    length: Floats
    width: Floats

    @staticmethod
    def of(bodies: Sequence[Body]) -> Motion:
        """Of bodies, in their order."""
        names = [part.name for part in fields(Motion)]
        table = np.array([[getattr(body, name) for name in names] for body in bodies], np.float64)
        return Motion(*table.reshape(len(bodies), len(names)).T)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Motion:
        return Motion(*(getattr(self, part.name)[rows] for part in fields(self)))

    @property
    def center(self) -> Floats:
        """(N, 2) middles of the boxes."""
        return np.stack([self.x, self.y], axis=-1)

    @property
    def velocity(self) -> Floats:
        """(N, 2)."""
        return np.stack([self.vx, self.vy], axis=-1)

    @property
    def speed(self) -> Floats:
        """(N,)."""
        return np.hypot(self.vx, self.vy)

    @property
    def along(self) -> Floats:
        """(N, 2) unit vectors along the lengths."""
        return np.stack([np.cos(self.heading), np.sin(self.heading)], axis=-1)

    @property
    def aside(self) -> Floats:
        """(N, 2) unit vectors to the left."""
        return np.stack([-np.sin(self.heading), np.cos(self.heading)], axis=-1)

    @property
    def rear_axle(self) -> Floats:
        """(N, 2) its middle, estimated from the length."""
        return self.center - self.along * (REAR_AXLE * self.length)[:, None]

    @property
    def corners(self) -> Floats:
        """(N, 4, 2): front left, rear left, rear right, front right."""
        forward = self.along * self.length[:, None] / 2
        left = self.aside * self.width[:, None] / 2
        corners: Floats = self.center[:, None] + np.stack(
            [forward + left, left - forward, -forward - left, forward - left], axis=1
        )
        return corners

    @property
    def front(self) -> Motion:
        """The front edges, as boxes of no length."""
        middle = self.center + self.along * self.length[:, None] / 2
        return Motion(
            middle[:, 0], middle[:, 1], self.heading, self.vx, self.vy,
            np.zeros_like(self.length), self.width,
        )  # fmt: skip


@dataclass(frozen=True)
class Traffic:
    """Everybody but the ego, each at each moment that it was there: N rows, by moment.

    Attributes:
        motion: N bodies.
        moment: (N,) int index of the moment.
        who: (N,) int index in `ids`.
        ids, kinds: of those who were there at all.
    """

    motion: Motion
    moment: NDArray[np.intp]
    who: NDArray[np.intp]
    ids: tuple[str, ...]
    kinds: tuple[str, ...]


def ego_of(drive: Drive) -> Motion:
    """The ego at each moment.

    Raises:
        ValueError: where there are no moments, or the ego is not somewhere at each of them.
    """
    if not drive.moments:
        raise ValueError("this drive has no moments: there is nothing to score")
    ego = Motion.of([moment.ego for moment in drive.moments])
    _check(ego, "the ego")
    return ego


def traffic_of(drive: Drive) -> Traffic:
    """The others at each moment.

    Raises:
        ValueError: where one of them is there and not anywhere.
    """
    rows = [
        (index, key, body)
        for index, moment in enumerate(drive.moments)
        for key, body in moment.others.items()
    ]
    kinds = {key: body.kind for _, key, body in rows}
    number = {key: index for index, key in enumerate(kinds)}
    motion = Motion.of([body for _, _, body in rows])
    _check(motion, "another road user")
    return Traffic(
        motion=motion,
        moment=np.array([index for index, _, _ in rows], np.intp),
        who=np.array([number[key] for _, key, _ in rows], np.intp),
        ids=tuple(kinds),
        kinds=tuple(kinds.values()),
    )


def _check(motion: Motion, who: str) -> None:
    for part in fields(motion):
        if not np.isfinite(getattr(motion, part.name)).all():
            raise ValueError(
                f"{part.name} of {who} is not finite: leave a road user out of the moments at "
                "which it is not known"
            )


def time_step(drive: Drive) -> float:
    """Seconds between two moments; 0.1 where there is only one.

    Raises:
        ValueError: where the moments are not at a fixed rate.
    """
    times = np.array([moment.time_s for moment in drive.moments])
    if len(times) < 2:
        return 0.1
    steps = np.diff(times)
    step = float(steps.mean())
    if not step > 0 or np.abs(steps - step).max() > 0.1 * step:
        raise ValueError(
            f"moments are {steps.min():g} to {steps.max():g} s apart, expected a fixed rate: "
            "bring the log to one first (DrivingLog.at)"
        )
    return step


def meeting(one: Motion, other: Motion) -> tuple[Floats, Floats]:
    """When boxes touch, row by row, if all keep their velocities and headings.

    Exact: two boxes overlap while their shadows do on each of the four axes (separating axes), and
    the shadows move at a constant rate.

    Returns:
        (N,) seconds from now at which they begin and cease to touch, negative for the past;
        begins after it ceases where they never touch. They touch now where begins <= 0 <= ceases.
    """
    between, closing = other.center - one.center, other.velocity - one.velocity
    begins = np.full(len(one), -np.inf)
    ceases = np.full(len(one), np.inf)
    for axis in (one.along, one.aside, other.along, other.aside):
        reach = sum(
            np.abs((side * axis).sum(-1)) * size / 2
            for box in (one, other)
            for side, size in ((box.along, box.length), (box.aside, box.width))
        )
        gap, rate = (between * axis).sum(-1), (closing * axis).sum(-1)
        still = np.abs(rate) < 1e-9
        ends = np.stack([-reach - gap, reach - gap]) / np.where(still, 1.0, rate)
        apart = np.abs(gap) > reach
        first = np.where(still, np.where(apart, np.inf, -np.inf), ends.min(0))
        last = np.where(still, np.where(apart, -np.inf, np.inf), ends.max(0))
        begins, ceases = np.maximum(begins, first), np.minimum(ceases, last)
    return begins, ceases
