"""Scores of plans: distances, pooling, what counts, and exact overlap."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.scores.footprint import corners, ego_rectangles, headings
from fastloop.datasets.scores.overlap import hits_of_boxes, rectangles_overlap
from fastloop.datasets.scores.planning import (
    CONVENTIONS,
    FAULTS,
    Boxes,
    collisions,
    collisions_on_grids,
    displacements,
    distances,
    pool,
)


def straight(*speeds):
    """Plans along x, in steps of `speeds` m."""
    return np.array([[[speed * (k + 1), 0] for k in range(6)] for speed in speeds], float)


def still(at, *, step=None, human=False, known=True, sample=0):
    """A box of 4 m by 2 m that stands `at` (x, y), at one step or all."""
    steps = np.arange(6) if step is None else np.array([step])
    K = len(steps)
    return Boxes(
        sample=np.full(K, sample),
        step=steps,
        rectangles=np.tile([*at, 4.0, 2.0, 1.0, 0.0], (K, 1)),
        human=np.full(K, human),
        known=np.full(K, known),
    )


def values(columns):
    return [column.tolist() for column in columns.values()]


def test_distances_pooled_by_hand():
    truth = straight(0)
    plans = straight(0)
    plans[0, :, 1] = [1, 2, 3, 4, 5, 6]
    assert distances(plans, truth).tolist() == [[1, 2, 3, 4, 5, 6]]
    assert values(displacements(plans, truth, convention="uniad")) == [[2], [4], [6]]
    for name in ("stp3", "vad", "omnidrive"):
        assert values(displacements(plans, truth, convention=name)) == [[1.5], [2.5], [3.5]]


def test_missing_futures():
    truth, plans = straight(0, 0), straight(1, 1)
    valid = np.ones((2, 6), bool)
    valid[1, 3:] = False
    truth[1, 3:] = np.nan  # whatever stands there
    nan = np.nan
    mended = values(displacements(plans, truth, valid, convention="uniad"))
    np.testing.assert_array_equal(mended, [[2, 2], [4, nan], [6, nan]])
    zeros = displacements(plans, truth, valid, convention="uniad", faults=["masked_as_zero"])
    assert values(zeros) == [[2, 2], [4, 0], [6, 0]]
    whole = values(displacements(plans, truth, valid, convention="vad"))
    np.testing.assert_array_equal(whole, [[1.5, nan], [2.5, nan], [3.5, nan]])
    # Someone stands where the second plan would be at 2 s, of which nothing is recorded.
    boxes = still((4, 0), sample=1)
    free = collisions(plans, truth, boxes, valid, convention="uniad", faults=["masked_as_zero"])
    assert values(free)[1:] == [[0, 0], [0, 0]]
    left_out = values(collisions(plans, truth, boxes, valid, convention="uniad"))
    np.testing.assert_array_equal(left_out[1:], [[0, nan], [0, nan]])


@given(st.integers(0, 2**32), st.sampled_from(["instant", "mean", "any"]))
def test_pooling_equals_the_obvious_loop(seed, pooling):
    rng = np.random.default_rng(seed)
    steps, counted = rng.random((5, 6)), rng.random((5, 6)) < 0.7
    for (name, column), K in zip(pool(steps, counted, pooling).items(), (2, 4, 6), strict=True):
        assert name == f"{K // 2}s"
        for i in range(5):
            kept = [steps[i, k] for k in range(K) if counted[i, k]]
            if pooling == "instant":
                kept = kept[-1:] if counted[i, K - 1] else []
            if not kept:
                assert np.isnan(column[i])
            else:
                assert column[i] == pytest.approx(max(kept) if pooling == "any" else np.mean(kept))


def test_a_standing_car_ahead_is_hit():
    boxes = still((12.5, 0))  # from 10.5 to 14.5; the vehicle's front is 2.542 m ahead
    plans, truth = straight(2, 2), straight(0, 0)
    # The second sample has nothing to hit. Waypoints at 8, 10 and 12 m are too far.
    assert values(collisions(plans, truth, boxes, convention="uniad")) == [[0, 0], [1, 0], [1, 0]]
    mean = values(collisions(plans, truth, boxes, convention="vad"))
    assert mean == [[0, 0], [0.25, 0], [0.5, 0]]
    # The rear axle is further back: its waypoint at 8 m is the vehicle's front at 11.5 m.
    some = values(collisions(plans, truth, boxes, convention="omnidrive"))
    assert some == [[0, 0], [1, 0], [1, 0]]


def test_steps_at_which_the_record_itself_collides():
    boxes = still((12, 0), step=5)
    plans = truth = straight(2)
    nan = np.nan
    left_out = values(collisions(plans, truth, boxes, convention="uniad"))
    np.testing.assert_array_equal(left_out, [[0], [0], [nan]])
    free = collisions(plans, truth, boxes, convention="uniad", faults=["filtered_as_free"])
    assert values(free) == [[0], [0], [0]]
    assert values(collisions(plans, straight(0), boxes, convention="uniad")) == [[0], [0], [1]]


@pytest.mark.parametrize(
    ("fault", "kind"), [("vehicles_only", "human"), ("late_objects_invisible", "known")]
)
def test_what_is_not_seen_is_not_hit(fault, kind):
    boxes = still((12, 0), **{kind: kind == "human"})
    plans, truth = straight(2), straight(0)
    assert values(collisions(plans, truth, boxes, convention="vad"))[2] == [0.5]
    blind = collisions(plans, truth, boxes, convention="vad", faults=[fault])
    assert values(blind) == [[0], [0], [0]]


@pytest.mark.parametrize(
    ("name", "met"), [("uniad", 0), ("omnidrive", 0), ("stp3", 1), ("vad", 1), ("exact", 1)]
)
def test_whom_the_published_tables_meet(name, met):
    walker = still((12, 0), human=True)
    walker = replace(walker, about_rear_axle=walker.rectangles, motion=np.zeros((1, 6, 3)))
    faults = CONVENTIONS[name].faults
    hits = collisions(straight(2), straight(0), walker, convention=name, faults=faults)
    assert bool(hits["3s"] > 0) == bool(met)


def test_a_box_turns_with_its_path():
    plans = np.array([[[2, 0], [4, 0], [4, 2], [4, 4], [4, 6], [4, 8]]], float)
    beside = still((4, 12.0), step=5)  # ahead of the vehicle that drives to the left: 11 to 13 m
    truth = straight(0)
    assert values(collisions(plans, truth, beside, convention="uniad"))[2] == [0]
    near = still((4, 11.0), step=5)
    assert values(collisions(plans, truth, near, convention="uniad"))[2] == [1]
    fixed = collisions(plans, truth, near, convention="uniad", faults=["fixed_heading"])
    assert values(fixed)[2] == [0]


def test_headings():
    left = np.array([[[2, 0], [2, 2], [2, 2.1], [2, 4], [2, 3], [2, 2]]], float)
    turn = np.pi / 2
    np.testing.assert_allclose(headings(left), [[0, turn, turn, turn, turn, turn]], atol=1e-12)
    forgetful = headings(left, reset=True)
    np.testing.assert_allclose(forgetful, [[0, turn, 0, turn, -turn, -turn]], atol=1e-12)


def test_corners():
    box = ego_rectangles(np.array([10.0, 5.0]), np.array(np.pi / 2), 0.5)
    half = 4.084 / 2
    expected = [
        [9.075, 5.5 + half],
        [9.075, 5.5 - half],
        [10.925, 5.5 - half],
        [10.925, 5.5 + half],
    ]
    np.testing.assert_allclose(corners(box), expected)


@settings(max_examples=50)
@given(st.integers(0, 2**32))
def test_overlap_is_that_of_polygons(seed):
    shapely = pytest.importorskip("shapely")
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-4, 4, (2, 40))
    size, at = rng.uniform(0.2, 9, (2, 40, 2)), rng.uniform(-6, 6, (2, 40, 2))
    a, b = np.concatenate([at, size, np.cos(angle)[..., None], np.sin(angle)[..., None]], -1)
    shared = shapely.intersection(shapely.polygons(corners(a)), shapely.polygons(corners(b)))
    np.testing.assert_array_equal(rectangles_overlap(a, b), shapely.area(shared) > 1e-12)


def test_touching_is_not_overlap():
    a = np.array([[0.0, 0, 2, 2, 1, 0]])
    assert not rectangles_overlap(a, a + np.array([2, 0, 0, 0, 0, 0]))
    assert rectangles_overlap(a, a + np.array([1.99, 0, 0, 0, 0, 0]))
    assert rectangles_overlap(a, a)


@given(st.integers(0, 2**32))
def test_far_boxes_are_passed_over_rightly(seed):
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-4, 4, 60)
    rectangles = np.column_stack(
        [rng.uniform(-15, 15, (60, 2)), rng.uniform(0.2, 9, (60, 2)), np.cos(angle), np.sin(angle)]
    )
    sample, step = rng.integers(0, 2, 60), rng.integers(0, 6, 60)
    boxes = Boxes(sample, step, rectangles, np.zeros(60, bool), np.ones(60, bool))
    plans = rng.normal([2, 0], 2, (2, 6, 2)).cumsum(1)
    heading = headings(plans)
    expected = np.zeros((2, 6), bool)
    for i, t, other in zip(sample, step, rectangles, strict=True):
        ego = ego_rectangles(plans[i, t], heading[i, t], 0.5)
        expected[i, t] |= rectangles_overlap(ego, other)
    np.testing.assert_array_equal(hits_of_boxes(plans, heading, boxes, 0.5), expected)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_boxes_and_their_grids_give_the_published_figures_alike(name):
    pytest.importorskip("cv2")
    from fastloop.datasets.scores.occupancy import draw

    rules = CONVENTIONS[name]
    boxes = still((12, 0))
    boxes = Boxes(
        boxes.sample, boxes.step, boxes.rectangles, boxes.human, boxes.known, boxes.rectangles
    )
    plans, truth = straight(2), straight(0)
    grids = draw(boxes, 1, 6, rules)
    published = collisions(plans, truth, boxes, convention=name, faults=rules.faults)
    looked_up = collisions_on_grids(plans, truth, grids, convention=name, faults=rules.faults)
    assert values(published) == values(looked_up)
    assert values(published)[2][0] > 0
    points = collisions_on_grids(
        plans, truth, grids, convention=name, faults=rules.faults - {"point_cell"}, points=True
    )
    assert values(points)[2][0] > 0


def test_nothing_is_altered():
    rng = np.random.default_rng(0)
    plans, truth = rng.normal(size=(2, 3, 6, 2)).astype(np.float32)
    grids = rng.random((3, 6, 200, 200)) < 0.1
    copies = plans.copy(), truth.copy(), grids.copy()
    for name in ("uniad", "stp3", "vad"):
        faults = CONVENTIONS[name].faults
        displacements(plans, truth, convention=name, faults=faults)
        collisions_on_grids(plans, truth, grids, convention=name, faults=faults)
    for array, copy in zip((plans, truth, grids), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_bad_input_is_refused():
    plans, boxes = straight(1, 2), still((12, 0))
    broken = plans.copy()
    broken[1, 3] = np.nan
    with pytest.raises(DatasetError, match="plans of 1 samples are not finite, the first: 1"):
        collisions(broken, plans, boxes, convention="vad")
    with pytest.raises(DatasetError, match="truth of 1 samples"):
        displacements(plans, broken, convention="vad")
    with pytest.raises(DatasetError, match=r"expected \(N, T, 2\)"):
        distances(plans[0], plans[0])
    with pytest.raises(DatasetError, match=r"truth is \(1, 6, 2\)"):
        displacements(plans, plans[:1], convention="vad")
    with pytest.raises(DatasetError, match="T >= 6"):
        displacements(plans[:, :4], plans[:, :4], convention="vad")
    with pytest.raises(DatasetError, match="beyond those of plans"):
        collisions(plans, plans, still((1, 1), sample=2), convention="vad")
    with pytest.raises(DatasetError, match="expected bool"):
        collisions_on_grids(plans, plans, np.zeros((2, 6, 9, 9), bool), convention="vad", faults=())
    with pytest.raises(ValueError, match="unknown convention 'bev'; have: uniad"):
        displacements(plans, plans, convention="bev")
    with pytest.raises(ValueError, match="unknown faults 'cell'; have: masked_as_zero"):
        displacements(plans, plans, convention="vad", faults=["cell"])
    with pytest.raises(ValueError, match=r"unknown faults 'cells'.*as a collection"):
        displacements(plans, plans, convention="vad", faults="cells")


def test_every_convention_names_its_faults():
    used = set().union(*(rules.faults for rules in CONVENTIONS.values()))
    assert used == set(FAULTS)
    assert all(text.endswith(".") for text in FAULTS.values())
