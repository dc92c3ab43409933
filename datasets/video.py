"""Camera frames in video files: decoded when they are asked for, and encoded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.demonstration import LazyFrames
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.images import MARGIN
from fastloop.extras import require

__all__ = ["TOLERANCE", "VideoFrames", "VideoInfo", "VideoWriter", "probe"]

TOLERANCE = 1e-4  # s between the stamp of a frame and the one asked for, as LeRobot has it
SKIP = 32  # frames that are decoded and dropped rather than sought over
OPEN_FILES = 16

# LeRobot's own choices: every other frame is a key frame, so that any frame is quick to reach.
ENCODERS = {
    "libsvtav1": ("av1", {"g": "2", "crf": "30", "preset": "12"}),
    "libx264": ("h264", {"g": "2", "crf": "23"}),
}
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts"


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says of itself: (3, height, width) frames, duration in s."""

    codec: str
    pix_fmt: str
    height: int
    width: int
    fps: float
    duration: float


def probe(path: str | Path) -> VideoInfo:
    """Read the header of a video file.

    Raises:
        DatasetError: it does not exist, is cut, or holds no video.
    """
    with _errors_named(path):
        return _probe(str(path), _version(path))


@lru_cache(maxsize=4096)
def _probe(path: str, version: tuple[int, int]) -> VideoInfo:
    with _open(path) as container:
        stream = _stream(container, path)
        context = stream.codec_context
        duration = (stream.duration or 0) * (stream.time_base or 0)
        return VideoInfo(
            codec={"libdav1d": "av1"}.get(context.name, context.name),
            pix_fmt=str(context.pix_fmt),
            height=context.height,
            width=context.width,
            fps=float(stream.average_rate or 0),
            duration=float(duration),
        )


