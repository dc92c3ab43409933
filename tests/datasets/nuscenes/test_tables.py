"""Tables as columns: equality with nuscenes-devkit, and what is refused."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.nuscenes.scenes import NuScenes
from fastloop.datasets.nuscenes.splits import SPLITS, scene_names
from fastloop.datasets.nuscenes.tables import NAMES, read_tables


def test_keyframes_are_those_of_the_devkit(both, devkit):
    from nuscenes.eval.common.utils import quaternion_yaw
    from pyquaternion import Quaternion

    data = NuScenes(both, "v1.0-mini")
    tables = data.tables
    assert [scene.token for scene in tables.scenes] == [row["token"] for row in devkit.scene]
    assert sorted(tables.tokens) == sorted(row["token"] for row in devkit.sample)
    assert len(tables.boxes.tokens) == len(devkit.sample_annotation)
    for scene, row in zip(tables.scenes, devkit.scene, strict=True):
        assert tables.tokens[scene.first] == row["first_sample_token"]
        assert tables.tokens[scene.last - 1] == row["last_sample_token"]
        assert scene.location == devkit.get("log", row["log_token"])["location"]
    for k in range(0, len(data), 7):
        sample = devkit.get("sample", tables.tokens[k])
        assert tables.stamps_us[k] == sample["timestamp"]
        assert tables.scenes[tables.scene[k]].token == sample["scene_token"]
        sweep = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
        ego = devkit.get("ego_pose", sweep["ego_pose_token"])
        mount = devkit.get("calibrated_sensor", sweep["calibrated_sensor_token"])
        expected = [
            _matrix(Quaternion(pose["rotation"]), pose["translation"]) for pose in (ego, mount)
        ]
        np.testing.assert_allclose(tables.ego_pose[k], expected[0], atol=1e-9)
        np.testing.assert_allclose(tables.lidar_pose[k], expected[0] @ expected[1], atol=1e-9)
        boxes = data.boxes(k)
        assert set(boxes.tokens) == set(sample["anns"])
        for i in range(0, len(boxes), 5):
            row = devkit.get("sample_annotation", boxes.tokens[i])
            assert boxes.category[i] == row["category_name"]
            assert boxes.instance[i] == row["instance_token"]
            assert boxes.visibility[i] == int(row["visibility_token"])
            assert boxes.lidar_points[i] == row["num_lidar_pts"]
            np.testing.assert_array_equal(boxes.center[i], row["translation"])
            np.testing.assert_array_equal(boxes.size[i], np.array(row["size"])[[1, 0, 2]])
            assert boxes.yaw[i] == pytest.approx(quaternion_yaw(Quaternion(row["rotation"])))
            following = tables.boxes.following[tables.boxes.starts[k] + i]
            token = tables.boxes.tokens[following] if following >= 0 else ""
            assert token == row["next"]


def _matrix(rotation, translation):
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.rotation_matrix, translation
    return pose


def test_cameras_are_those_of_the_devkit(invented):
    pytest.importorskip("nuscenes")
    from nuscenes import NuScenes as Devkit
    from pyquaternion import Quaternion

    devkit, data = (
        Devkit("v1.0-mini", str(invented), verbose=False),
        NuScenes(invented, "v1.0-mini"),
    )
    sample = devkit.get("sample", data.tables.tokens[20])
    cameras = data.cameras(20)
    assert {"LIDAR_TOP", *cameras} == set(sample["data"])
    for channel, camera in cameras.items():
        row = devkit.get("sample_data", sample["data"][channel])
        mount = devkit.get("calibrated_sensor", row["calibrated_sensor_token"])
        assert (camera.path, camera.height, camera.width) == (row["filename"], 900, 1600)
        np.testing.assert_array_equal(camera.intrinsic, mount["camera_intrinsic"])
        expected = _matrix(Quaternion(mount["rotation"]), mount["translation"])
        np.testing.assert_allclose(camera.extrinsic, expected, atol=1e-9)


def test_a_split_holds_its_scenes_alone(write_root, tmp_path):
    root = write_root(tmp_path, names=["scene-0061", "scene-0103", "scene-0553"])
    whole, part = (read_tables(root, "v1.0-mini", split) for split in (None, "mini_train"))
    assert [scene.name for scene in part.scenes] == ["scene-0061", "scene-0553"]
    assert part.absent[:2] == ["scene-0655", "scene-0757"]
    assert part.tokens == [
        token
        for token, k in zip(whole.tokens, whole.scene, strict=True)
        if whole.scenes[k].name != "scene-0103"
    ]
    kept = whole.scene[whole.boxes.sample] != 1
    assert part.boxes.tokens == [t for t, k in zip(whole.boxes.tokens, kept, strict=True) if k]
    np.testing.assert_array_equal(part.boxes.center, whole.boxes.center[kept])
    with pytest.raises(DatasetError, match="no scene of test"):
        read_tables(root, "v1.0-mini", "test")
    with pytest.raises(DatasetError, match=r"unknown split 'vall'.*val"):
        read_tables(root, "v1.0-mini", "vall")


def test_splits_are_the_official_ones():
    official = pytest.importorskip("nuscenes.utils.splits").create_splits_scenes()
    assert {split: scene_names(split) for split in SPLITS} == {
        split: set(official[split]) for split in SPLITS
    }


def test_all_missing_tables_are_named(write_root, tmp_path):
    root = write_root(tmp_path)
    (root / "v1.0-mini" / "log.json").unlink()
    (root / "v1.0-mini" / "visibility.json").unlink()
    with pytest.raises(DatasetError, match=r"lacks log\.json, visibility\.json"):
        read_tables(root, "v1.0-mini")
    with pytest.raises(DatasetError, match=", ".join(f"{name}.json" for name in NAMES)):
        read_tables(root, "v1.0-trainval")


class Files(dict):
    """Contents of files by name, not printed when a test fails."""

    def __repr__(self):
        return f"files {', '.join(self)}"


@pytest.fixture(scope="module")
def small(write_root, tmp_path_factory):
    """The bytes of each table of a root of two short drives."""
    root = write_root(tmp_path_factory.mktemp("small"), scenes=2, lengths=[4, 3], boxes=4)
    return Files({path.stem: path.read_bytes() for path in (root / "v1.0-mini").glob("*.json")})


@pytest.fixture
def damaged(small, tmp_path):
    """Write those tables, one of them changed row by row, and read the root."""

    def read(name, change):
        (tmp_path / "v1.0-mini").mkdir(exist_ok=True)
        for table, content in small.items():
            (tmp_path / "v1.0-mini" / f"{table}.json").write_bytes(content)
        rows = json.loads(small[name])
        change(rows)
        (tmp_path / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
        return read_tables(tmp_path, "v1.0-mini")

    return read


def put(row, **fields):
    return lambda rows: rows[row].update(fields)


def linked_to_itself(rows):
    rows[1]["next"] = rows[0]["token"]


DAMAGE = {
    "a sample twice": ("sample", lambda rows: rows.append(rows[2]), "row 7, token .* another row"),
    "a circle of samples": ("sample", linked_to_itself, "scene.json, row 0, .* comes back to"),
    "a sample that is nowhere": ("sample", put(1, next="x"), "scene.json, row 0, .* leads to 'x'"),
    "a chain that ends early": ("sample", put(1, next=""), "has 2 and ends"),
    "a way back that differs": ("sample", put(2, prev="x"), "sample.json, row 2, .* not follow"),
    "time that stands still": ("sample", put(2, timestamp=5), "sample.json, row 2, .* not later"),
    "a stamp beyond 64 bits": ("sample", put(3, timestamp=2**70), "row 3, .* beyond 64 bits"),
    "no such scene": ("sample", put(0, scene_token="x"), "row 0, .* scene.json lacks"),
    "no such log": ("scene", put(1, log_token="x"), "scene.json, row 1, .* log.json lacks"),
    "a wrong count": ("scene", put(1, nbr_samples=9), "scene.json, row 1, .* says 9"),
    "a pose that is no number": (
        "ego_pose",
        put(3, translation=[0, float("nan"), 0]),
        "ego_pose.json, row 3, token .* translation holds .* not finite",
    ),
    "an infinite turn": (
        "ego_pose",
        put(2, rotation=[float("inf"), 0, 0, 0]),
        "ego_pose.json, row 2, .* rotation holds .* not finite",
    ),
    "a quaternion of length 2": (
        "ego_pose", put(1, rotation=[2, 0, 0, 0]), "ego_pose.json, row 1, .* no unit quaternion",
    ),
    "a quaternion of length 0": (
        "calibrated_sensor", put(0, rotation=[0] * 4), "calibrated_sensor.json, row 0, .* no unit",
    ),
    "no such pose": ("sample_data", put(4, ego_pose_token="x"), "row 4, .* ego_pose.json lacks"),
    "data of no sample": ("sample_data", put(4, sample_token="x"), "sample_data.json, row 4, "),
    "no such calibration": (
        "sample_data", put(4, calibrated_sensor_token="x"), "sample_data.json, row 4, .*'x'",
    ),
    "no lidar": ("sample_data", put(4, is_key_frame=False), "has no LIDAR_TOP keyframe"),
    "no intrinsics": (
        "calibrated_sensor", put(0, camera_intrinsic=[[1, 2]]), "row 0, .* neither empty nor 3 x 3",
    ),
    "a box of no sample": ("sample_annotation", put(2, sample_token="x"), "row 2, .*'x'"),
    "a box of no instance": (
        "sample_annotation", put(2, instance_token="x"), "row 2, .* instance.json lacks",
    ),
    "a box that follows itself": (
        "sample_annotation",
        lambda rows: rows[1].update(next=rows[1]["token"], prev=rows[1]["token"]),
        "sample_annotation.json, row",
    ),
    "a next box that is nowhere": (
        "sample_annotation", put(0, next="x"), "row 0, .* next is 'x'",
    ),
    "a next box that does not link back": (
        "sample_annotation", put(1, prev=""), "sample_annotation.json, row 0, .* linked back",
    ),
    "a flat box": ("sample_annotation", put(1, size=[1, 0, 1]), "row 1, .* size is not positive"),
    "a new level of visibility": ("visibility", put(0, token="9"), "visibility.json, row 0"),
    "no such category": ("instance", put(0, category_token="x"), "instance.json, row 0, .*'x'"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(damaged, case):
    name, change, words = DAMAGE[case]
    with pytest.raises(DatasetError, match=words):
        damaged(name, change)


def test_boxes_may_lack_a_visibility(damaged):
    tables = damaged("sample_annotation", put(0, visibility_token=""))
    assert np.count_nonzero(tables.boxes.visibility == 0) == 1


def test_a_release_without_annotations_is_read(damaged, small, tmp_path):
    tables = damaged("sample_annotation", list.clear)
    assert len(tables.tokens) == 7
    assert not tables.boxes.starts.any()


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_gives_tables_or_a_fault(small, tmp_path, data):
    (tmp_path / "v1.0-mini").mkdir(exist_ok=True)
    for name, content in small.items():
        (tmp_path / "v1.0-mini" / f"{name}.json").write_bytes(content)
    name = data.draw(st.sampled_from(sorted(small)))
    content = bytearray(small[name])
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(len(content), start + 4)))
    content[start:stop] = data.draw(st.one_of(st.binary(max_size=4), st.sampled_from([b"9", b"-"])))
    (tmp_path / "v1.0-mini" / f"{name}.json").write_bytes(content)
    try:
        tables = read_tables(tmp_path, "v1.0-mini")
    except DatasetError:
        return
    assert len(tables.ego_pose) == len(tables.tokens)
    assert np.isfinite(tables.lidar_pose).all()
