"""One plan, judged by what would come of it within 4 s: NAVSIM's PDM score and its parts.

A plan is driven: a kinematic bicycle follows it at 10 Hz while all others go on as they were
recorded (or at constant velocity: `carried_on`), and nobody reacts. Definitions of
https://github.com/autonomousvision/navsim (docs/metrics.md, pdm_scorer.py; Dauner et al., NAVSIM,
NeurIPS 2024). Beside what `score` says of lanes, of the rear axle and of accelerations,

- pure pursuit with a preview in time follows the plan, where NAVSIM has an LQR;
- progress is compared with that of the recorded driver, where NAVSIM takes its PDM-Closed planner,
  and measured along the route's line;
- against the traffic is against all lanes that the vehicle is in; NAVSIM: in no lane of the route;
- lane keeping is to the nearest lane; NAVSIM: to the route's center line;
- there are no traffic lights and no plan of the frame before: EPDMS is what NAVSIM's scorer itself
  computes of one plan without extended comfort, less traffic-light compliance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloop.sims.driving.bicycle import Bicycle
from fastloop.sims.driving.collisions import VULNERABLE, collisions
from fastloop.sims.driving.comfort import comfort
from fastloop.sims.driving.drivable import off_road
from fastloop.sims.driving.lanes import LanePlace, driving_direction, lane_place
from fastloop.sims.driving.motion import REAR_AXLE, Motion, Traffic, ego_of, meeting, traffic_of
from fastloop.sims.driving.poses import rear_axle_pose
from fastloop.sims.driving.progress import along_route
from fastloop.sims.driving.scene import Body, Drive, Moment, Surroundings
from fastloop.sims.driving.time_to_collision import STANDING, concerns
from fastloop.sims.driving.tracker import Tracker, place

__all__ = ["PlanScore", "carried_on", "driven", "score_plan"]

HORIZON_S, STEP_S = 4.0, 0.1
LOOKED_AT = (0, 3, 6, 9)  # steps ahead, of time to collision within a second
ENOUGH_M = 5.0  # of progress, where nobody made more
KEEP_M, KEEP_STEPS = 0.5, 20  # off the center line for 2 s
SEAM_M = 0.01  # between drivable areas that touch


@dataclass(frozen=True)
class PlanScore:
    """The parts of NAVSIM's scores, each in [0, 1].

    Attributes:
        no_at_fault_collisions: NC, 0.5 where it collides with an object only.
        drivable_area: DAC, 0 where a corner is ever off the road.
        driving_direction: DDC, 1, 0.5 or 0.
        time_to_collision: TTC, 0 where it comes within a second of a collision.
        progress: EP.
        comfort: C, over the plan.
        lane_keeping: LK, 0 where it is 0.5 m off the center line for 2 s, junctions aside.
        history_comfort: HC, over the past and the plan.
        progress_m: along the route.
    """

    no_at_fault_collisions: float
    drivable_area: float
    driving_direction: float
    time_to_collision: float
    progress: float
    comfort: float
    lane_keeping: float
    history_comfort: float
    progress_m: float

    @property
    def pdms(self) -> float:
        """PDMS of NAVSIM v1: NC DAC (5 EP + 5 TTC + 2 C) / 12."""
        weighted = 5 * self.progress + 5 * self.time_to_collision + 2 * self.comfort
        return self.no_at_fault_collisions * self.drivable_area * weighted / 12

    @property
    def epdms(self) -> float:
        """NC DAC DDC (5 EP + 5 TTC + 2 LK + 2 HC) / 14, of NAVSIM v2 without lights and EC."""
        weighted = 5 * self.progress + 5 * self.time_to_collision
        weighted += 2 * self.lane_keeping + 2 * self.history_comfort
        multiplier = self.no_at_fault_collisions * self.drivable_area * self.driving_direction
        return multiplier * weighted / 14

    def filtered(self, human: PlanScore) -> PlanScore:
        """As EPDMS of NAVSIM v2 wants it: 1 wherever the recorded driver has 0 too."""
        names = (
            "no_at_fault_collisions", "drivable_area", "driving_direction", "time_to_collision",
            "progress", "lane_keeping", "history_comfort",
        )  # fmt: skip
        return replace(self, **{name: 1.0 for name in names if getattr(human, name) == 0})


def carried_on(moment: Moment, seconds: float = HORIZON_S) -> tuple[Moment, ...]:
    """A future at 10 Hz in which everybody keeps velocity and heading, the present first."""

    def moved(body: Body, after: float) -> Body:
        return replace(body, x=body.x + body.vx * after, y=body.y + body.vy * after)

    return tuple(
        Moment(
            moment.time_s + after,
            moved(moment.ego, after),
            {key: moved(body, after) for key, body in moment.others.items()},
        )
        for after in STEP_S * np.arange(round(seconds / STEP_S) + 1)
    )


def driven(
    plan: ArrayLike,
    ego: Body,
    *,
    hz: float,
    steps: int,
    bicycle: Bicycle | None = None,
    rear_axle: float | None = None,
) -> tuple[Body, ...]:
    """The vehicle following its plan, at 10 Hz.

    Args:
        plan: (T, 2) m in the frame of the vehicle's rear axle, x forward, y left; waypoint k, from
            1, is for ``k / hz`` seconds from now.
        ego: the vehicle now.
        hz: of the plan.
        steps: how many to take.
        bicycle: how it moves; `Bicycle()` by default.
        rear_axle: m from the middle of its box back to it; by default estimated from its length.

    Returns:
        steps + 1 bodies, `ego` first.
    """
    bicycle = Bicycle() if bicycle is None else bicycle
    rear_axle = REAR_AXLE * ego.length if rear_axle is None else rear_axle
    tracker = Tracker(
        bicycle.wheelbase, bicycle.max_steer, bicycle.max_accel, bicycle.max_brake, STEP_S,
        rear_axle,
    )  # fmt: skip
    start = rear_axle_pose(ego, rear_axle)
    forward = ego.vx * np.cos(ego.heading) + ego.vy * np.sin(ego.heading)
    state = np.array([*start, max(forward, 0.0)])
    bodies = [ego]
    for step in range(steps):
        points, due = place(plan, start, hz=hz, age_s=step * STEP_S)
        control = tracker.control(points, due, bodies[-1])
        state = bicycle.step(state, control, STEP_S)
        bodies.append(bicycle.body(state, rear_axle=rear_axle, length=ego.length, width=ego.width))
    return tuple(bodies)


def score_plan(
    plan: ArrayLike,
    *,
    hz: float,
    surroundings: Surroundings,
    future: Sequence[Moment],
    past: Sequence[Body] = (),
    expected_m: float | None = None,
    bicycle: Bicycle | None = None,
    rear_axle: float | None = None,
) -> PlanScore:
    """Score a plan over 4 s, or over its own length where it is shorter.

    Args:
        plan: (T, 2), `driven`.
        hz: of the plan.
        surroundings: with the route.
        future: what was recorded, at 10 Hz, the present first, at least as long.
        past: the vehicle before the present, at 10 Hz.
        expected_m: progress that the recorded driver made meanwhile; by default from where the
            vehicle is to where the driver of `future` comes, which is the same where both begin
            in one place.
        bicycle, rear_axle: as for `driven`.

    Raises:
        ValueError: for a future that ends too soon, and as `score` does.
    """
    steps = round(min(HORIZON_S, len(np.asarray(plan)) / hz) / STEP_S)
    if len(future) <= steps:
        raise ValueError(
            f"{len(future)} moments of the future are too few for {steps} steps of 0.1 s and the "
            "present: take a plan that is made earlier, or carried_on(moment)"
        )
    future = future[: steps + 1]
    bodies = driven(plan, future[0].ego, hz=hz, steps=steps, bicycle=bicycle, rear_axle=rear_axle)
    moments = (replace(moment, ego=ego) for moment, ego in zip(future, bodies, strict=True))
    drive = Drive(surroundings, tuple(moments))
    ego, traffic = ego_of(drive), traffic_of(drive)
    on_lanes = lane_place(surroundings, ego)
    off = off_road(surroundings, ego) > SEAM_M
    within_one_lane = on_lanes.within_one & ~off
    hit = [c.kind for c in collisions(ego, traffic, within_one_lane) if c.at_fault]
    agents = [kind for kind in hit if kind in ("vehicle", *VULNERABLE)]
    no_collision = 0.0 if agents else 0.5 if hit else 1.0
    direction = driving_direction(on_lanes, STEP_S)
    drivable = float(not off.any())

    def came(motion: Motion) -> float:
        places = along_route(surroundings.route, motion.center)
        return max(float(places[-1] - places[0]), 0.0)

    progress = came(ego)
    if expected_m is None:
        expected_m = came(Motion.of([moment.ego for moment in future]))
    best = max(expected_m, progress * no_collision * drivable * direction)
    return PlanScore(
        no_at_fault_collisions=no_collision,
        drivable_area=drivable,
        driving_direction=direction,
        time_to_collision=_within_a_second(ego, traffic, on_lanes, within_one_lane),
        progress=min(progress / best, 1.0) if best > ENOUGH_M else 1.0,
        comfort=float(comfort(ego, STEP_S).comfortable),
        lane_keeping=_lane_keeping(on_lanes) if surroundings.lanes else 1.0,
        history_comfort=float(comfort(Motion.of([*past, *bodies]), STEP_S).comfortable),
        progress_m=progress,
    )


def _within_a_second(
    ego: Motion, traffic: Traffic, on_lanes: LanePlace, within_one_lane: NDArray[np.bool_]
) -> float:
    """0 where the vehicle, keeping its velocity for up to 0.9 s, meets whom it must heed, who move
    as they do; whoever it meets and need not heed is left alone from then on.

    As in NAVSIM, whom to heed is told by where the other will be from where the vehicle is now, so
    who comes fast from behind may count.
    """
    last = len(ego) - 1 - max(LOOKED_AT)
    met = []
    for ahead in LOOKED_AT:
        rows = np.flatnonzero((traffic.moment >= ahead) & (traffic.moment - ahead <= last))
        at = traffic.moment[rows] - ahead
        now, others = ego[at], traffic.motion[rows]
        after = ahead * STEP_S
        then = replace(now, x=now.x + now.vx * after, y=now.y + now.vy * after)
        begins, ceases = meeting(then, others)
        heed = concerns(now, others, within_one_lane[at], on_lanes.crossing[at])
        touching = (begins <= 0) & (ceases >= 0) & (now.speed > STANDING)
        met += [
            (int(at[k]), ahead, int(traffic.who[rows[k]]), bool(heed[k]))
            for k in np.flatnonzero(touching)
        ]
    ignored = set()
    for _, _, who, matters in sorted(met):
        if who not in ignored and matters:
            return 0.0
        ignored.add(who)
    return 1.0


def _lane_keeping(on_lanes: LanePlace) -> float:
    run = 0
    for offset in on_lanes.offset[~on_lanes.crossing]:
        run = run + 1 if offset > KEEP_M else 0
        if run >= KEEP_STEPS:
            return 0.0
    return 1.0
