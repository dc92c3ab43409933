"""What a drive was worth: a nuPlan-style closed-loop score, and what driving people read beside it.

The score is nuPlan's (closed loop, non-reactive or reactive: the same weights; definitions of
https://github.com/motional/nuplan-devkit, docs/metrics_description.md and the code of its metrics):

    no collision at fault x drivable area x making progress x driving direction
    x (5 progress + 5 time to collision + 4 speed limit + 2 comfort) / 16

It is nuPlan-style, and not nuPlan's number, because

- of lanes only the center lines are known here: each is taken to be 3.5 m wide; a vehicle is
  within one lane where its whole box is that near to one center line, and at a crossing where a
  lane of another direction (30 degrees or more) passes under its middle. nuPlan has lane polygons
  with their successors, and marked intersections;
- nuPlan calls a vehicle out of its lane where a corner is on no lane; here off-road is off-road by
  more than 0.3 m in this too, as it is in nuPlan's drivable-area compliance;
- progress is measured along the route's line, and not lane by lane while the vehicle is in its
  road; the expert's is that of the recorded driver, the whole route's where there was none;
- the driving direction is that of the lane which suits the movement best; nuPlan takes one lane,
  follows it, and counts nothing in the moment at which the lane changes;
- there is one speed limit for the scene, and none where it is not known;
- time to collision goes by the velocities, where nuPlan takes the speeds along the headings;
- accelerations are the changes of the recorded velocity (a Savitzky-Golay derivative of nuPlan's
  window), where nuPlan smoothes those that its simulator's vehicle reports;
- the rear axle, from which ahead and behind are told, is estimated from the vehicle's length.

Kept as they are in nuPlan's code, where that and its documentation differ: two metres (not 0.1) as
the least progress; the change of the acceleration's magnitude as the jerk; a collision with one
object halves the score, with two it is 0.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastloop.sims.driving.collisions import (
    VULNERABLE,
    Collision,
    collisions,
    no_fault_score,
)
from fastloop.sims.driving.comfort import Comfort, comfort
from fastloop.sims.driving.drivable import TOLERANCE_M, off_road
from fastloop.sims.driving.lanes import driving_direction, lane_place
from fastloop.sims.driving.motion import Motion, ego_of, time_step, traffic_of
from fastloop.sims.driving.progress import along_route, progress_ratio
from fastloop.sims.driving.scene import Drive
from fastloop.sims.driving.time_to_collision import BOUND_S, HORIZON_S, time_to_collision

__all__ = ["DriveScore", "score", "speed_limit_score"]

LEAST_PROGRESS = 0.2
OVERSPEED = 2.23  # m/s above the limit, throughout, is a score of 0
ARRIVAL_M = 5.0  # from the route's end


@dataclass(frozen=True)
class DriveScore:
    """The score of a drive, its parts, each in [0, 1], and what happened.

    Attributes:
        no_at_fault_collisions: 1, 0.5 after one with an object, 0 after any other.
        drivable_area: 1 where no corner was ever off the road by more than 0.3 m, else 0.
        making_progress: 1 where `progress` is at least 0.2, else 0.
        driving_direction: 1, 0.5 or 0: below 2 m, below 6 m, more against the traffic in a second.
        progress: along the route, against the recorded driver's.
        time_to_collision: 1 where it never fell below 0.95 s, else 0.
        speed_limit: 1 where it was kept.
        comfort: 1 where accelerations, jerks and turn rates stayed in `comfort.BOUNDS`, else 0.
        found: all collisions, in their order.
        off_road_s: for how long it was off the road.
        route_completion: the furthest share of the route that it reached, in [0, 1].
        progress_m: from its first to its last moment, along the route.
        min_time_to_collision_s: at most 3, the horizon.
        motion: its accelerations, jerks and turn rates.
        success: came within 5 m of the route's end, without a collision at fault, never off road.
    """

    no_at_fault_collisions: float
    drivable_area: float
    making_progress: float
    driving_direction: float
    progress: float
    time_to_collision: float
    speed_limit: float
    comfort: float
    found: tuple[Collision, ...]
    off_road_s: float
    route_completion: float
    progress_m: float
    min_time_to_collision_s: float
    motion: Comfort
    success: bool

    @property
    def score(self) -> float:
        """The nuPlan-style score, in [0, 1]."""
        multiplier = (
            self.no_at_fault_collisions
            * self.drivable_area
            * self.making_progress
            * self.driving_direction
        )
        weighted = (
            5 * self.progress + 5 * self.time_to_collision + 4 * self.speed_limit + 2 * self.comfort
        )
        return multiplier * weighted / 16

    def figures(self) -> dict[str, float]:
        """All of it as plain numbers; s, m, m/s^2, m/s^3, rad/s and rad/s^2."""
        at_fault = [collision for collision in self.found if collision.at_fault]
        who = Counter(
            c.kind if c.kind in ("vehicle", *VULNERABLE) else "object" for c in self.found
        )
        how = Counter(collision.how for collision in self.found)
        motion = self.motion
        return {
            "score": self.score,
            "no_at_fault_collisions": self.no_at_fault_collisions,
            "drivable_area": self.drivable_area,
            "making_progress": self.making_progress,
            "driving_direction": self.driving_direction,
            "progress": self.progress,
            "time_to_collision": self.time_to_collision,
            "speed_limit": self.speed_limit,
            "comfort": self.comfort,
            "success": float(self.success),
            "collisions": float(len(self.found)),
            "collisions_at_fault": float(len(at_fault)),
            **{f"collisions_{k}": float(who[k]) for k in ("vehicle", *VULNERABLE, "object")},
            **{
                f"collisions_{k}": float(how[k])
                for k in ("front", "lateral", "rear", "stopped_ego", "stopped_other")
            },
            "off_road_s": self.off_road_s,
            "route_completion": self.route_completion,
            "progress_m": self.progress_m,
            "min_time_to_collision_s": self.min_time_to_collision_s,
            "max_longitudinal_acceleration": float(motion.longitudinal_acceleration.max()),
            "max_braking": float(-motion.longitudinal_acceleration.min()),
            "max_lateral_acceleration": float(np.abs(motion.lateral_acceleration).max()),
            "max_yaw_rate": float(np.abs(motion.yaw_rate).max()),
            "max_yaw_acceleration": float(np.abs(motion.yaw_acceleration).max()),
            "max_longitudinal_jerk": float(np.abs(motion.longitudinal_jerk).max()),
            "max_jerk": float(np.abs(motion.jerk).max()),
        }


def score(drive: Drive) -> DriveScore:
    """Score a drive.

    Args:
        drive: at a fixed rate, 10 Hz in nuPlan.

    Raises:
        ValueError: where it has no moments, no fixed rate, somebody who is nowhere, no drivable
            area, or no route.
    """
    surroundings, step_s = drive.surroundings, time_step(drive)
    ego, traffic = ego_of(drive), traffic_of(drive)
    route = surroundings.route
    if not len(route):
        raise ValueError("the surroundings have no route: give at least the point to reach")

    off = off_road(surroundings, ego) > TOLERANCE_M
    place = lane_place(surroundings, ego)
    within_one_lane = place.within_one & ~off
    found = collisions(ego, traffic, within_one_lane)
    seconds = time_to_collision(ego, traffic, place, found, within_one_lane)
    motion = comfort(ego, step_s)

    length = float(np.hypot(*np.diff(route[:, :2], axis=0).T).sum())
    places = along_route(route, ego.center)
    if drive.recorded is None:
        expected = length - places[0]
    else:
        recorded = along_route(route, drive.recorded[:, :2])
        expected = recorded[-1] - recorded[0]
    progress_m = float(places[-1] - places[0])
    progress = progress_ratio(progress_m, float(expected))
    arrived = np.hypot(*(ego.center - route[-1, :2]).T).min() <= ARRIVAL_M
    blameless = not any(collision.at_fault for collision in found)
    return DriveScore(
        no_at_fault_collisions=no_fault_score(found),
        drivable_area=float(not off.any()),
        making_progress=float(progress >= LEAST_PROGRESS),
        driving_direction=driving_direction(place, step_s),
        progress=progress,
        time_to_collision=float(seconds.min() > BOUND_S),
        speed_limit=speed_limit_score(ego, surroundings.speed_limit),
        comfort=float(motion.comfortable),
        found=found,
        off_road_s=float(off.sum() * step_s),
        route_completion=_completion(places, length),
        progress_m=progress_m,
        min_time_to_collision_s=float(min(seconds.min(), HORIZON_S)),
        motion=motion,
        success=bool(arrived and blameless and not off.any()),
    )


def speed_limit_score(ego: Motion, limit: float) -> float:
    """1 less the mean overspeed over 2.23 m/s, at least 0; 1 where there is no limit (nan)."""
    over = np.maximum(ego.speed - limit, 0.0) if np.isfinite(limit) else np.zeros(1)
    return float(max(0.0, 1 - over.mean() / OVERSPEED))


def _completion(places: NDArray[np.float64], length: float) -> float:
    rest = length - places[0]
    return float(np.clip((places.max() - places[0]) / rest, 0, 1)) if rest > ARRIVAL_M else 1.0
