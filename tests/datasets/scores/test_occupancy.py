"""Lookup in cells: as the published codes have it, and the short way equal to the long one.

The golden figures were made by running the references' own functions (UniAD @dd161b22, ST-P3
@6b11e132, VAD @1688c4b1, OmniDrive @807c86a0) on the inputs constructed here.
"""

import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.scores import planning
from fastloop.datasets.scores.boxes import Boxes, from_vad_features
from fastloop.datasets.scores.conventions import CONVENTIONS, FAULTS
from fastloop.datasets.scores.footprint import corners
from fastloop.datasets.scores.occupancy import (
    draw,
    ego_cells,
    hits_among_boxes,
    hits_on_grids,
    points_on_grids,
)
from fastloop.datasets.scores.resampling import seen_from, source_cells

pytest.importorskip("cv2")
N = 12
BOX_HITS = {  # steps at which the plan's box collides and the recorded one does not
    "uniad": "01430a090000123482",
    "stp3": "0004180900011004c6",
    "vad": "000800910600002c20",
    "omnidrive": "3228e8",
}
POINT_HITS = {
    "uniad": "00083244bb1155091c",
    "stp3": "0009882029105c272d",
    "vad": "280885907d51a58296",
}


def numbers(shape, seed):
    """In [0, 1); NumPy promises that this stream never changes."""
    return np.random.RandomState(seed).random_sample(shape)


def paths(seed):
    """Plans with one at a standstill, one far beyond the grid and one on the edges of cells."""
    steps = (numbers((N, 6, 2), seed) - [0.4, 0.5]) * [12, 2]
    path = steps.cumsum(1)
    path[0] = 0
    path[1] *= 40
    path[2] = np.round(path[2] * 2) / 2
    return path.astype(np.float32)


def random_boxes(rng, samples, each, far=60.0):
    """Boxes around the vehicle, some of them beyond the grid's border."""
    K = samples * 6 * each
    angle = rng.uniform(-4, 4, K)
    at = rng.uniform(-far, far, (K, 2)) * rng.choice([0.2, 1], (K, 1))
    rectangles = np.column_stack(
        [at, rng.uniform(0.3, 13, K), rng.uniform(0.3, 3, K), np.cos(angle), np.sin(angle)]
    )
    return Boxes(
        sample=np.repeat(np.arange(samples), 6 * each),
        step=np.tile(np.repeat(np.arange(6), each), samples),
        rectangles=rectangles,
        human=rng.random(K) < 0.3,
        known=rng.random(K) < 0.8,
        about_rear_axle=rectangles + np.array([0.94, 0, 0, 0, 0, 0]),
        motion=rng.normal(0, [20, 5, 0.5], (samples, 6, 3)),
    )


def plan_alone(plans, truth, grids, name):
    rules = CONVENTIONS[name]
    hits = [hits_on_grids(path, grids, rules, rules.faults) for path in (plans, truth)]
    return np.packbits(hits[0] & ~hits[1]).tobytes().hex()


@pytest.mark.parametrize("name", ["uniad", "stp3", "vad"])
def test_boxes_hit_the_cells_that_the_reference_hits(name):
    grids = numbers((N, 6, 200, 200), 5) < 0.02
    assert plan_alone(paths(1), paths(2), grids, name) == BOX_HITS[name]


def test_turning_boxes_hit_the_cells_that_the_reference_hits():
    stream = np.random.RandomState(6).bytes(2 * 4 * 6 * 10**6)
    grids = np.frombuffer(stream, "<u2").reshape(4, 6, 1000, 1000) < 64
    some = slice(2, 6)
    name = "omnidrive"
    assert plan_alone(paths(1)[some], paths(2)[some], grids, name) == BOX_HITS[name]


@pytest.mark.parametrize("name", POINT_HITS)
def test_points_hit_the_cells_that_the_reference_hits(name):
    rules = CONVENTIONS[name]
    grids = numbers((N, 6, 200, 200), 14) < 0.3
    for corner in (np.s_[..., :30, :30], np.s_[..., :30, 170:], np.s_[..., 170:, :30]):
        grids[corner] = False
    grids[..., 170:, 170:] = False
    hits = points_on_grids(paths(1), grids, rules, rules.faults)
    assert np.packbits(hits).tobytes().hex() == POINT_HITS[name]


@pytest.mark.parametrize("name", CONVENTIONS)
def test_mended_points_look_where_boxes_are_drawn(name):
    rules = CONVENTIONS[name]
    rng = np.random.default_rng(3)
    boxes = random_boxes(rng, 4, 1, far=40)
    boxes = boxes[(boxes.rectangles[:, 2:4] > 2).all(1)].under(())
    grids = draw(boxes, 4, 6, rules)
    middles = np.full((4, 6, 2), 49.0)  # nothing there
    middles[boxes.sample, boxes.step] = boxes.rectangles[:, :2]
    expected = np.zeros((4, 6), bool)
    expected[boxes.sample, boxes.step] = True
    np.testing.assert_array_equal(points_on_grids(middles, grids, rules, ()), expected)


