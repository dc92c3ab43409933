import numpy as np
import pytest

from fastloop.sims.driving.ground import LAYERS, Ground, placed
from fastloop.sims.driving.scene import Body, Surroundings

SQUARE = np.array([[0.0, 0], [4, 0], [4, 4], [0, 4]])
EVERYWHERE = np.array([[0.0, 0, 1]])


def surroundings(**parts):
    nothing = {"drivable": (), "lanes": {}, "lines": (), "edges": (), "crossings": ()}
    return Surroundings(**{**nothing, "route": np.zeros((0, 2)), **parts})


def test_layers_come_in_the_order_of_painting():
    line = np.array([[0.0, 0], [5, 0], [5, 5]])
    ground = Ground(
        surroundings(edges=(line,), lines=(line,), crossings=(SQUARE,), drivable=(SQUARE, SQUARE))
    )
    names = [LAYERS[layer] for layer in ground.layers]
    assert names == ["drivable"] * 2 + ["crossing"] + ["line"] * 2 + ["edge"] * 2


def test_a_segment_of_a_line_is_a_rectangle_of_its_width():
    ground = Ground(surroundings(lines=(np.array([[100.0, 0], [100, 10]]),)))
    low, high = ground.points.min(0), ground.points.max(0)
    np.testing.assert_allclose(high - low, [0.15, 10])
    np.testing.assert_allclose((high + low) / 2, [100, 5])


def test_points_that_change_nothing_are_left_out():
    x = np.linspace(0, 50, 1001)
    ground = Ground(surroundings(lines=(np.stack([4e6 + x, x], -1),)))
    assert ground.counts.tolist() == [4]


@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.zeros((1, 2)), np.ones((3, 2))])
def test_shapes_without_extent_are_nothing(points):
    parts = {"drivable": (points,), "lines": (points,), "edges": (points,)}
    ground = Ground(surroundings(**parts))
    assert len(ground.points) == len(ground.counts) == len(ground.layers) == 0
    assert [len(part) for part in ground.inside(EVERYWHERE)] == [0, 0, 0]


def test_only_what_may_be_seen_is_looked_at():
    far = SQUARE + np.array([100, 0])
    ground = Ground(surroundings(drivable=(SQUARE, far)))
    points, counts, layers = ground.inside(np.array([[1.0, 0, -50]]))
    np.testing.assert_allclose(sorted(points.tolist()), sorted(far.tolist()))
    assert (counts.tolist(), layers.tolist()) == ([4], [0])


@pytest.mark.parametrize(
    "wrong", [np.zeros(4), np.zeros((4, 3)), np.array([[0.0, 0], [np.nan, 1], [1, 1]])]
)
def test_what_is_no_shape_is_named(wrong):
    with pytest.raises(ValueError, match="crossing 1 of the surroundings"):
        Ground(surroundings(crossings=(SQUARE, wrong)))


def test_a_body_that_is_nowhere_is_named():
    with pytest.raises(ValueError, match=r"road user 7 .*finite"):
        placed(Body("vehicle", np.nan, 0.0, 0.0, 0.0, 0.0, 4.0, 2.0), "road user 7")


def test_a_body_beyond_all_maps_stays_a_body():
    body = placed(Body("vehicle", 1e300, 0.0, 0.0, 0.0, 0.0, 1e200, 2.0), "it")
    assert (body.x, body.length, body.width) == (1e8, 1e8, 2.0)
