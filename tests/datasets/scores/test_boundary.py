"""Leaving the drivable area: exact polygons on a road that one can draw."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.scores.boundary import leaves_area
from fastloop.datasets.scores.footprint import LENGTH, WIDTH
from fastloop.datasets.scores.planning import pool

shapely = pytest.importorskip("shapely")
ROAD = shapely.box(0, -3, 100, 3)  # along x, 6 m wide
AT_10 = np.array([[10.0, 0.0, 0.0]])


def line(dx, dy):
    return (np.arange(1, 7)[:, None] * [dx, dy])[None].astype(float)


def test_along_the_road():
    assert not leaves_area(line(5, 0), AT_10, ROAD).any()


def test_the_first_step_with_a_corner_beyond_the_edge():
    # The corner that leads sideways is half a width and a little of the length to the left.
    off = leaves_area(line(5, 0.5), AT_10, ROAD)[0]
    assert off.tolist() == [False, False, False, False, True, True, True]


def test_pointing_along_the_path_matters():
    """A right turn on the spot of a crossroads: the box is across, as the crossing road is."""
    crossing = shapely.union(ROAD, shapely.box(20, -50, 26, 50))
    path = np.array([[[5, 0], [10, 0], [13, -4], [13, -8], [13, -12], [13, -16]]], float)
    assert not leaves_area(path, AT_10, crossing).any()
    # Standing there across the narrow road would be off it: its box is longer than 3 m.
    narrow = shapely.box(11.5, -50, 14.5, 50)
    assert leaves_area(path, np.array([[0.0, 0, 0]]), narrow)[0, -3:].tolist() == [False] * 3


def test_already_off_tells_nothing():
    off = leaves_area(line(5, 0), np.array([[10.0, 2.5, 0.0], [10.0, 0.0, 0.0]])[:1], ROAD)
    assert off.all()
    columns = pool(off[:, 1:], np.repeat(~off[:, :1], 6, axis=1), "any")
    assert all(np.isnan(column).all() for column in columns.values())
    off = leaves_area(line(5, 0.5), AT_10, ROAD)
    columns = pool(off[:, 1:], np.repeat(~off[:, :1], 6, axis=1), "any")
    assert [column[0] for column in columns.values()] == [0, 1, 1]


@given(st.floats(-np.pi, np.pi), st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_the_maps_frame_does_not_matter(turn, x, y):
    from shapely import affinity

    plans = np.concatenate([line(5, 0.5), line(3, -0.2), line(0, 0)])
    poses = np.repeat(AT_10, 3, axis=0)
    there = affinity.translate(affinity.rotate(ROAD, turn, (0, 0), use_radians=True), x, y)
    cos, sin = np.cos(turn), np.sin(turn)
    moved = np.stack(
        [
            cos * poses[:, 0] - sin * poses[:, 1] + x,
            sin * poses[:, 0] + cos * poses[:, 1] + y,
            poses[:, 2] + turn,
        ],
        axis=1,
    )
    np.testing.assert_array_equal(leaves_area(plans, moved, there), leaves_area(plans, poses, ROAD))


def test_where_the_box_is():
    front = 0.5 + LENGTH / 2
    for gap, off in ((0.01, False), (-0.01, True)):
        ahead = shapely.box(-10, -WIDTH / 2 - 0.01, front + gap, WIDTH / 2 + 0.01)
        assert leaves_area(np.zeros((1, 6, 2)), np.zeros((1, 3)), ahead).all() == off


def test_bad_input_is_refused():
    with pytest.raises(DatasetError, match=r"expected \(N, T, 2\) and \(N, 3\)"):
        leaves_area(line(1, 0), AT_10[:, :2], ROAD)
    with pytest.raises(DatasetError, match="finite"):
        leaves_area(line(1, np.nan), AT_10, ROAD)
    halves = shapely.MultiPolygon([shapely.box(0, -3, 50, 3), shapely.box(50, -3, 100, 3)])
    with pytest.raises(DatasetError, match="unary_union"):
        leaves_area(line(1, 0), AT_10, halves)