class VideoFrames(LazyFrames):
    """Frames of a video file by their stamps, uint8 (N, 3, H, W), RGB.

    Args:
        path: the file; opened once in every process that reads.
        stamps: (N,) s from its beginning; may be a stretch of the file.

    Raises:
        DatasetError: the file cannot be read, or ends before the last stamp.
    """

    def __init__(self, path: str | Path, stamps: NDArray[np.float64]) -> None:
        info = probe(path)
        super().__init__((len(stamps), 3, info.height, info.width), np.uint8)
        self.path = str(path)
        self.stamps = np.asarray(stamps, np.float64)
        if (np.diff(self.stamps) <= 0).any() or not np.isfinite(self.stamps).all():
            raise DatasetError(f"{path}: the stamps of its frames must rise")
        if len(self.stamps) and not -TOLERANCE <= self.stamps[0] <= self.stamps[-1] < max(
            info.duration, TOLERANCE
        ):
            raise DatasetError(
                f"{path} lasts {info.duration:g} s; frames of {self.stamps[0]:g} to "
                f"{self.stamps[-1]:g} s are expected in it"
            )

    def read(self, places: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The frames (M, 3, H, W) at rising `places`.

        Raises:
            DatasetError: the file is damaged, or has no frame within `TOLERANCE` of a stamp.
        """
        frames = np.empty((len(places), *self.shape[1:]), np.uint8)
        with _errors_named(self.path):
            decoder = _decoder(self.path, _version(self.path), os.getpid())
            for row, stamp in enumerate(self.stamps[places]):
                picture = decoder.at(float(stamp)).to_ndarray(format="rgb24").transpose(2, 0, 1)
                if picture.shape != self.shape[1:]:
                    raise DatasetError(
                        f"{self.path}: its frame at {stamp:g} s has shape {picture.shape}, the "
                        f"others {self.shape[1:]}"
                    )
                frames[row] = picture
        return frames


class _Decoder:
    """An open file that is read forwards, and sought in when that is shorter."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.container = _open(path)
        self.stream = _stream(self.container, path)
        context = self.stream.codec_context
        # One thread: a decoder of many cannot be closed in a forked process, where they are not.
        context.thread_type, context.thread_count = "NONE", 1
        pixels = (context.height + MARGIN) * (context.width + MARGIN)
        context.options = {"max_pixels": str(pixels), "threads": "1"}
        self.tick = float(1 / self.stream.average_rate) if self.stream.average_rate else 0.0
        self.forward: Iterator[Any] = iter(())
        self.now: Any = None

    def at(self, stamp: float) -> Any:
        """The frame within `TOLERANCE` of `stamp` s."""
        ahead = stamp - self.now.time if self.now else -1.0
        if not -TOLERANCE <= ahead <= SKIP * self.tick:
            self._seek(stamp)
        while self.now is None or self.now.time < stamp - TOLERANCE:
            self.now = next(self.forward, None)
            if self.now is None:
                raise DatasetError(f"{self.path} has no frame at {stamp:g} s: it ends before")
        if self.now.time > stamp + TOLERANCE:
            found = self.now.time
            self.now = None
            raise DatasetError(
                f"{self.path} has no frame within {TOLERANCE:g} s of {stamp:g} s; the next is at "
                f"{found:g} s"
            )
        return self.now

    def _seek(self, stamp: float) -> None:
        """Go to a key frame at or before `stamp`.

        Files are indexed by the time of decoding, which with reordered frames is earlier than that
        of showing: what is found may be too late, and then the search goes on further back.
        """
        for back in (1, 64, None):
            start = 0.0 if back is None else stamp - back * self.tick
            self.container.seek(
                max(int(start / self.stream.time_base), 0), stream=self.stream, backward=True
            )
            self.forward = (f for f in self.container.decode(self.stream) if f.time is not None)
            self.now = next(self.forward, None)
            if self.now is not None and self.now.time <= stamp + TOLERANCE:
                return


@lru_cache(maxsize=OPEN_FILES)
def _decoder(path: str, version: tuple[int, int], process: int) -> _Decoder:
    """The file as this process has it open; a forked one must not share the place in it."""
    return _Decoder(path)


def _version(path: str | Path) -> tuple[int, int]:
    """Changes when the file is written anew."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


class VideoWriter:
    """Writes an mp4 file of frames at exactly `fps`; AV1 where this PyAV has it, h264 elsewhere.

    Args:
        path: is written over.
        shape: (3, H, W) of a frame; H and W must be even.
        fps: frames in a second.

    Raises:
        ValueError: H or W is odd.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], fps: float) -> None:
        av = _av()
        if shape[1] % 2 or shape[2] % 2:
            raise ValueError(
                f"frames of {shape[1]} x {shape[2]} cannot become a video, whose height and width "
                "are even; write them with use_videos=False"
            )
        encoder = next(name for name in ENCODERS if name in av.codecs_available)
        self.codec, options = ENCODERS[encoder]
        self.path = path
        self.shape = shape
        self.frames = 0
        self.size = 0  # bytes so far
        self.rate = Fraction(fps).limit_denominator(1001)
        with _quiet():
            self.container = av.open(str(path), "w", format="mp4")
            self.stream = self.container.add_stream(encoder, rate=self.rate, options=dict(options))
        self.stream.height, self.stream.width = shape[1:]
        self.stream.pix_fmt = "yuv420p"

    def add(self, frames: NDArray[np.uint8]) -> None:
        """Append frames (N, 3, H, W)."""
        av = _av()
        with _quiet():
            for picture in frames:
                frame = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(picture.transpose(1, 2, 0)), format="rgb24"
                )
                frame.pts, frame.time_base = self.frames, 1 / self.rate
                self.frames += 1
                self._mux(frame)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with _quiet():
            if kind is None:
                self._mux(None)
            self.container.close()

    def _mux(self, frame: Any) -> None:
        for packet in self.stream.encode(frame):
            self.size += packet.size
            self.container.mux(packet)


def _av() -> Any:
    return require("av", extra="data")


def _open(path: str) -> Any:
    """A container that holds its own frames. FFmpeg knows others, playlists for instance, that name
    further files and addresses to be read, and takes some names of files for addresses."""
    if not os.path.isfile(path):  # a pipe would never end
        raise DatasetError(f"{path} does not exist, or is no file")
    return _av().open(f"file:{path}", options={"format_whitelist": FORMATS})


def _stream(container: Any, path: str | Path) -> Any:
    if not container.streams.video or container.streams.video[0].codec_context is None:
        raise DatasetError(f"{path} holds no video of a known kind")
    return container.streams.video[0]


@contextlib.contextmanager
def _errors_named(path: str | Path) -> Iterator[None]:
    """What FFmpeg finds in a damaged file becomes a fault of that file."""
    try:
        yield
    except DatasetError:
        raise
    except (_av().FFmpegError, EOFError, IndexError, OSError, OverflowError, ValueError) as error:
        _decoder.cache_clear()  # its state is anybody's guess
        raise DatasetError(f"{path} cannot be decoded ({error})") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The AV1 encoder introduces itself on stderr, unless its environment says not to."""
    before = os.environ.get("SVT_LOG")
    os.environ.setdefault("SVT_LOG", "1")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("SVT_LOG", None)