def test_cells_under_the_standing_vehicle():
    """What `skimage.draw.polygon` gives for the references' box corners."""
    zero = np.zeros((1, 2)), np.zeros(1)
    for name, rows, columns in (
        ("uniad", (97, 104), (98, 101)),
        ("stp3", (97, 104), (98, 101)),
        ("vad", (96, 103), (98, 101)),
        ("omnidrive", (491, 508), (494, 534)),
    ):
        row, column, inside = ego_cells(*zero, CONVENTIONS[name], ())
        assert inside.all()
        assert (row.min(), row.max()) == rows
        assert (column.min(), column.max()) == columns
        cells = set(zip(row[0].tolist(), column[0].tolist(), strict=True))
        assert len(cells) == (rows[1] - rows[0] + 1) * (columns[1] - columns[0] + 1) == row.size


def vad_arrays(seed=0, agents=10):
    boxes, features = np.zeros((agents, 9), np.float32), np.zeros((agents, 34), np.float32)
    boxes[:, :2] = (numbers((agents, 2), seed + 7) - 0.5) * 90
    boxes[:, 3:5] = 0.5 + numbers((agents, 2), seed + 8) * [2, 9]
    boxes[:, 6] = (numbers(agents, seed + 9) - 0.5) * 7
    features[:, :12] = (numbers((agents, 12), seed + 10) - 0.5) * 4
    features[:, 12:18] = np.cumprod(numbers((agents, 6), seed + 11) < 0.9, 1)
    features[:, 27] = np.floor(numbers(agents, seed + 12) * 25)
    features[:, 28:34] = (numbers((agents, 6), seed + 13) - 0.5) * 0.4
    return boxes, features


def test_vads_arrays_are_drawn_as_vad_draws_them():
    arrays = vad_arrays()
    before = [array.copy() for array in arrays]
    boxes = from_vad_features(*arrays)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    grids = draw(boxes, 1, 6, CONVENTIONS["vad"])
    vehicles = draw(boxes[~boxes.human], 1, 6, CONVENTIONS["vad"])
    people = draw(boxes[boxes.human], 1, 6, CONVENTIONS["vad"])
    assert vehicles.sum((0, 2, 3)).tolist() == [169, 169, 105, 110, 105, 60]
    assert people.sum((0, 2, 3)).tolist() == [135, 130, 133, 125, 119, 124]
    assert zlib.crc32(np.packbits(grids[0]).tobytes()) == 0xE0A6AA46


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_box_is_drawn_on_the_side_where_it_is(name):
    """Ten meters ahead and one to the left of it: a box of 4 m by 2 m, its borders included."""
    box = np.array([[12.0, 1.0, 4.0, 2.0, 1.0, 0.0]])
    one = np.zeros(1, np.int64)
    rules = CONVENTIONS[name]
    grid = draw(Boxes(one, one, box, one > 0, one == 0), 1, 6, rules)[0]
    assert not grid[1:].any()
    rows, columns = np.nonzero(grid[0])
    ahead = (rules.rows, rules.columns)[rules.columns[0] == 0]
    left = (rules.rows, rules.columns)[rules.columns[0] == 1]
    for axis, (low, high) in ((ahead, (10, 14)), (left, (0, 2))):
        index = rows if axis is rules.rows else columns
        edges = sorted(axis[1] * v for v in (low, high))
        assert index.min() == round((edges[0] + 50) / rules.cell_m)
        assert index.max() == round((edges[1] + 50) / rules.cell_m)


@settings(max_examples=30)
@given(
    st.sampled_from(sorted(CONVENTIONS)),
    st.sets(st.sampled_from(sorted(FAULTS))),
    st.integers(0, 2**32),
    st.sampled_from([0.1, 1, 3, 30]),
)
def test_the_short_way_equals_the_grids(name, faults, seed, stretch):
    rng = np.random.default_rng(seed)
    samples = 1 if name == "omnidrive" else 4
    boxes = random_boxes(rng, samples, 6).under(faults)
    plans = (rng.normal([2, 0], [3, 1], (samples, 6, 2)) * stretch).cumsum(1)
    rules = CONVENTIONS[name]
    np.testing.assert_array_equal(
        hits_among_boxes(plans, boxes, rules, faults),
        hits_on_grids(plans, draw(boxes, samples, 6, rules), rules, faults),
    )


def test_beyond_the_border():
    """A wall along the border is hit by plans beyond it only where they are clipped to it."""
    rules = CONVENTIONS["stp3"]
    grids = np.zeros((1, 6, 200, 200), bool)
    grids[..., -1, :] = True
    plans = np.zeros((1, 6, 2))
    plans[0, :, 0] = [0, 30, 47, 49, 70, 1e9]
    clipped = hits_on_grids(plans, grids, rules, {"fixed_heading", "border_clipping"})
    free = hits_on_grids(plans, grids, rules, {"fixed_heading"})
    assert clipped.tolist() == [[False, False, False, True, True, True]]
    assert free.tolist() == [[False, False, False, True, False, False]]


