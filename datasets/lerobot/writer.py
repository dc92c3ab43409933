"""Writes demonstrations as a LeRobotDataset v3.0, as LeRobot's own writer lays it out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.demonstration import Demonstration, Frames
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.images import encode_image
from fastloop.datasets.lerobot import schema
from fastloop.datasets.lerobot.info import Feature
from fastloop.datasets.statistics import BLOCK, Running
from fastloop.datasets.video import VideoWriter, probe
from fastloop.extras import require

__all__ = ["write"]

FILES_A_FOLDER = 1000
DATA_FILE_MB, VIDEO_FILE_MB = 100, 200  # a file of this size is followed by another


def write(
    path: str | Path,
    demonstrations: Iterable[Demonstration],
    *,
    fps: float | None = None,
    robot_type: str = "unknown",
    use_videos: bool = True,
) -> Path:
    """Write a dataset folder that appears whole or not at all.

    Kept are observations, actions, rewards (``next.reward``), success (``next.success``) and the
    task; simulator states and seeds have no place in the format.

    Args:
        path: the folder; must not exist.
        demonstrations: gone through once; all with the same features.
        fps: frames in a second; by default the first demonstration's `control_hz`.
        robot_type: what recorded them.
        use_videos: whether images (N, 3, H, W) become mp4 files, which loses some of them, or PNGs
            in the tables.

    Raises:
        DatasetError: there is no demonstration, or one differs from the first; nothing is written.
        ValueError: `fps` is not known, or images cannot become a video.
        OSError: the folder exists, or the disk is full; nothing is written.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists; give the dataset a folder of its own")
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with contextlib.ExitStack() as stack:
            writer: _Writer | None = None
            for demonstration in demonstrations:
                if writer is None:
                    rate = fps or demonstration.control_hz
                    if not rate:
                        raise ValueError("the demonstrations do not say their rate: give fps=...")
                    writer = _Writer(partial, demonstration, rate, use_videos, stack)
                writer.add(demonstration)
        if writer is None:
            raise DatasetError("there is no demonstration to write")
        writer.finish(robot_type)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


class _Writer:
    """The folder in the making."""

    def __init__(
        self,
        root: Path,
        first: Demonstration,
        fps: float,
        use_videos: bool,
        stack: contextlib.ExitStack,
    ) -> None:
        self.root = root
        self.fps = int(fps) if float(fps).is_integer() else fps
        self.features = schema.features(first, use_videos)
        self.tasks: dict[str, int] = {}
        self.episodes: list[dict[str, Any]] = []
        self.running = {key: Running() for key in self.features}
        self.frames = 0
        self.data = _DataFiles(root, self.features, stack)
        videos = [key for key, feature in self.features.items() if feature.dtype == "video"]
        self.videos = {
            key: _VideoFiles(root, key, self.features[key], fps, stack) for key in videos
        }

    def add(self, demonstration: Demonstration) -> None:
        """Append an episode."""
        number, length = len(self.episodes), len(demonstration)
        columns = self._columns(demonstration)
        given = {key: tuple(columns[key].shape[1:]) or (1,) for key in self.features}
        expected = {key: feature.shape for key, feature in self.features.items()}
        if given != expected or not length:
            raise DatasetError(
                f"episode {number} has {length} frames of {given}; the first has {expected}"
            )
        seen = {key: Running() for key in self.features}
        for key, one in seen.items():
            one.add(columns[key])
            self.running[key].merge(one)
        chunk, file = self.data.add(columns, length)
        place = {"data/chunk_index": chunk, "data/file_index": file}
        ends = {"dataset_from_index": self.frames, "dataset_to_index": self.frames + length}
        films: dict[str, Any] = {}
        for key, video in self.videos.items():
            films |= video.add(columns[key])
        self.episodes.append(
            {"episode_index": number, "tasks": [demonstration.task], "length": length}
            | place | ends | films
            | {
                f"stats/{key}/{name}": value.tolist()
                for key, one in seen.items()
                for name, value in one.statistics().items()
            }
            | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        )  # fmt: skip
        self.frames += length

    def _columns(self, demonstration: Demonstration) -> dict[str, Frames]:
        """All features of an episode, (N, ...) each."""
        length = len(demonstration)
        task = self.tasks.setdefault(demonstration.task, len(self.tasks))
        count = np.arange(length)
        done = count == length - 1
        found: dict[str, Frames] = dict(demonstration.observations)
        found |= {
            "next.done": done,
            "next.success": done & demonstration.success,
            "timestamp": (count / float(self.fps)).astype(np.float32),
            "frame_index": count,
            "episode_index": np.full(length, len(self.episodes)),
            "index": self.frames + count,
            "task_index": np.full(length, task),
        }
        if demonstration.actions.shape[1]:
            found["action"] = demonstration.actions
        if demonstration.rewards is not None:
            found["next.reward"] = demonstration.rewards
        if set(found) != set(self.features):
            raise DatasetError(
                f"episode {len(self.episodes)} has {sorted(found)}; the first has "
                f"{sorted(self.features)}"
            )
        return found

    def finish(self, robot_type: str) -> None:
        """Write what is known at the end: the files are closed."""
        pq = require("pyarrow.parquet", extra="data")
        meta = self.root / "meta"
        (meta / "episodes/chunk-000").mkdir(parents=True)
        pq.write_table(schema.tasks(self.tasks), meta / "tasks.parquet")
        table = schema.episodes(self.episodes, self.features)
        pq.write_table(table, meta / "episodes/chunk-000/file-000.parquet")
        statistics = {key: one.statistics() for key, one in self.running.items()}
        _write_json(
            meta / "stats.json",
            {k: {name: v.tolist() for name, v in of.items()} for k, of in statistics.items()},
        )
        described = {
            key: schema.described(feature, self.fps) | self._codec(key)
            for key, feature in self.features.items()
        }
        _write_json(
            meta / "info.json",
            {
                "codebase_version": "v3.0",
                "robot_type": robot_type,
                "total_episodes": len(self.episodes),
                "total_frames": self.frames,
                "total_tasks": len(self.tasks),
                "chunks_size": FILES_A_FOLDER,
                "data_files_size_in_mb": DATA_FILE_MB,
                "video_files_size_in_mb": VIDEO_FILE_MB,
                "fps": self.fps,
                "splits": {"train": f"0:{len(self.episodes)}"},
                "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
                "video_path": (
                    "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
                    if self.videos
                    else None
                ),
                "features": described,
            },
        )

    def _codec(self, key: str) -> dict[str, Any]:
        if key not in self.videos:
            return {}
        info = probe(self.videos[key].paths[0])
        return {
            "info": {
                "video.height": info.height,
                "video.width": info.width,
                "video.codec": info.codec,
                "video.pix_fmt": info.pix_fmt,
                "video.is_depth_map": False,
                "video.fps": self.fps,
                "video.channels": 3,
                "has_audio": False,
            }
        }


