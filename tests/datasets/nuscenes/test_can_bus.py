"""Messages of the vehicle, as the devkit reads them."""

import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.nuscenes.can_bus import BLACKLIST, MESSAGES, read_can_bus, read_route

POSE = [
    {
        "utime": 1_533_151_603_000_000 + 20_000 * i,
        "pos": [1.0 * i, 2.0, 0.0],
        "vel": [5.0, 0, 0],
        "accel": [0.1, 0.2, 9.8],
        "orientation": [1.0, 0.0, 0.0, 0.0],
        "rotation_rate": [0, 0, 0.1],
    }
    for i in range(4)
]
STEERING = [{"utime": 5 + i, "value": 0.25 * i} for i in range(6)]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "can_bus").mkdir()
    for name, rows in (
        ("pose", POSE),
        ("steeranglefeedback", STEERING),
        ("route", [[0, 1], [2, 3]]),
    ):
        (tmp_path / "can_bus" / f"scene-0061_{name}.json").write_text(json.dumps(rows))
    return tmp_path


def test_messages_are_those_of_the_devkit(root):
    can = pytest.importorskip("nuscenes.can_bus.can_bus_api").NuScenesCanBus(str(root))
    assert set(can.can_blacklist) == BLACKLIST
    assert set(can.can_messages) == set(MESSAGES)
    for message in ("pose", "steeranglefeedback"):
        columns = read_can_bus(root, "scene-0061", message)
        rows = can.get_messages("scene-0061", message)
        assert columns.keys() == rows[0].keys()
        for field, column in columns.items():
            np.testing.assert_array_equal(column, [row[field] for row in rows])
    assert read_can_bus(root, "scene-0061")["utime"].dtype == np.int64
    np.testing.assert_array_equal(read_route(root, "scene-0061"), [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("scene", "message", "words"),
    [
        ("scene-0161", "pose", "scene-0161 has no usable"),
        ("scene-61", "pose", "names no scene"),
        ("../scene-0061", "pose", "names no scene"),
        ("scene-0061\n", "pose", "names no scene"),
        ("scene-0061", "poses", "unknown message 'poses'; have: .*pose"),
        ("scene-0061", "ms_imu", "cannot read .*scene-0061_ms_imu.json.*unpacked"),
    ],
)
def test_what_is_not_there_is_named(root, scene, message, words):
    with pytest.raises(DatasetError, match=words):
        read_can_bus(root, scene, message)


@pytest.mark.parametrize("rows", [[1, 2], [[1, 2, 3]], [[[1, 2]]]])
def test_a_route_of_other_points_is_refused(root, rows):
    (root / "can_bus" / "scene-0061_route.json").write_text(json.dumps(rows))
    with pytest.raises(DatasetError, match=r"route.*expected points \(N, 2\)"):
        read_route(root, "scene-0061")


def test_a_pipe_is_not_waited_for(root):
    os.mkfifo(root / "can_bus" / "scene-0061_ms_imu.json")
    with pytest.raises(DatasetError, match="is no file"):
        read_can_bus(root, "scene-0061", "ms_imu")


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_gives_columns_or_a_fault(root, data):
    content = bytearray(json.dumps(POSE[:2]).encode())
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(len(content), start + 6)))
    content[start:stop] = data.draw(st.binary(max_size=5))
    (root / "can_bus" / "scene-0061_pose.json").write_bytes(content)
    try:
        columns = read_can_bus(root, "scene-0061")
    except DatasetError:
        return
    assert len({len(column) for column in columns.values()}) == 1
