"""The plan gate: what a plan must not ask of the machine, each violation a reason in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastloop.deploy.motion import ACCELERATION, HEADING, SPEED, Floats, Motion, X, Y

__all__ = ["ArmLimits", "VehicleLimits", "arm_faults", "vehicle_faults"]


@dataclass(frozen=True)
class VehicleLimits:
    """What a plan may ask of a vehicle, and how it stops.

    Attributes:
        speed: m/s.
        acceleration, braking, lateral: m/s^2.
        jerk: m/s^3 along the path.
        curvature: 1/m.
        start_m, start_rad, start_speed: how far the plan's present may lie from the measured one,
            in m, rad and m/s.
        stop_deceleration, stop_jerk: of a comfort stop, m/s^2 and m/s^3.
        hard_deceleration, hard_jerk: of a hard stop.
        shortest_m: steps shorter than this have no direction: noise would decide it.
    """

    speed: float = 20.0
    acceleration: float = 4.0
    braking: float = 8.0
    lateral: float = 5.0
    jerk: float = 40.0
    curvature: float = 0.25
    start_m: float = 1.5
    start_rad: float = 0.35
    start_speed: float = 2.5
    stop_deceleration: float = 2.0
    stop_jerk: float = 1.5
    hard_deceleration: float = 6.0
    hard_jerk: float = 30.0
    shortest_m: float = 0.2

    def __post_init__(self) -> None:
        _check(self, finite=("stop_deceleration", "stop_jerk", "hard_deceleration", "hard_jerk"))


@dataclass(frozen=True)
class ArmLimits:
    """What a plan may ask of an arm, and how it holds.

    Attributes:
        low, high: joint positions, rad, one a joint; empty for no bound.
        velocity: rad/s, of every joint.
        acceleration: rad/s^2, of every joint.
        start_rad: how far the plan's present may lie from the measured joints.
        ramp_s: time in which progress along a plan, or the measured motion, comes to rest.
    """

    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    velocity: float = 3.0
    acceleration: float = 100.0
    start_rad: float = 0.3
    ramp_s: float = 0.3

    def __post_init__(self) -> None:
        _check(self, finite=("ramp_s",))
        for name in ("low", "high"):
            if any(math.isnan(bound) for bound in getattr(self, name)):
                raise ValueError(f"limits.{name} must be numbers, got {getattr(self, name)}")


def _check(limits: VehicleLimits | ArmLimits, finite: Sequence[str]) -> None:
    """Refuse what would let everything pass, or cannot be computed when it is needed."""
    for name, value in vars(limits).items():
        if name in ("low", "high"):
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not value > 0 or (name in finite and not math.isfinite(value)):
            raise ValueError(f"limits.{name} must be a number above 0, got {value!r}")


def vehicle_faults(motion: Motion, limits: VehicleLimits) -> list[str]:
    """Why a vehicle must not follow `motion`; nothing where it may."""
    if faults := _shape_faults(motion):
        return faults
    points, dt = motion.points, np.diff(motion.times)
    speed, pull = points[:, SPEED], points[:, ACCELERATION]
    steps = np.diff(points[:, [X, Y]], axis=0)
    lengths = np.hypot(steps[:, 0], steps[:, 1])
    turns = np.abs(np.diff(points[:, HEADING]))
    turns = np.minimum(turns, np.abs(2 * math.pi - turns % (2 * math.pi)))
    moves = lengths > limits.shortest_m
    curvature = np.where(moves, turns / np.maximum(lengths, 1e-9), 0.0)
    jerk = np.abs(np.diff(pull)) / dt
    checks = (
        ("speed", float(speed.max()), limits.speed, "m/s"),
        ("speed backward", float(-speed.min()), 0.5, "m/s"),
        ("acceleration", float(pull.max()), limits.acceleration, "m/s^2"),
        ("braking", float(-pull.min()), limits.braking, "m/s^2"),
        ("jerk", float(jerk.max()), limits.jerk, "m/s^3"),
        ("curvature", float(curvature.max()), limits.curvature, "1/m"),
        (
            "lateral acceleration",
            float((curvature * speed[1:] ** 2).max()),
            limits.lateral,
            "m/s^2",
        ),
    )
    return [f"{what} {_above(value, bound)} {unit}, at most {bound:g}"
            for what, value, bound, unit in checks if value > bound]  # fmt: skip


def arm_faults(motion: Motion, limits: ArmLimits) -> list[str]:
    """Why an arm must not follow `motion`; nothing where it may."""
    if faults := _shape_faults(motion):
        return faults
    faults = []
    for bound, sign, word in ((limits.low, -1, "below"), (limits.high, 1, "above")):
        if bound:
            beyond = sign * (motion.points - np.array(bound))
            worst = int(beyond.max(0).argmax())
            if beyond.max() > 1e-6:
                faults.append(f"joint {worst} {beyond.max():.3g} rad {word} {bound[worst]:g}")
    dt = np.diff(motion.times)
    velocity = np.diff(motion.points, axis=0) / dt[:, None]
    if (fastest := float(np.abs(velocity).max())) > limits.velocity:
        faults.append(f"joint velocity {fastest:.3g} rad/s, at most {limits.velocity:g}")
    if len(dt) > 1:
        hardest = float(np.abs(np.diff(velocity, axis=0) / dt[1:, None]).max())
        if hardest > limits.acceleration:
            faults.append(
                f"joint acceleration {hardest:.3g} rad/s^2, at most {limits.acceleration:g}"
            )
    return faults


def _shape_faults(motion: Motion) -> list[str]:
    """Those that make everything else meaningless."""
    times, points = motion.times, motion.points
    if points.ndim != 2 or len(points) != len(times) or len(times) < 2:
        return [f"{points.shape} points at {times.shape} times: need two or more"]
    if not (_finite(times) and _finite(points)):
        return ["not finite"]
    if not bool((np.diff(times) > 0).all()):
        return ["times that do not rise"]
    return []


def _above(value: float, bound: float) -> str:
    """`value` with so many digits that it is seen to be above `bound`."""
    texts = (f"{value:.{digits}g}" for digits in range(3, 18))
    return next(text for text in texts if float(text) > bound)


def _finite(values: Floats) -> bool:
    return bool(np.isfinite(values).all())
