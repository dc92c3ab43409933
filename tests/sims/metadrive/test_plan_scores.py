"""Plans that are followed are also scored by themselves, each as of when it was made."""

import runpy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    find_spec("metadrive") is None, reason='pip install -c constraints.txt -e ".[driving]"'
)

from fastloop.sims.metadrive.log import MetaDriveLog  # noqa: E402
from fastloop.sims.metadrive.map import MetaDriveMap  # noqa: E402

roads = runpy.run_path(str(Path(__file__).with_name("roads.py")))
going, straight, write = roads["going"], roads["straight"], roads["write"]
STILL = np.zeros(41)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    wall = {**straight().tracks, "ahead": going(430, -300, 0)}
    return write(
        tmp_path_factory.mktemp("scenes"),
        straight("a_free"),
        straight("b_wall", tracks=wall, offset=(0, 0), map=straight().map),
    )


@pytest.fixture(scope="module")
def sim(folder):
    made = MetaDriveLog(folder, score_plans=True, max_steps=30)
    yield made
    made.close()


def drive(sim, seed, *, plan=None, every=10):
    """To the end, a plan every few ticks; the last figures."""
    sim.reset(seed=seed)
    while True:
        age = (len(sim.moments) - 1) % every
        if age == 0:
            action = sim.recorded_plan() if plan is None else plan.copy()
        action[0] = 0.1 * age
        *_, terminated, truncated, info = sim.step(action)
        if terminated or truncated:
            return info["figures"]


def test_the_recorded_way_is_a_good_plan(sim):
    figures = drive(sim, 0)
    assert figures["plans_scored"] == 2  # of 3: one reaches beyond the record of 6 s
    assert figures["plan_pdms"] > 0.99
    assert figures["plan_epdms"] > 0.99
    assert figures["plan_progress_m"] == pytest.approx(32, abs=0.5)
    assert figures["score"] > 0


def test_a_plan_that_stands_makes_no_progress(sim):
    figures = drive(sim, 0, plan=STILL)
    assert figures["plans_scored"] == 2
    assert figures["plan_no_at_fault_collisions"] == 1
    # It rolls a few m; the recorded driver makes 32 m.
    assert 0 < figures["plan_progress"] < 0.15
    assert figures["plan_progress"] == pytest.approx(figures["plan_progress_m"] / 32, abs=0.01)


def test_progress_is_against_the_recorded_driver_wherever_the_vehicle_is(sim):
    """Far behind its record, a plan as fast as the recorded driver is full progress."""
    sim.reset(seed=0)
    for tick in range(15):
        sim.step(np.append(0.1 * tick, STILL[1:]))
    assert sim.recorded[15, 0] - sim.moments[-1].ego.x > 6
    future = sim._future(15, 40)
    assert future.expected_m == pytest.approx(32, abs=0.01)
    assert len(future.moments) == 41
    assert future.moments[0] is sim.moments[15]
    assert sim._future(15, 44) is not None
    assert sim._future(15, 45) is None
    for key, body in future.moments[20].others.items():
        track = straight("a_free").tracks[key]
        if body.kind != "other":
            np.testing.assert_allclose([body.x, body.y], track.position[35, :2], atol=1e-3)


def test_into_a_wall_is_worth_nothing_from_when_it_is_in_reach(sim):
    figures = drive(sim, 1)
    assert figures["plan_no_at_fault_collisions"] == 0
    assert figures["plan_pdms"] == 0
    assert figures["plan_time_to_collision"] == 0


def test_a_late_plan_is_worth_what_it_was_when_it_was_made(sim):
    drive(sim, 0, every=30)
    (now,) = sim._plans.scores
    sim.reset(seed=0)
    plan = sim.recorded_plan()
    sim.step(STILL)
    sim.step(np.append(0.1, STILL[1:]))  # the same plan, older: not scored again
    sim.step(np.append(0.2, plan[1:]))  # made when that one was: the moment has its score
    assert len(sim._plans.scores) == 1
    sim.step(np.append(0.1, plan[1:]))
    sim.step(np.append(0.4, plan[1:]))
    late = sim._plans.scores[-1]
    assert len(sim._plans.scores) == 3
    assert vars(late) == pytest.approx(vars(now), abs=1e-9)


def test_who_was_not_let_in_stays_out(sim):
    sim.reset(seed=0)
    key = next(iter(sim.moments[0].others))
    del sim.moments[0].others[key]
    for moment in sim._future(0, 40).moments:
        assert key not in moment.others


def test_without_a_record_everybody_goes_on(folder):
    reactive = MetaDriveLog(folder, traffic="reactive", score_plans=True, max_steps=30)
    figures = drive(reactive, 0, every=15)
    assert figures["plans_scored"] == 2
    assert figures["plan_pdms"] > 0.95
    reactive.close()
    made_up = MetaDriveMap(blocks="S", traffic_density=0.0, score_plans=True, max_steps=5)
    ahead = np.append(0.0, np.stack([np.arange(1, 21) * 2.0, np.zeros(20)], axis=1))
    figures = drive(made_up, 0, plan=ahead)
    assert figures["plans_scored"] == 1
    assert figures["plan_drivable_area"] == 1
    made_up.close()


def test_plans_are_scored_only_where_asked_for_and_where_there_are_any(folder):
    quiet = MetaDriveLog(folder, max_steps=5)
    assert not any(name.startswith("plan") for name in drive(quiet, 0))
    quiet.close()
    with pytest.raises(ValueError, match="score_plans needs control=plan"):
        MetaDriveLog(folder, score_plans=True, control="steer_throttle")
