"""Drives become bags, and bags are published again: at their pace, as if they were of now."""

import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict

import numpy as np
import pytest

from fastloop.datasets.errors import DatasetError
from fastloop.deploy.bags.from_drive import (
    CAMERA,
    CLOCK,
    ODOMETRY,
    ROUTE,
    bag_of,
    bag_of_drive,
    generated_drive,
)
from fastloop.deploy.bags.reading import read_bag
from fastloop.deploy.bags.replaying import replay
from fastloop.deploy.clock import VirtualClock
from fastloop.deploy.conversions.image import Picture
from fastloop.deploy.conversions.odometry import vehicle_state
from fastloop.deploy.messages import Messages
from fastloop.deploy.transport.base import LATCHED, QoS
from fastloop.deploy.transport.loopback import Bus, LoopbackTransport
from fastloop.deploy.transport.zenoh import ZenohConfig, ZenohTransport

pytest.importorskip("mcap", reason="bags are of it (extra ros)")
pytest.importorskip("rosbags", reason="messages are of it (extra ros)")
pytest.importorskip("PIL", reason="pictures are of it (extra ros)")

IMAGE, ODOM = "sensor_msgs/msg/CompressedImage", "nav_msgs/msg/Odometry"
PATIENCE_S = 60


@pytest.fixture(scope="module")
def messages():
    return Messages()


@pytest.fixture(scope="module")
def bag(tmp_path_factory, messages):
    path = tmp_path_factory.mktemp("bags") / "drive.mcap"
    bag_of_drive(path, messages, seconds=2.0)
    return path


def by_topic(path):
    found = defaultdict(list)
    for sample in read_bag(path):
        found[sample.topic].append(sample)
    return found


def test_a_generated_drive(bag, messages):
    found = by_topic(bag)
    assert {topic: len(samples) for topic, samples in found.items()} == {
        ODOMETRY: 41, CLOCK: 41, CAMERA: 41, ROUTE: 1,
    }  # fmt: skip
    states = [
        vehicle_state(messages.decode(ODOM, sample.data), time=sample.stamp_ns / 1e9)
        for sample in found[ODOMETRY]
    ]
    # It goes where it looks, as fast as it says.
    places = np.array([state.point[:2] for state in states])
    steps = np.hypot(*np.diff(places, axis=0).T)
    np.testing.assert_allclose(steps * 20, [state.point[3] for state in states[1:]], rtol=0.02)
    headings = np.array([state.point[2] for state in states])
    rates = np.array([state.rate[0] for state in states])
    np.testing.assert_allclose(np.diff(headings) * 20, rates[1:], atol=0.02)
    route = messages.decode("nav_msgs/msg/Path", found[ROUTE][0].data)
    assert [pose.pose.position.x for pose in route.poses] == places[:, 0].tolist()
    assert Picture()(messages.decode(IMAGE, found[CAMERA][0].data)).shape == (3, 240, 320)


def test_a_bend_to_the_left_is_seen_on_the_left():
    log, pictures = generated_drive(5.0)
    rates = np.gradient(np.unwrap(log.tracks["ego"].heading), 0.05)
    seen = dict(pictures)
    strongest = int(np.argmax(rates))
    far = seen[int(log.stamps[strongest])][125]  # just below the horizon
    road = np.flatnonzero(far[:, 1] < 85)
    assert rates[strongest] > 0.05
    assert road.mean() < 150  # of 320


def test_a_drive_of_comma2k19(realdata, tmp_path, messages):
    drive = realdata / "comma2k19" / "Example_1"
    count = bag_of_drive(tmp_path / "bag.mcap", messages, drive, seconds=10.0)
    found = by_topic(tmp_path / "bag.mcap")
    assert set(found) == {ODOMETRY, CLOCK, ROUTE}  # its camera is not there
    assert count == sum(map(len, found.values()))
    assert len(found[ODOMETRY]) == pytest.approx(200, abs=3)
    gaps = np.diff([sample.received_ns for sample in found[ODOMETRY]]) / 1e9
    assert 0 < gaps.std() < 0.02  # the jitter of a real clock
    state = vehicle_state(messages.decode(ODOM, found[ODOMETRY][100].data), time=0.0)
    speed = np.load(next(drive.rglob("CAN/speed/value")).open("rb"))
    assert speed.min() - 1 < state.point[3] < speed.max() + 1


