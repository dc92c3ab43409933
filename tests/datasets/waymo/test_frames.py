import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets import tfrecord
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.waymo import frames, wire


def read_one(wod, path, message):
    wod.write(path, message)
    return frames.read(path, 0)


def test_a_frame_is_what_was_written(wod, tmp_path):
    frame = read_one(wod, tmp_path / "f", wod.message(f"{wod.SEQUENCE}-040", speed=8))
    assert (frame.sequence, frame.index, frame.intent) == (wod.SEQUENCE, 40, 1)
    assert frame.past.shape == (16, 6)
    assert frame.past.dtype == np.float64
    np.testing.assert_array_equal(frame.past[-1], [0, 0, 8, 0, 0, 0])
    np.testing.assert_array_equal(frame.past[0], [-30, 0, 8, 0, 0, 0])
    np.testing.assert_array_equal(frame.future[:, :2], wod.straight(8))
    assert frame.future.shape == (20, 3)
    assert [len(rater) for rater in frame.raters] == [21, 21, 21]
    np.testing.assert_array_equal(frame.scores, [9, 4, 1])
    assert frame.speed == 8
    assert not frame.cameras


def test_speed_is_of_both_axes(wod, tmp_path):
    message = wod.message()
    message.past_states.vel_x[-1], message.past_states.vel_y[-1] = 3, 4
    assert read_one(wod, tmp_path / "f", message).speed == 5


def test_the_name_is_split_at_the_last_hyphen(wod, tmp_path):
    frame = read_one(wod, tmp_path / "f", wod.message("a-b-007"))
    assert (frame.sequence, frame.index) == ("a-b", 7)


@pytest.mark.parametrize("name", ["", "a", "a-", "-7", "a-x", "a-1" + "0" * 9, "a-\u0661"])
def test_other_names_are_faults(wod, tmp_path, name):
    with pytest.raises(DatasetError, match=r"f at byte 0: .*expected <sequence>-<number>"):
        read_one(wod, tmp_path / "f", wod.message(name))


def test_nobody_rated(wod, tmp_path):
    """No list (training), placeholders of -1 (most of val), and no score at all."""
    unscored = wod.message()
    for states in unscored.preference_trajectories:
        states.ClearField("preference_score")
    cases = [wod.message(ratings=()), wod.message(ratings=[(-1, 0.0)] * 3), unscored]
    for message in cases:
        frame = read_one(wod, tmp_path / "f", message)
        assert frame.raters == ()
        assert frame.scores is None


def test_a_withheld_future_is_none_and_one_without_heights_is_flat(wod, tmp_path):
    assert read_one(wod, tmp_path / "f", wod.message(future=False)).future is None
    message = wod.message()
    del message.future_states.pos_z[:]
    assert read_one(wod, tmp_path / "f", message).future.shape == (20, 2)


def damages():
    def cut(channel, states="past_states"):
        def damage(message):
            del getattr(getattr(message, states), channel)[-1:]

        return damage

    def nan(message):
        message.past_states.accel_y[3] = math.nan

    def infinite(message):
        message.preference_trajectories[1].pos_x[0] = math.inf

    def score(value):
        def damage(message):
            message.preference_trajectories[2].preference_score = value

        return damage

    def no_points(message):
        message.preference_trajectories[0].ClearField("pos_x")
        message.preference_trajectories[0].ClearField("pos_y")

    return [
        (cut("vel_x"), "past_states have 15 of vel_x, expected 16"),
        (cut("pos_y", "future_states"), "future_states have 19 of pos_y, expected 20"),
        (lambda m: m.past_states.ClearField("accel_x"), "past_states have 0 of accel_x"),
        (lambda m: m.future_states.ClearField("pos_x"), "future_states have 0 of pos_x"),
        (nan, "past_states have a accel_y that is not finite"),
        (infinite, "preference_trajectories have a pos_x that is not finite"),
        (score(-1), "expected 0 to 10"),
        (score(math.nan), "expected 0 to 10"),
        (no_points, "without points"),
    ]


@pytest.mark.parametrize(("damage", "told"), damages())
def test_short_states_and_numbers_that_are_not_finite_are_faults(wod, tmp_path, damage, told):
    message = wod.message()
    damage(message)
    with pytest.raises(
        DatasetError, match=rf"f at byte 0 \({message.frame.context.name}\): .*{told}"
    ):
        read_one(wod, tmp_path / "f", message)


def test_pictures_and_calibrations_are_matched_by_name(wod, tmp_path):
    pytest.importorskip("PIL")
    pictures = {3: wod.jpeg(seed=3), 1: wod.jpeg(seed=1), 7: wod.jpeg(seed=7)}
    frame = read_one(wod, tmp_path / "f", wod.message(images=list(pictures.items())))
    assert list(frame.cameras) == ["front_right", "front", "back"]
    for number, picture in pictures.items():
        camera = frame.cameras[frames.CAMERAS[number]]
        assert camera.jpeg() == picture
        assert camera.calibration.intrinsic[0] == 100 + number
        np.testing.assert_array_equal(camera.calibration.extrinsic, np.eye(4))
        assert camera.size() == (32, 24)
        assert camera.pixels().shape == (32, 24, 3)


