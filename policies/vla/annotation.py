"""What there was to say about a moment of a recorded drive: labels for the sections of an answer.

Made from what an observation tells and from the way that was then driven. What neither tells
(weather, lights, animals, open doors) is never claimed. Left and right are treated alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLAGS", "annotate", "critical_objects", "explanations", "meta_behavior"]

FLAGS = (
    "nearby_vehicle", "pedestrian", "cyclist", "construction", "traffic_element",
    "weather_condition", "road_hazard", "emergency_vehicle", "animal", "special_vehicle",
    "conflicting_vehicle", "door_opening_vehicle",
)  # fmt: skip
VEHICLE, PEDESTRIAN, CYCLIST, OTHER = range(4)  # kinds in `observation.neighbors`
INTENTS = ("unknown", "straight", "left", "right")
LONGITUDINAL = ("keep speed", "accelerate", "decelerate", "stop")
LATERAL = (
    "go straight", "follow lane", "turn left", "turn right", "change lane left",
    "change lane right",
)  # fmt: skip
STEP_S, STEPS, PER_SECOND = 0.25, 20, 4
NEAR_M = 30.0  # how far a road user is worth a word
LENGTH_M, WIDTH_M, AXLE_M = 4.6, 2.0, 1.4  # of the vehicle, and from its rear axle to its middle
HAZARD_M = 3.0  # from the way driven to a thing that lies there
GAP_AHEAD_M, GAP_ASIDE_M = 1.0, 0.3  # less than these to another box is a conflict
STANDING = 0.5  # m/s
CHANGE = 1.5  # m/s within the plan, for a change of speed
TURN, STRAIGHT = 0.35, 0.1  # rad of heading at the end of the plan
HALF_LANE_M = 1.75
MOVED_M = 0.1  # of a step that tells a heading


def annotate(
    observation: Mapping[str, NDArray[Any]], future: NDArray[np.floating[Any]]
) -> dict[str, Any]:
    """Labels of one moment, by section: what is there, why, what to do, and where to be.

    Args:
        observation: ``observation.ego_states`` (16, 6), ``observation.neighbors`` (M, 10) and
            ``observation.intent`` (), as `fastloop.sims.driving.observation.Observer` gives them.
        future: (20, 2) m at 4 Hz, where the rear axle then was, in the vehicle's present frame.

    Returns:
        ``critical_objects`` (`FLAGS` to bool), ``explanation`` (a sentence or two),
        ``future_meta_behavior`` (``longitudinal`` and ``lateral``), ``trajectory`` ((5, 2) float64,
        m, after 1, 2, ... 5 s).

    Raises:
        ValueError: when the future is not 20 finite points.
    """
    future = np.asarray(future, np.float64)
    if future.shape != (STEPS, 2) or not np.isfinite(future).all():
        raise ValueError(
            f"a future is ({STEPS}, 2) finite meters at {PER_SECOND} Hz, got {future.shape}"
        )
    speed = float(np.hypot(*observation["observation.ego_states"][-1, 2:4]))
    intent = int(observation["observation.intent"])
    flags = critical_objects(observation["observation.neighbors"], future)
    behavior = meta_behavior(speed, intent, future)
    return {
        "critical_objects": flags,
        "explanation": _explanation(flags, speed, intent, behavior),
        "future_meta_behavior": behavior,
        "trajectory": future[PER_SECOND - 1 :: PER_SECOND],
    }


def critical_objects(neighbors: NDArray[Any], future: NDArray[np.float64]) -> dict[str, bool]:
    """Which of `FLAGS` hold.

    Near is within `NEAR_M` and ahead of the rear axle, where cameras to the front look. A thing of
    no other kind is a hazard within `HAZARD_M` of the way driven. A vehicle ahead conflicts that,
    going on at its velocity, comes too close to the vehicle's own box at any time of the plan.

    Args:
        neighbors: (M, 10): x, y, cosine, sine, vx, vy, length, width, kind, there.
        future: (20, 2) m at 4 Hz.
    """
    seen = np.asarray(neighbors, np.float64)
    seen = seen[seen[:, 9] > 0]
    kind = seen[:, 8].astype(int)
    ahead = seen[:, 0] > 0
    near = ahead & (np.hypot(seen[:, 0], seen[:, 1]) <= NEAR_M)
    way = np.vstack([np.zeros(2), future])
    apart = np.linalg.norm(seen[:, None, :2] - way, axis=-1).min(1)
    conflicts = ahead & _conflicts(seen, future)
    told = {
        "nearby_vehicle": near & (kind == VEHICLE),
        "pedestrian": near & (kind == PEDESTRIAN),
        "cyclist": near & (kind == CYCLIST),
        "road_hazard": near & (kind == OTHER) & (apart <= HAZARD_M),
        "conflicting_vehicle": conflicts & (kind == VEHICLE),
    }
    return {flag: bool(told[flag].any()) if flag in told else False for flag in FLAGS}


def meta_behavior(speed: float, intent: int, future: NDArray[np.float64]) -> dict[str, str]:
    """What the plan does, in words.

    Longitudinal, by the mean speed of the last second: ``stop`` below `STANDING`, ``accelerate`` or
    ``decelerate`` where it differs from now by more than `CHANGE`, else ``keep speed``. Lateral, by
    the heading at its end: beyond `TURN` a turn, or where the route goes straight on, ``follow
    lane``; a sideways shift of more than `HALF_LANE_M` that no even curve to that heading makes is
    a change of lane; else ``go straight`` up to `STRAIGHT`, ``follow lane`` beyond.

    Args:
        speed: now, m/s.
        intent: index in unknown, straight, left, right.
        future: (20, 2) m at 4 Hz.
    """
    last = float(np.linalg.norm(future[-1] - future[-1 - PER_SECOND]))  # m in one second
    change = last - speed
    if last < STANDING:
        longitudinal = "stop"
    elif abs(change) > CHANGE:
        longitudinal = "accelerate" if change > 0 else "decelerate"
    else:
        longitudinal = "keep speed"
    heading = float(_headings(future)[-1])
    # An arc that ends at a heading h has gone tan(h / 2) as far aside as ahead.
    shift = float(future[-1, 1] - future[-1, 0] * np.tan(heading / 2))
    side = "left" if heading > 0 else "right"
    if abs(heading) > TURN:
        lateral = "follow lane" if INTENTS[intent] == "straight" else f"turn {side}"
    elif abs(shift) > HALF_LANE_M:
        lateral = f"change lane {'left' if shift > 0 else 'right'}"
    else:
        lateral = "go straight" if abs(heading) <= STRAIGHT else "follow lane"
    return {"longitudinal": longitudinal, "lateral": lateral}


def explanations() -> list[str]:
    """Enough of what `annotate` may explain that every word of it stands there, for a tokenizer."""
    told: list[set[str]] = [set(), *({flag} for flag in FLAGS), set(FLAGS)]
    return [
        _explanation(
            {flag: flag in flags for flag in FLAGS}, 0.0, intent,
            {"longitudinal": longitudinal, "lateral": lateral},
        )
        for flags in told
        for intent in range(len(INTENTS))
        for longitudinal, lateral in product(LONGITUDINAL, LATERAL)
    ]  # fmt: skip


def _headings(future: NDArray[np.float64]) -> NDArray[np.float64]:
    """(20,) rad at each point: of the last step that moved, 0 before any did; never wrapped."""
    steps = np.diff(np.vstack([np.zeros(2), future]), axis=0)
    moved = np.hypot(*steps.T) > MOVED_M
    latest = np.maximum.accumulate(np.where(moved, np.arange(len(steps)), -1))
    angles = np.where(latest < 0, 0.0, np.arctan2(steps[latest, 1], steps[latest, 0]))
    return np.unwrap(angles)


def _conflicts(seen: NDArray[np.float64], future: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(M,) whose box, carried on at its velocity, comes too close to where the plan is then."""
    times = STEP_S * np.arange(1, len(future) + 1)
    heading = _headings(future)
    along = np.stack([np.cos(heading), np.sin(heading)], -1)
    middle = future + AXLE_M * along
    offset = seen[:, None, :2] + times[:, None] * seen[:, None, 4:6] - middle
    ahead = np.abs((offset * along).sum(-1))
    aside = np.abs(offset[..., 1] * along[:, 0] - offset[..., 0] * along[:, 1])
    # How far another's box reaches along and across the vehicle's own heading.
    cosine = np.abs(seen[:, None, 2:4] @ along.T)[:, 0]
    sine = np.sqrt(np.maximum(1 - cosine**2, 0.0))
    length, width = seen[:, 6, None], seen[:, 7, None]
    reach_ahead = (LENGTH_M + length * cosine + width * sine) / 2 + GAP_AHEAD_M
    reach_aside = (WIDTH_M + length * sine + width * cosine) / 2 + GAP_ASIDE_M
    touched: NDArray[np.bool_] = ((ahead < reach_ahead) & (aside < reach_aside)).any(1)
    return touched


def _explanation(
    flags: Mapping[str, bool], speed: float, intent: int, behavior: Mapping[str, str]
) -> str:
    names = [flag.replace("_", " ") for flag, there in flags.items() if there]
    return (
        f"{', '.join(names).capitalize() if names else 'Nothing critical'} ahead. "
        f"Speed {speed:.0f} m/s, route {INTENTS[intent]}: "
        f"{behavior['longitudinal']}, {behavior['lateral']}."
    )
