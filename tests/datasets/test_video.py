"""Frames out of videos: the right ones, in any order and process; and files that are damaged."""

from __future__ import annotations

import multiprocessing
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets import video
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.video import VideoFrames, VideoWriter, probe

pytest.importorskip("av")

FPS, COUNT = 10, 60


def pictures(count: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Gray frames that say their number: as bright as it is high."""
    levels = (4 * np.arange(count) % 256).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, 3, *size))


def number(frames: np.ndarray) -> np.ndarray:
    return np.round(frames.mean(axis=(-3, -2, -1)) / 4).astype(int)


@pytest.fixture(scope="module", params=["libsvtav1", "libx264"])
def film(request, tmp_path_factory) -> Path:
    import av

    if request.param not in av.codecs_available:
        pytest.skip(f"this PyAV has no {request.param}")
    path = tmp_path_factory.mktemp("video") / "film.mp4"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "ENCODERS", {request.param: video.ENCODERS[request.param]})
        with VideoWriter(path, (3, 32, 48), FPS) as writer:
            writer.add(pictures(COUNT))
    return path


@given(places=st.lists(st.integers(-COUNT, COUNT - 1), max_size=12))
def test_the_frames_are_those_asked_for(film, places):
    frames = VideoFrames(film, np.arange(COUNT) / FPS)
    found = frames[np.array(places, np.int64)]
    assert found.shape == (len(places), 3, 32, 48)
    assert found.dtype == np.uint8
    assert number(found).tolist() == [place % COUNT for place in places]


def test_a_stretch_of_a_file(film):
    frames = VideoFrames(film, 2.0 + np.arange(10) / FPS)
    assert number(frames[:]).tolist() == list(range(20, 30))
    assert number(frames[3]) == 23


def test_what_a_file_says_of_itself(film):
    info = probe(film)
    assert (info.height, info.width, info.fps, info.duration) == (32, 48, FPS, COUNT / FPS)
    assert info.codec in ("av1", "h264")


def test_other_processes_read_too(film):
    frames = VideoFrames(film, np.arange(COUNT) / FPS)
    assert number(frames[5]) == 5  # the file is open here
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(frames.__getitem__, [40, 3])
    assert [int(number(frame)) for frame in found] == [40, 3]
    assert number(frames[6]) == 6


def test_stamps_between_frames_are_refused(film):
    with pytest.raises(DatasetError, match=r"no frame within 0\.0001 s of 0\.05 s"):
        VideoFrames(film, np.array([0.0, 0.05, 0.1]))[1]
    near = VideoFrames(film, np.arange(5) / FPS + 0.5e-4)
    assert number(near[:]).tolist() == [0, 1, 2, 3, 4]


def test_stamps_beyond_the_file_are_refused(film):
    with pytest.raises(DatasetError, match=r"lasts 6 s; frames of 5.9 to 6 s"):
        VideoFrames(film, np.array([5.9, 6.0]))
    with pytest.raises(DatasetError, match="must rise"):
        VideoFrames(film, np.array([0.2, 0.1]))
    with pytest.raises(DatasetError, match="must rise"):
        VideoFrames(film, np.array([0.2, np.nan]))


def test_no_video_at_all(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere\.mp4"):
        probe(tmp_path / "nowhere.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DatasetError, match=r"text\.mp4"):
        probe(tmp_path / "text.mp4")


def test_other_files_are_not_followed(tmp_path):
    """FFmpeg reads a playlist for the video that it names, whatever the playlist is called."""
    with VideoWriter(tmp_path / "secret.mp4", (3, 32, 48), FPS) as writer:
        writer.add(pictures(20, (32, 48)))
    lists = (
        "ffconcat version 1.0\nfile secret.mp4\nduration 2\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:2,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    )
    for text in lists:
        (tmp_path / "film.mp4").write_text(text)
        with pytest.raises(DatasetError, match=r"film\.mp4"):
            probe(tmp_path / "film.mp4")


def test_a_name_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with VideoWriter(tmp_path / "http:film.mp4", (3, 32, 48), FPS) as writer:
        writer.add(pictures(20, (32, 48)))
    assert probe("http:film.mp4").height == 32


def test_a_file_written_anew_is_read_anew(tmp_path):
    path = tmp_path / "film.mp4"
    for count, size in ((20, (32, 48)), (30, (64, 32))):
        with VideoWriter(path, (3, *size), FPS) as writer:
            writer.add(pictures(count, size))
        assert number(VideoFrames(path, np.arange(count) / FPS)[:]).tolist() == list(range(count))


def test_odd_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="31 x 48 cannot become a video"):
        VideoWriter(tmp_path / "odd.mp4", (3, 31, 48), FPS)


DAMAGE = st.tuples(
    st.sampled_from(["flip", "cut", "insert"]), st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=8),
)  # fmt: skip


def damaged(data: bytes, kind: str, where: float, noise: bytes) -> bytes:
    at = int(where * len(data))
    if kind == "cut":
        return data[:at]
    return data[:at] + noise + data[at + (len(noise) if kind == "flip" else 0) :]


@settings(max_examples=50)
@given(damage=DAMAGE)
def test_a_damaged_file_is_data_or_a_fault(film, tmp_path_factory, damage):
    path = tmp_path_factory.mktemp("damaged") / "film.mp4"
    path.write_bytes(damaged(film.read_bytes(), *damage))
    with suppress(DatasetError):
        frames = VideoFrames(path, np.arange(COUNT) / FPS)
        assert frames[::7].shape == (9, *frames.shape[1:])


def test_real_films(realdata):
    """h264 with reordered frames, and AV1: any frame is the same, however it is reached."""
    rng = np.random.default_rng(0)
    old, new = realdata / "lerobot_v1_episodes", realdata / "lerobot_v3_datasets"
    for path, count, fps in (
        (old / "pusht/videos/observation.image_episode_000000.mp4", 161, 10),
        (old / "xarm_lift_medium/videos/observation.image_episode_000000.mp4", 25, 15),
        (new / "pusht/videos/observation.image/chunk-000/file-000.mp4", 161, 10),
    ):
        frames = VideoFrames(path, np.arange(count) / fps)
        whole = frames[:]
        for _ in range(5):
            places = rng.integers(0, count, 4)
            np.testing.assert_array_equal(frames[places], whole[places])