def test_the_camera_of_comma2k19(realdata, tmp_path, messages):
    av = pytest.importorskip("av", reason="video is of it (extra data)")
    source = next((realdata / "comma2k19").rglob("global_pose")).parent
    segment = tmp_path / "route" / "40"
    segment.mkdir(parents=True)
    (segment / "global_pose").symlink_to(source / "global_pose")
    with av.open(str(segment / "video.hevc"), "w", format="hevc") as out:
        stream = out.add_stream("libx265", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(10):
            pixels = np.full((48, 64, 3), 20 * shade, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    bag_of_drive(tmp_path / "bag.mcap", messages, segment, seconds=1.0)
    found = by_topic(tmp_path / "bag.mcap")
    shades = [Picture()(messages.decode(IMAGE, s.data)).mean() * 255 for s in found[CAMERA]]
    np.testing.assert_allclose(shades, np.arange(10) * 20, atol=4)
    assert [s.stamp_ns for s in found[CAMERA]] == [s.stamp_ns for s in found[ODOMETRY][:10]]


def test_what_is_no_drive_says_so(tmp_path, messages):
    with pytest.raises(DatasetError):
        bag_of_drive(tmp_path / "bag.mcap", messages, tmp_path / "nothing")
    log, _ = generated_drive(1.0)
    log.tracks["ego"].valid[1:] = False
    with pytest.raises(ValueError, match="where its ego was"):
        bag_of(log, [], tmp_path / "bag.mcap", messages)
    assert list(tmp_path.iterdir()) == []


def heard(bag, messages, **told):
    """What a replay in virtual time brings: (seconds since its begin, its sample)."""
    clock = VirtualClock()
    bus = Bus(clock)
    here = LoopbackTransport(messages, bus)
    got = []
    for topic, kind in ((ODOMETRY, ODOM), (CAMERA, IMAGE)):
        here.subscribe(topic, kind, lambda sample: got.append((clock.now(), sample)))
    count = replay(bag, LoopbackTransport(messages, bus), messages, clock, **told)
    return count, got, clock


def test_in_virtual_time_it_keeps_its_pace(bag, messages):
    count, got, clock = heard(bag, messages)
    assert (count, len(got), clock.now()) == (124, 82, pytest.approx(2.0))
    for now, sample in got:
        assert sample.stamp_ns == sample.received_ns == clock.wall_ns() - round((2.0 - now) * 1e9)
        assert messages.stamp(sample.type, sample.data) == sample.stamp_ns


def test_faster_and_of_then(bag, messages):
    _, got, clock = heard(bag, messages, speed=4.0, restamp=False, topics=[ODOMETRY])
    assert clock.now() == pytest.approx(0.5)
    then = [sample.stamp_ns for sample in by_topic(bag)[ODOMETRY]]
    assert [sample.stamp_ns for _, sample in got] == then
    with pytest.raises(ValueError, match="above 0"):
        heard(bag, messages, speed=0)


def test_it_can_be_stopped(bag, messages):
    left = iter([False] * 50 + [True] * 1000)
    count, _, clock = heard(bag, messages, stop=lambda: next(left))
    assert 10 < count < 50
    assert clock.now() < 1.0


def test_who_comes_late_gets_the_route(bag, messages):
    clock = VirtualClock()
    bus = Bus(clock)
    replay(bag, LoopbackTransport(messages, bus), messages, clock, latched=[ROUTE])
    got = []
    LoopbackTransport(messages, bus).subscribe(ROUTE, "nav_msgs/msg/Path", got.append, LATCHED)
    assert len(got) == 1


def listening(messages):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return ZenohTransport(
        messages, ZenohConfig(node="/here", listen=(f"tcp/127.0.0.1:{port}",), connect=())
    )


def test_as_a_process(bag, messages):
    here = listening(messages)
    got, ages = Counter(), []

    def add(sample):
        got[sample.topic] += 1
        ages.append((sample.received_ns - sample.stamp_ns) / 1e9)

    many = QoS(depth=1000)
    here.subscribe(ODOMETRY, ODOM, add, many)
    here.subscribe(CAMERA, IMAGE, add, many)
    here.subscribe(ROUTE, "nav_msgs/msg/Path", add, LATCHED)
    module = [sys.executable, "-m", "fastloop.deploy.bags.replaying", str(bag)]
    with subprocess.Popen([*module, here.config.listen[0]]) as process:
        assert process.wait(PATIENCE_S) == 0
    end = time.monotonic() + PATIENCE_S
    while not got[ROUTE] and time.monotonic() < end:
        time.sleep(0.05)
    here.close()
    assert got[ROUTE] == 1
    assert got[ODOMETRY] > 20
    assert got[CAMERA] > 10
    assert max(ages) < PATIENCE_S  # of now, not of then


def test_the_process_ends_when_it_is_told(bag, messages):
    here = listening(messages)
    got = []
    here.subscribe(CLOCK, "rosgraph_msgs/msg/Clock", got.append)
    module = [sys.executable, "-m", "fastloop.deploy.bags.replaying", str(bag)]
    with subprocess.Popen([*module, here.config.listen[0], "0.01"]) as process:
        end = time.monotonic() + PATIENCE_S
        while not here.connected and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    here.close()
