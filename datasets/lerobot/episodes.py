"""From an episode's rows and pictures to a `Demonstration`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.demonstration import Demonstration, Frames, LazyFrames
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.lerobot.info import Feature, Info
from fastloop.datasets.lerobot.tables import column

__all__ = ["ACTION", "COUNTERS", "EpisodeRows", "columns", "demonstration", "observed", "spans"]

ACTION = "action"
REWARD, SUCCESS = "next.reward", "next.success"
COUNTERS = ("timestamp", "frame_index", "episode_index")

Pictures = Callable[[str, Feature, "NDArray[np.float64]"], LazyFrames]


@dataclass(frozen=True)
class EpisodeRows:
    """The rows of one episode.

    Attributes:
        where: they are from, for messages.
        table: of `pyarrow`, one row a frame.
        task: in words.
        pictures: the frames of an image feature, by (key, feature, stamps in the episode).
    """

    where: str
    table: Any
    task: str
    pictures: Pictures


def observed(info: Info, keys: list[str] | None, where: str) -> list[str]:
    """The features that become observations: `keys`, or all that are called observations.

    Raises:
        DatasetError: the dataset lacks one; its own are listed.
    """
    numbers = [key for key, feature in info.features.items() if feature.dtype != "string"]
    if keys is None:
        return [key for key in numbers if key.split(".")[0] == "observation"]
    if missing := [key for key in keys if key not in numbers]:
        raise DatasetError(
            f"{where} has no {', '.join(missing)}; it has {', '.join(numbers)}"
            " (`rename` gives its features other names)"
        )
    return keys


def columns(info: Info, keys: list[str]) -> list[str]:
    """The columns to read for these observations; images are read when they are asked for."""
    low = [key for key in keys if not info.features[key].is_image]
    extra = [key for key in (ACTION, REWARD, SUCCESS) if key in info.features]
    return list(dict.fromkeys([*low, *extra, *COUNTERS]))


def spans(table: Any, where: str) -> dict[int, slice]:
    """Where each episode's rows are.

    Raises:
        DatasetError: the rows of an episode are not together.
    """
    of = column(table, "episode_index", where, ())
    starts = [0, *(np.flatnonzero(of[1:] != of[:-1]) + 1).tolist()] if len(of) else []
    ends = [*starts[1:], len(of)]
    found: dict[int, slice] = {}
    for start, end in zip(starts, ends, strict=True):
        episode = int(of[start])
        if episode in found:
            raise DatasetError(f"{where} holds episode {episode} twice")
        found[episode] = slice(start, end)
    return found


def demonstration(
    info: Info, rows: EpisodeRows, keys: list[str], names: Mapping[str, str]
) -> Demonstration:
    """Make the demonstration of an episode.

    Args:
        info: of the dataset.
        rows: of the episode.
        keys: of its observations, which are called ``names.get(key, key)``.
        names: see `keys`.

    Raises:
        DatasetError: its frames are not those of an episode from its first to its last.
    """
    table, where = rows.table, rows.where

    def numbers(key: str) -> NDArray[Any]:
        return column(table, key, where, info.features[key].shape)

    if (column(table, "frame_index", where, ()) != np.arange(len(table))).any():
        raise DatasetError(f"{where}: its frame_index does not count up from 0")
    stamps = column(table, "timestamp", where, ()).astype(np.float64)
    if not np.isfinite(stamps).all() or (np.diff(stamps) <= 0).any():
        raise DatasetError(f"{where}: its timestamps do not rise")
    observations: dict[str, Frames] = {}
    for key in keys:
        feature = info.features[key]
        frames = rows.pictures(key, feature, stamps) if feature.is_image else numbers(key)
        if frames.shape[1:] != feature.shape:
            raise DatasetError(
                f"{where}: {key} has frames of {frames.shape[1:]}, expected {feature.shape}"
            )
        observations[names.get(key, key)] = frames
    actions = np.zeros((len(table), 0), np.float32)
    if ACTION in info.features:
        actions = numbers(ACTION).reshape(len(table), -1).astype(np.float32)
    return Demonstration(
        observations=observations,
        actions=actions,
        rewards=numbers(REWARD).reshape(-1).astype(np.float32) if REWARD in info.features else None,
        success=bool(numbers(SUCCESS).any()) if SUCCESS in info.features else True,
        task=rows.task,
        control_hz=info.fps,
    )
