"""Maps: the expansion, the older drivable areas, and center lines of lanes."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.nuscenes import maps
from fastloop.datasets.nuscenes.arcs import center_line
from fastloop.datasets.nuscenes.maps import LOCATIONS, open_map

shapely = pytest.importorskip("shapely")

PLACE = "boston-seaport"
SQUARES = {  # outline, then holes
    "area": [(0, 0, 100, 100), (40, 40, 60, 60), (10, 70, 20, 90)],
    "more": [(100, 0, 150, 100)],
    "crossing": [(10, 0, 14, 10)],
    "lane": [(0, 0, 100, 4)],
}
ARC = {
    "start_pose": [5.0, 2.0, 0.1],
    "end_pose": [0, 0, 0],
    "shape": "LSR",
    "radius": 20.0,
    "segment_length": [7.5, 3.2, 11.0],
}


def expansion(version="1.3"):
    """The map of a few squares."""
    nodes, polygons = [], []

    def ring(low_x, low_y, high_x, high_y):
        corners = [(low_x, low_y), (high_x, low_y), (high_x, high_y), (low_x, high_y)]
        for x, y in corners:
            nodes.append({"token": f"n{len(nodes)}", "x": x, "y": y})
        return [node["token"] for node in nodes[-4:]]

    for token, (outline, *holes) in SQUARES.items():
        polygons.append(
            {
                "token": token,
                "exterior_node_tokens": ring(*outline),
                "holes": [{"node_tokens": ring(*hole)} for hole in holes],
            }
        )
    return {
        "version": version,
        "node": nodes,
        "polygon": polygons,
        "line": [{"token": "line", "node_tokens": [nodes[0]["token"], nodes[1]["token"]]}],
        "drivable_area": [{"token": "d", "polygon_tokens": ["area", "more"]}],
        "ped_crossing": [{"token": "c", "polygon_token": "crossing"}],
        "walkway": [],
        "stop_line": [],
        "carpark_area": [],
        "road_divider": [{"token": "r", "line_token": "line"}],
        "lane_divider": [],
        "lane": [{"token": "l", "polygon_token": "lane"}],
        "lane_connector": [],
        "arcline_path_3": {"l": [ARC]},
        "connectivity": {"l": {"incoming": ["a"], "outgoing": ["b"]}},
    }


@pytest.fixture
def written(tmp_path):
    """Write a map under a name, and open it."""

    def write(content, name=f"expansion/{PLACE}.json"):
        path = tmp_path / "maps" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return open_map(tmp_path, PLACE)

    return write


def test_the_expansion(written):
    there = written(expansion())
    # The two squares share an edge and become one; the holes stay.
    assert there.drivable.area == pytest.approx(100 * 100 - 20 * 20 - 10 * 20 + 50 * 100)
    assert len(there.drivable.geoms) == 1
    kinds = {(line.kind, line.category, line.area) for line in there.lines}
    assert kinds == {
        ("crosswalk", "ped_crossing", True),
        ("lane_line", "road_divider", False),
        ("lane", "lane", False),
    }
    lane = next(line for line in there.lines if line.kind == "lane")
    assert lane.properties == {"entry_lanes": ["a"], "exit_lanes": ["b"]}
    assert lane.outline.shape == (4, 3)
    np.testing.assert_array_equal(lane.points[0], [5, 2, 0])


def test_a_window_has_areas_without_holes(written):
    there = written(expansion())
    shapes = there.window(50, 50, 30)
    drivable = [shapely.Polygon(shape.points[:, :2]) for shape in shapes if shape.area]
    union = shapely.union_all(drivable)
    expected = shapely.intersection(there.drivable, shapely.box(20, 20, 80, 80))
    assert union.symmetric_difference(expected).area < 1e-9
    assert sum(part.area for part in drivable) == pytest.approx(expected.area)
    assert {shape.kind for shape in shapes} == {"drivable"}
    near_the_corner = {shape.kind for shape in there.window(12, 5, 3)}
    assert near_the_corner == {"drivable", "crosswalk", "lane"}


def test_a_window_with_a_thousand_holes(written):
    holes = [[[x, 1], [x + 0.1, 1], [x + 0.1, 2], [x, 2]] for x in np.arange(1, 300, 0.2).tolist()]
    outline = [[0, 0], [400, 0], [400, 5], [0, 5]]
    there = written({"type": "MultiPolygon", "coordinates": [[outline, *holes]]})
    pieces = [shapely.Polygon(shape.points[:, :2]) for shape in there.window(200, 2, 1000)]
    assert sum(piece.area for piece in pieces) == pytest.approx(400 * 5 - len(holes) * 0.1)


def test_layers_cannot_draw_one_polygon_without_end(written, monkeypatch):
    monkeypatch.setattr(maps, "MOST_POINTS", 1000)
    content = expansion()
    content["ped_crossing"] = [
        content["ped_crossing"][0] | {"token": str(number)} for number in range(1000)
    ]
    with pytest.raises(DatasetError, match="more than 1000 points"):
        written(content)


def test_old_drivable_areas(written):
    square = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]
    there = written({"type": "MultiPolygon", "coordinates": [[square]]}, "boston_drivable.json")
    assert there.drivable.area == 16
    assert [shape.kind for shape in there.window(2, 2, 1)] == ["drivable"]


def test_every_keyframe_of_mini_is_on_the_real_drivable_areas(mini, realdata):
    from fastloop.datasets.nuscenes.scenes import NuScenes

    tables = NuScenes(mini, "v1.0-mini").tables
    folder = realdata / "nuscenes_maps_drivable"
    maps = {place: open_map(mini, place, folder) for place in LOCATIONS}
    for k, pose in enumerate(tables.ego_pose):
        there = maps[tables.scenes[tables.scene[k]].location]
        assert there.drivable.covers(shapely.Point(pose[:2, 3]))
        if k % 40 == 0:
            x, y = pose[:2, 3]
            areas = [shapely.Polygon(s.points[:, :2]).area for s in there.window(x, y, 50)]
            cut = shapely.intersection(there.drivable, shapely.box(x - 50, y - 50, x + 50, y + 50))
            assert sum(areas) == pytest.approx(cut.area)


def test_a_map_that_is_not_there(tmp_path):
    assert open_map(tmp_path, PLACE) is None
    with pytest.raises(DatasetError, match="unknown location 'moon'; have: boston-seaport"):
        open_map(tmp_path, "moon")


def without(key):
    return {name: value for name, value in expansion().items() if name != key}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (expansion("1.2"), "version 1.2 .* expected 1.3"),
        (without("version"), "version none"),
        (without("node"), "not laid out as a map.*node"),
        (expansion() | {"node": []}, "not laid out"),
        (expansion() | {"lane": 5}, "not laid out"),
        (b"{", "no JSON"),
        (b"[]", "expected an object"),
        (b'{"type": "Point", "coordinates": []}', "type 'Point'"),
        (b'{"type": "MultiPolygon", "coordinates": [[[[0, 1]]]]}', "not laid out"),
        (b'{"type": "MultiPolygon", "coordinates": [[[[0, NaN], [1, 1], [0, 1]]]]}', "finite"),
        (b'{"type": "MultiPolygon", "coordinates": [[[[0, 1e308], [1, 1], [0, 1]]]]}', "finite"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_what_is_no_map_is_refused(written, content, words):
    with pytest.raises(DatasetError, match=f"(?s)boston-seaport.json: .*({words})"):
        written(content)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_gives_a_map_or_a_fault(written, data):
    content = bytearray(json.dumps(expansion()).encode())
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(len(content), start + 6)))
    content[start:stop] = data.draw(st.one_of(st.binary(max_size=5), st.just(b"9e99")))
    try:
        there = written(bytes(content))
    except DatasetError:
        return
    assert all(np.isfinite(shape.points).all() for shape in there.window(50, 50, 30))


@pytest.mark.parametrize("shape", ["LSR", "RSL", "LSL", "RSR", "LRL", "RLR"])
@pytest.mark.parametrize("lengths", [[7.5, 3.2, 11.0], [0, 30, 0], [4.5, 0, 2.5]])
def test_center_lines_are_those_of_the_devkit(shape, lengths):
    arcs = pytest.importorskip("nuscenes.map_expansion.arcline_path_utils")
    path = ARC | {"shape": shape, "segment_length": lengths}
    line = center_line([path], step=0.5)
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    assert steps.max() < 0.5 + 1e-9
    np.testing.assert_array_equal(line[0], path["start_pose"][:2])
    length = np.cumsum([max(n, 1e-6) for n in lengths])
    for at, end in zip(length, np.cumsum([int(np.ceil(n / 0.5)) for n in lengths]), strict=True):
        np.testing.assert_allclose(line[end], arcs.pose_at_length(path, at)[:2], atol=1e-5)
    middle = arcs.pose_at_length(path, lengths[0] + lengths[1] / 2)[:2]
    assert np.linalg.norm(line - middle, axis=1).min() < 0.26


@pytest.mark.parametrize(
    "change",
    [{"shape": "LSX"}, {"shape": "L"}, {"radius": 0}, {"segment_length": [1e9, 0, 0]},
     {"segment_length": [-1, 0, 0]}, {"start_pose": [float("nan"), 0, 0]}],
)  # fmt: skip
def test_lanes_of_another_layout_are_refused(change):
    with pytest.raises(DatasetError, match="a lane of"):
        center_line([ARC | change])


def test_paths_of_one_lane_are_bounded_together():
    with pytest.raises(DatasetError, match="a lane of"):
        center_line([ARC | {"segment_length": [4000, 0, 0]}] * 3)