def test_a_frame_with_pictures_goes_to_another_process(wod, tmp_path):
    frame = read_one(wod, tmp_path / "f", wod.message(images=[(1, b"picture")]))
    assert pickle.loads(pickle.dumps(frame)).cameras["front"].jpeg() == b"picture"


@pytest.mark.parametrize("numbers", [(1, 1), (0,)])
def test_two_pictures_of_one_camera_are_a_fault(wod, tmp_path, numbers):
    with pytest.raises(DatasetError, match="two images of camera"):
        read_one(wod, tmp_path / "f", wod.message(images=[(number, b"x") for number in numbers]))


def test_a_calibration_of_another_size_is_a_fault(wod, tmp_path):
    message = wod.message(images=[(1, b"x")])
    del message.frame.context.camera_calibrations[0].extrinsic.transform[-1:]
    with pytest.raises(DatasetError, match="extrinsic has 15 numbers"):
        read_one(wod, tmp_path / "f", message)


def test_a_damaged_record_is_a_fault_unless_it_is_not_to_be_checked(wod, tmp_path):
    path = wod.write(tmp_path / "f", wod.message(images=[(1, bytes(1000))]))
    data = path.read_bytes()
    assert data.count(bytes(1000)) == 1
    path.write_bytes(data.replace(bytes(1000), bytes(999) + b"x"))
    with pytest.raises(DatasetError, match="checksum"):
        frames.read(path, 0)
    assert frames.read(path, 0, verify=False).cameras["front"].jpeg()[-1:] == b"x"


@settings(max_examples=40)
@given(st.data())
def test_damaged_payloads_give_frames_or_faults(wod, tmp_path_factory, data):
    """The checksum is made anew, as by somebody who wants to do harm."""
    path = tmp_path_factory.mktemp("fuzz") / "f"
    content = bytearray(wod.message(images=[(2, bytes(30)), (1, bytes(20))]).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip":
            content[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del content[at : at + data.draw(st.integers(1, 40))]
        else:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=40))
    tfrecord.write(path, [bytes(content)])
    try:
        frame = frames.read(path, 0)
    except DatasetError:
        return
    assert frame.past.shape == (16, 6)
    assert np.isfinite(frame.past).all()


@settings(max_examples=40)
@given(st.binary(max_size=60))
def test_any_bytes_are_walked_to_their_end_or_a_fault(payload):
    try:
        found = list(wire.fields(memoryview(payload), where="here"))
    except DatasetError:
        return
    borders = [0, *(stop for *_, stop in found)]
    assert [start for _, start, *_ in found] == borders[:-1]
    assert borders[-1] == len(payload)


@settings(max_examples=40)
@given(st.data())
def test_damaged_jpegs_give_pixels_or_faults(wod, tmp_path_factory, data):
    pytest.importorskip("PIL")
    picture = bytearray(wod.jpeg())
    at = data.draw(st.integers(0, len(picture) - 1))
    if data.draw(st.booleans()):
        picture[at] ^= data.draw(st.integers(1, 255))
    else:
        picture = data.draw(st.sampled_from([picture[:at], bytes(picture[at:])]))
    path = tmp_path_factory.mktemp("fuzz") / "f"
    camera = read_one(wod, path, wod.message(images=[(1, bytes(picture))])).cameras["front"]
    try:
        assert camera.pixels().shape == (*camera.size(), 3)
    except DatasetError:
        return


def test_many_tiny_parts_take_linear_time(wod, tmp_path):
    """A payload of 100,000 empty frames in a frame is no message that anybody writes."""
    path = tfrecord.write(tmp_path / "f", [b"\x0a\x00" * 100_000])
    with pytest.raises(DatasetError, match="a frame called ''"):
        frames.read(path, 0)


def test_real_frames(realdata):
    pytest.importorskip("PIL")
    path = realdata / "wod_e2e_rebuilt" / "real_two_frames.tfrecord-00000-of-00001"
    first, second = (frames.read(path, offset) for offset, _ in tfrecord.records(path))
    assert first.name == "0ccbcc47f5d0920f6918be5b7148e05c-161"
    assert second.index == 227
    assert first.speed == pytest.approx(14.6364, abs=1e-4)
    np.testing.assert_array_equal(first.past[-1, :2], 0)
    np.testing.assert_array_equal(first.past[-1, 2:], first.past[-2, 2:])
    assert first.scores is None
    assert list(first.cameras) == ["front_left", "front", "front_right"]
    assert first.cameras["front"].pixels().shape == (1079, 972, 3)
    assert first.cameras["front"].size() == (1079, 972)
    assert first.cameras["front"].calibration.width == 972


def test_a_name_that_is_no_text_is_a_fault(wod, tmp_path):
    payload = wod.message().SerializeToString()
    name = wod.message().frame.context.name.encode()
    torn = payload.replace(name, b"\xff" + name[1:], 1)
    with pytest.raises(DatasetError, match="no text"):
        frames.parse(memoryview(torn), tmp_path / "shard", 0)
