"""Where vehicles are on their routes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.sims.driving.progress import along_route, progress_ratio


def test_places_on_a_corner():
    route = np.array([[0.0, 0], [10, 0], [10, 10]])
    points = np.array([[-1.0, 0], [5, 2], [11, 5], [10, 12]])
    np.testing.assert_allclose(along_route(route, points), [0, 5, 15, 20])


def test_a_route_that_crosses_itself_is_followed():
    angle = np.linspace(0, 2 * np.pi, 200)
    route = 50 * np.stack([np.sin(angle), np.sin(angle) * np.cos(angle)], 1)  # an eight
    places = along_route(route, route)
    lengths = np.hypot(*np.diff(route, axis=0).T)
    np.testing.assert_allclose(places[1:], np.cumsum(lengths), atol=1e-6)


def test_the_way_back_on_the_other_side_of_the_road_is_not_jumped_to():
    route = np.array([[0.0, 0], [100, 0], [100, 3], [0, 3]])
    points = np.stack([np.arange(101.0), np.minimum(np.arange(101.0), 2.0)], 1)
    np.testing.assert_allclose(along_route(route, points)[:90], np.arange(90))


@pytest.mark.parametrize("route", [np.zeros((1, 2)), np.ones((3, 2))])
def test_a_route_of_one_point_has_no_places(route):
    np.testing.assert_array_equal(along_route(route, np.ones((4, 2))), 0)


@given(seed=st.integers(0, 1000))
def test_points_of_a_route_are_in_their_order(seed):
    route = np.cumsum(np.random.default_rng(seed).uniform(-1, 3, (40, 2)), axis=0)
    places = along_route(route, route)
    assert places[0] == 0
    assert (np.diff(places) > 0).all()


@pytest.mark.parametrize(
    ("came", "expected", "ratio"),
    [
        (50, 100, 0.5),
        (150, 100, 1),
        (0, 100, 0.02),
        (0, 0, 1),
        (-1, 1, 1),
        (-3, 100, 0),
        (-3, 0, 0),
    ],
)
def test_ratios(came, expected, ratio):
    assert progress_ratio(came, expected) == pytest.approx(ratio)
