"""Videos decode, have even sides, and show the captions that they were given."""

import numpy as np
import pytest

from fastloop.extras import MissingExtraError
from fastloop.sims import video
from fastloop.sims.video import Filming, Recorder, compose

pytest.importorskip("cv2")
ffmpeg = pytest.importorskip("imageio_ffmpeg")


def decode(path):
    frames = ffmpeg.read_frames(str(path))
    meta = next(frames)
    width, height = meta["size"]
    pictures = [np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in frames]
    return meta, pictures


def test_a_recorded_episode_decodes(tmp_path):
    path = tmp_path / "videos" / "a.mp4"
    recorder = Recorder(path, fps=10.0)
    for tick in range(12):
        scene = np.zeros((65, 131, 3), np.uint8)
        scene[:, : 5 * tick] = (0, 0, 250)
        recorder.frame(scene, f"plain  tick {tick}\nplan 48 ms")
    assert not path.exists()
    recorder.close(keep=True)
    meta, pictures = decode(path)
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert meta["fps"] == 10.0
    assert len(pictures) == 12 + 5  # the last one stays for half a second
    height, width, _ = pictures[0].shape
    assert height % 2 == 0
    assert width % 2 == 0
    assert width >= 256
    assert pictures[11][-20:, 10, 2].min() > 200  # the scene is there, in its colors
    assert pictures[11][-20:, 10, 0].max() < 50
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_an_unwanted_film_leaves_nothing(tmp_path):
    recorder = Recorder(tmp_path / "a.mp4", fps=10.0)
    recorder.frame(np.zeros((64, 64, 3), np.uint8), "tick 0")
    recorder.close(keep=False)
    recorder.close(keep=True)
    assert list(tmp_path.iterdir()) == []


def test_captions_are_drawn_above_the_scene():
    scene = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    plain, other = compose(scene, "tick 1\na"), compose(scene, "tick 2\na")
    assert (plain[-256:] == scene).all()
    assert (plain != other).any()
    assert (compose(scene, "tick 1\na", "success") != plain).any()


def test_which_episodes_are_filmed_and_kept():
    assert not Filming().films(0)
    first = Filming("first-k", k=2)
    assert [first.films(i) for i in range(4)] == [True, True, False, False]
    assert first.keeps("success")
    failures = Filming("failures")
    assert failures.films(99)
    assert failures.keeps("timeout")
    assert not failures.keeps("success")
    with pytest.raises(ValueError, match=r"none, first-k, failures, all"):
        Filming("some")


def test_films_that_nothing_can_encode_are_refused_at_once(monkeypatch):
    def missing(module, *, extra):
        raise MissingExtraError(f"{module} of {extra}")

    monkeypatch.setattr(video, "require", missing)
    with pytest.raises(MissingExtraError, match="imageio_ffmpeg of report"):
        Filming("first-k")
    assert not Filming().films(0)
