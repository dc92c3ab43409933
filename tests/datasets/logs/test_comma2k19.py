"""comma2k19: poses turn into a track in east-north-up axes, signals keep their own stamps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.logs import comma2k19

# On the equator at longitude 0, east is y, north z and up x of ECEF.
ORIGIN = np.array([6378137.0, 0, 0])
EAST = (0.5, 0.5, 0.5, 0.5)  # turns forward to y, right to -z, down to -x


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.save(file, np.asarray(values), allow_pickle=True)


def quaternion(forward, right, down):
    """Of the rotation with these columns, w first."""
    matrix = np.stack([forward, right, down], axis=1)
    w = np.sqrt(1 + np.trace(matrix)) / 2
    odd = [matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]
    return [w, *(np.array(odd) / (4 * w))]


@pytest.fixture(scope="module")
def make_segment():
    def make(folder, steps=5, speed=10.0):
        segment = folder / "b0c9d2329ad1606b_2018-08-02--08-34-47" / "3"
        times = 100 + np.arange(steps) / 20
        # Heading 30 degrees from east to north.
        east, north, up = np.eye(3)[[1, 2, 0]]
        forward = np.cos(np.pi / 6) * east + np.sin(np.pi / 6) * north
        right = np.sin(np.pi / 6) * east - np.cos(np.pi / 6) * north
        turn = quaternion(forward, right, -up)
        poses = segment / "global_pose"
        save(poses / "frame_times", times)
        save(poses / "frame_gps_times", np.stack([np.full(steps, 2012), times], axis=1))
        save(poses / "frame_positions", ORIGIN + np.outer(times - 100, speed * forward))
        save(poses / "frame_velocities", np.tile(speed * forward, (steps, 1)))
        save(poses / "frame_orientations", np.tile(turn, (steps, 1)))
        log = segment / "processed_log"
        bus = 100 + np.arange(9) / 80
        save(log / "CAN" / "speed" / "t", bus)
        save(log / "CAN" / "speed" / "value", np.full((9, 1), speed))
        save(log / "CAN" / "steering_angle" / "t", bus)
        save(log / "CAN" / "steering_angle" / "value", np.full(9, 90.0))
        save(log / "CAN" / "radar" / "t", bus[:1])
        save(log / "CAN" / "radar" / "value", [[50, -2, 1, np.nan, np.nan, 528, 1]])
        save(log / "IMU" / "magnetometer" / "t", bus[:2])
        save(log / "IMU" / "magnetometer" / "value", np.full((2, 3), 40.0))
        return segment

    return make


def test_the_ego_track(tmp_path, make_segment):
    make_segment(tmp_path)
    (log,) = comma2k19.read(tmp_path)
    assert log.name == "b0c9d2329ad1606b_2018-08-02--08-34-47/3"
    np.testing.assert_array_equal(log.stamps, 100_000_000_000 + 50_000_000 * np.arange(5))
    ego = log.tracks[log.ego]
    direction = np.array([np.cos(np.pi / 6), np.sin(np.pi / 6)])
    np.testing.assert_allclose(ego.heading, np.pi / 6, atol=1e-9)
    np.testing.assert_allclose(ego.velocity, np.tile(10 * direction, (5, 1)), atol=1e-9)
    np.testing.assert_allclose(ego.position[-1], [*2 * direction, 0], atol=1e-9)
    assert ego.category == "Toyota RAV4"
    assert log.metadata["ecef_origin"] == ORIGIN.tolist()
    assert (log.metadata["latitude"], log.metadata["longitude"]) == (0, 0)
    assert log.metadata["gps_week"] == 2012


def test_signals_are_si_with_their_own_stamps(tmp_path, make_segment):
    (log,) = comma2k19.read(make_segment(tmp_path))
    assert log.signals.keys() == {"speed", "steering_angle", "radar", "magnetic_field"}
    speed = log.signals["speed"]
    assert speed["values"].shape == (9,)
    np.testing.assert_array_equal(np.diff(speed["stamps"]), 12_500_000)
    np.testing.assert_allclose(log.signals["steering_angle"]["values"], np.pi / 2)
    np.testing.assert_allclose(log.signals["magnetic_field"]["values"], 40e-6)
    radar = log.signals["radar"]
    assert radar["columns"] == ["forward", "left", "relative_speed", "address", "new_track"]
    np.testing.assert_array_equal(radar["values"], [[50, -2, 1, 528, 1]])


def test_any_folder_above_is_searched(tmp_path, make_segment):
    segment = make_segment(tmp_path / "Chunk_1")
    segment.rename(segment.with_name("10"))
    make_segment(tmp_path / "Chunk_1")
    assert [log.name[-3:] for log in comma2k19.read(tmp_path)] == ["7/3", "/10"]
    with pytest.raises(DatasetError, match="no segment"):
        list(comma2k19.read(tmp_path / "Chunk_1" / "none"))


def test_a_damaged_signal_leaves_the_drive(tmp_path, make_segment):
    segment = make_segment(tmp_path)
    (segment / "processed_log" / "CAN" / "speed" / "value").unlink()
    faults = []
    (log,) = comma2k19.read(segment, on_fault=faults.append)
    assert "speed" not in log.signals
    assert "steering_angle" in log.signals
    assert "speed/value is missing" in str(faults[0])


def test_latitude_and_axes_follow_the_ellipsoid():
    # https://en.wikipedia.org/wiki/Geographic_coordinate_conversion, backwards from 40 N 30 E.
    latitude, longitude = np.radians(40), np.radians(30)
    a, e2 = 6378137.0, 0.00669437999014
    n = a / np.sqrt(1 - e2 * np.sin(latitude) ** 2)
    up = np.array(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
        ]
    )
    ecef = (n + 500) * up - [0, 0, e2 * n * np.sin(latitude)]
    np.testing.assert_allclose(comma2k19._geodetic(ecef), [latitude, longitude], atol=1e-11)
    axes = comma2k19._enu_axes(latitude, longitude)
    np.testing.assert_allclose(axes[2], up)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.cross(axes[0], axes[1]), axes[2])


BAD = {
    "missing": (None, "is missing"),
    "objects": (np.array([None] * 5, object), "expected numbers"),
    "text": (np.array(["a"] * 5), "expected numbers"),
    "short": (np.zeros((4, 3)), r"shape \(4, 3\); expected \(5, 3\)"),
    "center": (np.zeros((5, 3)), "not on the earth"),
    "nan": (np.full((5, 3), np.nan), "not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_positions_that_are_refused(tmp_path, make_segment, name):
    values, message = BAD[name]
    segment = make_segment(tmp_path)
    path = segment / "global_pose" / "frame_positions"
    path.unlink()
    if values is not None:
        save(path, values)
    with pytest.raises(DatasetError, match=message):
        list(comma2k19.read(segment))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("frame_times", np.zeros(5), "rising"),
        ("frame_times", np.full(5, 1e300), "expected seconds"),
        ("frame_orientations", np.zeros((5, 4)), "quaternions of length 1"),
    ],
)
def test_poses_that_are_refused(tmp_path, make_segment, file, values, message):
    segment = make_segment(tmp_path)
    save(segment / "global_pose" / file, values)
    with pytest.raises(DatasetError, match=message):
        list(comma2k19.read(segment))


@pytest.mark.parametrize("shape", ["(10**12,)", "(1000000000000,)", "(-1, -120)", "(-120,)"])
def test_shapes_that_the_file_does_not_hold(tmp_path, make_segment, shape):
    segment = make_segment(tmp_path)
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (117 - len(header)) + b"\n"
    raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(960)
    (segment / "global_pose" / "frame_positions").write_bytes(raw)
    with pytest.raises(DatasetError, match="frame_positions"):
        list(comma2k19.read(segment))


@settings(max_examples=50)
@given(data=st.data())
def test_damage_gives_a_log_or_a_fault(tmp_path_factory, make_segment, data):
    segment = make_segment(tmp_path_factory.mktemp("fuzz"))
    files = sorted(path for path in segment.rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start, min(len(content), start + 30)))
    content[start:end] = data.draw(st.binary(max_size=8))
    file.write_bytes(content)
    list(comma2k19.read(segment, on_fault=lambda fault: None))


def test_the_recorded_segment_agrees_with_its_own_bus(realdata):
    (log,) = comma2k19.read(realdata / "comma2k19")
    ego, seconds = log.tracks["ego"], log.stamps / 1e9
    assert len(log) == 1200
    np.testing.assert_allclose(np.diff(seconds).mean(), 0.05, rtol=1e-3)
    bus = log.signals["speed"]
    driven = np.interp(seconds, bus["stamps"] / 1e9, bus["values"])
    speed = np.linalg.norm(ego.velocity, axis=1)
    np.testing.assert_allclose(np.median(speed / driven), 1, atol=0.02)
    np.testing.assert_allclose(speed, driven, rtol=0.04)
    length = np.linalg.norm(np.diff(ego.position, axis=0), axis=1).sum()
    assert length == pytest.approx(np.trapezoid(driven, seconds) if hasattr(np, "trapezoid")
                                   else np.trapz(driven, seconds), rel=0.02)  # fmt: skip
    along = ego.velocity[:, 0] * np.cos(ego.heading) + ego.velocity[:, 1] * np.sin(ego.heading)
    np.testing.assert_allclose(along / speed, 1, atol=0.01)
    # The wheel and the gyroscope (z down) turn to the side to which the heading turns.
    turning = np.gradient(np.unwrap(ego.heading), seconds)
    for name, column, sign in (("steering_angle", None, 1), ("angular_velocity", 2, -1)):
        values = log.signals[name]["values"]
        values = values if column is None else values[:, column]
        beside = np.interp(seconds, log.signals[name]["stamps"] / 1e9, values)
        assert sign * np.corrcoef(turning, beside)[0, 1] > 0.5
    # The receiver says where it was, to some meters.
    first = log.signals["gnss_ublox"]["values"][0]
    np.testing.assert_allclose(np.degrees(log.metadata["latitude"]), first[0], atol=1e-4)
    np.testing.assert_allclose(np.degrees(log.metadata["longitude"]), first[1], atol=1e-4)
