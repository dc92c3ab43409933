"""A CommonRoad scenario of our own, driven: two lanes, a curve, traffic, and a place to go to."""

from importlib.util import find_spec

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    find_spec("metadrive") is None, reason='pip install -c constraints.txt -e ".[driving]"'
)

from fastloop.policies.load import load_policy  # noqa: E402
from fastloop.policies.session import Session  # noqa: E402
from fastloop.sims.metadrive.log import MetaDriveLog  # noqa: E402
from fastloop.sims.metadrive.vehicle import TICK_S  # noqa: E402

WIDTH, RADIUS, BEND = 3.5, 60.0, 60.0  # m; the road turns left by 90 degrees after `BEND`
SECONDS, SPEED, START = 12.0, 8.0, 25.0  # of the scenario, m/s, and m along the road


def road(stations, aside=0.0):
    """(N, 2) points and (N,) headings along the right lane, so far to its left, m."""
    angle = np.clip((stations - BEND) / RADIUS, 0, np.pi / 2)
    over = np.maximum(stations - BEND - RADIUS * np.pi / 2, 0)
    x = np.minimum(stations, BEND) + RADIUS * np.sin(angle)
    y = RADIUS * (1 - np.cos(angle)) + over
    aside = np.stack([-np.sin(angle), np.cos(angle)], axis=1) * aside
    return np.stack([x, y], axis=1) + aside, angle


def exact(tag, value):
    return f"<{tag}><exact>{value:.9g}</exact></{tag}>"


def state(tag, station, aside, speed, step):
    ((x, y),), (heading,) = road(np.array([station]), aside)
    return (
        f"<{tag}><position><point><x>{x:.6f}</x><y>{y:.6f}</y></point></position>"
        + exact("orientation", heading)
        + exact("time", step)
        + exact("velocity", speed)
        + f"</{tag}>"
    )


def lanelet(key, first, last, aside, links):
    stations = np.arange(first, last + 1, 2.0)

    def bound(side, offset):
        points, _ = road(stations, offset)
        inner = "".join(f"<point><x>{x:.6f}</x><y>{y:.6f}</y></point>" for x, y in points)
        return f"<{side}Bound>{inner}</{side}Bound>"

    return (
        f"<lanelet id='{key}'>"
        + bound("left", aside + WIDTH / 2)
        + bound("right", aside - WIDTH / 2)
        + links
        + "<laneletType>urban</laneletType><trafficSignRef ref='90'/></lanelet>"
    )


def car(key, start, aside, speed):
    steps = range(1, round(SECONDS * 10) + 1)
    return (
        f"<dynamicObstacle id='{key}'><type>car</type><shape><rectangle><length>4.5</length>"
        "<width>1.9</width></rectangle></shape>"
        + state("initialState", start, aside, speed, 0)
        + "<trajectory>"
        + "".join(state("state", start + speed * k / 10, aside, speed, k) for k in steps)
        + "</trajectory></dynamicObstacle>"
    )


