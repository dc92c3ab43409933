"""Scores of drives of which it is known what they are worth."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets.logs import scenarionet
from fastloop.sims.driving.retiming import retimed
from fastloop.sims.driving.scene import Body, Drive, Moment, Surroundings
from fastloop.sims.driving.score import score
from fastloop.sims.driving.world import drive_of

LENGTH, WIDTH = 4.0, 2.0
MIDDLE = 1.75  # of the road's right lane to its right edge


def road(**changes) -> Surroundings:
    """Along x: two lanes that way at y = 0 and 3.5, one back at 7; 3.5 m wide, the route in the
    first, 200 m."""
    x = np.arange(-50.0, 401.0, 10.0)
    lanes = {
        "right": np.stack([x, 0 * x], 1),
        "left": np.stack([x, 0 * x + 3.5], 1),
        "oncoming": np.stack([x, 0 * x + 7.0], 1)[::-1],
    }
    area = np.array([[-50.0, -1.75], [400.0, -1.75], [400.0, 8.75], [-50.0, 8.75]])
    parts = {
        "drivable": (area,), "lanes": lanes, "lines": (), "edges": (), "crossings": (),
        "route": np.array([[0.0, 0.0], [200.0, 0.0]]),
    }  # fmt: skip
    return Surroundings(**{**parts, **changes})


def body(x=0.0, y=0.0, heading=0.0, vx=0.0, vy=0.0, kind="vehicle", size=(LENGTH, WIDTH)) -> Body:
    return Body(kind, x, y, heading, vx, vy, *size)


def steady(x=0.0, y=0.0, speed=0.0, sideways=0.0, **more) -> Callable[[float], Body]:
    """A body that keeps its velocity, along x and to the left of it."""
    return lambda t: body(x + speed * t, y + sideways * t, vx=speed, vy=sideways, **more)


DRIVER = steady(speed=10)


def drive(ego, seconds=20.0, recorded=DRIVER, surroundings=None, **others) -> Drive:
    times = np.arange(round(seconds * 10) + 1) / 10
    moments = tuple(Moment(t, ego(t), {key: of(t) for key, of in others.items()}) for t in times)
    human = recorded and np.array([[(b := recorded(t)).x, b.y, b.heading] for t in times])
    return Drive(surroundings or road(), moments, human)


def only(result):
    (collision,) = result.found
    return collision


def test_an_empty_road_driven_well_is_worth_all():
    result = score(drive(steady(speed=10)))
    assert result.score == 1.0
    assert result.success
    figures = result.figures()
    assert figures["route_completion"] == 1.0
    assert figures["progress_m"] == pytest.approx(200)
    assert figures["min_time_to_collision_s"] == 3.0
    assert figures["off_road_s"] == figures["collisions"] == 0
    assert all(isinstance(value, float) and np.isfinite(value) for value in figures.values())


def test_standing_is_worth_nothing_where_the_recorded_driver_went():
    result = score(drive(steady()))
    assert result.progress == pytest.approx(2 / 200)
    assert (result.making_progress, result.score, result.success) == (0, 0, False)
    assert result.comfort == result.time_to_collision == 1


def test_standing_is_worth_all_where_the_recorded_driver_stood():
    assert score(drive(steady(), recorded=steady())).score == 1.0


def test_half_the_way_is_half_the_progress():
    result = score(drive(steady(speed=5)))
    assert result.progress == pytest.approx(0.5)
    assert result.score == pytest.approx((2.5 + 5 + 4 + 2) / 16)
    assert result.route_completion == pytest.approx(0.5)
    assert not result.success


def test_without_a_recorded_driver_the_whole_route_is_expected():
    assert score(drive(steady(speed=5), recorded=None)).progress == pytest.approx(0.5)


def test_who_is_hit_from_behind_while_standing_is_not_at_fault():
    result = score(drive(steady(50), recorded=steady(50), other=steady(0, speed=10)))
    assert (only(result).how, only(result).at_fault) == ("stopped_ego", False)
    assert result.no_at_fault_collisions == 1
    assert result.figures()["collisions"] == 1


def test_who_is_hit_from_behind_while_driving_is_not_at_fault():
    result = score(drive(steady(50, speed=5), recorded=None, other=steady(30, speed=10)))
    assert (only(result).how, only(result).at_fault) == ("rear", False)


def test_who_runs_into_a_parked_car_is_at_fault_once():
    result = score(drive(steady(speed=10), parked=steady(100)))
    assert (only(result).how, only(result).at_fault) == ("stopped_other", True)
    assert only(result).moment == 96  # 100 m less both half lengths, at 1 m a moment
    assert (result.no_at_fault_collisions, result.score, result.success) == (0, 0, False)
    assert result.min_time_to_collision_s == 0


def test_who_hits_what_moves_with_the_front_is_at_fault():
    walker = steady(100, -10, sideways=1.0, kind="pedestrian", size=(0.6, 0.6))
    result = score(drive(steady(speed=10), walker=walker))
    assert (only(result).how, only(result).kind) == ("front", "pedestrian")
    assert result.no_at_fault_collisions == 0


@pytest.mark.parametrize(("count", "worth"), [(1, 0.5), (2, 0.0)])
def test_things_cost_half_each(count, worth):
    cones = {f"cone{k}": steady(50 + 20 * k, kind="other", size=(0.4, 0.4)) for k in range(count)}
    result = score(drive(steady(speed=10), **cones))
    assert result.no_at_fault_collisions == worth
    assert result.figures()["collisions_object"] == count
    assert all(collision.how == "stopped_other" for collision in result.found)


def test_who_is_swiped_in_its_own_lane_is_not_at_fault():
    beside = steady(-2, 3.5, speed=10, sideways=-0.2)  # so its front does not touch
    result = score(drive(steady(speed=10), beside=beside))
    assert (only(result).how, only(result).at_fault) == ("lateral", False)


def test_who_swipes_another_while_leaving_its_lane_is_at_fault():
    result = score(drive(steady(speed=10, sideways=0.2), beside=steady(-2, 3.5, speed=10)))
    assert (only(result).how, only(result).at_fault) == ("lateral", True)


def test_who_does_not_give_way_to_a_slower_car_that_cuts_in_hits_it_with_the_front():
    def cutting_in(t):
        return body(20 + 4 * t, max(3.5 - t, 0.0), vx=4.0, vy=-1.0 if t < 3.5 else 0.0)

    result = score(drive(steady(speed=10), cutter=cutting_in))
    assert (only(result).how, only(result).at_fault) == ("front", True)


@pytest.mark.parametrize(("out", "worth"), [(0.2, 1.0), (0.4, 0.0)])
def test_corners_may_be_a_little_off_the_road(out, worth):
    aside = -(MIDDLE - WIDTH / 2 + out)
    result = score(drive(steady(0, aside, speed=10)))
    assert result.drivable_area == worth
    assert result.off_road_s == pytest.approx(0 if worth else 20.1)
    assert result.success == bool(worth)


def test_seconds_off_the_road_are_counted():
    def swerving(t):
        return body(10 * t, -3.0 if 5 <= t < 7.95 else 0.0, vx=10.0)

    assert score(drive(swerving)).off_road_s == pytest.approx(3.0)


@pytest.mark.parametrize(("speed", "worth"), [(1.5, 1.0), (3.0, 0.5), (10.0, 0.0)])
def test_driving_against_the_traffic(speed, worth):
    result = score(drive(steady(0, 7.0, speed=speed), recorded=None))
    assert result.driving_direction == worth


def test_going_back_is_no_progress():
    result = score(drive(steady(50, speed=-0.5)))
    assert result.progress_m == pytest.approx(-10)
    assert (result.progress, result.route_completion, result.score) == (0, 0, 0)


def test_speeding_costs_its_mean_over_the_limit():
    result = score(drive(steady(speed=10), surroundings=road(speed_limit=9.0)))
    assert result.speed_limit == pytest.approx(1 - 1 / 2.23)
    assert score(drive(steady(speed=10), surroundings=road(speed_limit=11.0))).speed_limit == 1


def test_time_to_collision_with_the_car_ahead():
    def slowing(t):  # bumper to bumper there are 20 m all the time
        return body(24 + 10 * t, vx=5.0)

    result = score(drive(steady(speed=10), lead=slowing))
    assert result.min_time_to_collision_s == 3.0  # 4 s to come are beyond the horizon
    result = score(drive(steady(speed=10), lead=lambda t: replace(slowing(t), vx=0.0)))
    assert result.min_time_to_collision_s == pytest.approx(2.0)
    assert result.time_to_collision == 1
    result = score(drive(steady(speed=20), lead=lambda t: body(22 + 20 * t, vx=0.0)))
    assert result.min_time_to_collision_s == pytest.approx(0.9)
    assert result.time_to_collision == 0


def test_beside_it_only_who_is_between_lanes_must_heed_others():
    def closing(t):  # never nearer than 3 m, and as if about to be there in a second
        return body(10 * t, 3.0, vx=10.0, vy=-1.25)

    assert score(drive(steady(speed=10), beside=closing)).time_to_collision == 1
    across = steady(0, 0.9, speed=10)  # of which 15 cm are in the other lane
    assert score(drive(across, beside=closing)).time_to_collision == 0


def test_where_lanes_cross_it_must_heed_who_comes_from_the_side():
    crossing = np.array([[100.0, 50.0], [100.0, -50.0]])
    lanes = {**road().lanes, "crossing": crossing}

    def beside(t):
        return body(10 * t, 3.0, vx=10.0, vy=-1.25)

    result = score(drive(steady(speed=10), surroundings=road(lanes=lanes), beside=beside))
    assert result.time_to_collision == 0


def test_braking_hard_is_not_comfortable():
    def braking(t):
        speed = max(10.0 - 6 * max(t - 5, 0), 0.0)
        gone = 10 * min(t, 5) + (100 - speed**2) / 12
        return body(gone, vx=speed)

    result = score(drive(braking, recorded=None))
    assert result.comfort == 0
    figures = result.figures()
    assert figures["max_braking"] == pytest.approx(6, rel=0.05)
    assert figures["max_lateral_acceleration"] == 0


def moved_in_the_plane(drive: Drive, angle: float, shift: tuple[float, float]) -> Drive:
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, s], [-s, c]])

    def points(xy):
        return xy @ turn + shift

    def moved(body: Body) -> Body:
        (x, y), (vx, vy) = points(np.array([body.x, body.y])), np.array([body.vx, body.vy]) @ turn
        return replace(body, x=x, y=y, heading=body.heading + angle, vx=vx, vy=vy)

    where = drive.surroundings
    return Drive(
        replace(
            where,
            drivable=tuple(map(points, where.drivable)),
            lanes={key: points(lane) for key, lane in where.lanes.items()},
            route=points(where.route),
        ),
        tuple(
            Moment(m.time_s, moved(m.ego), {key: moved(b) for key, b in m.others.items()})
            for m in drive.moments
        ),
        np.column_stack([points(drive.recorded[:, :2]), drive.recorded[:, 2] + angle]),
    )


def busy(seed: int) -> Drive:
    """A swerving ego among others at random."""
    rng = np.random.default_rng(seed)
    phase, swing = rng.uniform(0, 6), rng.uniform(0, 3)

    def ego(t):
        angle = phase + t
        heading = np.arctan2(swing * np.cos(angle), 9)
        return body(9 * t, 2 + swing * np.sin(angle), heading, vx=9.0, vy=swing * np.cos(angle))

    others = {
        f"other{k}": steady(
            rng.uniform(0, 150), rng.uniform(-3, 9), speed=rng.uniform(-5, 12),
            sideways=rng.uniform(-0.3, 0.3), kind=str(rng.choice(["vehicle", "cyclist", "other"])),
        )
        for k in range(12)
    }  # fmt: skip
    return drive(ego, 8.0, surroundings=road(speed_limit=8.0), **others)


@given(
    seed=st.integers(0, 1000),
    angle=st.floats(-7, 7),
    x=st.floats(-3000, 3000),
    y=st.floats(-3000, 3000),
)
@settings(max_examples=25)
def test_where_north_is_does_not_matter(seed, angle, x, y):
    there = busy(seed)
    before, after = score(there), score(moved_in_the_plane(there, angle, (x, y)))
    assert after.figures() == pytest.approx(before.figures(), abs=1e-5)
    assert after.found == before.found


@given(seed=st.integers(0, 1000))
@settings(max_examples=15)
def test_backwards_in_time_the_same_touch_and_progress_is_undone(seed):
    there = busy(seed)

    def back(body: Body) -> Body:
        return replace(body, vx=-body.vx, vy=-body.vy)

    last = there.moments[-1].time_s
    moments = tuple(
        Moment(last - m.time_s, back(m.ego), {key: back(b) for key, b in m.others.items()})
        for m in reversed(there.moments)
    )
    before, after = score(there), score(replace(there, moments=moments))
    assert {c.who for c in after.found} == {c.who for c in before.found}
    assert after.off_road_s == pytest.approx(before.off_road_s)
    assert after.progress_m == pytest.approx(-before.progress_m)
    assert np.abs(after.motion.yaw_rate).max() == pytest.approx(
        np.abs(before.motion.yaw_rate).max()
    )


@pytest.mark.parametrize(
    ("faulty", "says"),
    [
        (replace(drive(steady()), moments=()), "no moments"),
        (drive(lambda t: body(np.nan)), "x of the ego is not finite"),
        (drive(steady(), other=lambda t: body(vy=np.inf)), "vy of another road user"),
        (drive(steady(), surroundings=road(drivable=())), "no drivable area"),
        (drive(steady(), surroundings=road(route=np.zeros((0, 2)))), "no route"),
        (
            replace(drive(steady()), moments=tuple(Moment(t**2, body(), {}) for t in range(5))),
            "fixed rate",
        ),
    ],
)
def test_what_cannot_be_scored_is_said(faulty, says):
    with pytest.raises(ValueError, match=says):
        score(faulty)


def test_one_moment_is_a_drive():
    assert score(drive(steady(), seconds=0.0, recorded=steady())).score == 1.0


def test_a_map_without_lanes_blames_nobody_for_its_place_among_them():
    result = score(
        drive(steady(speed=10), surroundings=road(lanes={}), beside=steady(-2, 1.9, speed=10))
    )
    assert (only(result).how, only(result).at_fault) == ("lateral", False)
    assert result.driving_direction == 1


@pytest.fixture(scope="module")
def recorded(realdata) -> dict[str, tuple[Drive, Drive]]:
    drives = {}
    for log in scenarionet.read(realdata / "nuscenes_mini_scenarionet"):
        drives[log.name] = (drive_of(log), drive_of(retimed(log)))
    return drives


def test_recorded_drivers_score_full_marks(recorded):
    assert len(recorded) == 10
    for name, (as_written, mended) in recorded.items():
        assert score(mended).score >= 0.95, (name, score(mended).figures())
        # What the faulty stamps cost is comfort, and no more.
        assert replace(score(as_written), comfort=1.0).score >= 0.95, name
        assert score(mended).success


def test_who_stands_in_a_recorded_scene_scores_what_its_driver_did(recorded):
    parked = {"scene-0553", "scene-1100"}  # their drivers moved by 0 and by 1 m
    for name, (_, there) in recorded.items():
        standing = replace(there.moments[0].ego, vx=0.0, vy=0.0)
        still = replace(there, moments=tuple(replace(m, ego=standing) for m in there.moments))
        assert score(still).score == float(name in parked), name