def test_a_turned_box_covers_other_cells():
    rules = CONVENTIONS["stp3"]
    row, column, _ = ego_cells(np.zeros((1, 2)), np.full(1, np.pi / 2), rules, ())
    assert (row.min(), row.max()) == (98, 101)
    assert (column.min(), column.max()) == (97, 104)  # ahead is to the left now


def test_no_boxes_and_no_samples():
    none = np.zeros(0, np.int64)
    boxes = Boxes(none, none, np.zeros((0, 6)), none > 0, none > 0)
    for name, rules in CONVENTIONS.items():
        assert not hits_among_boxes(np.zeros((2, 6, 2)), boxes, rules, rules.faults).any()
        columns = planning.collisions(
            np.zeros((0, 6, 2)), np.zeros((0, 6, 2)), boxes, convention=name
        )
        assert {len(column) for column in columns.values()} == {0}


def test_what_a_table_sees():
    boxes = random_boxes(np.random.default_rng(0), 2, 3)
    assert not boxes.under({"vehicles_only"}).human.any()
    assert boxes.under({"late_objects_invisible"}).known.all()
    assert len(boxes.under(FAULTS)) == (boxes.known & ~boxes.human).sum()
    np.testing.assert_array_equal(boxes.under({"frame_offset"}).rectangles, boxes.about_rear_axle)
    with pytest.raises(DatasetError, match="about_rear_axle is needed"):
        replace(boxes, about_rear_axle=None).under({"frame_offset"})


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_boxes_that_cannot_be_are_refused(bad):
    boxes = random_boxes(np.random.default_rng(0), 1, 1)
    rectangles = boxes.rectangles.copy()
    rectangles[4, 0] = bad
    with pytest.raises(DatasetError, match="rectangles, row 4"):
        replace(boxes, rectangles=rectangles)
    with pytest.raises(DatasetError, match=r"step \(5,\), expected \(6,\)"):
        replace(boxes, step=boxes.step[1:])
    with pytest.raises(DatasetError, match=r"expected \(A, 9\) and \(A, 34\)"):
        from_vad_features(np.zeros((3, 9)), np.zeros((3, 33)))
    motion = boxes.motion.copy()
    motion[0, 0, 0] = bad
    with pytest.raises(DatasetError, match="motion"):
        replace(boxes, motion=motion)
    with pytest.raises(DatasetError, match=r"motion \(1, 6, 3\) where plans are \(2, 6, 2\)"):
        planning.collisions(*np.zeros((2, 2, 6, 2)), boxes, convention="stp3")


@pytest.mark.parametrize(
    ("pose", "cells", "rows", "columns"),
    [
        ((10, 3, 0), 80, (135, 144), (84, 91)),
        ((8, 2, 0.4), 79, (131, 142), (99, 109)),
        ((0, 0, 0.1), 79, (115, 125), (92, 99)),
    ],
)
def test_grids_are_sampled_as_st_p3_samples_them(pose, cells, rows, columns):
    """``warp_features`` of ST-P3 on a grid in which rows 115-124 and columns 90-97 are occupied."""
    every = [v.reshape(1, -1) for v in np.indices((200, 200))]
    row, column = (
        np.rint(v).astype(int).reshape(200, 200)
        for v in source_cells(*every, np.array([pose]), 200, 50.0)
    )
    found = (row >= 115) & (row < 125) & (column >= 90) & (column < 98)
    at = np.nonzero(found)
    assert found.sum() == cells
    assert (at[0].min(), at[0].max()) == rows
    assert (at[1].min(), at[1].max()) == columns


def test_after_a_lane_change_resampled_objects_are_elsewhere():
    """The vehicle moves 3 m to the left, without a turn: what stands ahead appears 6 m aside."""
    one = np.zeros(1, np.int64)
    motion = np.zeros((1, 6, 3))
    motion[0, 0] = 10, 3, 0
    box = np.array([[20.0, 0.0, 4.0, 2.0, 1.0, 0.0]])
    boxes = Boxes(one, one, box, one > 0, one == 0, motion=motion)
    rules = CONVENTIONS["stp3"]

    def middle(faults):
        rows, columns = np.nonzero(draw(boxes.under(faults), 1, 6, rules)[0, 0])
        return rows.mean() / 2 - 50, columns.mean() / 2 - 50

    assert middle({"cells"}) == (20, 0)
    assert middle({"cells", "resampled_grid"}) == (20, -6)
    assert boxes.under({"resampled_grid"}).motion is None  # boxes know no grid


@given(st.floats(-3, 3), st.floats(-50, 50), st.floats(-50, 50))
def test_boxes_as_seen_from_elsewhere(turn, x, y):
    box = np.array([[3.0, 4.0, 5.0, 2.0, 0.8, 0.6]])
    seen = seen_from(box, np.array([[x, y, turn]]))
    cos, sin = np.cos(turn), np.sin(turn)
    back = corners(seen) @ [[cos, sin], [-sin, cos]] + [x, y]
    np.testing.assert_allclose(back, corners(box), atol=1e-9)
