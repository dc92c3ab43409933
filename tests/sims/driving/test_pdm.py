"""Scores of plans of which it is known what they are worth."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets.logs import scenarionet
from fastloop.sims.driving.motion import REAR_AXLE
from fastloop.sims.driving.pdm import PlanScore, carried_on, driven, score_plan
from fastloop.sims.driving.poses import rear_axle_pose, to_vehicle
from fastloop.sims.driving.retiming import retimed
from fastloop.sims.driving.scene import Body, Moment, Surroundings
from fastloop.sims.driving.world import drive_of

HZ = 2.0


def car(x=0.0, y=0.0, vx=10.0, vy=0.0, kind="vehicle", size=(4.0, 2.0), heading=0.0) -> Body:
    return Body(kind, x, y, heading, vx, vy, *size)


def road(**changes) -> Surroundings:
    """Along x, two lanes that way, at y = 0 and 3.5; beyond x = 300 nothing."""
    x = np.arange(-50.0, 301.0, 10.0)
    area = np.array([[-50.0, -1.75], [300.0, -1.75], [300.0, 5.25], [-50.0, 5.25]])
    parts = {
        "drivable": (area,),
        "lanes": {"right": np.stack([x, 0 * x], 1), "left": np.stack([x, 0 * x + 3.5], 1)},
        "lines": (), "edges": (), "crossings": (),
        "route": np.array([[0.0, 0.0], [200.0, 0.0]]),
    }  # fmt: skip
    return Surroundings(**{**parts, **changes})


def straight(speed=10.0, aside=0.0, seconds=4.0) -> np.ndarray:
    times = np.arange(1, round(seconds * HZ) + 1) / HZ
    return np.stack([speed * times, np.minimum(aside * times / 2, aside) if aside > 0 else
                     np.maximum(aside * times / 2, aside)], 1)  # fmt: skip


def worth(plan, ego=None, surroundings=None, past=(), **others) -> PlanScore:
    future = carried_on(Moment(0.0, ego or car(), others))
    return score_plan(plan, hz=HZ, surroundings=surroundings or road(), future=future, past=past)


def test_a_free_road_driven_on_is_worth_all():
    result = worth(straight())
    assert result.pdms == pytest.approx(1, abs=0.01)
    assert result.epdms == pytest.approx(1, abs=0.01)
    assert result.progress_m == pytest.approx(40, abs=0.5)


def test_a_plan_is_followed():
    bodies = driven(straight(), car(), hz=HZ, steps=40)
    assert len(bodies) == 41
    np.testing.assert_allclose([body.x for body in bodies], np.arange(41), atol=0.3)
    aside = driven(straight(aside=3.5), car(), hz=HZ, steps=40)
    assert aside[-1].y == pytest.approx(3.5, abs=0.3)


def test_slower_than_the_recorded_driver_is_less_progress():
    slow = np.stack([np.linspace(0, 24, 9)[1:], np.zeros(8)], 1)
    result = worth(slow)
    assert result.progress == pytest.approx(0.6, abs=0.1)
    assert result.pdms == pytest.approx((5 * result.progress + 5 + 2 * result.comfort) / 12)


def test_nobody_who_stands_where_the_driver_stood_lacks_progress():
    assert worth(np.zeros((8, 2)), ego=car(vx=0.0)).pdms == 1


def test_into_a_parked_car_is_worth_nothing():
    result = worth(straight(), parked=car(30, vx=0.0))
    assert (result.no_at_fault_collisions, result.time_to_collision) == (0, 0)
    assert result.pdms == result.epdms == 0


def test_into_a_cone_is_worth_half():
    result = worth(straight(), cone=car(30, vx=0.0, kind="other", size=(0.4, 0.4)))
    assert result.no_at_fault_collisions == 0.5


def test_up_to_a_parked_car_is_too_near():
    """It stops half a meter short of it, and for that comes within a second."""
    times = np.minimum(np.arange(1, 9) / HZ, 10 / 3)
    braking = np.stack([10 * times - 1.5 * times**2, np.zeros(8)], 1)
    end = driven(braking, car(), hz=HZ, steps=40)[-1].x
    result = worth(braking, parked=car(end + 4.5, vx=0.0))
    assert (result.no_at_fault_collisions, result.time_to_collision) == (1, 0)
    assert worth(braking, parked=car(end + 14, vx=0.0)).time_to_collision == 1


def test_who_comes_from_behind_is_not_the_plan_s_fault():
    result = worth(straight(5.0), ego=car(vx=5.0), behind=car(-10, vx=10.0))
    assert result.no_at_fault_collisions == 1
    # NAVSIM's way: where the other will be is ahead of where the vehicle is now.
    assert result.time_to_collision == 0
    result = worth(straight(5.0), ego=car(vx=5.0), behind=car(-10, vx=5.5))
    assert result.time_to_collision == 1


def test_off_the_road():
    result = worth(straight(aside=-3.0))
    assert result.drivable_area == result.pdms == 0


def test_against_the_traffic():
    lanes = {key: lane[::-1] for key, lane in road().lanes.items()}
    result = worth(straight(), surroundings=road(lanes=lanes))
    assert (result.driving_direction, result.epdms) == (0, 0)
    assert result.pdms > 0.9  # version 1 does not ask


def test_beside_the_lane_for_two_seconds():
    assert worth(straight(), ego=car(y=0.7)).lane_keeping == 0
    assert worth(straight(), ego=car(y=0.4)).lane_keeping == 1
    crossing = {f"x{x}": np.array([[x, -50.0], [x, 50.0]]) for x in np.arange(-10.0, 60, 3)}
    junction = road(lanes={**road().lanes, **crossing})
    assert worth(straight(), ego=car(y=0.7), surroundings=junction).lane_keeping == 1


def test_history_comfort_sees_the_past():
    past = [
        car(x, vx=vx)
        for x, vx in zip(np.linspace(-8, -1, 10), np.linspace(4, 9.5, 10), strict=True)
    ]
    result = worth(straight(), past=past)
    assert (result.comfort, result.history_comfort) == (1, 0)


def test_what_the_driver_could_not_keep_is_not_asked_of_the_plan():
    human = replace(worth(straight()), lane_keeping=0.0, drivable_area=0.0)
    plan = replace(worth(straight()), lane_keeping=0.0, no_at_fault_collisions=0.5)
    filtered = plan.filtered(human)
    assert (filtered.lane_keeping, filtered.no_at_fault_collisions) == (1, 0.5)


def test_a_short_plan_is_scored_as_far_as_it_goes():
    assert worth(straight(seconds=3.0)).progress_m == pytest.approx(30, abs=0.5)


def test_a_future_that_is_too_short_is_said():
    future = carried_on(Moment(0.0, car(), {}), 2.0)
    with pytest.raises(ValueError, match="too few for 40 steps"):
        score_plan(straight(), hz=HZ, surroundings=road(), future=future)


@given(seed=st.integers(0, 1000), angle=st.floats(-7, 7), shift=st.floats(-2000, 2000))
@settings(max_examples=10)
def test_where_north_is_does_not_matter(seed, angle, shift):
    rng = np.random.default_rng(seed)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    plan = np.cumsum(rng.uniform([3, -0.4], [6, 0.4], (8, 2)), axis=0)
    others = {
        str(k): car(rng.uniform(-20, 60), rng.uniform(-2, 6), vx=rng.uniform(0, 12))
        for k in range(5)
    }

    def moved(body: Body) -> Body:
        (x, y), (vx, vy) = np.array([[body.x, body.y], [body.vx, body.vy]]) @ turn
        return replace(body, x=x + shift, y=y - shift, vx=vx, vy=vy, heading=body.heading + angle)

    def points(line):
        return line @ turn + [shift, -shift]

    there = road(
        drivable=tuple(map(points, road().drivable)),
        lanes={key: points(lane) for key, lane in road().lanes.items()},
        route=points(road().route),
    )
    before = worth(plan, **others)
    after = worth(plan, ego=moved(car()), surroundings=there,
                  **{key: moved(body) for key, body in others.items()})  # fmt: skip
    assert vars(after) == pytest.approx(vars(before), abs=1e-4)


def test_what_recorded_drivers_did_next_is_a_good_plan(realdata):
    scores = []
    for log in scenarionet.read(realdata / "nuscenes_mini_scenarionet"):
        there = drive_of(retimed(log))
        now = there.moments[60].ego
        axles = [rear_axle_pose(m.ego, REAR_AXLE * now.length)[:2] for m in there.moments[65:101:5]]
        plan = to_vehicle(np.array(axles), rear_axle_pose(now, REAR_AXLE * now.length))
        past = [moment.ego for moment in there.moments[45:60]]
        scores.append(
            score_plan(plan, hz=HZ, surroundings=there.surroundings,
                       future=there.moments[60:101], past=past)
        )  # fmt: skip
    assert len(scores) == 10
    assert min(score.pdms for score in scores) > 0.95