def scenario():
    right = "<adjacentLeft ref='{}' drivingDir='same'/>"
    left = "<adjacentRight ref='{}' drivingDir='same'/>"
    (goal,), (turned,) = road(np.array([START + SPEED * SECONDS]))
    return (
        "<commonRoad commonRoadVersion='2020a' timeStepSize='0.1' benchmarkID='TST_Bend-1_1_T-1'>"
        "<location><geoNameId>-999</geoNameId></location><scenarioTags><urban/></scenarioTags>"
        + lanelet(11, 0, 60, 0.0, "<successor ref='12'/>" + right.format(21))
        + lanelet(12, 60, 220, 0.0, "<predecessor ref='11'/>" + right.format(22))
        + lanelet(21, 0, 60, WIDTH, "<successor ref='22'/>" + left.format(11))
        + lanelet(22, 60, 220, WIDTH, "<predecessor ref='21'/>" + left.format(12))
        + "<trafficSign id='90'><trafficSignElement><trafficSignID>274</trafficSignID>"
        "<additionalValue>13.89</additionalValue></trafficSignElement></trafficSign>"
        "<staticObstacle id='6'><type>parkedVehicle</type><shape><rectangle><length>4.2</length>"
        "<width>1.8</width></rectangle></shape>"
        + state("initialState", 80.0, -4.5, 0.0, 0)
        + "</staticObstacle>"
        + car(1, START + 30, 0.0, SPEED)
        + car(2, START + 5, WIDTH, 9.0)
        + car(3, START - 20, 0.0, SPEED)
        + "<planningProblem id='40'>"
        + state("initialState", START, 0.0, SPEED, 0)
        + "<goalState><position><rectangle><length>4</length><width>3</width>"
        f"<orientation>{turned:.6f}</orientation>"
        f"<center><x>{goal[0]:.6f}</x><y>{goal[1]:.6f}</y></center></rectangle></position>"
        "<time><intervalStart>100</intervalStart><intervalEnd>140</intervalEnd></time></goalState>"
        "</planningProblem></commonRoad>"
    )


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    path = tmp_path_factory.mktemp("commonroad") / "bend.xml"
    path.write_text(scenario())
    made = MetaDriveLog(path)
    yield made
    made.close()


def drive(sim, act):
    """To the end; the last info."""
    observation, _ = sim.reset(seed=0)
    while True:
        observation, _, terminated, truncated, info = sim.step(act(observation))
        if terminated or truncated:
            return info


def driven_by(sim, name):
    policy = load_policy(name, env=sim.env_spec)
    session = Session(policy)

    def act(observation):
        seen = {key: observation[key][None] for key in policy.spec.inputs}
        return session.select_action(seen)[0].numpy()

    return drive(sim, act)


def test_the_scene_is_as_posed(sim):
    sim.reset(seed=0)
    assert sim.left_out == []
    assert sim.recorded is None  # nobody was the ego
    start = sim.moments[0]
    (place,), _ = road(np.array([START]))
    np.testing.assert_allclose([start.ego.x, start.ego.y], place, atol=1e-3)
    assert start.ego.speed == pytest.approx(SPEED, abs=1e-3)
    assert set(start.others) == {"1", "2", "3", "6"}
    assert sim.surroundings.speed_limit == pytest.approx(13.89)
    (end,), _ = road(np.array([START + SPEED * SECONDS]))
    np.testing.assert_allclose(sim.surroundings.route[-1], end, atol=1e-6)


def test_the_even_way_to_the_goal_scores_what_a_good_driver_does(sim):
    ego = sim.scenes[0].log.tracks["ego"]
    way = np.column_stack([ego.position[:, :2], ego.heading])

    def act(observation):
        now = len(sim.moments) - 1
        due = now + (1 + np.arange(20)) / sim.driver.hz / TICK_S
        return sim.driver.plan_along(way, due)

    info = drive(sim, act)
    assert info["is_success"]
    assert info["figures"]["score"] >= 0.95
    driven = np.array([[moment.ego.x, moment.ego.y] for moment in sim.moments])
    assert np.hypot(*(driven - way[: len(driven), :2]).T).max() < 0.5


def test_idm_comes_to_the_goal_behind_the_car_ahead(sim):
    info = driven_by(sim, "idm")
    assert info["is_success"]
    assert info["figures"]["score"] >= 0.9
    assert info["figures"]["collisions"] == 0


def test_who_stands_still_scores_nothing_and_is_not_at_fault(sim):
    info = driven_by(sim, "stand_still")
    figures = info["figures"]
    assert (figures["score"], figures["making_progress"], figures["success"]) == (0, 0, 0)
    # The car behind drives on as recorded, and bumps into it.
    assert figures["collisions_stopped_ego"] + figures["collisions_rear"] == 1
    assert (figures["collisions"], figures["collisions_at_fault"]) == (1, 0)
