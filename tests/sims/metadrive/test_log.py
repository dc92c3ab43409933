"""Recorded scenes: who is where, plans that are followed, crashes, ends, and equal episodes."""

import hashlib
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    find_spec("metadrive") is None, reason='pip install -c constraints.txt -e ".[driving]"'
)

from fastloop.sims.driving.world import moment_of  # noqa: E402
from fastloop.sims.metadrive.engine import EngineTakenError  # noqa: E402
from fastloop.sims.metadrive.log import MetaDriveLog  # noqa: E402

roads = runpy.run_path(str(Path(__file__).with_name("roads.py")))
going, straight, write = roads["going"], roads["straight"], roads["write"]

FRESH = """
import runpy, sys
from fastloop.sims.metadrive.log import MetaDriveLog
here = runpy.run_path(sys.argv[1])
sim = MetaDriveLog(sys.argv[2], traffic="reactive", control="steer_throttle")
print(here["digest"](sim, 0))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    wall = {**straight().tracks, "ahead": going(430, -300, 0)}
    behind = {**straight().tracks, "behind": going(375, -300, 12)}
    return write(
        folder,
        straight("a_free"),
        straight("b_wall", tracks=wall, offset=(0, 0), map=straight().map),
        straight("c_behind", tracks=behind, offset=(0, 0), map=straight().map),
    )


@pytest.fixture(scope="module")
def sim(folder):
    made = MetaDriveLog(folder)
    yield made
    made.close()


def replayed(sim, seed):
    """Drive as was recorded; returns the last info."""
    sim.reset(seed=seed)
    while True:
        *_, terminated, truncated, info = sim.step(sim.recorded_plan())
        if terminated or truncated:
            return info


def standing(sim):
    return np.zeros(sim.env_spec.action.dim)


def digest(sim, seed, actions=40):
    """Of everybody's way, to the last bit."""
    sim.reset(seed=seed)
    for tick in range(actions):
        sim.step(np.array([0.1 * np.sin(tick / 5), 0.4]))
    hashed = hashlib.sha256()
    for moment in sim.moments:
        for key, body in {"": moment.ego, **moment.others}.items():
            hashed.update(f"{key} {body}".encode())
    return hashed.hexdigest()


def test_a_recorded_drive_is_followed_to_its_end(sim):
    info = replayed(sim, 0)
    assert info["is_success"]
    assert info["scene"] == "a_free"
    assert info["figures"]["score"] > 0.95
    track = sim.recorded[: len(sim.moments), :2]
    way = np.array([[moment.ego.x, moment.ego.y] for moment in sim.moments])
    assert np.abs(way - track).max() < 0.3


def test_everybody_is_where_and_as_large_as_recorded(sim):
    replayed(sim, 0)
    log = straight("a_free")
    for index in (0, 25):
        seen, recorded = sim.moments[index], moment_of(log, index)
        assert set(seen.others) == set(recorded.others)
        for key, body in recorded.others.items():
            other = seen.others[key]
            for name in ("kind", "length", "width"):
                assert getattr(other, name) == getattr(body, name)
            for name in ("x", "y", "heading", "vx", "vy"):
                assert getattr(other, name) == pytest.approx(getattr(body, name), abs=1e-3)
    assert sim.moments[0].ego.x == pytest.approx(400, abs=1e-3)
    assert sim.moments[0].ego.vx == pytest.approx(8, abs=1e-3)
    assert (sim.moments[0].ego.length, sim.moments[0].ego.width) == (4.5, 1.9)


def test_observations_are_what_the_spec_says(sim):
    observation, _ = sim.reset(seed=0)
    assert sim.observation_space.contains(observation)
    observation, *_ = sim.step(sim.recorded_plan())
    assert sim.observation_space.contains(observation)
    np.testing.assert_allclose(observation["observation.ego_states"][-1, :2], 0, atol=1e-6)
    assert sim.render().shape[2] == 3


def test_cameras_are_painted_where_asked_for(folder):
    sim = MetaDriveLog(folder, cameras=["front"], image_size=[64, 48])
    observation, _ = sim.reset(seed=0)
    assert sim.observation_space.contains(observation)
    assert observation["observation.images.front"].std() > 5
    sim.close()
    with pytest.raises(ValueError, match="no camera 'rear'; have: front_left"):
        MetaDriveLog(folder, cameras=["rear"])


def test_a_crash_is_kept_in_mind_and_ends_the_drive(sim, folder):
    info = replayed(sim, 1)
    assert info["crash_vehicle"]
    assert not info["is_success"]
    assert info["figures"]["collisions_at_fault"] == 1
    assert len(sim.moments) < 45
    on = MetaDriveLog(folder, end_on_crash=False, control="steer_throttle", max_steps=60)
    on.reset(seed=1)
    crashed = [on.step(np.array([0.0, 1.0]))[4]["crash_vehicle"] for _ in range(60)]
    first = crashed.index(True)
    assert first < 50
    assert all(crashed[first:])
    on.close()


