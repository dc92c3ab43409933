import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastloop.sims.driving.occlusion import beyond_sides, far_to_near
from fastloop.sims.driving.scene import Body


def box(x, y, length, width, heading=0.0):
    return Body("vehicle", x, y, heading, 0.0, 0.0, length, width).corners()


def test_a_bus_hides_who_is_behind_it_and_not_who_stands_before_it():
    bus = box(12, 3, 16, 2.5)  # its middle is farther away than both
    behind, before = box(6, 5.5, 0.6, 0.6), box(9, 0.5, 0.6, 0.6)
    assert far_to_near(np.stack([before, bus, behind]), np.zeros(2)) == [2, 1, 0]
    assert far_to_near(np.stack([behind, before, bus]), np.zeros(2)) == [0, 2, 1]


def test_boxes_in_each_other_go_by_distance():
    boxes = np.stack([box(10, 0, 4, 2), box(11, 0.5, 4, 2), box(9, 0.5, 4, 2)])
    assert far_to_near(boxes, np.zeros(2)) == [1, 0, 2]


def test_no_boxes_have_an_order_too():
    assert far_to_near(np.empty((0, 4, 2)), np.zeros(2)) == []


def test_beyond_a_side_is_outside():
    sides = beyond_sides(box(0, 0, 4, 2)[None], np.array([[0.0, 3], [-5, 0], [0, 0]]))
    left, rear, right, front = (sides[0] > 0).tolist()
    assert (left, rear) == ([True, False, False], [False, True, False])
    assert (right, front) == ([False] * 3, [False] * 3)


def first_hits(boxes, directions):
    """(K, R) distance from the origin at which rays enter convex boxes, inf if never."""
    start = beyond_sides(boxes, np.zeros((1, 2)))
    towards = beyond_sides(boxes, directions) - start
    with np.errstate(divide="ignore", invalid="ignore"):
        meets = -start / towards
    enters = np.where(towards < 0, meets, 0).max(1)
    leaves = np.where(towards > 0, meets, np.inf).min(1)
    misses = ((np.abs(towards) < 1e-9) & (start > 0)).any(1)
    return np.where((enters < leaves) & ~misses, enters, np.inf)


cells = st.lists(
    st.tuples(st.integers(-4, 4), st.integers(-4, 4), st.floats(0, 3.1), st.floats(0.1, 1)),
    min_size=2, max_size=12, unique_by=lambda cell: cell[:2],
)  # fmt: skip


@given(cells)
def test_along_every_ray_boxes_are_painted_from_far_to_near(cells):
    boxes = np.stack(
        [
            box(10 * i, 10 * j, 9 * long, 3 * long, heading)
            for i, j, heading, long in cells
            if (i, j) != (0, 0)
        ]
        or [box(10, 0, 1, 1)]
    )
    angles = np.linspace(0, 2 * np.pi, 361)
    entered = first_hits(boxes, np.stack([np.cos(angles), np.sin(angles)], -1))
    entered = entered[far_to_near(boxes, np.zeros(2))]
    for ray in entered.T:
        met = ray[np.isfinite(ray)]
        assert (np.diff(met) <= 1e-9).all()
