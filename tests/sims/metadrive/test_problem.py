"""Egos of CommonRoad's planning problems: where they start, how they come to the goal."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastloop.datasets.errors import DatasetError
from fastloop.sims.metadrive.scenes import scene_of

straight = runpy.run_path(str(Path(__file__).with_name("roads.py")))["straight"]


def point(x, y):
    return {"shape": "point", "center": [x, y, 0.0]}


def problem(*places, heading=0.0):
    initial = {"position": [point(0.0, 0.3)], "heading": heading, "velocity": 7.0}
    return {"planning_problems": [{"initial": initial, "goals": [{"position": list(places)}]}]}


def posed(*places, **initial):
    log = straight(offset=(0, 0))
    tracks = {key: track for key, track in log.tracks.items() if key != "ego"}
    beside = {"left_neighbor": ["lane1"], "left_neighbor_drives": "same"}
    lanes = (replace(log.map[0], properties=beside), log.map[1])
    metadata = problem(*places, **initial)
    return replace(log, ego=None, tracks=tracks, map=lanes, metadata=metadata)


def test_it_starts_as_posed_and_goes_to_the_goal():
    scene = scene_of(posed(point(60.0, 0.0)))
    ego = scene.log.tracks["ego"]
    np.testing.assert_allclose(ego.position[0], [0, 0.3, 0])
    np.testing.assert_allclose(ego.velocity[0], [7, 0])
    np.testing.assert_allclose(scene.surroundings.route[-1], [60, 0])
    assert scene.recorded is None
    assert np.abs(scene.surroundings.route[5:, 1]).max() < 0.3


def test_it_changes_lanes_where_the_goal_is_beside():
    route = scene_of(posed({"shape": "lanelet", "lane": "lane1"})).surroundings.route
    np.testing.assert_allclose(route[-1, 1], 3.5)
    assert 30 < route[-1, 0] < 60
    assert (np.diff(route[:, 1]) >= 0).all()


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (posed(), "no place to go to"),
        (posed({"shape": "lanelet", "lane": "elsewhere"}), "no lanes lead"),
        (posed(point(np.nan, 0.0)), "is no place"),
        (replace(posed(point(60.0, 0.0)), metadata={"planning_problems": [{}]}), "no state"),
        (replace(posed(), metadata={}), "has no ego"),
    ],
)
def test_problems_without_a_way_have_names(log, message):
    with pytest.raises(DatasetError, match=message):
        scene_of(log)