def test_who_stands_still_times_out(folder):
    sim = MetaDriveLog(folder, max_steps=30)
    sim.reset(seed=0)
    for tick in range(30):
        *_, terminated, truncated, info = sim.step(standing(sim))
        assert (truncated, terminated) == (tick == 29, False)
    assert info["figures"]["progress"] < 1
    assert not info["is_success"]
    assert abs(sim.moments[-1].ego.speed) < 0.5
    sim.close()


def test_reactive_traffic_brakes_behind_the_vehicle(folder):
    for traffic, hits in (("replay", True), ("reactive", False)):
        sim = MetaDriveLog(folder, traffic=traffic, max_steps=55)
        sim.reset(seed=2)
        while True:
            *_, terminated, truncated, info = sim.step(standing(sim))
            if terminated or truncated:
                break
        assert info["crash_vehicle"] == hits, traffic
        sim.close()


def test_who_leaves_the_road_has_lost(folder):
    sim = MetaDriveLog(folder, control="steer_throttle")
    sim.reset(seed=0)
    while True:
        *_, terminated, truncated, info = sim.step(np.array([-0.2, 0.2]))
        if terminated or truncated:
            break
    assert terminated
    assert not info["is_success"]
    assert info["figures"]["off_road_s"] > 0
    sim.close()


def test_a_late_plan_is_followed_from_where_it_was_made(sim):
    sim.reset(seed=0)
    late = sim.recorded_plan()
    for age in range(8):
        sim.step(np.append(0.1 * age, late[1:]))
    ego = sim.moments[-1].ego
    assert abs(ego.x - sim.recorded[8, 0]) < 0.2
    assert abs(ego.y - sim.recorded[8, 1]) < 0.1


def test_equal_seeds_are_equal_episodes_here_and_elsewhere(folder):
    sim = MetaDriveLog(folder, traffic="reactive", control="steer_throttle")
    first, other = digest(sim, 0), digest(sim, 2)
    assert first == digest(sim, 0) == digest(sim, 3) != other
    sim.close()
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH, __file__, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert fresh.stdout.split() == [first]
    assert fresh.stderr == ""


def test_restored_moments_go_on_exactly(sim):
    sim.reset(seed=2)
    for _ in range(10):
        sim.step(sim.recorded_plan())
    state = sim.save()
    later = [sim.step(sim.recorded_plan())[0] for _ in range(10)]
    sim.reset(seed=0)
    sim.restore(state)
    for expected in later:
        observation = sim.step(sim.recorded_plan())[0]
        for key, value in expected.items():
            np.testing.assert_array_equal(observation[key], value)


def test_one_engine_in_a_process(folder):
    one, two = MetaDriveLog(folder), MetaDriveLog(folder)
    one.reset(seed=0)
    two.reset(seed=0)
    with pytest.raises(EngineTakenError, match="lost its episode"):
        one.step(standing(one))
    one.reset(seed=0)
    one.step(standing(one))
    one.close()
    two.close()


def test_wrong_arguments_are_named(folder):
    with pytest.raises(ValueError, match="replay or reactive"):
        MetaDriveLog(folder, traffic="idm")
    with pytest.raises(ValueError, match="plan or steer_throttle"):
        MetaDriveLog(folder, control="waypoints")
    with pytest.raises(ValueError, match="0 to 10 a second"):
        MetaDriveLog(folder, plan_hz=20)


@pytest.fixture(scope="module")
def nuscenes(realdata):
    path = realdata / "nuscenes_mini_scenarionet"
    if not path.is_dir():
        pytest.skip(f"no {path}")
    made = MetaDriveLog(path)
    yield made
    made.close()


@pytest.mark.parametrize("seed", range(8))
def test_the_recorder_arrives_in_every_real_scene(nuscenes, seed):
    info = replayed(nuscenes, seed)
    assert info["is_success"]
    assert info["figures"]["score"] >= 0.95
    off = np.array([[m.ego.x, m.ego.y] for m in nuscenes.moments])
    off = off - nuscenes.recorded[: len(off), :2]
    heading = nuscenes.recorded[: len(off), 2]
    along = off[:, 0] * np.cos(heading) + off[:, 1] * np.sin(heading)
    aside = off[:, 1] * np.cos(heading) - off[:, 0] * np.sin(heading)
    assert np.abs(along).max() < 0.5
    assert np.abs(aside).max() < 0.2


def test_parked_real_scenes_are_named(nuscenes):
    assert len(nuscenes.scenes) == 8
    assert sorted(str(fault)[:10] for fault in nuscenes.notes) == ["scene-0553", "scene-1100"]


def test_a_commonroad_scene_is_driven(realdata):
    path = realdata / "commonroad" / "USA_Lanker-1_1_T-1.xml"
    if not path.is_file():
        pytest.skip(f"no {path}")
    sim = MetaDriveLog(path, control="steer_throttle", max_steps=60)
    sim.reset(seed=0)
    assert sim.recorded is None
    assert sim.moments[0].ego.speed == pytest.approx(7.1171, abs=1e-3)
    while True:
        *_, terminated, truncated, info = sim.step(np.array([0.0, 0.1]))
        if terminated or truncated:
            break
    assert 0 <= info["figures"]["score"] <= 1
    sim.close()