class _Files:
    """Files that follow each other when they are full."""

    def __init__(self, folder: Path, suffix: str, size_mb: int) -> None:
        self.folder = folder
        self.suffix = suffix
        self.size = size_mb * 2**20
        self.number = -1

    @property
    def place(self) -> tuple[int, int]:
        """Chunk and file index."""
        return divmod(self.number, FILES_A_FOLDER)

    def full(self, size: int) -> bool:
        """Whether the next episode goes to another file than one of `size` bytes."""
        return size >= self.size

    def next(self) -> Path:
        """The path of another file."""
        self.number += 1
        chunk, file = self.place
        path = self.folder / f"chunk-{chunk:03d}" / f"file-{file:03d}{self.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class _DataFiles:
    """The tables: a group of rows for every episode."""

    def __init__(
        self, root: Path, features: dict[str, Feature], stack: contextlib.ExitStack
    ) -> None:
        self.files = _Files(root / "data", ".parquet", DATA_FILE_MB)
        self.columns = {key: one for key, one in features.items() if one.dtype != "video"}
        self.schema = schema.data(self.columns)
        self.stack = stack
        self.open: Any = None
        self.path = root

    def add(self, columns: dict[str, Frames], length: int) -> tuple[int, int]:
        """Write the rows of an episode; chunk and file index of where they are."""
        pa = require("pyarrow", extra="data")
        if self.open is None or self.files.full(self.path.stat().st_size):
            if self.open:
                self.open.close()
            pq = require("pyarrow.parquet", extra="data")
            self.path = self.files.next()
            self.open = self.stack.enter_context(pq.ParquetWriter(self.path, self.schema))
        arrays = [
            schema.images(_pictures(columns[key]), key)
            if feature.is_image
            else schema.numbers(np.asarray(columns[key]), self.schema.field(key).type)
            for key, feature in self.columns.items()
        ]
        self.open.write_table(pa.table(arrays, schema=self.schema))
        return self.files.place


class _VideoFiles:
    """The videos of one camera."""

    def __init__(
        self, root: Path, key: str, feature: Feature, fps: float, stack: contextlib.ExitStack
    ) -> None:
        self.files = _Files(root / "videos" / key, ".mp4", VIDEO_FILE_MB)
        self.key = key
        self.shape = feature.shape
        self.fps = fps
        self.stack = stack
        self.paths: list[Path] = []
        self.open: VideoWriter | None = None
        self.current = contextlib.ExitStack()

    def add(self, frames: Frames) -> dict[str, Any]:
        """Write the frames of an episode; the episode's columns about it."""
        if self.open is None or self.files.full(self.open.size):
            self.current.close()
            path = self.files.next()
            self.current = self.stack.enter_context(contextlib.ExitStack())
            self.open = self.current.enter_context(VideoWriter(path, self.shape, self.fps))
            self.paths.append(path)
        start = self.open.frames
        for at in range(0, len(frames), BLOCK):
            self.open.add(frames[at : at + BLOCK])
        chunk, file = self.files.place
        return {
            f"videos/{self.key}/chunk_index": chunk,
            f"videos/{self.key}/file_index": file,
            f"videos/{self.key}/from_timestamp": float(start / self.open.rate),
            f"videos/{self.key}/to_timestamp": float(self.open.frames / self.open.rate),
        }


def _pictures(frames: Frames) -> list[bytes]:
    found: list[bytes] = []
    for at in range(0, len(frames), BLOCK):
        block: NDArray[np.uint8] = frames[at : at + BLOCK]
        found += [encode_image(picture) for picture in block]
    return found


def _write_json(path: Path, facts: Any) -> None:
    path.write_text(json.dumps(facts, indent=4), encoding="utf-8")
