"""Small datasets of every version, laid out as LeRobot laid them out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fastloop.datasets import lerobot
from fastloop.datasets.demonstration import Demonstration
from fastloop.datasets.images import encode_image
from fastloop.datasets.video import VideoWriter

pa = pytest.importorskip("pyarrow")
pytest.importorskip("av")

FPS, LENGTHS, SIZE = 10, (5, 4, 7), (16, 32)
IMAGE = "observation.images.top"


def levels(episode: int, length: int) -> np.ndarray:
    """Frames as bright as their episode and tick say."""
    gray = (60 * episode + 6 * np.arange(length)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(gray[:, None, None, None], (length, 3, *SIZE)))


def make_one(episode: int, length: int, width: int = 2) -> Demonstration:
    rng = np.random.default_rng(episode)
    return Demonstration(
        observations={
            "observation.state": rng.normal(size=(length, width)).astype(np.float32),
            IMAGE: levels(episode, length),
        },
        actions=rng.normal(size=(length, 2)).astype(np.float32),
        rewards=rng.normal(size=length).astype(np.float32),
        success=episode % 2 == 0,
        task=("push", "lift")[episode % 2],
        control_hz=FPS,
    )


@pytest.fixture(scope="session")
def make_episode() -> Callable[..., Demonstration]:
    """A demonstration by its number and length."""
    return make_one


@pytest.fixture(scope="session")
def episodes() -> list[Demonstration]:
    return [make_one(episode, length) for episode, length in enumerate(LENGTHS)]


@pytest.fixture(scope="session")
def v3(tmp_path_factory, episodes) -> Path:
    return lerobot.write(tmp_path_factory.mktemp("v3") / "set", episodes)


@pytest.fixture(scope="session")
def v3_images(tmp_path_factory, episodes) -> Path:
    return lerobot.write(tmp_path_factory.mktemp("png") / "set", episodes, use_videos=False)


@pytest.fixture(scope="session")
def v2(tmp_path_factory, episodes) -> Path:
    """Version 2.1, with a video and a table for every episode."""
    import pyarrow.parquet as pq

    root = tmp_path_factory.mktemp("v2") / "set"
    for folder in ("meta", "data/chunk-000", f"videos/chunk-000/{IMAGE}"):
        (root / folder).mkdir(parents=True)
    lines = []
    for i, one in enumerate(episodes):
        pq.write_table(rows(i, one), root / f"data/chunk-000/episode_{i:06d}.parquet")
        film = root / f"videos/chunk-000/{IMAGE}/episode_{i:06d}.mp4"
        with VideoWriter(film, (3, *SIZE), FPS) as writer:
            writer.add(one.observations[IMAGE])
        lines.append({"episode_index": i, "tasks": [one.task], "length": len(one)})
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    film = "episode_{episode_index:06d}"
    info = {
        "codebase_version": "v2.1", "fps": FPS, "total_episodes": len(episodes),
        "chunks_size": 1000,
        "data_path": f"data/chunk-{{episode_chunk:03d}}/{film}.parquet",
        "video_path": f"videos/chunk-{{episode_chunk:03d}}/{{video_key}}/{film}.mp4",
        "features": {
            IMAGE: {"dtype": "video", "shape": [3, *SIZE]},
            "observation.state": {"dtype": "float32", "shape": [2]},
            "action": {"dtype": "float32", "shape": [2]},
            "next.reward": {"dtype": "float32", "shape": [1]},
            "next.success": {"dtype": "bool", "shape": [1]},
        },
    }  # fmt: skip
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


@pytest.fixture(scope="session")
def v1(tmp_path_factory, episodes) -> Path:
    """Version 1, with one table and an image of its own beside the video."""
    root = tmp_path_factory.mktemp("v1") / "set"
    for folder in ("meta_data", "train", "videos"):
        (root / folder).mkdir(parents=True)
    tables, ends = [], np.cumsum([len(one) for one in episodes])
    for i, one in enumerate(episodes):
        film = f"videos/{IMAGE}_episode_{i:06d}.mp4"
        with VideoWriter(root / film, (3, *SIZE), FPS) as writer:
            writer.add(one.observations[IMAGE])
        shown = [{"path": film, "timestamp": float(np.float32(t / FPS))} for t in range(len(one))]
        stills = [{"bytes": encode_image(p), "path": "x.png"} for p in one.observations[IMAGE]]
        table = rows(i, one).append_column(IMAGE, pa.array(shown))
        tables.append(table.append_column("observation.images.still", pa.array(stills)))
    table = pa.concat_tables(tables)
    with pa.ipc.new_stream(root / "train/data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)
    files = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (root / "train/state.json").write_text(json.dumps(files))
    (root / "meta_data/info.json").write_text(json.dumps({"fps": FPS, "video": 1}))
    index = {"from": np.array([0, *ends[:-1]]), "to": np.array(ends)}
    save_file(index, root / "meta_data/episode_data_index.safetensors")
    return root


def rows(episode: int, one: Demonstration):
    """The columns that versions 1 and 2 share."""
    length = len(one)
    vector = pa.list_(pa.float32(), 2)
    return pa.table(
        {
            "observation.state": pa.array(one.observations["observation.state"].tolist(), vector),
            "action": pa.array(one.actions.tolist(), vector),
            "next.reward": pa.array(one.rewards),
            "next.success": pa.array([one.success and t == length - 1 for t in range(length)]),
            "timestamp": pa.array((np.arange(length) / FPS).astype(np.float32)),
            "frame_index": pa.array(np.arange(length)),
            "episode_index": pa.array(np.full(length, episode)),
        }
    )
