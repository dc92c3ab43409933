"""The ring keeps the last seconds; nothing that goes wrong with it reaches the loop."""

import resource
import threading

import pytest

from fastloop.deploy.bags.reading import read_bag
from fastloop.deploy.clock import VirtualClock
from fastloop.deploy.messages import Messages
from fastloop.deploy.recorder import WAITING, Recorder
from fastloop.deploy.transport.base import Sample

pytest.importorskip("mcap", reason="recordings are written by it (extra ros)")
pytest.importorskip("rosbags", reason="messages are of it (extra ros)")

STRING = "std_msgs/msg/String"


@pytest.fixture(scope="module")
def messages():
    return Messages()


def sample(messages, number, length=8):
    data = messages.encode(messages.type(STRING)("x" * length))
    return Sample("/a", STRING, data, number, number)


def numbers(recorder):
    assert recorder.close(30)
    return [[found.stamp_ns for found in read_bag(file)] for file in recorder.files]


def test_the_last_seconds_are_written(tmp_path, messages):
    clock = VirtualClock()
    recorder = Recorder(tmp_path / "new" / "folder", messages, seconds=5, clock=clock)
    for number in range(20):
        recorder.add(sample(messages, number))
        clock.advance(1)
    assert recorder.save("rung 2: plan is NaN!")
    assert numbers(recorder) == [[14, 15, 16, 17, 18, 19]]
    assert recorder.files[0].name.startswith("2023")
    assert recorder.files[0].name.endswith("-rung-2-plan-is-nan.mcap")
    assert recorder.faults() == []


def test_what_is_kept_is_bounded_in_bytes(tmp_path, messages):
    size = len(sample(messages, 0, 1000).data)
    recorder = Recorder(tmp_path, messages, max_bytes=3 * size + 1, clock=VirtualClock())
    for number in range(1, 11):
        recorder.add(sample(messages, number, 1000))
    recorder.save("a")
    assert numbers(recorder) == [[8, 9, 10]]


def test_a_sample_larger_than_all_is_let_go(tmp_path, messages):
    recorder = Recorder(tmp_path, messages, max_bytes=100, clock=VirtualClock())
    recorder.add(sample(messages, 1, 1000))
    recorder.add(sample(messages, 2))
    recorder.save("a")
    assert numbers(recorder) == [[2]]


def test_trouble_that_lasts_is_one_file(tmp_path, messages):
    clock = VirtualClock()
    recorder = Recorder(tmp_path, messages, seconds=5, clock=clock)
    written = []
    for number in range(12):
        recorder.add(sample(messages, number + 1))
        written.append(recorder.save(f"tick {number}"))
        clock.advance(1)
    assert [number for number, one in enumerate(written) if one] == [0, 5, 10]
    assert numbers(recorder) == [[1], [1, 2, 3, 4, 5, 6], [6, 7, 8, 9, 10, 11]]


def test_there_are_only_so_many_files(tmp_path, messages):
    clock = VirtualClock()
    recorder = Recorder(tmp_path, messages, seconds=1, max_files=2, clock=clock)
    for number in range(4):
        recorder.add(sample(messages, number))
        recorder.save("again")
        clock.advance(2)
    assert len(numbers(recorder)) == 2
    assert recorder.faults() == ["there are 2 recordings already; no more are written (2 times)"]


@pytest.fixture
def full_disk():
    """No file grows beyond 10 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_a_fault_and_leaves_no_file(tmp_path, messages, full_disk):
    clock = VirtualClock()
    recorder = Recorder(tmp_path, messages, seconds=5, clock=clock)
    for number in range(1, 101):
        recorder.add(sample(messages, number, 1000))
    recorder.save("large")
    clock.advance(6)
    recorder.add(sample(messages, 7))
    recorder.save("small")
    assert numbers(recorder) == [[7]]
    (fault,) = recorder.faults()
    assert "the recording of 'large' was not written: OSError" in fault
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_a_fault(tmp_path, messages):
    (tmp_path / "file").touch()
    recorder = Recorder(tmp_path / "file" / "folder", messages)
    recorder.save("a")
    assert numbers(recorder) == []
    assert "was not written: NotADirectoryError" in recorder.faults()[0]


def test_a_type_that_is_not_known_is_left_out(tmp_path, messages):
    recorder = Recorder(tmp_path, messages)
    recorder.add(Sample("/b", "nobody/msg/Knows", b"", None, 1))
    recorder.add(sample(messages, 2))
    recorder.save("a")
    assert numbers(recorder) == [[2]]
    assert "left out of a recording: no message type 'nobody/msg/Knows'" in recorder.faults()[0]


def test_many_threads_may_add(tmp_path, messages):
    recorder = Recorder(tmp_path, messages)
    one = sample(messages, 1)
    threads = [
        threading.Thread(target=lambda: [recorder.add(one) for _ in range(500)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.save("a")
    assert numbers(recorder) == [[1] * 2000]


def test_a_stamp_before_1970_costs_nothing(tmp_path, messages):
    recorder = Recorder(tmp_path, messages)
    odd = sample(messages, 1)
    recorder.add(Sample(odd.topic, odd.type, odd.data, -5_000_000_000, odd.received_ns))
    recorder.add(sample(messages, 2))
    recorder.save("a")
    assert numbers(recorder) == [[None, 2]]
    assert recorder.faults() == []


def test_a_disk_that_hangs_does_not_fill_the_memory(tmp_path, messages, monkeypatch):
    clock, go = VirtualClock(), threading.Event()
    recorder = Recorder(tmp_path, messages, seconds=1, clock=clock)
    monkeypatch.setattr(recorder, "_write", lambda *work: go.wait(30))
    taken = []
    for _ in range(20):
        taken.append(recorder.save("again"))
        clock.advance(2)
    go.set()
    assert 0 < sum(taken) <= WAITING + 1
