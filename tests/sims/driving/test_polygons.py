import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.sims.driving.polygons import clip, firsts

SQUARE = np.array([[0.0, 0], [4, 0], [4, 4], [0, 4]])


def area(polygon):
    x, y = polygon.T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def split(points, counts):
    return [points[i : i + n] for i, n in zip(firsts(counts), counts, strict=True)]


def test_a_plane_cuts_each_polygon_by_itself():
    aside = np.array([10, 0])
    points = np.concatenate([SQUARE, SQUARE + aside, SQUARE - aside, SQUARE[:3] + aside / 10])
    right_of_2 = np.array([[1.0, 0, -2]])
    clipped, counts, kept = clip(points, np.array([4, 4, 4, 3]), right_of_2)
    assert kept.tolist() == [0, 1, 3]
    first, second, third = split(clipped, counts)
    assert {tuple(p) for p in first} == {(2, 0), (4, 0), (4, 4), (2, 4)}
    np.testing.assert_array_equal(second, SQUARE + aside)
    assert area(third) == pytest.approx(8 - 0.5)


def test_nothing_in_is_nothing_out():
    points, counts, kept = clip(np.empty((0, 2)), np.empty(0, np.int64), np.eye(3))
    assert points.shape == (0, 2)
    assert len(counts) == len(kept) == 0


def test_everything_beyond_is_nothing_out():
    points, counts, kept = clip(SQUARE, np.array([4]), np.array([[1.0, 0, -9], [0, 1, 0]]))
    assert points.shape == (0, 2)
    assert len(counts) == len(kept) == 0


@given(
    st.lists(
        st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=3, max_size=7),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_a_box_keeps_of_convex_polygons_what_they_share_with_it(clouds):
    shapely = pytest.importorskip("shapely")
    hulls = [shapely.MultiPoint(cloud).convex_hull for cloud in clouds]
    hulls = [hull for hull in hulls if hull.geom_type == "Polygon" and hull.area > 1e-3]
    rings = [np.array(hull.exterior.coords)[:-1] for hull in hulls]
    box = np.array([[1.0, 0, 3], [-1, 0, 5], [0, 1, 2], [0, -1, 4]])
    points, counts, kept = clip(
        np.concatenate([np.empty((0, 2)), *rings]),
        np.array([len(ring) for ring in rings], np.int64),
        box,
    )
    left = dict(zip(kept.tolist(), split(points, counts), strict=True))
    for i, hull in enumerate(hulls):
        shared = hull.intersection(shapely.box(-3, -2, 5, 4)).area
        assert (area(left[i]) if i in left else 0) == pytest.approx(shared, abs=1e-6)
