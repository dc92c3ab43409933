"""Recorded drives as surroundings and moments."""

import numpy as np
import pytest

from fastloop.datasets.driving_log import DrivingLog, MapFeature, Track
from fastloop.sims.driving.world import drive_of, moment_of, strip, surroundings_of

LINE = np.array([[0.0, 0, 0], [10, 0, 0], [20, 0, 0]])
OUTLINE = np.array([[0.0, -2, 0], [20, -2, 0], [20, 2, 0], [0, 2, 0]])


def track(kind="vehicle", *, valid=(True, True, True), size=(4.0, 2.0, 1.5), speed=2.0):
    seen = np.array(valid)
    position = np.where(seen[:, None], [[0.0, 0, 0], [2, 0, 0], [4, 0, 0]], np.nan)
    velocity = np.where(seen[:, None], [speed, 0.0], np.nan)
    return Track(kind, position, np.where(seen, 0.0, np.nan), velocity, np.array(size), seen)


def log(*features, **tracks):
    stamps = np.arange(3) * 10**9
    return DrivingLog("made", "test", "here", stamps, "ego", {"ego": track(), **tracks}, features)


def test_lanes_are_drivable_where_nothing_else_is_said():
    bare = MapFeature("lane", LINE, id="bare")
    known = MapFeature("lane", LINE, id="known", outline=OUTLINE)
    area = MapFeature("drivable", OUTLINE * 2, area=True)
    seen = surroundings_of(log(bare, known))
    assert set(seen.lanes) == {"bare", "known"}
    widths = [np.ptp(outline[:, 1]) for outline in seen.drivable]
    assert widths == [6.0, 4.0]
    (only,) = surroundings_of(log(bare, known, area)).drivable
    np.testing.assert_array_equal(only, OUTLINE[:, :2] * 2)


def test_a_strip_is_as_wide_as_asked_around_a_bend():
    outline = strip(np.array([[0.0, 0], [10, 0], [10, 10]]), 2.0)
    np.testing.assert_allclose(outline[[0, -1]], [[0, 1], [0, -1]])
    np.testing.assert_allclose(np.hypot(*(outline[1] - outline[4])), 2.0)


def test_the_speed_limit_is_that_along_the_route():
    slow = MapFeature("lane", LINE, properties={"speed_limit_kmh": 36.0}, id="here")
    fast = MapFeature("lane", LINE - [0, 50, 0], properties={"speed_limit_kmh": 100.0}, id="far")
    assert surroundings_of(log(slow, fast)).speed_limit == pytest.approx(10)
    assert np.isnan(surroundings_of(log(fast)).speed_limit)


def test_a_moment_has_who_was_seen_then():
    blind = track("cone", size=(np.nan,) * 3, speed=np.nan)
    gone = track("pedestrian", valid=(True, False, True))
    moment = moment_of(log(cone=blind, gone=gone), 1)
    assert (moment.time_s, moment.ego.x, moment.ego.speed) == (1.0, 2.0, 2.0)
    assert set(moment.others) == {"cone"}
    cone = moment.others["cone"]
    assert (cone.kind, cone.speed, cone.length) == ("other", 0.0, 0.5)


def test_a_recorded_drive_is_its_recorders():
    drive = drive_of(log(MapFeature("lane", LINE, id="lane")))
    assert len(drive.moments) == 3
    np.testing.assert_array_equal(drive.recorded, [[0, 0, 0], [2, 0, 0], [4, 0, 0]])
    np.testing.assert_array_equal(drive.surroundings.route, [[0, 0], [2, 0], [4, 0]])
