"""Lyft Level 5: scenes of a zarr store are drives; what does not hold together is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets import zarr_v2
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.logs import lyft

DTYPES = {
    "scenes": [
        ("frame_index_interval", "<i8", (2,)), ("host", "<U16"), ("start_time", "<i8"),
        ("end_time", "<i8"),
    ],
    "frames": [
        ("timestamp", "<i8"), ("agent_index_interval", "<i8", (2,)),
        ("traffic_light_faces_index_interval", "<i8", (2,)), ("ego_translation", "<f8", (3,)),
        ("ego_rotation", "<f8", (3, 3)),
    ],
    "agents": [
        ("centroid", "<f8", (2,)), ("extent", "<f4", (3,)), ("yaw", "<f4"),
        ("velocity", "<f4", (2,)), ("track_id", "<u8"), ("label_probabilities", "<f4", (17,)),
    ],
    "traffic_light_faces": [
        ("face_id", "<U16"), ("traffic_light_id", "<U16"),
        ("traffic_light_face_status", "<f4", (3,)),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def make_arrays():
    """Two scenes of three frames: a car in each of these, and in the last one a pedestrian."""

    def make():
        arrays = {
            name: np.zeros(count, DTYPES[name])
            for name, count in zip(DTYPES, (2, 6, 8, 2), strict=True)
        }
        scenes, frames, agents, faces = arrays.values()
        scenes["frame_index_interval"] = [[0, 3], [3, 6]]
        scenes["host"], scenes["start_time"] = "host-a101", [5, 6]
        frames["timestamp"] = 10**18 + 10**8 * np.arange(6)
        ends = np.array([1, 2, 4, 5, 6, 8])
        frames["agent_index_interval"] = np.stack([np.r_[0, ends[:-1]], ends], axis=1)
        frames["traffic_light_faces_index_interval"] = [
            [0, 0],
            [0, 1],
            [1, 1],
            [1, 1],
            [1, 2],
            [2, 2],
        ]
        frames["ego_translation"] = np.arange(6)[:, None] * [0, 1, 0] + [100, 200, 50]
        frames["ego_rotation"] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]  # looks to y
        agents["track_id"] = [7, 7, 7, 9, 7, 7, 7, 9]
        agents["centroid"][:, 0] = np.arange(8)
        agents["extent"] = [4, 2, 1.5]
        agents["yaw"], agents["velocity"] = 0.5, [3, 4]
        agents["label_probabilities"][:, 3] = 1
        agents["label_probabilities"][[3, 7]] = np.eye(17)[14]
        faces["face_id"], faces["traffic_light_id"] = "f", "light"
        faces["traffic_light_face_status"] = [1, 0, 0]
        return arrays

    return make


def listed(dtype):
    return [[name, kind, *map(list, shape)] for name, kind, *shape in dtype]


def write(folder, arrays):
    for name, rows in arrays.items():
        (folder / name).mkdir(parents=True)
        header = {
            "zarr_format": 2, "shape": [len(rows)], "chunks": [4], "dtype": listed(DTYPES[name]),
            "compressor": None, "fill_value": None, "order": "C", "filters": None,
        }  # fmt: skip
        (folder / name / ".zarray").write_text(json.dumps(header))
        for index in range(0, len(rows), 4):
            chunk = np.zeros(4, rows.dtype)
            chunk[: len(rows[index : index + 4])] = rows[index : index + 4]
            (folder / name / f"{index // 4}").write_bytes(chunk.tobytes())
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    return folder


def test_scenes_are_drives(tmp_path, make_arrays):
    first, second = lyft.read(write(tmp_path / "train.zarr", make_arrays()))
    assert (first.name, second.name) == ("host-a101/5", "host-a101/6")
    np.testing.assert_array_equal(second.stamps, 10**18 + 10**8 * np.arange(3, 6))
    ego = second.tracks[second.ego]
    np.testing.assert_array_equal(ego.position, [[100, 203, 50], [100, 204, 50], [100, 205, 50]])
    np.testing.assert_allclose(ego.heading, np.pi / 2)
    np.testing.assert_allclose(ego.velocity, [[0, 10]] * 3)
    car = second.tracks["7"]
    assert (car.kind, car.category) == ("vehicle", "car")
    np.testing.assert_array_equal(car.position, [[4, 0, 50], [5, 0, 50], [6, 0, 50]])
    np.testing.assert_array_equal(car.heading, 0.5)
    np.testing.assert_array_equal(car.velocity, [[3, 4]] * 3)
    np.testing.assert_array_equal(car.size, [4, 2, 1.5])
    walker = second.tracks["9"]
    assert walker.kind == "pedestrian"
    np.testing.assert_array_equal(walker.valid, [False, False, True])
    assert np.isnan(walker.position[:2]).all()


def test_faces_of_traffic_lights(tmp_path, make_arrays):
    first, _ = lyft.read(write(tmp_path / "train.zarr", make_arrays()))
    face = first.signals["f"]
    assert face["traffic_light"] == "light"
    np.testing.assert_array_equal(face["status"], [[np.nan] * 3, [1, 0, 0], [np.nan] * 3])


def test_a_folder_of_stores(tmp_path, make_arrays):
    write(tmp_path / "a.zarr", make_arrays())
    write(tmp_path / "b.zarr", make_arrays())
    assert len(list(lyft.read(tmp_path))) == 4
    with pytest.raises(DatasetError, match=r"no .zarr store"):
        list(lyft.read(tmp_path / "a.zarr" / "frames"))


def test_a_scene_of_one_frame(tmp_path, make_arrays):
    arrays = make_arrays()
    arrays["scenes"] = arrays["scenes"][:1]
    arrays["scenes"]["frame_index_interval"] = [0, 1]
    (log,) = lyft.read(write(tmp_path / "a.zarr", arrays))
    assert len(log) == 1
    assert np.isnan(log.tracks["ego"].velocity).all()


def change(name, field, index, value):
    def apply(arrays):
        arrays[name][field][index] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("scenes", "frame_index_interval", 1, [3, 7]), "frames 3 to 7 of 6"),
        (change("scenes", "frame_index_interval", 1, [3, 3]), "frames 3 to 3"),
        (change("scenes", "frame_index_interval", 1, [-1, 3]), "frames -1 to 3"),
        (change("frames", "agent_index_interval", 4, [0, 8]), "overlap"),
        (change("frames", "agent_index_interval", 5, [6, 2**62]), "of 8"),
        (change("frames", "agent_index_interval", 3, [-(2**62), 5]), "backwards"),
        (change("frames", "timestamp", 4, 0), "rise"),
        (change("frames", "ego_rotation", 4, np.nan), "not finite"),
        (change("frames", "ego_translation", 4, np.inf), "not finite"),
        (change("agents", "centroid", 5, np.nan), "not finite"),
        (change("agents", "yaw", 5, np.nan), "not finite"),
        (change("agents", "track_id", 7, 7), "twice"),
    ],
)
def test_a_damaged_scene_leaves_the_others(tmp_path, make_arrays, damage, message):
    arrays = make_arrays()
    damage(arrays)
    faults = []
    (first,) = lyft.read(write(tmp_path / "a.zarr", arrays), on_fault=faults.append)
    assert first.name == "host-a101/5"
    assert message in str(faults[0])
    assert "scene 1" in str(faults[0])


def test_too_many_road_users_are_refused(tmp_path, make_arrays, monkeypatch):
    monkeypatch.setattr("fastloop.datasets.logs.sightings.LIMIT", 5)
    with pytest.raises(DatasetError, match="2 road users over 3 stamps"):
        list(lyft.read(write(tmp_path / "a.zarr", make_arrays())))


def test_other_fields_are_refused(tmp_path, make_arrays):
    folder = write(tmp_path / "a.zarr", make_arrays())
    header = folder / "agents" / ".zarray"
    header.write_text(header.read_text().replace("centroid", "center"))
    with pytest.raises(DatasetError, match="'centroid' of agents is None"):
        list(lyft.read(folder))


@settings(max_examples=50)
@given(data=st.data())
def test_damage_gives_logs_or_faults(tmp_path_factory, make_arrays, data):
    folder = write(tmp_path_factory.mktemp("fuzz") / "a.zarr", make_arrays())
    file = data.draw(st.sampled_from(sorted(f for f in folder.rglob("*") if f.is_file())))
    content = bytearray(file.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    new = data.draw(st.binary(min_size=1, max_size=8))
    cut = data.draw(st.sampled_from([len(new), 0, 9]))
    content[start : start + cut] = new
    file.write_bytes(content)
    list(lyft.read(folder, on_fault=lambda fault: None))


def test_the_recorded_scene(realdata):
    (log,) = lyft.read(realdata / "lyft_l5_zarr")
    store = zarr_v2.open(realdata / "lyft_l5_zarr" / "single_scene.zarr")
    agents = store.array("agents")[:]
    assert len(log) == 248
    np.testing.assert_allclose(np.diff(log.stamps), 1e8, rtol=0.01)
    others = [track for key, track in log.tracks.items() if key != log.ego]
    assert sum(track.valid.sum() for track in others) == len(agents)
    assert len(others) == len(np.unique(agents["track_id"]))
    start, end = store.array("frames")[100]["agent_index_interval"]
    for row in agents[start:end]:
        track = log.tracks[str(row["track_id"])]
        assert track.valid[100]
        np.testing.assert_array_equal(track.position[100, :2], row["centroid"])
    ego = log.tracks[log.ego]
    course = np.arctan2(ego.velocity[:, 1], ego.velocity[:, 0])
    assert np.linalg.norm(ego.velocity, axis=1).min() > 2
    np.testing.assert_allclose(np.cos(ego.heading - course), 1, atol=0.01)
    for key in ("kind", "category"):
        assert {getattr(track, key) for track in others} <= {
            "vehicle", "cyclist", "pedestrian", "other", "car", "unknown"
        }  # fmt: skip
    assert all(face["status"].shape == (248, 3) for face in log.signals.values())
